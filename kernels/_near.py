r"""Distances to a few centres by matrix products, exact where it matters: near zero.

:math:`\|a\|^2 + \|c\|^2 - 2a\cdot c` cancels when a and c are near each other, just where seeding must tell equal rows
from different ones. Pairs whose distance comes out below 1/64 of their norms are formed again from differences.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_NEAR = 1 / 64
_SIDE = 512  # rows of a block: few rows are brought up to date in vain, and matrix products are at their rate


def near_exact_distances(rows: Tensor, centres: Tensor, origin: Tensor) -> Tensor:
    """Squared distances (b, t) of small relative error, exact zeros for equal rows; any `origin` near the data."""
    a, c = rows - origin, centres - origin
    scale = (
        torch.linalg.vector_norm(a, dim=1).square_()[:, None] + torch.linalg.vector_norm(c, dim=1).square_()
    )
    squared = torch.addmm(scale, a, c.T, alpha=-2)
    near = squared <= scale.mul_(_NEAR)
    for i, j in zip(*(part.split(len(rows)) for part in near.nonzero(as_tuple=True)), strict=True):
        squared[i, j] = (rows[i] - centres[j]).square_().sum(1)
    return squared


def near_mean(x: Tensor) -> Tensor:
    """Mean of some 32 rows, spread evenly, in the dtype of distances: an origin for `near_exact_distances`."""
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    sample = range(0, len(x), max(1, len(x) // 32))
    for row in sample:
        total += x[row]
    return (total / max(1, len(sample))).to(working(x))


def side_within(memory_budget: int, d: int, item: int) -> int:
    """Rows and centres at a time, so that the temporaries of `near_exact_distances` fit the budget."""
    side = _SIDE
    while side > 1 and 7 * side * (d + side) * item > memory_budget:
        side //= 2
    return side


def working(x: Tensor) -> torch.dtype:
    """Dtype of distances: float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def blocks_of(x: Tensor, step: int) -> Iterator[tuple[slice, Tensor]]:
    """Slices of `step` rows, and those rows in the dtype of distances."""
    for begin in range(0, len(x), step):
        part = slice(begin, begin + step)
        yield part, x[part].to(working(x))
