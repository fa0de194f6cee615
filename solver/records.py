"""Figures of a run: kept on their device until they are read, then told to the callbacks in order."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .callbacks import Callback
from .learner import Figures


class Records:
    """The figures of steps, and records of all kinds.

    Parameters
    ----------
    callbacks : sequence of callables
        Called with every record, in this order.
    clock : callable
        Seconds since the start of the run.

    Attributes
    ----------
    loss : float
        The latest that was read; NaN before.
    """

    def __init__(self, callbacks: Sequence[Callback], clock: Callable[[], float]) -> None:
        self.loss = math.nan
        self._callbacks, self._clock = callbacks, clock
        self._unread: list[tuple[int, float, dict[str, Tensor | float]]] = []

    def keep(self, step: int, figures: Figures) -> None:
        """Keep the figures of a step, in copies: they may be views of what the next step changes."""
        copies: dict[str, Tensor | float] = {
            name: value.detach().clone() if isinstance(value, Tensor) else value
            for name, value in figures.items()
        }
        self._unread.append((step, self._clock(), copies))

    def read(self) -> int | None:
        """Read and tell what is kept; the first step whose loss is not finite, after which nothing is told."""
        unread, self._unread = self._unread, []
        for step, seconds, values in unread:
            figures = {name: float(value) for name, value in values.items()}
            self.loss = figures["loss"]
            self._tell("step", step, seconds, figures)
            if not math.isfinite(self.loss):
                return step
        return None

    def tell(self, kind: str, step: int, figures: dict[str, float], **more: Any) -> None:
        """Tell a record of now."""
        self._tell(kind, step, self._clock(), figures, **more)

    def _tell(self, kind: str, step: int, seconds: float, figures: dict[str, float], **more: Any) -> None:
        for callback in self._callbacks:
            callback({"kind": kind, "step": step, "seconds": seconds, **more, "figures": figures})
