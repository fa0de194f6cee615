"""The loop of all learned methods: steps, held-out evaluations, budgets, checkpoints, log.

What is computed follows from the learner and the number of the step alone. Time decides only when the loop
stops and when it writes; so a run that was stopped by its budget, interrupted or killed, and gone on with from its
checkpoint, ends in the same bits as one that ran through (on the same machine and versions). For the same reason
the evaluation that closes every leg chooses for the result of that leg, but is no part of the run unless it was
due anyway: a run of 100 steps taken to 200 is a run of 200 steps.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from ._check import check_count
from ._interrupts import interrupts_held
from .callbacks import Callback, JSONLines
from .checkpoint import Run, read_checkpoint, write_checkpoint
from .learner import Learner
from .progress import track
from .records import Records

Stopped = Literal["steps", "time", "patience", "diverged"]


class Loop(BaseModel):
    """How long a method learns, and what it writes meanwhile.

    Attributes
    ----------
    steps : int, optional
        Steps of the whole run, over all its legs; the method's own number by default. 0 evaluates the start.
    time_limit : float, optional
        Seconds of this loop (what comes before it is not counted), after which it ends with the best set so far. The
        step that is being taken and one more evaluation still finish.
    evaluate_every : int, optional
        Steps between held-out evaluations; the method's own number by default.
    patience : int, optional
        Stop after this many evaluations in a row that are no better than the best; never by default.
    checkpoint : path, optional
        File to write the state to, and to go on from if it exists. It has to be of the same run; `steps`,
        `time_limit`, `patience` and what is written may change from leg to leg.
    checkpoint_every : float, default 120
        Seconds between two writes; one more is made at the end. What a kill costs at most.
    log : path, optional
        File of JSON lines (`callbacks.JSONLines`). Replaced, save for the part of the run that is gone on with.
    log_every : int, default 10
        Steps between two reads of figures from the device. Every step is logged; a divergence is noticed when it
        is read, and dated right.
    callbacks : tuple of callables, default ()
        Called with every record, after the log (`solver.callbacks`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = Field(default=None, ge=0)
    time_limit: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    evaluate_every: int | None = Field(default=None, ge=1)
    patience: int | None = Field(default=None, ge=1)
    checkpoint: Path | None = None
    checkpoint_every: float = Field(default=120.0, ge=0, allow_inf_nan=False)
    log: Path | None = None
    log_every: int = Field(default=10, ge=1)
    callbacks: tuple[Callable[..., Any], ...] = ()

    @model_validator(mode="after")
    def _two_files(self) -> Self:
        if self.log is not None and self.log == self.checkpoint:
            raise ValueError(f"log and checkpoint are one file, {self.log}: give two names")
        return self


@dataclass(frozen=True)
class LoopResult:
    """The best set of a run, and how the run went.

    Attributes
    ----------
    learned : dict of str to Tensor
        What `Learner.learned` gave at the best evaluation, on the CPU.
    step : int
        Steps taken before that evaluation.
    figures : dict of str to float
        What it found; its "loss" is the smallest of all, and the earliest of equals.
    steps : int
        Steps taken; of a run that diverged, those before the loss that is not finite.
    stopped : {"steps", "time", "patience", "diverged"}
        "diverged": the loss of a step or of an evaluation was not finite. The best set is from before that.
    seconds : float
        Over all legs of the run.
    history : tuple of dict
        All evaluations: "step" and figures.
    """

    learned: dict[str, Tensor]
    step: int
    figures: dict[str, float]
    steps: int
    stopped: Stopped
    seconds: float
    history: tuple[dict[str, Any], ...]


def run_loop(
    learner: Learner,
    loop: Loop,
    *,
    steps: int,
    evaluate_every: int,
    label: str,
    progress: bool | None = None,
) -> LoopResult:
    """Let a learner learn, and choose the best of what it learned by its held-out loss.

    Evaluations are at step 0, every `evaluate_every` steps and at the end.

    Parameters
    ----------
    learner : Learner
        At its start; it is moved on if there is a checkpoint.
    loop : Loop
    steps, evaluate_every : int
        The method's own numbers, where `loop` has none.
    label : str
        What the progress display calls the work.
    progress : bool, optional
        As in `track`.

    Returns
    -------
    LoopResult
        That of the checkpoint, at the cost of one evaluation at most, if the run was finished already.

    Raises
    ------
    ValueError
        If the loss of the start is not finite, or the checkpoint is damaged or of another run.
    KeyboardInterrupt
        With a checkpoint, Ctrl-C acts when the step is complete and its state written; a second one acts at once.
    """
    steps = check_count(steps if loop.steps is None else loop.steps, "steps", 0)
    every = check_count(
        evaluate_every if loop.evaluate_every is None else loop.evaluate_every, "evaluate_every"
    )
    identity = {**learner.identity, "evaluate_every": every}
    path = loop.checkpoint
    run = read_checkpoint(path, learner, identity) if path is not None and path.is_file() else Run()
    with contextlib.ExitStack() as stack:
        leg = _Leg(learner, loop, run, identity, stack)
        ticks = track(range(run.step, steps), label, steps, show=progress, done=run.step, status=leg.status)
        stack.enter_context(contextlib.closing(ticks))
        interrupted = stack.enter_context(interrupts_held(path is not None))
        # A new run writes at once, so that a path that cannot be written is found now.
        written = leg.started if run.history else -math.inf
        while True:
            next(ticks, None)
            if run.step % every == 0 and run.evaluated != run.step:
                leg.evaluate()
            if time.monotonic() - written >= loop.checkpoint_every:
                leg.write()
                written = time.monotonic()
            stopped = _reason(loop, run, steps, time.monotonic() - leg.started)
            if stopped or interrupted:
                break
            leg.advance()
        leg.write()
        if stopped is None:
            raise KeyboardInterrupt
        if run.evaluated != run.step:
            leg.evaluate()
        return leg.end("diverged" if run.diverged else stopped)


class _Leg:
    """One call's part of a run: what it does to the run."""

    def __init__(
        self,
        learner: Learner,
        loop: Loop,
        run: Run,
        identity: dict[str, Any],
        stack: contextlib.ExitStack,
    ) -> None:
        self.learner, self.loop, self.run, self.identity = learner, loop, run, identity
        self.started, self._earlier = time.monotonic(), run.seconds
        callbacks: list[Callback] = [*([JSONLines(loop.log)] if loop.log else []), *loop.callbacks]
        for callback in callbacks:
            stack.callback(getattr(callback, "close", lambda: None))
        self.records = Records(callbacks, self.seconds)
        self.records.tell("start", run.step, {}, evaluated=[entry["step"] for entry in run.history])

    def advance(self) -> None:
        """Take a step."""
        self.records.keep(self.run.step, self.learner.advance(self.run.step))
        self.run.step += 1
        if self.run.step % self.loop.log_every == 0:
            self._read()

    def evaluate(self) -> None:
        """Evaluate the set as it is, and keep it if it is the best."""
        self._read()
        if self.run.diverged:
            return
        figures = {name: float(value) for name, value in self.learner.evaluate().items()}
        finite = math.isfinite(figures["loss"])
        if not finite and not self.run.history:
            raise ValueError(
                f"the held-out loss of the points to start from is {figures['loss']}: look for values that are far"
                " too large, or raise the ridge"
            )
        if not self.run.history or (finite and figures["loss"] < self.run.best["loss"]):
            self.run.best_at = len(self.run.history)
            self.run.learned = {name: value.detach().cpu() for name, value in self.learner.learned().items()}
        self.run.history.append({"step": self.run.step, **figures})
        self.run.diverged = not finite
        self.records.tell("evaluation", self.run.step, figures)

    def write(self) -> None:
        """Write the checkpoint, where there is one, after all records up to it."""
        self._read()
        if self.loop.checkpoint is not None:
            self.run.seconds = self.seconds()
            write_checkpoint(self.loop.checkpoint, self.learner, self.identity, self.run)

    def end(self, stopped: Stopped) -> LoopResult:
        """The result, and its record."""
        run, figures = self.run, dict(self.run.best)
        best = figures.pop("step")
        self.records.tell("end", run.step, figures, stopped=stopped, best_step=best)
        return LoopResult(run.learned, best, figures, run.step, stopped, self.seconds(), tuple(run.history))

    def status(self) -> str:
        """The latest figures, for the progress display."""
        text = "" if math.isnan(self.records.loss) else f"loss {self.records.loss:.4g}, "
        return text + (f"best held out {self.run.best['loss']:.4g}" if self.run.history else "")

    def seconds(self) -> float:
        """Seconds of the run so far, over all legs."""
        return self._earlier + time.monotonic() - self.started

    def _read(self) -> None:
        """Read the figures of the last steps; the run has ended before a loss that is not finite."""
        if (bad := self.records.read()) is not None:
            self.run.step, self.run.diverged = bad, True


def _reason(loop: Loop, run: Run, steps: int, elapsed: float) -> Stopped | None:
    """Why the loop ends here, if it does."""
    if run.diverged:
        return "diverged"
    if run.step >= steps:
        return "steps"
    if loop.patience is not None and run.stale >= loop.patience:
        return "patience"
    return "time" if loop.time_limit is not None and elapsed >= loop.time_limit else None
