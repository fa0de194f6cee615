r"""Solve :math:`x W^\top = z` row by row for a fixed matrix, factored once.

The solution nearest to a given :math:`x_0` is :math:`x_0 + (z - x_0 W^\top)(W^\top)^{+}`. A square W is
solved by LU, a wide one (more inputs than outputs) by the QR of :math:`W^\top`, a tall one by
least squares; one step of refinement follows, because the random square matrices of this field have
condition numbers of 10² to 10⁵ and the answer is fed through W again. (A pseudo-inverse formed explicitly
loses those digits for good.)
"""

import torch
from torch import Tensor


class LinearSystem:
    """Factorisation of W, shape (outputs, inputs), float64, made on first use.

    Parameters
    ----------
    weight : Tensor, shape (p, d)

    Notes
    -----
    Factorisation costs 2/3 d³ (square) or 2 d p² multiplications; each solve 2 n d p.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._factors: tuple[Tensor, ...] | None = None

    def solve(self, z: Tensor, near: Tensor | None = None) -> Tensor:
        """Rows x with ``x @ W.T == z`` nearest to `near` (default: to the origin); shape (n, d)."""
        start = torch.zeros(z.shape[0], self._weight.shape[1], dtype=z.dtype) if near is None else near
        x = start
        for _ in range(2):
            x = x + self._least_norm(z - x @ self._weight.T)
        return x

    def _least_norm(self, z: Tensor) -> Tensor:
        outputs, inputs = self._weight.shape
        if outputs > inputs:
            return torch.linalg.lstsq(self._weight, z.T, driver="gelsd").solution.T
        if self._factors is None:
            self._factors = (
                tuple(torch.linalg.lu_factor(self._weight))
                if outputs == inputs
                else tuple(torch.linalg.qr(self._weight.T))
            )
        if outputs == inputs:
            return torch.linalg.lu_solve(self._factors[0], self._factors[1], z.T).T
        Q, R = self._factors
        return torch.linalg.solve_triangular(R.T, z.T, upper=False).T @ Q.T
