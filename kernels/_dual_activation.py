r"""What a ReLU layer does to a Gaussian process: the two duals of LeakyReLU.

For :math:`(u, v)` Gaussian with covariance c and standard deviations whose product is p, and
:math:`\phi(u) = \max(u, 0) + a\min(u, 0)`, with :math:`\rho = c/p = \cos\theta` (Cho & Saul 2009, eq. 6, for the two
halves of the line):

.. math:: E[\phi'(u)\phi'(v)] = \kappa_0 = \frac{1+a^2}{2} - \frac{(1-a)^2}{2\pi}\,\theta,\qquad
          E[\phi(u)\phi(v)] = \kappa_1 = \frac{(1-a)^2}{2\pi}\,p\sin\theta + \kappa_0\,c .

**Accuracy.** The angle is atan2 of sine and cosine, the sine from :math:`(1-\rho)(1+\rho)`. An error of one rounding
:math:`\epsilon` in the cosine still moves a small angle by :math:`\sqrt\epsilon`, so pairs with
:math:`\sin^2\theta \le 16\epsilon` cannot be told from parallel ones, and are taken to be parallel.

**Derivatives.** :math:`d\kappa_1 = \kappa_0\,dc + \frac{(1-a)^2}{2\pi}\sin\theta\,dp`: differentiating the formula
itself would subtract two terms that grow like :math:`1/\sin\theta` (and :math:`1/\sin^3\theta` in the second
derivative). The derivative of :math:`\kappa_0` is infinite in c at parallel pairs, where :math:`\kappa_0` has a
kink as a function of the points; it is taken to be zero there, the mean over all directions. A point of no variance
is at a right angle to every other.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def relu_duals(covariance: Tensor, stds: Tensor, leak: float) -> tuple[Tensor, Tensor]:
    r"""The duals of LeakyReLU and of its derivative, :math:`\kappa_1` and :math:`\kappa_0`.

    Parameters
    ----------
    covariance : Tensor
        Of pre-activations, any shape.
    stds : Tensor
        Products of their two standard deviations, same shape.
    leak : float
        Slope on the negative side.

    Returns
    -------
    tuple of Tensor
        Twice differentiable torch, finite wherever the arguments are; usable under ``torch.vmap``.
    """
    varies = stds > 0
    cosine = torch.where(varies, covariance / torch.where(varies, stds, 1.0), 0.0)
    squared_sine = (1 - cosine) * (1 + cosine)
    sine = safe_sqrt(squared_sine, 16 * torch.finfo(cosine.dtype).eps)
    slope = (1 + leak**2) / 2 - _weight(leak) * torch.atan2(sine, cosine)
    value: Any = _ValueDual.apply(covariance, stds, sine, slope, _weight(leak))
    return value, slope


def safe_sqrt(values: Tensor, floor: float = 0.0) -> Tensor:
    """Square root where `values` exceed `floor`; elsewhere zero, and so are all derivatives."""
    above = values > floor
    return torch.where(above, torch.where(above, values, 1.0).sqrt(), 0.0)


def _weight(leak: float) -> float:
    return (1 - leak) ** 2 / (2 * math.pi)


class _ValueDual(Function):
    """``weight * stds * sine + slope * covariance``, of which sine and slope are functions already.

    They enter the derivative as factors, so that its own derivative follows from their graphs.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(covariance: Tensor, stds: Tensor, sine: Tensor, slope: Tensor, weight: float) -> Tensor:
        return weight * stds * sine + slope * covariance

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, _, sine, slope, ctx.weight = inputs
        ctx.save_for_backward(sine, slope)
        ctx.save_for_forward(sine, slope)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        sine, slope = ctx.saved_tensors
        return grads[0] * slope, grads[0] * ctx.weight * sine, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        sine, slope = ctx.saved_tensors
        return slope * tangents[0] + ctx.weight * sine * tangents[1]
