"""Pairs of rows: checked, centred, and their distances written into a buffer. Shared by the kernel operations."""

from typing import Any

import torch
from torch import Tensor

from ._check import as_rows, check_columns, check_together
from ._precision import inner_products, rounded, working_dtype
from .radial import RadialKernel


def prepare_pairs(X: Any, Y: Any, precision: str, centre: bool = True) -> tuple[Tensor, Tensor, bool]:
    """Rows as the operations work on them: (X, Y, whether Y is X).

    Both are cast to the working dtype and moved by the mean of the Y rows. Distances do not change; their rounding
    errors, which grow with the squared norms, become 4 to 7 times smaller on image pixels.
    """
    x = as_rows(X, "X")
    same = Y is None
    y = x if same else as_rows(Y, "Y")
    check_together(X=x, Y=y)
    check_columns(x, y)
    dtype = working_dtype(x.dtype, precision)
    x = x.to(dtype)
    y = x if same else y.to(dtype)
    if centre and y.shape[0] > 0:
        middle = y.detach().mean(dim=0)
        # A row of NaN or infinity must spoil its own distances, not everybody's.
        middle = torch.where(middle.isfinite(), middle, 0)
        x = x - middle
        y = x if same else y - middle
    return x, y, same


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
            self.x_norms = self.x.square().sum(1)
            self.y_norms = self.x_norms if y is x else self.y.square().sum(1)

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


def set_diagonal(tile: Tensor, value: float, offset: int) -> Tensor:
    """A copy of the tile whose entries (a, a + offset) are `value`; the tile itself where it has none."""
    length = diagonal_length(tile.shape[-2], tile.shape[-1], offset)
    if length <= 0:
        return tile
    return torch.diagonal_scatter(tile, tile.new_full((length,), value), offset)


def diagonal_length(height: int, width: int, offset: int) -> int:
    """How many entries (a, a + offset) a (height, width) matrix has."""
    return min(height - max(0, -offset), width - max(0, offset))
