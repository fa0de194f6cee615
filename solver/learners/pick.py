r"""Which rows a step learns from: uniform, balanced over the classes, or in proportion to their loss (SMART-PICK).

With :math:`\ell_i` the loss of row i for the set as it is, "loss" draws b rows without replacement, one by one in
proportion to

.. math:: P_i = (1-\eta)\,\ell_i / \textstyle\sum_j \ell_j + \eta / n .

**What is minimised.** As published, the step descends the plain mean over the batch. That is another objective: a
single draw has the mean loss :math:`\sum_i P_i \ell_i`, which for η = 0 is :math:`\sum \ell^2/\sum \ell`, never below
the mean of all rows and equal to it only if all losses are; and the gradient followed is that of
:math:`\frac12\sum \ell^2`, scaled: rows that cannot be fitted, mislabelled ones say, count most.
With ``corrected=True`` a row counts :math:`1/(n\pi_i)`, π its inclusion probability, and the loss of a step is the
mean loss of all rows on average over draws. π is exact for draws without replacement: given the arrival time of the
first row that was not drawn (`kernels.Sample`; the :math:`1/(nP_i)` of draws with replacement would not be right
here). The weights are not divided by their sum, which has the mean one: that would bias the gradient by O(1/b), and η
bounds them already, at about 1/(ηb). The same holds for "balanced", where as published
(the KIP notebook) all rows of a batch count alike, and so all classes, however rare.

**The loss table.** A loss of a row is needed before the row is drawn, so one is kept for each row, from different
steps: those of a batch come free (`Picker.observe`); and every `refresh_every` steps a share of the table, in an order
that goes round, is computed anew (`Picker.refresh`), so that no loss is older than `refresh` steps. The first call
computes all. That is :math:`n/\texttt{refresh}` losses a step beside the b of the batch, or :math:`C/\texttt{refresh}`
with a pool of C candidates: a window that moves over the rows in a random order, one window in `refresh` steps.
Estimates then are of the mean over the window, whose own mean is that over all rows. A table that lags costs variance,
and no bias with ``corrected=True``.

Two later studies contest that drawing by loss helps: it is off by default.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from ...kernels import random_bits, uniform, weighted_sample
from .._check import check_count
from ..learner import State
from .rows import TrainingRows

# The least share of uniform draws: with none, fewer rows than a batch may have a loss at all.
_LEAST_MIXING = 1e-12


class Pick(BaseModel):
    """How batches are drawn.

    Attributes
    ----------
    kind : {"uniform", "balanced", "loss"}, default "uniform"
        All rows alike; as many of each class as can be (a class with fewer rows gives all it has, and the others
        more; what does not divide falls to random classes); or in proportion to the loss.
    mixing : float, default 0.1
        η, the share of uniform draws among those by loss. 0, as published, leaves rows without loss for last.
    corrected : bool, default False
        Weigh rows so that the loss of a step is the mean loss of all rows on average; off as published.
    refresh : int, default 100
        Steps after which a row's loss has been computed again at the latest.
    refresh_every : int, default 10
        Steps from one share of these computations to the next.
    pool : int, optional
        Candidates that have a loss, and can be drawn; all rows by default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["uniform", "balanced", "loss"] = "uniform"
    mixing: float = Field(default=0.1, ge=0, le=1)
    corrected: bool = False
    refresh: int = Field(default=100, ge=1)
    refresh_every: int = Field(default=10, ge=1)
    pool: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.refresh_every > self.refresh:
            raise ValueError(
                f"refresh_every = {self.refresh_every} steps leave losses older than refresh = {self.refresh}:"
                " lower one or raise the other"
            )
        if self.kind != "loss":
            for name in ("mixing", "refresh", "refresh_every", "pool"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"`{name}` is for draws by loss: leave it out of kind={self.kind!r}")
        return self


@dataclasses.dataclass(frozen=True, eq=False)
class Picked:
    """A batch: ``index, weights = picked`` takes it apart.

    Attributes
    ----------
    index : Tensor, shape (b,), int64
        Distinct training rows, on the CPU.
    weights : Tensor, shape (b,), float64
        What each loss counts for: the loss of the step is the sum of ``weights * losses``.
    """

    index: Tensor
    weights: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.index, self.weights))


class Picker:
    """Draws the batch of every step.

    Parameters
    ----------
    rows : TrainingRows
    pick : Pick
    batch_size : int
        Rows a step; where there are fewer rows, all of them in every step.
    seed : int
        A batch depends on it, on the number of the step, and on the losses seen, alone.

    Attributes
    ----------
    batch_size : int
        Rows a step.

    Raises
    ------
    ValueError
        If classes are to be balanced and there are none, or the pool is smaller than a batch.

    Notes
    -----
    A draw takes one or two random numbers for each of the n rows (for each candidate), and no sorting of them.
    Weights, and the table, are on the device of the rows.
    """

    def __init__(self, rows: TrainingRows, pick: Pick, batch_size: int, seed: int) -> None:
        self.batch_size = min(check_count(batch_size, "batch_size"), rows.n)
        self._rows, self._pick, self._seed = rows, pick, seed
        if pick.kind == "balanced":
            if rows.classes is None:
                raise ValueError("balanced batches need classes: use kind='uniform' for regression")
            sizes = rows.classes.bincount(minlength=rows.targets.n_outputs)
            order = rows.classes.argsort(stable=True)
            self._members = [part.numpy() for part in order.split(sizes.tolist()) if len(part)]
        if pick.kind == "loss":
            self._pool = rows.n if pick.pool is None else min(pick.pool, rows.n)
            if self._pool < self.batch_size:
                raise ValueError(
                    f"a pool of {self._pool} candidates is smaller than a batch of {self.batch_size}: raise `pool`"
                )
            # Everything by place in a random order of the rows: the window is a stretch of it.
            self._order = uniform(seed, "pick.order", rows.n).argsort(stable=True)
            self._place = self._order.argsort()
            self._entered = 0  # how many places have entered the window so far; 0 before the first
            self._losses = torch.zeros(rows.n, dtype=torch.float64, device=rows.device)

    def draw(self, step: int) -> Picked:
        """Rows of a step, and their weights.

        Raises
        ------
        ValueError
            If a loss is negative, or draws by loss have no table: `refresh` comes first.

        Notes
        -----
        Rows whose loss is not finite are drawn before all others, so that the loss of the step is not finite either:
        a run that diverged, or data that make it, show in what is logged.
        """
        if self._pick.kind == "loss":
            index, chances = self._by_loss(step)
            n = self._pool
        else:
            index, chances = self._balanced(step) if self._pick.kind == "balanced" else self._uniform(step)
            n = self._rows.n
        weights = torch.full((len(index),), 1 / len(index), dtype=torch.float64, device=self._rows.device)
        return Picked(index, 1 / (n * chances).to(weights) if self._pick.corrected else weights)

    def observe(self, index: Tensor, losses: Tensor) -> None:
        """Note losses (b,) of rows (b,) that a step computed anyway."""
        if self._pick.kind == "loss":
            places = self._place[index.cpu()].to(self._losses.device)
            self._losses[places] = losses.detach().to(self._losses)

    def refresh(self, step: int, losses_of: Callable[[Tensor], Tensor]) -> None:
        """Compute the losses that are due; call it before `draw`, in every step.

        Parameters
        ----------
        step : int
        losses_of : callable
            Losses (b,) of training rows (b,), for the set as it is; called for no more than ``rows.chunk`` rows at a
            time, without gradients.
        """
        if self._pick.kind != "loss":
            return
        if self._entered == 0:
            due = self._pool
        elif step % self._pick.refresh_every == 0:
            due = -(-self._pool // (self._pick.refresh // self._pick.refresh_every))
        else:
            return
        with torch.no_grad():
            for part in self._stretch(self._order, self._entered, due).split(self._rows.chunk):
                self.observe(part, losses_of(part))
        self._entered += due

    def state(self) -> State:
        """Everything that further draws depend on, besides the arguments."""
        if self._pick.kind != "loss":
            return {}, {}
        return {"losses": self._losses.clone()}, {"entered": self._entered}

    def restore(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Go back to what `state` described, bit for bit."""
        if self._pick.kind == "loss":
            self._losses.copy_(tensors["losses"])
            self._entered = int(plain["entered"])

    def _stretch(self, values: Tensor, start: int, length: int) -> Tensor:
        """So many values from a place on, in the order that begins anew at its end."""
        if length == len(values):
            start = 0  # all of them, and as they lie
        start %= len(values)
        if start + length <= len(values):
            return values[start : start + length]
        return torch.cat([values[start:], values[: start + length - len(values)]])

    def _uniform(self, step: int) -> tuple[Tensor, Tensor]:
        b, n = self.batch_size, self._rows.n
        index = np.sort(_smallest(random_bits(self._seed, f"pick.{step}", n), b))
        return torch.from_numpy(index), torch.full((b,), b / n, dtype=torch.float64)

    def _balanced(self, step: int) -> tuple[Tensor, Tensor]:
        bits = random_bits(self._seed, f"pick.{step}", self._rows.n)
        order = random_bits(self._seed, f"pick.{step}.classes", len(self._members)).argsort(kind="stable")
        counts, means = _even_counts(np.array([len(part) for part in self._members]), self.batch_size, order)
        index, chances = [], []
        for part, count, mean in zip(self._members, counts, means, strict=True):
            index.append(np.sort(part[_smallest(bits[part], int(count))]))
            chances.append(np.full(count, mean / len(part)))
        return torch.from_numpy(np.concatenate(index)), torch.from_numpy(np.concatenate(chances))

    def _by_loss(self, step: int) -> tuple[Tensor, Tensor]:
        if self._entered == 0:
            raise ValueError("there are no losses to draw by yet: call `refresh` before `draw`")
        start = self._entered - self._pool
        losses = self._stretch(self._losses, start, self._pool)
        least, largest = torch.stack(losses.aminmax()).tolist()
        if not (math.isfinite(least) and math.isfinite(largest)):
            losses, least, largest = (~losses.isfinite()).double(), 0.0, 1.0
        window = self._stretch(self._order, start, self._pool)
        if least < 0:
            row = int(window[int(losses.argmin())])
            raise ValueError(
                f"the loss of row {row} is {least}: rows are drawn by losses that are not negative"
            )
        share = torch.ones_like(losses) if largest == 0 else losses / largest
        mixing = max(self._pick.mixing, _LEAST_MIXING)
        weights = (1 - mixing) * share / share.sum() + mixing / len(share)
        sample = weighted_sample(weights, self.batch_size, seed=self._seed, stream=f"pick.{step}")
        return window[sample.indices.cpu()], sample.inclusion_probabilities


def _smallest(bits: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` smallest, in no order."""
    return np.argpartition(bits, count - 1)[:count] if count else np.empty(0, dtype=np.int64)


def _even_counts(sizes: np.ndarray, total: int, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws of each class, as even as `sizes` allow, and their means over a random `order` of classes.

    All classes get as many as the least of an even share; the rest is one draw each for the first in `order` that
    have more rows.
    """
    level, high = 0, total
    while level < high:
        middle = (level + high + 1) // 2
        level, high = (middle, high) if np.minimum(sizes, middle).sum() <= total else (level, middle - 1)
    counts = np.minimum(sizes, level)
    open_ = sizes > level
    rest = total - int(counts.sum())
    means = counts + np.where(open_, rest / max(1, int(open_.sum())), 0.0)
    counts[order[open_[order]][:rest]] += 1
    return counts, means
