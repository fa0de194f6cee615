"""Groups of rows, side by side: those of about one size in one array, so that many small groups cost as one."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

Counts = tuple[
    tuple[int, ...], tuple[int, ...]
]  # rows of every group in X and in Y; groups follow one another

_STEP = 32  # sizes are of one kind up to a multiple of this: below it, calls cost more than arithmetic


class Side:
    """Rows of some groups as an array (groups, longest, d); the ends of short ones are copies, of weight zero."""

    def __init__(self, starts: list[int], counts: list[int], like: Tensor) -> None:
        longest = max(counts)
        self.shape = (len(counts), longest)
        self.count = torch.tensor(counts, dtype=torch.float64, device=like.device)
        start, count, place = (
            torch.tensor(starts)[:, None],
            torch.tensor(counts)[:, None],
            torch.arange(longest),
        )
        self.rows = (start + torch.minimum(place, count - 1)).flatten().to(like.device)
        self.weights = (place < count).to(like.device, like.dtype)
        adjacent = all(b - a == longest for a, b in pairwise(starts))
        self._first = starts[0] if adjacent and min(counts) == longest else None

    def take(self, rows: Tensor) -> Tensor:
        """These groups out of all `rows`; a view where they lie side by side already."""
        if self._first is None:
            return rows[self.rows].unflatten(0, self.shape)
        return rows.narrow(0, self._first, len(self.rows)).unflatten(0, self.shape)


@dataclass(frozen=True)
class Batch:
    """Groups of similar size: their numbers, and their rows of X and of Y."""

    groups: list[int]
    x: Side
    y: Side


def batches(counts: Counts, like: Tensor, most_pairs: int, usual: int) -> Iterator[Batch]:
    """Cut all groups into batches, each with room for a tile of min(longest, `usual`) rows a side in every group.

    Parameters
    ----------
    counts : Counts
    like : Tensor
        Of the dtype of weights and the device of everything.
    most_pairs : int
        Pairs of rows that the tiles of a batch may hold together; a batch has one group at least.
    usual : int
        Rows.
    """
    starts = [[0, *accumulate(of_side)] for of_side in counts]
    kinds: dict[tuple[int, int], list[int]] = {}
    for group, (n, m) in enumerate(zip(*counts, strict=True)):
        kinds.setdefault((-(-n // _STEP), -(-m // _STEP)), []).append(group)
    for groups in kinds.values():
        longest = max(max(of_side[g] for g in groups) for of_side in counts)
        size = max(1, most_pairs // min(longest, usual) ** 2)
        for first in range(0, len(groups), size):
            some = groups[first : first + size]
            x, y = (
                Side([start[g] for g in some], [of_side[g] for g in some], like)
                for start, of_side in zip(starts, counts, strict=True)
            )
            yield Batch(some, x, y)


def group_of_row(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Number of the group of every row."""
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(device)
