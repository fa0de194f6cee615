"""Callbacks: their order and end, JSON lines, TensorBoard and W&B by stand-ins; and what the progress shows."""

import json
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest

from kernel_distill.solver.callbacks import JSONLines, TensorBoard, WandB
from kernel_distill.solver.loop import Loop, run_loop
from kernel_distill.solver.progress import track

from .quadratic import Quadratic, run


class Listener:
    def __init__(self, name, seen, fail_at=None):
        self.name, self.seen, self.fail_at = name, seen, fail_at

    def __call__(self, record):
        self.seen.append((self.name, record["kind"], record["step"]))
        if (record["kind"], record["step"]) == self.fail_at:
            raise RuntimeError("the disk is full")

    def close(self):
        self.seen.append((self.name, "close", None))


def test_callbacks_are_called_in_order_and_closed():
    seen = []
    run(Quadratic(), steps=2, callbacks=(Listener("a", seen), Listener("b", seen)))
    events = [
        ("start", 0),
        ("evaluation", 0),
        ("step", 0),
        ("step", 1),
        ("evaluation", 2),
        ("end", 2),
    ]
    assert seen[:-2] == [(name, *event) for event in events for name in "ab"]
    assert sorted(seen[-2:]) == [("a", "close", None), ("b", "close", None)]


def test_a_function_is_a_callback():
    seen = []
    run(Quadratic(), steps=2, callbacks=(seen.append,))
    assert [record["kind"] for record in seen] == ["start", "evaluation", "step", "step", "evaluation", "end"]


@pytest.mark.parametrize("at", [("start", 0), ("evaluation", 0), ("step", 1), ("end", 2)])
def test_an_error_of_a_callback_ends_the_run_and_all_are_closed(at):
    seen = []
    with pytest.raises(RuntimeError, match="the disk is full"):
        run(Quadratic(), steps=2, callbacks=(Listener("a", seen), Listener("b", seen, at)))
    assert {entry for entry in seen if entry[1] == "close"} == {("a", "close", None), ("b", "close", None)}


def test_callbacks_learn_from_where_a_run_goes_on(tmp_path):
    path, seen = tmp_path / "run.ckpt", []
    run(Quadratic(), checkpoint=path, steps=23)
    run(Quadratic(), checkpoint=path, callbacks=(seen.append,))
    assert {**seen[0], "seconds": 0} == {
        "kind": "start",
        "step": 23,
        "seconds": 0,
        "evaluated": [0, 10, 20],
        "figures": {},
    }
    assert [record["step"] for record in seen if record["kind"] == "step"] == list(range(23, 40))


# --- JSON lines ----------------------------------------------------------------------------------------------


def record(kind, step, **more):
    return {"kind": kind, "step": step, "seconds": 0.25, "figures": {}, **more}


def test_numbers_come_back_equal(tmp_path):
    log = JSONLines(tmp_path / "run.jsonl")
    figures = {"a": 0.1 + 0.2, "b": 1e-320, "c": math.nan, "d": math.inf, "e": -math.inf, "f": -0.0}
    log(record("start", 0, evaluated=[]))
    log(record("step", 0, figures=figures))
    text = log.path.read_text()  # before it is closed: each line is flushed
    log.close()
    found = json.loads(text, parse_constant=pytest.fail)["figures"]
    assert [repr(float(value)) for value in found.values()] == [repr(value) for value in figures.values()]


def test_a_log_serves_one_run_after_another(tmp_path):
    log = JSONLines(tmp_path / "run.jsonl")
    for steps in (3, 2):
        run(Quadratic(), steps=steps, callbacks=(log,))
    assert sum(json.loads(line)["kind"] == "step" for line in log.path.read_text().splitlines()) == 2
    log.close()


# --- TensorBoard and W&B ---------------------------------------------------------------------------------------


def test_tensorboard_gets_scalars_and_what_is_void(tmp_path, monkeypatch):
    calls = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            calls.append(("open", folder, purge_step))

        def add_scalar(self, name, value, step):
            calls.append((name, value, step))

        def close(self):
            calls.append(("close",))

    stub = ModuleType("torch.utils.tensorboard")
    stub.SummaryWriter = SummaryWriter  # pyright: ignore
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    board, path = TensorBoard(tmp_path / "events"), tmp_path / "run.ckpt"
    result = run(Quadratic(), steps=2, evaluate_every=2, callbacks=(board,), checkpoint=path)
    assert calls[0] == ("open", str(tmp_path / "events"), 0)
    assert [(name, step) for name, _, step in calls[1:-1]] == [
        ("evaluation/loss", 0),
        ("evaluation/size", 0),
        *((f"step/{name}", step) for step in (0, 1) for name in ("loss", "s", "step_is")),
        ("evaluation/loss", 2),
        ("evaluation/size", 2),
        ("end/loss", 2),
        ("end/size", 2),
    ]
    assert calls[1] == ("evaluation/loss", result.history[0]["loss"], 0)
    assert calls[-1] == ("close",)
    # The evaluation after step 2 still counts; what is taken again begins with step 2, of which nothing was told.
    calls.clear()
    run(Quadratic(), steps=3, evaluate_every=2, callbacks=(board,), checkpoint=path)
    assert calls[0] == ("open", str(tmp_path / "events"), 3)


def test_wandb_gets_figures_by_step(monkeypatch):
    calls = []
    started = SimpleNamespace(
        log=lambda values, step: calls.append((values, step)), finish=lambda: calls.append("finish")
    )
    stub = ModuleType("wandb")
    stub.init = lambda **options: calls.append(options) or started  # pyright: ignore
    monkeypatch.setitem(sys.modules, "wandb", stub)
    run(Quadratic(), steps=2, callbacks=(WandB(project="sets", mode="offline"),))
    assert calls[0] == {"project": "sets", "mode": "offline"}
    assert [step for _, step in calls[1:-1]] == [0, 0, 1, 2, 2]
    assert calls[2][0].keys() == {"step/loss", "step/s", "step/step_is", "seconds"}
    assert calls[-1] == "finish"


@pytest.mark.parametrize(
    ("module", "make", "message"),
    [
        ("torch.utils.tensorboard", lambda: TensorBoard("events"), "pip install tensorboard"),
        ("wandb", WandB, "pip install wandb"),
    ],
)
def test_what_is_not_installed_is_named(module, make, message, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=message):
        make()


# --- Progress --------------------------------------------------------------------------------------------------


def test_the_progress_says_where_a_run_is(tmp_path, capsys):
    path = tmp_path / "run.ckpt"
    run(Quadratic(), checkpoint=path, steps=20)
    run_loop(
        Quadratic(losses=[0.125]),
        Loop(checkpoint=path),
        steps=40,
        evaluate_every=10,
        label="learning",
        progress=True,
    )
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("learning: 21/40, best held out ")


def test_track_goes_on_from_what_was_done(capsys):
    assert list(track(iter("ab"), "work", 7, show=True, done=5, status=lambda: "fine")) == ["a", "b"]
    assert capsys.readouterr().err == "work: 6/7, fine, 0 s\n"


def test_track_has_no_word_where_it_is_given_none(capsys):
    list(track(range(3), "work", show=True))
    assert capsys.readouterr().err == "work: 1, 0 s\n"
