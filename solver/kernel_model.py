r"""Kernel ridge regression on raw inputs: what a set without feature map trains.

.. math:: f(x) = K(x, X_S)\,\alpha, \qquad \alpha = (K_{SS} + \lambda_S I)^{-1} Y_S,

with the points as they are stored, in float64 (Nguyen, Chen and Lee 2021, equation 1). There is no intercept.
"""

import dataclasses
from typing import Self

import torch
from torch import Tensor

from .kernel_encoder import KernelEncoder
from .model import Model
from .targets import Targets

_EPS = torch.finfo(torch.float64).eps


@dataclasses.dataclass(frozen=True)
class KernelModel(Model[KernelEncoder]):
    """``decode(kernel(transform(x), points) @ coefficients)``.

    Attributes
    ----------
    encoder : KernelEncoder
    targets : Targets
    points : Tensor, shape (m, *input_shape), float64
        After the transform.
    coefficients : Tensor, shape (m, k), float64
    """

    encoder: KernelEncoder
    targets: Targets
    points: Tensor
    coefficients: Tensor

    @classmethod
    def train(
        cls, encoder: KernelEncoder, targets: Targets, points: Tensor, labels: Tensor, ridge: float
    ) -> Self:
        """Solve for the coefficients of points (m, *input_shape), after the transform; see `solve_kernel`."""
        points = points.double()
        return cls(encoder, targets, points, solve_kernel(encoder.kernel.matrix(points), labels, ridge))

    @property
    def width(self) -> int:
        return len(self.points)

    def scores(self, encoded: Tensor) -> Tensor:
        return self.encoder.kernel.matrix(encoded.double(), self.points) @ self.coefficients


def solve_kernel(K: Tensor, labels: Tensor, ridge: float) -> Tensor:
    """Coefficients ``(K + ridge)^-1 labels`` by one Cholesky factorisation.

    Parameters
    ----------
    K : Tensor, shape (m, m), float64
        Left as it is.
    labels : Tensor, shape (m, k)
    ridge : float
        λ_S, absolute.

    Returns
    -------
    Tensor, shape (m, k), float64

    Raises
    ------
    ValueError
        If the matrix is not positive definite up to rounding: nothing is added to make it so.

    Notes
    -----
    m³/3 multiplications.
    """
    A = K.clone()
    A.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(A)
    # A pivot at the rounding of the largest entry is zero in all but its digits.
    pivots, largest = factor.diagonal().square(), float(A.diagonal().max())
    if int(failed) or not float(pivots.min()) > len(A) * _EPS * largest:
        raise ValueError(
            f"K_SS + {ridge:.3g} of these {len(A)} points is not positive definite (largest entry {largest:.3g}):"
            f" points coincide, or the ridge is below rounding. Raise the ridge to {1e-8 * largest:.1g} or more, or"
            " make the points distinct"
        )
    return torch.cholesky_solve(labels.double(), factor)
