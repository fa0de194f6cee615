"""Pairs of rows: checked, centred, and their distances written into a buffer. Shared by the kernel operations."""

from typing import Any

import torch
from torch import Tensor

from ._check import as_rows, as_tensor, check_budget, check_columns, check_together
from ._precision import inner_products, rounded, working_dtype
from .radial import RadialKernel


def prepare_pairs(
    kernel: RadialKernel, X: Any, Y: Any, precision: str, centre: bool = True
) -> tuple[Tensor, Tensor, bool]:
    """Rows as the operations work on them: (X, Y, whether Y is X).

    Both are cast to the working dtype and moved by the median of Y's rows (of 256 of them, evenly spread). Distances
    do not change; their rounding errors, which grow with the squared norms, become several times smaller on image
    pixels. A median, because one far row would draw a mean away from all others. Differences of coordinates need none.
    """
    if not isinstance(kernel, RadialKernel):
        raise ValueError(f"`kernel` must be a kernel such as Gaussian(1.0), got {kernel!r}")
    x = as_rows(X, "X")
    same = Y is None
    y = x if same else as_rows(Y, "Y")
    check_together(X=x, Y=y)
    check_columns(x, y)
    dtype = working_dtype(x.dtype, precision)
    x = x.to(dtype)
    y = x if same else y.to(dtype)
    if centre and y.shape[0] > 0 and kernel.metric == "squared":
        middle = y.detach()[:: max(1, y.shape[0] // 256)].median(dim=0).values
        # Rows of NaN or infinity must spoil their own distances, not everybody's.
        middle = torch.where(middle.isfinite(), middle, 0)
        x = x - middle
        y = x if same else y - middle
    return x, y, same


def check_sum(same: bool, leave_one_out: bool, memory_budget: Any) -> None:
    """Raise unless the options of a sum over pairs fit together."""
    if leave_one_out and not same:
        raise ValueError("`leave_one_out` leaves out the terms i = j of K(X, X): call it with `Y=None`")
    check_budget(memory_budget)


def like_rows(values: Tensor, x: Tensor, X: Any, name: str) -> Tensor:
    """Values of the rows, in the working dtype of the rows; nothing wider is narrowed."""
    if values.dtype.itemsize > x.dtype.itemsize:
        raise ValueError(f"`X` is {as_tensor(X, 'X').dtype} but `{name}` is {values.dtype}: cast one of them")
    values = values.to(x.dtype)
    check_together(**{"X": x, name: values})
    return values


class Distances:
    """Distances of blocks of two sets of rows, written into one buffer.

    Parameters
    ----------
    kernel : RadialKernel
        Says which distance.
    x, y : Tensor, shapes (n, d) and (m, d)
    precision : str
        See `_precision`.
    psd_safe : bool
        Take the norms of the rows as the product rounds them.
    """

    def __init__(
        self, kernel: RadialKernel, x: Tensor, y: Tensor, precision: str, psd_safe: bool = False
    ) -> None:
        self.manhattan = kernel.metric == "manhattan"
        self.precision = precision
        self.x, self.y = x, y
        if psd_safe:
            self.x = rounded(x, precision)
            self.y = self.x if y is x else rounded(y, precision)
        if not self.manhattan:
            self.x_norms = _squared_norms(self.x)
            self.y_norms = self.x_norms if y is x else _squared_norms(self.y)

    def block(self, rows: slice, columns: slice, out: Tensor) -> Tensor:
        """Fill `out` with the distances of these rows and columns; return it."""
        x, y = self.x[rows], self.y[columns]
        if self.manhattan:
            return out.copy_(torch.cdist(x, y, p=1))
        if x.device.type == "cpu":
            torch.addmm(self.y_norms[columns], x, y.T, alpha=-2, out=out)
        else:
            out.copy_(inner_products(x, y, self.precision)).mul_(-2).add_(self.y_norms[columns])
        return out.add_(self.x_norms[rows, None]).clamp_(min=0)


def _squared_norms(rows: Tensor) -> Tensor:
    """By norms: a sum of squares would write an array of the size of the rows first, at 50 times the cost."""
    return torch.linalg.vector_norm(rows, dim=1).square_()


def set_diagonal(tile: Tensor, value: float, offset: int) -> Tensor:
    """A copy of the tile whose entries (a, a + offset) are `value`; the tile itself where it has none."""
    length = diagonal_length(tile.shape[-2], tile.shape[-1], offset)
    if length <= 0:
        return tile
    return torch.diagonal_scatter(tile, tile.new_full((length,), value), offset)


def diagonal_length(height: int, width: int, offset: int) -> int:
    """How many entries (a, a + offset) a (height, width) matrix has."""
    return min(height - max(0, -offset), width - max(0, offset))
