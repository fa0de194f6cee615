"""One weighted sample from weights that come in parts: a stream, or shards on many workers."""

import bisect
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from torch import Tensor

from ._check import as_tensor
from ._dispatch import choose
from ._race import Arrivals, Smallest
from .random import random_bits
from .sample import Sample

MOST_ITEMS = 2**62
PIECE = 2**22  # items of a read-only array that are copied at a time


class WeightedSampler:
    """Draw k items in proportion to weights that come in parts, in any order, or are spread over workers.

    The sample is the one that `weighted_sample` draws from all weights at once.

    Parameters
    ----------
    k : int
        Number of draws.
    seed : int
        In [0, 2**64).
    replacement : bool
        Whether draws are independent, so that an item may be drawn again.
    stream : str
        Name of the use: draws under different names are independent.

    Notes
    -----
    O(k) memory, however many weights are seen; items are numbered up to 2**62.

    Examples
    --------
    >>> parts = [WeightedSampler(2, seed=0).update([0.0, 1.0]), WeightedSampler(2, seed=0).update([2.0, 3.0], start=2)]
    >>> parts[0].merge(parts[1]).result().indices.tolist()
    [3, 2]
    """

    def __init__(self, k: int, *, seed: int, replacement: bool = False, stream: str = "weighted_sample"):
        random_bits(seed, stream, 0)  # raises if the seed is none
        self.k, self.seed, self.replacement, self.stream = check_count(k), int(seed), replacement, stream
        self._smallest = Smallest(self.k + 1)
        self._seen: list[tuple[int, int]] = []  # disjoint ranges of items, increasing

    def update(self, weights: Any, start: int | None = None, *, backend: str | None = None) -> Self:
        """Let the items ``start ... start + len(weights) - 1`` race; by default those after all seen so far.

        Raises
        ------
        ValueError
            If an item was seen before, or a weight is negative or not finite.
        """
        if start is None:
            start = self._seen[-1][1] if self._seen else 0
        if isinstance(weights, np.ndarray) and not weights.flags.writeable and weights.size > PIECE:
            pieces = WeightedSampler(self.k, seed=self.seed, replacement=self.replacement, stream=self.stream)
            for low in range(0, len(weights), PIECE):  # torch would copy all of it
                pieces.update(weights[low : low + PIECE], start + low, backend=backend)
            return self.merge(pieces)  # all of it or nothing
        tensor = as_weights(weights)
        race = choose("weighted_sample", tensor, backend=backend)
        return self.race(lambda **options: race(tensor, **options), len(tensor), start)

    def race(self, run: Callable[..., Arrivals], n: int, start: int) -> Self:
        """Let n items race whose arrivals `run` finds: what `update` does with weights, for whatever makes them."""
        start = check_range(start, n)
        self._check_new(start, start + n)
        self._smallest.offer(
            run(
                want=self.k + 1,
                seed=self.seed,
                stream=self.stream,
                start=start,
                replacement=self.replacement,
                bound=self._smallest.bound,
            )
        )
        self._see(start, start + n)
        return self

    def merge(self, other: "WeightedSampler") -> Self:
        """Add what another sampler of the same settings has seen."""
        mine, its = (vars(sampler) for sampler in (self, other))
        for name in ("k", "seed", "replacement", "stream"):
            if mine[name] != its[name]:
                raise ValueError(
                    f"samplers to be merged must agree: `{name}` is {mine[name]!r} and {its[name]!r}"
                )
        for start, stop in other._seen:
            self._check_new(start, stop)
        for start, stop in other._seen:
            self._see(start, stop)
        self._smallest.offer(other._smallest.best())
        return self

    def result(self) -> Sample:
        """The sample from everything seen so far.

        Raises
        ------
        ValueError
            If fewer than k weights are positive (without replacement), or none is.
        """
        return Sample.from_race(self._smallest.best(), self.k, self.replacement)

    def _check_new(self, start: int, stop: int) -> None:
        after = bisect.bisect_left(
            self._seen, stop, key=lambda seen: seen[0]
        )  # that many begin before `stop`
        if start < stop and after and self._seen[after - 1][1] > start:
            low, high = self._seen[after - 1]
            raise ValueError(
                f"items {start} ... {stop - 1} overlap with {low} ... {high - 1}, seen before: number them with `start`"
            )

    def _see(self, start: int, stop: int) -> None:
        if start == stop:
            return
        bisect.insort(self._seen, (start, stop))
        joined: list[tuple[int, int]] = []
        for low, high in self._seen:
            if joined and joined[-1][1] == low:
                joined[-1] = (joined[-1][0], high)
            else:
                joined.append((low, high))
        self._seen = joined


def check_count(k: int) -> int:
    """The number of draws, if it is one."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"`k` must be an integer of at least 1, got {k!r}")
    return int(k)


def check_range(start: int, n: int) -> int:
    """The number of the first of n items, if all can be numbered."""
    if (
        isinstance(start, bool)
        or not isinstance(start, (int, np.integer))
        or not 0 <= start <= MOST_ITEMS - n
    ):
        raise ValueError(f"`start` must be an integer in [0, 2**62 - {n}], got {start!r}")
    return int(start)


def as_weights(values: Any) -> Tensor:
    """A vector of floats."""
    weights = as_tensor(values, "weights")
    if weights.ndim != 1:
        raise ValueError(f"`weights` must be a vector, got shape {tuple(weights.shape)}: flatten it")
    return weights.detach()
