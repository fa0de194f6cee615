"""What the loop evaluates, chooses, stops at, and logs."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from kernel_distill.solver import loop as module
from kernel_distill.solver.loop import Loop, run_loop

from .quadratic import TARGET, Quadratic, lines, outcome, run


class Clock:
    """`time.monotonic` of the loop; goes on when told."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def tick(self, seconds=1.0):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


# --- Steps and evaluations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (0, 10, [0]),
        (1, 10, [0, 1]),
        (9, 3, [0, 3, 6, 9]),
        (10, 3, [0, 3, 6, 9, 10]),
        (3, 1, [0, 1, 2, 3]),
        (4, 100, [0, 4]),
    ],
)
def test_evaluations_are_at_the_start_at_every_so_many_steps_and_at_the_end(steps, every, expected):
    learner = Quadratic()
    result = run(learner, steps=steps, evaluate_every=every)
    assert [entry["step"] for entry in result.history] == expected
    assert learner.evaluations == len(expected)
    assert learner.advanced == list(range(steps))
    assert (result.steps, result.stopped) == (steps, "steps")


def test_the_methods_own_numbers_hold_where_the_loop_has_none():
    def steps_of(loop):
        result = run_loop(Quadratic(), loop, steps=6, evaluate_every=4, label="test", progress=False)
        return [entry["step"] for entry in result.history]

    assert steps_of(Loop()) == [0, 4, 6]
    assert steps_of(Loop(steps=5)) == [0, 4, 5]
    assert steps_of(Loop(evaluate_every=3)) == [0, 3, 6]


def test_a_run_learns():
    result = run(Quadratic(noise=0.0), steps=200)
    assert result.history[0]["loss"] == TARGET.square().sum().item() / 2
    assert result.figures["loss"] < 0.2 * result.history[0]["loss"]


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([3.0, 2.0, 1.0, 2.0, 3.0], 2),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0),
        ([5.0, 4.0, 3.0, 2.0, 1.0], 4),
        ([3.0, 1.0, 2.0, 1.0, 1.0], 1),
        ([0.0, -1.0, 0.0, -1.0, -0.5], 1),
    ],
)
def test_the_smallest_loss_is_chosen_and_the_earliest_of_equals(losses, best):
    learner = Quadratic(losses=losses)
    result = run(learner)
    assert (result.step, result.figures) == (10 * best, {"loss": losses[best]})
    assert [entry["loss"] for entry in result.history] == losses
    # What was learned is that of the best step, not of the last.
    expected = run(Quadratic(losses=[5.0, 4.0, 3.0, 2.0, 1.0]), steps=10 * best).learned
    assert all(torch.equal(result.learned[name], expected[name]) for name in ("x", "y"))


@pytest.mark.parametrize(("patience", "steps"), [(1, 20), (2, 50), (3, 60), (4, 90), (None, 90)])
def test_patience_counts_evaluations_without_gain(patience, steps):
    losses = [5.0, 3.0, 4.0, 2.0, 2.0, 3.0, 2.5, 1.0, 9.0, 9.0]
    result = run(Quadratic(losses=losses), steps=90, patience=patience)
    assert (result.steps, result.stopped) == (steps, "patience" if steps < 90 else "steps")
    assert result.figures["loss"] == min(losses[: steps // 10 + 1])


# --- Time ----------------------------------------------------------------------------------------------------


def test_time_ends_a_run_after_a_whole_step_with_an_evaluation(clock):
    learner = Quadratic(before=lambda step: clock.tick())
    result = run(learner, time_limit=13.5)
    assert (result.stopped, result.steps, result.seconds) == ("time", 14, 14.0)
    assert [entry["step"] for entry in result.history] == [0, 10, 14]


def test_time_is_of_one_call_and_seconds_of_all(clock, tmp_path):
    path = tmp_path / "run.ckpt"
    expected = run(Quadratic())
    legs = []
    while not legs or legs[-1].stopped == "time":
        legs.append(run(Quadratic(before=lambda step: clock.tick()), time_limit=15, checkpoint=path))
        clock.tick(1e6)  # between two calls
    assert [(leg.steps, leg.seconds, leg.stopped) for leg in legs] == [
        (15, 15, "time"),
        (30, 30, "time"),
        (40, 40, "steps"),
    ]
    # The first leg chose among one more evaluation, at step 15, which is no part of the run.
    assert [entry["step"] for entry in legs[0].history] == [0, 10, 15]
    assert outcome(legs[-1]) == outcome(expected)


def test_a_second_call_that_has_nothing_to_do_has_its_seconds(clock, tmp_path):
    path = tmp_path / "run.ckpt"
    run(Quadratic(before=lambda step: clock.tick()), checkpoint=path)
    assert run(Quadratic(), checkpoint=path).seconds == 40


def test_checkpoints_are_written_by_the_clock(clock, tmp_path, monkeypatch):
    path, written = tmp_path / "run.ckpt", []
    write = module.write_checkpoint
    monkeypatch.setattr(
        module, "write_checkpoint", lambda *a: (written.append((a[3].step, a[3].seconds)), write(*a))
    )
    run(Quadratic(before=lambda step: clock.tick()), checkpoint=path, checkpoint_every=12)
    assert written == [(0, 0), (12, 12), (24, 24), (36, 36), (40, 40)]
    # A leg that goes on counts from its own start: what it would write at once is there already.
    written.clear()
    run(Quadratic(before=lambda step: clock.tick()), checkpoint=path, checkpoint_every=12, steps=60)
    assert written == [(52, 52), (60, 60)]


# --- Divergence ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_every", [1, 7, 1000])
@pytest.mark.parametrize("bad_step", [0, 1, 13, 20, 39])
def test_a_step_that_is_not_finite_ends_the_run_before_it(bad_step, log_every, tmp_path):
    path, log = tmp_path / "run.ckpt", tmp_path / "run.jsonl"
    result = run(Quadratic(bad_step=bad_step), log_every=log_every, checkpoint=path, log=log)
    assert (result.stopped, result.steps) == ("diverged", bad_step)
    assert [entry["step"] for entry in result.history] == list(range(0, bad_step + 1, 10))
    assert torch.isfinite(result.learned["x"]).all()
    records = lines(log)
    assert records[-2] == {"kind": "step", "step": bad_step, "figures": records[-2]["figures"]}
    assert math.isnan(float(records[-2]["figures"]["loss"]))
    assert records[-1]["stopped"] == "diverged"


def test_when_a_divergence_is_read_depends_on_the_clock_and_what_comes_of_it_does_not(tmp_path):
    def diverged(name, **options):
        return outcome(run(Quadratic(bad_step=13), log_every=1000, checkpoint=tmp_path / name, **options))

    assert diverged("at every step", checkpoint_every=0) == diverged("seldom")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_evaluation_that_is_not_finite_ends_the_run_and_never_wins(bad):
    result = run(Quadratic(losses=[2.0, 1.0, bad, 0.5]))
    assert (result.stopped, result.steps, result.step, result.figures["loss"]) == ("diverged", 20, 10, 1.0)
    assert len(result.history) == 3


def test_the_last_evaluation_may_be_the_one_that_is_not_finite():
    result = run(Quadratic(losses=[2.0, math.nan]), steps=5)
    assert (result.stopped, result.steps, result.step) == ("diverged", 5, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_start_that_is_not_finite_is_refused(bad, tmp_path):
    learner = Quadratic(losses=[bad])
    with pytest.raises(ValueError, match=f"held-out loss of the points to start from is {bad}"):
        run(learner, checkpoint=tmp_path / "run.ckpt")
    assert learner.advanced == []
    assert not (tmp_path / "run.ckpt").exists()


# --- Log -----------------------------------------------------------------------------------------------------


def test_the_log_tells_all_of_it_in_order(tmp_path, clock):
    log = tmp_path / "run.jsonl"
    result = run(
        Quadratic(before=lambda step: clock.tick(2)), log=log, steps=5, evaluate_every=2, log_every=3
    )
    records = [json.loads(line) for line in log.read_text().splitlines()]
    kinds = [(record["kind"], record["step"], record["seconds"]) for record in records]
    # The loss of step 2 is that of the set after 2 steps, which evaluation 2 looks at as well.
    assert kinds == [
        ("evaluation", 0, 0),
        ("step", 0, 2),
        ("step", 1, 4),
        ("evaluation", 2, 4),
        ("step", 2, 6),
        ("step", 3, 8),
        ("evaluation", 4, 8),
        ("step", 4, 10),
        ("evaluation", 5, 10),
        ("end", 5, 10),
    ]
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    assert [{"step": e["step"], **e["figures"]} for e in evaluations] == list(result.history)
    steps = [record["figures"] for record in records if record["kind"] == "step"]
    assert [figures["step_is"] for figures in steps] == list(range(5))
    assert records[-1] == {
        "kind": "end",
        "step": 5,
        "seconds": 10,
        "stopped": "steps",
        "best_step": result.step,
        "figures": result.figures,
    }


def test_figures_are_those_of_their_step(tmp_path):
    # The learner gives a view of a parameter that the step then changes; it is read up to 1000 steps later.
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    run(Quadratic(), log=first, log_every=1000)
    run(Quadratic(), log=second, log_every=1)
    assert lines(first) == lines(second)
    values = [record["figures"]["s"] for record in lines(first) if record["kind"] == "step"]
    assert values[0] == 0.0
    assert len(set(values)) > 20


def test_figures_are_read_only_when_they_are_due(monkeypatch):
    class Watched(torch.Tensor):
        reads = []

        def __float__(self):
            self.reads.append(learner.advanced[-1])
            return float(torch.Tensor.item(self))

    learner = Quadratic()
    advance = learner.advance
    learner.advance = lambda step: {
        k: torch.as_tensor(v).as_subclass(Watched) for k, v in advance(step).items()
    }
    run(learner, steps=12, evaluate_every=6, log_every=4)
    # Three figures a step: after steps 3, 5 (an evaluation), 7 and 11.
    assert Watched.reads == [3] * 12 + [5] * 6 + [7] * 6 + [11] * 12


def test_the_log_of_a_fresh_run_replaces_an_old_one(tmp_path):
    log = tmp_path / "run.jsonl"
    run(Quadratic(), log=log, steps=30)
    run(Quadratic(), log=log, steps=3)
    assert [record["step"] for record in lines(log) if record["kind"] == "step"] == [0, 1, 2]


def test_the_log_reads_as_one_run_after_a_kill(tmp_path):
    path, log = tmp_path / "run.ckpt", tmp_path / "run.jsonl"
    run(Quadratic(), log=tmp_path / "straight.jsonl")
    run(Quadratic(), checkpoint=path, log=log, steps=24)
    saved = path.read_bytes()
    run(Quadratic(), checkpoint=path, log=log, steps=37)
    # As a kill leaves it: the checkpoint of step 24, and a log that goes further and ends amid a line.
    path.write_bytes(saved)
    log.write_text(log.read_text()[:-9])
    run(Quadratic(), checkpoint=path, log=log)
    assert lines(log) == lines(tmp_path / "straight.jsonl")


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "notes", "{\n}\n", '{"loss": 1}\n', "[1, 2]\n3\n", "\n"])
def test_a_file_that_is_no_log_is_refused_and_stays(tmp_path, content):
    log, learner = tmp_path / "notes.txt", Quadratic()
    log.write_text(content)
    with pytest.raises(ValueError, match=r"notes\.txt exists and is not a log of a run: give another name"):
        run(learner, log=log)
    assert (log.read_text(), learner.evaluations) == (content, 0)


@pytest.mark.parametrize("content", ["", '{"ki'])
def test_a_log_that_was_only_begun_is_replaced(tmp_path, content):
    log = tmp_path / "run.jsonl"
    log.write_text(content)
    run(Quadratic(), log=log, steps=1)
    assert [record["kind"] for record in lines(log)] == ["evaluation", "step", "evaluation", "end"]


# --- Options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "greater than or equal to 0"),
        ({"steps": 1.5}, "integer"),
        ({"evaluate_every": 0}, "greater than or equal to 1"),
        ({"patience": 0}, "greater than or equal to 1"),
        ({"time_limit": 0}, "greater than 0"),
        ({"time_limit": math.inf}, "finite"),
        ({"checkpoint_every": -1}, "greater than or equal to 0"),
        ({"checkpoint_every": math.nan}, "finite|greater"),
        ({"log_every": 0}, "greater than or equal to 1"),
        ({"checkpoint": 3}, "path"),
        ({"callbacks": (3,)}, "callable"),
        ({"epochs": 3}, "not permitted"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=rf"{next(iter(options))}(.|\n)*{message}"):
        Loop(**options)


def test_options_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Loop().steps = 3  # pyright: ignore


@pytest.mark.parametrize(("name", "value"), [("steps", -1), ("evaluate_every", 0), ("steps", 2.5)])
def test_wrong_numbers_of_a_method_are_refused(name, value):
    options = {"steps": 3, "evaluate_every": 1, name: value}
    with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least"):
        run_loop(Quadratic(), Loop(), label="test", progress=False, **options)
