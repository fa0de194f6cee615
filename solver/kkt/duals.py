r"""Duals of given rows: the non-negative weights under which a model is most nearly stationary.

.. math:: \min_{\lambda \ge 0} \ \tfrac12 \|s \circ \theta^* + G^\top \lambda\|^2

a non-negative least squares problem in n unknowns whose matrix, n rows of P numbers, is never made: a step needs
:math:`G r` and :math:`G^\top \lambda` alone (`operators`). Gradients of rows that a network is sure of are many
orders smaller than others, so unknowns are scaled to :math:`\mu_i = \lambda_i \|\nabla L_i\|`, which leaves the sign
constraint as it is. Then: accelerated projected gradient (Beck and Teboulle 2009), its momentum dropped whenever
it points uphill (O'Donoghue and Candès 2015, the gradient scheme); steps 1/L with L doubled until
:math:`\|G^\top \Delta\|^2 \le L \|\Delta\|^2`, which for a quadratic is all that a step has to satisfy. Residual and
slopes are affine in the unknowns, so that those at an extrapolated point are combinations of known ones, and an
iteration is one product of each kind.
"""

import dataclasses
import math

import torch
from torch import Tensor

from .._check import check_count, check_non_negative
from .operators import CHUNK, directional_derivatives, flatten, gradient_norms, weighted_gradient
from .trained import TrainedModel

# Gradients below this share of the largest are taken for zero: what is left of them is underflow.
_ZERO = 1e-30


@dataclasses.dataclass(frozen=True, eq=False)
class FittedDuals:
    r"""Duals, and how well they fit.

    Attributes
    ----------
    duals : Tensor, shape (n,), float64
        λ, non-negative; 0 for rows whose gradient vanishes.
    contributions : Tensor, shape (n,), float64
        :math:`\mu_i = \lambda_i \|\nabla L_i\|`: the length of what a row adds to the weighted gradient.
    slopes : Tensor, shape (n,), float64
        Derivative of the objective in each contribution. At the optimum 0 where λ is positive, and not negative
        elsewhere.
    residual : float
        Norm of the stationarity residual relative to that of s θ*.
    violation : float
        Largest breach of those two conditions, relative to the norm of s θ*. What `tolerance` bounds.
    iterations : int
    converged : bool
        Whether the tolerance was reached; where not, the duals are those of the last iteration.
    """

    duals: Tensor
    contributions: Tensor
    slopes: Tensor
    residual: float
    violation: float
    iterations: int
    converged: bool


def fit_duals(
    model: TrainedModel,
    X: Tensor,
    Y: Tensor,
    *,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    chunk: int = CHUNK,
) -> FittedDuals:
    """Fit duals to rows.

    Parameters
    ----------
    model : TrainedModel
        Made with ``dtype=torch.float64`` for tolerances below about 1e-5.
    X : Tensor, shape (n, ...)
        Transformed rows; they may lie on another device, and go to the model's chunk by chunk.
    Y : Tensor, shape (n,) or (n, k)
        As the losses take them.
    tolerance : float, default 1e-6
        On `FittedDuals.violation`.
    max_iterations : int, default 1000
    chunk : int, default 512
        Rows of a pass.

    Returns
    -------
    FittedDuals
        Where `max_iterations` did not do, `converged` says so.

    Raises
    ------
    ValueError
        If there are no rows, s θ* is zero, or a gradient is not finite.

    Notes
    -----
    An iteration is a backward and a forward-mode pass over all rows, about six forward passes; memory is that of a
    chunk. The residual is unique; duals are where the gradients of the rows are linearly independent (n ≤ P).
    """
    check_non_negative(tolerance, "tolerance")
    check_count(max_iterations, "max_iterations", 0)
    target = flatten(model.target()).double()
    scale = float(target.norm())
    if not 0 < scale < math.inf:
        raise ValueError(f"s θ* has norm {scale}: a model of zeros, or not finite, has no duals")
    norms = gradient_norms(model, X, Y)
    if not norms.isfinite().all():
        row = int((~norms.isfinite()).nonzero()[0])
        raise ValueError(f"the gradient of row {row} is not finite: look at that row, and at the network")
    used = norms > _ZERO * norms.max()
    inverse = torch.where(used, 1 / torch.where(used, norms, 1.0), 0.0)

    def product(mu: Tensor) -> Tensor:
        return weighted_gradient(model, X, Y, mu * inverse, chunk=chunk)

    def slopes(residual: Tensor) -> Tensor:
        return directional_derivatives(model, X, Y, residual, chunk=chunk) * inverse

    # Unknowns, residual and slopes of a point; the second and third are affine in the first.
    point = ahead = (torch.zeros_like(norms), target, slopes(target))
    curvature, momentum, iterations = 1.0, 1.0, 0
    while (violation := _violation(point[0], point[2]) / scale) > tolerance and iterations < max_iterations:
        iterations += 1
        while True:
            change = (ahead[0] - ahead[2] / curvature).clamp_min(0) - ahead[0]
            bend = product(change)
            # In float32 products are good to seven digits. What is not finite ends the loop.
            if not float(bend.square().sum()) > (1 + 1e-6) * curvature * float(change.square().sum()):
                break
            curvature *= 2
        new = (ahead[0] + change, ahead[1] + bend, slopes(ahead[1] + bend))
        if float(change @ (new[0] - point[0])) < 0:
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        share = (momentum - 1) / following
        ahead = tuple(now + share * (now - before) for before, now in zip(point, new, strict=True))
        point, momentum = new, following
    mu = point[0]
    return FittedDuals(
        duals=mu * inverse,
        contributions=mu,
        slopes=point[2],
        residual=float((target + product(mu)).norm()) / scale,
        violation=violation,
        iterations=iterations,
        converged=violation <= tolerance,
    )


def _violation(mu: Tensor, slopes: Tensor) -> float:
    """How far the conditions of the optimum are broken."""
    return float(torch.where(mu > 0, slopes.abs(), (-slopes).clamp_min(0)).max())
