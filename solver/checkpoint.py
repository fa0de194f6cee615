"""Checkpoints of a run: a learner's state and how far the run has come, in one file without pickle."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .learner import Learner
from .store import read_file, write_file

_KIND = "checkpoint"


@dataclass
class Run:
    """How far a run has come.

    Attributes
    ----------
    step : int
        Steps taken.
    seconds : float
        Spent in them and around them, over all legs.
    history : list of dict
        Evaluations, in order: "step" and figures. Only the last loss may be not finite, and ended the run then.
    best_at : int
        Which of them has the smallest loss; the earliest of equals.
    learned : dict of str to Tensor
        What was learned then.
    diverged : bool
    """

    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_at: int = 0
    learned: dict[str, Tensor] = field(default_factory=dict)
    diverged: bool = False

    @property
    def evaluated(self) -> int | None:
        """Step of the last evaluation."""
        return self.history[-1]["step"] if self.history else None

    @property
    def best(self) -> dict[str, Any]:
        """The evaluation of the smallest loss."""
        return self.history[self.best_at]

    @property
    def stale(self) -> int:
        """Evaluations since the best."""
        return len(self.history) - 1 - self.best_at


def write_checkpoint(path: Path, learner: Learner, identity: Mapping[str, Any], run: Run) -> None:
    """Write a checkpoint, whole or not at all, over the one before.

    Raises
    ------
    OSError
        If the file cannot be written; an existing one stays as it was.
    ValueError
        If what the learner calls plain is not JSON.
    """
    tensors, plain = learner.state()
    header = {
        "identity": identity,
        "step": run.step,
        "seconds": run.seconds,
        # JSON has no NaN: a number that is not finite is written as text, which `float` reads like any other.
        "history": [
            {name: value if math.isfinite(value) else str(value) for name, value in entry.items()}
            for entry in run.history
        ],
        "best_at": run.best_at,
        "diverged": run.diverged,
        "plain": plain,
    }
    named = {f"state.{name}": value for name, value in tensors.items()}
    named |= {f"best.{name}": value for name, value in run.learned.items()}
    write_file(path, _KIND, header, named, force=True)


def read_checkpoint(path: Path, learner: Learner, identity: Mapping[str, Any]) -> Run:
    """Read a checkpoint, and bring the learner where it was.

    Raises
    ------
    ValueError
        If the file is damaged or no checkpoint, or of a run of another identity; the message names what differs.
    """
    header, tensors = read_file(path, _KIND)
    here = json.loads(json.dumps(identity, allow_nan=False))
    if changes := differences(header["identity"], here):
        raise ValueError(
            f"{path} is the checkpoint of another run ({'; '.join(changes)}): give another name, or delete it to"
            " start anew"
        )
    parts: dict[str, dict[str, Tensor]] = {"state": {}, "best": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    learner.restore(parts["state"], header["plain"])
    history = [
        {name: value if name == "step" else float(value) for name, value in entry.items()}
        for entry in header["history"]
    ]
    return Run(
        step=header["step"],
        seconds=header["seconds"],
        history=history,
        best_at=header["best_at"],
        learned=parts["best"],
        diverged=header["diverged"],
    )


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """What differs between two JSON values, by dotted names."""
    if isinstance(there, dict) and isinstance(here, dict):
        found = []
        for key in dict.fromkeys([*there, *here]):
            found += differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
        return found
    return [] if there == here else [f"{name} was {json.dumps(there)}, is {json.dumps(here)}"]
