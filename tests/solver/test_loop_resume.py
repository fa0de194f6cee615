"""Runs that were killed, interrupted, stopped by time or prolonged end in the bits of a run that was not."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import safetensors.torch
import torch

from kernel_distill.solver.checkpoint import read_checkpoint
from kernel_distill.solver.store import read_file, write_file

from . import quadratic
from .quadratic import Quadratic, lines, outcome, run, whole_run


@pytest.fixture(autouse=True)
def _pythons_own_handler():
    """Ctrl-C as on a terminal: a process that a shell put into the background starts with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def saved(path):
    """A checkpoint without its seconds."""
    header, tensors = read_file(path, "checkpoint")
    header.pop("seconds")
    return header, {name: (value.dtype, value.numpy().tobytes()) for name, value in tensors.items()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_killed_run_ends_in_the_same_bits(tmp_path):
    command = [sys.executable, quadratic.__file__, str(tmp_path), "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 1
    (tmp_path / "straight").mkdir()
    straight = whole_run(tmp_path / "straight")
    assert straight.step > 0
    assert saved(tmp_path / "run.ckpt") == saved(tmp_path / "straight" / "run.ckpt")
    assert lines(tmp_path / "run.jsonl") == lines(tmp_path / "straight" / "run.jsonl")
    assert outcome(whole_run(tmp_path)) == outcome(straight)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "adabelief", "lamb"])
@pytest.mark.parametrize("cut", [0, 7, 20])
def test_a_prolonged_run_is_a_long_run(tmp_path, optimizer, cut):
    # At step 7 no evaluation is due: the one that closes the first leg must leave no trace.
    path, log = tmp_path / "run.ckpt", tmp_path / "run.jsonl"
    run(Quadratic(optimizer), checkpoint=path, log=log, steps=cut)
    learner = Quadratic(optimizer)
    result = run(learner, checkpoint=path, log=log)
    assert learner.advanced == list(range(cut, 40))
    assert outcome(result) == outcome(run(Quadratic(optimizer), log=tmp_path / "straight.jsonl"))
    assert lines(log) == lines(tmp_path / "straight.jsonl")


def test_checkpoints_change_nothing(tmp_path):
    path = tmp_path / "run.ckpt"
    assert outcome(run(Quadratic(), checkpoint=path, checkpoint_every=0)) == outcome(run(Quadratic()))


def test_a_finished_run_returns_its_result(tmp_path):
    path = tmp_path / "run.ckpt"
    first = run(Quadratic(), checkpoint=path)
    learner = Quadratic()
    second = run(learner, checkpoint=path)
    assert (learner.advanced, learner.evaluations) == ([], 0)
    assert outcome(second) == outcome(first)
    # Fewer steps than were taken cannot be untaken.
    assert run(Quadratic(), checkpoint=path, steps=5).steps == 40


def test_a_run_that_ran_out_of_patience_goes_on_with_more(tmp_path):
    path, losses = tmp_path / "run.ckpt", [5.0, 3.0, 4.0, 3.0, 3.5, 1.0]
    first = run(Quadratic(losses=losses), checkpoint=path, patience=2)
    assert (first.stopped, first.steps, first.step) == ("patience", 30, 10)
    assert run(learner := Quadratic(), checkpoint=path, patience=2).stopped == "patience"
    assert learner.evaluations == 0
    result = run(Quadratic(losses=losses[4:]), checkpoint=path, patience=4, steps=50)
    assert (result.stopped, result.step, [entry["loss"] for entry in result.history]) == ("steps", 50, losses)


def test_a_diverged_run_stays_diverged(tmp_path):
    path = tmp_path / "run.ckpt"
    first = run(Quadratic(bad_step=25), checkpoint=path)
    learner = Quadratic(bad_step=25)
    assert outcome(run(learner, checkpoint=path, steps=80)) == outcome(first)
    assert (first.stopped, learner.advanced, learner.evaluations) == ("diverged", [], 0)


def test_infinite_figures_come_back(tmp_path):
    path = tmp_path / "run.ckpt"
    learner = Quadratic(losses=[2.0, float("inf")])
    first = run(learner, checkpoint=path)
    back = read_checkpoint(path, Quadratic(), {**learner.identity, "evaluate_every": 10})
    assert first.stopped == "diverged"
    assert back.history == [{"step": 0, "loss": 2.0}, {"step": 10, "loss": float("inf")}]
    assert back.diverged
    assert (back.best, back.stale) == ({"step": 0, "loss": 2.0}, 1)


def interrupt(*_):
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_waits_for_the_step_and_writes(tmp_path):
    path, log = tmp_path / "run.ckpt", tmp_path / "run.jsonl"
    learner = Quadratic(before=lambda step: interrupt() if step == 23 else None)
    with pytest.raises(KeyboardInterrupt):
        run(learner, checkpoint=path, log=log)
    assert learner.advanced == list(range(24))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [record["kind"] for record in lines(log)].count("step") == 24
    again = Quadratic()
    assert outcome(run(again, checkpoint=path, log=log)) == outcome(run(Quadratic()))
    assert again.advanced == list(range(24, 40))


def test_a_second_ctrl_c_acts_at_once(tmp_path):
    path = tmp_path / "run.ckpt"

    def twice(step):
        if step == 23:
            interrupt()
            interrupt()

    learner = Quadratic(before=twice)
    with pytest.raises(KeyboardInterrupt):
        run(learner, checkpoint=path, checkpoint_every=0)
    assert learner.advanced == list(range(23))
    assert outcome(run(Quadratic(), checkpoint=path)) == outcome(run(Quadratic()))


@pytest.mark.parametrize("where", ["nothing to write", "own handler"])
def test_ctrl_c_is_left_alone(tmp_path, where):
    learner = Quadratic(before=lambda step: interrupt() if step == 23 else None)
    if where == "nothing to write":
        with pytest.raises(KeyboardInterrupt):
            run(learner)
        assert learner.advanced == list(range(23))
        return
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        assert run(learner, checkpoint=tmp_path / "run.ckpt").steps == 40
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


def test_an_interrupt_of_the_last_evaluation_is_not_lost(tmp_path):
    path = tmp_path / "run.ckpt"
    learner = Quadratic()
    evaluate = learner.evaluate
    learner.evaluate = lambda: (interrupt() if learner.evaluations == 4 else None) or evaluate()
    with pytest.raises(KeyboardInterrupt):
        run(learner, checkpoint=path, steps=35)
    assert learner.evaluations == 5
    assert outcome(run(Quadratic(), checkpoint=path, steps=35)) == outcome(run(Quadratic(), steps=35))


def test_other_threads_run_loops_as_well(tmp_path):
    results = []
    thread = threading.Thread(
        target=lambda: results.append(run(Quadratic(), checkpoint=tmp_path / "run.ckpt"))
    )
    thread.start()
    thread.join()
    assert outcome(results[0]) == outcome(run(Quadratic()))


@pytest.mark.parametrize(
    ("learner", "options", "message"),
    [
        ({"lr": 0.1}, {}, r"options\.lr was 0\.05, is 0\.1\): give another name"),
        ({"seed": 4, "lr": 0.1}, {}, r"\(options\.lr was 0\.05, is 0\.1; options\.seed was 3, is 4\)"),
        ({"optimizer": "lamb"}, {}, r'options\.optimizer was "adam", is "lamb"'),
        ({}, {"evaluate_every": 5}, r"\(evaluate_every was 10, is 5\)"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, learner, options, message):
    path = tmp_path / "run.ckpt"
    run(Quadratic(), checkpoint=path, steps=10)
    bytes_before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        run(Quadratic(**learner), checkpoint=path, **options)
    assert path.read_bytes() == bytes_before


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "other kind", "no checkpoint of ours"])
def test_damaged_files_are_refused_and_stay(tmp_path, damage):
    path = tmp_path / "run.ckpt"
    run(Quadratic(), checkpoint=path, steps=10)
    whole = path.read_bytes()
    if damage == "other kind":
        write_file(path, "set", {}, {"x": torch.zeros(1)}, force=True)
    elif damage == "no checkpoint of ours":
        safetensors.torch.save_file({"x": torch.zeros(1)}, path)
    else:
        path.write_bytes({"empty": b"", "cut": whole[:-9], "text": b"a,b\n1,2\n" * 20}[damage])
    content = path.read_bytes()
    with pytest.raises(
        ValueError, match=r"run\.ckpt (cannot be read|holds 'set'|is a safetensors file, but not)"
    ):
        run(Quadratic(), checkpoint=path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("made", ["missing", "folder"])
def test_a_checkpoint_that_cannot_be_written_is_found_before_the_first_step(tmp_path, made):
    path = {"missing": tmp_path / "no" / "run.ckpt", "folder": tmp_path}[made]
    learner = Quadratic()
    with pytest.raises(OSError, match=r"does not exist: create it first|is a folder"):
        run(learner, checkpoint=path)
    assert learner.advanced == []


def test_a_failed_write_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "run.ckpt"
    run(Quadratic(), checkpoint=path, steps=17)

    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            run(Quadratic(), checkpoint=path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.ckpt"]
    assert outcome(run(Quadratic(), checkpoint=path)) == outcome(run(Quadratic()))


def test_an_error_amid_a_step_leaves_the_checkpoint_before(tmp_path):
    path = tmp_path / "run.ckpt"

    def fail(step):
        if step == 23:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run(Quadratic(before=fail), checkpoint=path, checkpoint_every=0)
    learner = Quadratic()
    assert outcome(run(learner, checkpoint=path)) == outcome(run(Quadratic()))
    assert learner.advanced == list(range(23, 40))
