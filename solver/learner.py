"""What a loop advances: something that learns a set by small steps, and can be stopped and gone on with.

A learner's next step depends on its state and the number of the step alone: random choices are keyed by
(seed, step), so that a run that was killed and resumed ends in the same bits as one that was not. Nor may the
number of steps that are asked for matter, or it belongs to the identity (a schedule that ends with the run).
"""

import abc
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

Figures = Mapping[str, Tensor | float]
State = tuple[dict[str, Tensor], dict[str, Any]]


class Learner(abc.ABC):
    """Base of everything that `solver.loop.run_loop` can run."""

    @property
    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """Plain JSON that tells this run from any other: method, options, sizes, digest of the data.

        A checkpoint is continued only where it is equal.
        """

    @abc.abstractmethod
    def advance(self, step: int) -> Figures:
        """Take step number `step`, counted from 0.

        Returns
        -------
        mapping
            What to log; "loss" (before the step) must be there, and ends the run if it is not finite. Tensors
            of one value stay on their device: the loop copies them there, and reads them when it writes its log.
        """

    @abc.abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Held-out figures of the set as it is; "loss", smaller is better, chooses among the evaluations.

        Changes nothing that a step depends on: a run may be evaluated more often than another.
        """

    @abc.abstractmethod
    def learned(self) -> dict[str, Tensor]:
        """Copies of what is learned: "x" (m, *input_shape) transformed points, "y" (m, k) labels, and more."""

    @abc.abstractmethod
    def state(self) -> State:
        """Everything that the next step depends on: tensors, and plain JSON values (finite numbers, no tuples)."""

    @abc.abstractmethod
    def restore(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Go back to what `state` described, bit for bit. Tensors come on the CPU and may be kept.

        Raises
        ------
        ValueError
            If that is the state of another kind of learner.
        """


def digits(values: Iterable[float]) -> list[float]:
    """Six significant digits, for an identity: the last ones of a sum change with the number of threads."""
    return [float(f"{value:.6g}") for value in values]
