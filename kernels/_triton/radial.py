r"""Kernel values from a tile of inner products: the epilogue that all operations on pairs of rows share.

With rows :math:`x = \alpha\hat x`, :math:`y = \beta\hat y` prepared by `_points`, and a the factor that the family puts
on squared distances (:math:`\log_2 e/2\sigma^2` for the Gaussian),

.. math:: e_{ij} = \min(0,\; 2a\alpha\beta\; \hat x_i\cdot\hat y_j - a|x_i|^2 - a|y_j|^2),\qquad k = f(-e),

an addition, a fused multiply-add and a minimum a pair. Exponentials are base two, the special-function unit's own:
:math:`k = 2^e`. Rows and columns past the end get :math:`a|x|^2 = \infty`, where every profile is zero: no mask in the
loop.
"""

import itertools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..radial import MixtureOfGaussians, RadialKernel

LOG2_E = tl.constexpr(1.4426950408889634)


def form(kernel: RadialKernel, split: bool) -> tuple[Any, ...]:
    r"""What a kernel is compiled for: family, widest ratio, and weights, rates and squarings of its exponentials.

    A mixture is :math:`\sum_q w_q 2^{e c_q}` with rates :math:`1 = c_0 < c_1 < \dots`. If each is a power of two times
    the one before, one exponential is squared that many times; the squarings are () otherwise, and where float32
    accuracy is meant (`split`): squaring multiplies the rounding of the first exponential by :math:`c_q`.
    """
    if isinstance(kernel, MixtureOfGaussians):
        weights: dict[float, float] = {}
        for ratio, weight in zip(kernel.ratios, kernel.weights or (), strict=True):  # widest first
            if weight > 0:
                weights[ratio] = weights.get(ratio, 0.0) + weight
        widest = max(weights, default=1.0)
        rates = tuple((widest / ratio) ** 2 for ratio in weights)
        steps = [math.log2(b / a) for a, b in itertools.pairwise(rates)]
        squarings = tuple(map(round, steps)) if kernel.squarings is not None and not split else ()
        return ("gaussian", widest, tuple(weights.values()) or (0.0,), rates or (1.0,), squarings)
    name = f"matern-{int(kernel.nu)}" if kernel.name == "matern" else kernel.name  # type: ignore[attr-defined]
    return (name, 1.0, (1.0,), (1.0,), ())


def check_vanishes(kernel: RadialKernel) -> None:
    """Raise for distances themselves: sums have no mask for columns past the end, where kernels are zero."""
    if kernel.name == "squared":
        raise ValueError("sums of squared distances are not implemented in Triton: use backend 'torch'")


def crowding(FORM: tuple[Any, ...]) -> int:
    """1 if the profile needs more registers than the one exponential of a Gaussian, else 0."""
    return int(FORM[0] not in ("gaussian", "squared") or len(FORM[2]) > 1)


def parameters(kernel: RadialKernel, like: Tensor) -> Tensor:
    """The kernel's numbers side by side in float32, beside `like`; nothing waits for the device."""
    numbers = kernel.parameters(like)
    return torch.stack(numbers) if numbers else like


@triton.jit
def norms(p_numbers, o_rows, n, factor, FORM: tl.constexpr):
    """Minus factor times squared norms of some rows; those past the end are far from everything."""
    b_norm = tl.load(p_numbers + o_rows, mask=o_rows < n, other=0.0)
    return tl.where(o_rows < n, b_norm * -factor, far(FORM))


@triton.jit
def far(FORM: tl.constexpr):
    """An exponent at which the profile is zero: not infinite where a polynomial in it multiplies an exponential."""
    if FORM[0] == "matern-1" or FORM[0] == "matern-2":
        return -1e30
    else:
        return float("-inf")


@triton.jit
def factors(p_k, p_xn, n, p_yn, m, FORM: tl.constexpr):
    """What the family multiplies squared distances by, what that makes of products, and the exponent alpha."""
    factor = 1.0
    alpha = 1.0
    if FORM[0] != "squared":
        sigma = tl.load(p_k) * FORM[1]
        factor = 1.0 / (sigma * sigma)
    if FORM[0] == "gaussian":
        factor *= 0.5 * LOG2_E
    if FORM[0] == "matern-1":
        factor *= 3.0
    if FORM[0] == "matern-2":
        factor *= 5.0
    if FORM[0] == "rational_quadratic":
        alpha = tl.load(p_k + 1)
        factor *= 0.5 / alpha
    return factor, 2.0 * factor * tl.load(p_xn + n) * tl.load(p_yn + m), alpha


@triton.jit
def exponents(b_sum, slope, b_xn, b_yn):
    """The e of above, from the inner products."""
    b_e = b_sum * slope + (b_xn[:, None] + b_yn[None, :])
    return tl.minimum(b_e, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def on_diagonal(b_e, o_n, o_m, LEFT_OUT: tl.constexpr, UPPER: tl.constexpr, FORM: tl.constexpr):
    """Exponents for Y = X: a distance of zero on the diagonal, or its term left out, and those below it if `UPPER`."""
    if LEFT_OUT:
        b_e = tl.where(o_n[:, None] == o_m[None, :], far(FORM), b_e)
    else:
        b_e = tl.where(o_n[:, None] == o_m[None, :], 0.0, b_e)
    if UPPER:
        b_e = tl.where(o_n[:, None] > o_m[None, :], far(FORM), b_e)
    return b_e


@triton.jit
def profile(b_e, alpha, FORM: tl.constexpr):
    """Kernel values."""
    if FORM[0] == "gaussian":
        return _mixture(b_e, FORM)
    elif FORM[0] == "cauchy":
        return 1.0 / (1.0 - b_e)
    elif FORM[0] == "rational_quadratic":
        return tl.exp2(-alpha * _log2_1m(b_e))
    elif FORM[0] == "squared":
        return -b_e
    else:
        b_root = tl.sqrt(-b_e)
        return _polynomial(b_e, b_root, FORM) * tl.exp2(-LOG2_E * b_root)


@triton.jit
def log2_profile(b_e, alpha, FORM: tl.constexpr):
    """Base-two logarithms of kernel values, also where those underflow."""
    if FORM[0] == "gaussian":
        return _log2_mixture(b_e, FORM)
    elif FORM[0] == "cauchy":
        return -_log2_1m(b_e)
    elif FORM[0] == "rational_quadratic":
        return -alpha * _log2_1m(b_e)
    else:
        b_root = tl.sqrt(-b_e)
        return tl.log2(_polynomial(b_e, b_root, FORM)) - LOG2_E * b_root


@triton.jit
def _mixture(b_e, FORM: tl.constexpr):
    """Sum of w_q 2^(e c_q)."""
    b_term = tl.exp2(b_e)
    b_total = b_term if FORM[2][0] == 1.0 else b_term * FORM[2][0]
    for q in tl.static_range(1, len(FORM[2])):
        b_term = _squared(b_term, FORM[4][q - 1]) if len(FORM[4]) > 0 else tl.exp2(b_e * FORM[3][q])
        b_total += b_term * FORM[2][q]
    return b_total


@triton.jit
def _squared(b, TIMES: tl.constexpr):
    for _ in tl.static_range(TIMES):
        b = b * b
    return b


@triton.jit
def _log2_mixture(b_e, FORM: tl.constexpr):
    """Its logarithm: the widest term split off, the others relative to it."""
    b_total = tl.full(b_e.shape, FORM[2][0], tl.float32)
    for q in tl.static_range(1, len(FORM[2])):
        b_total += tl.exp2(b_e * (FORM[3][q] - 1.0)) * FORM[2][q]
    if len(FORM[2]) == 1 and FORM[2][0] == 1.0:
        return b_e
    else:
        return tl.log2(b_total) + b_e


@triton.jit
def _polynomial(b_e, b_root, FORM: tl.constexpr):
    """The factor before the exponential of a Matern kernel."""
    if FORM[0] == "matern-0":
        return tl.full(b_e.shape, 1.0, tl.float32)
    elif FORM[0] == "matern-1":
        return 1.0 + b_root
    else:
        return 1.0 + b_root - b_e * (1.0 / 3.0)


@triton.jit
def _log2_1m(b_e):
    """log2(1 - e); what rounding 1 - e lost is put back to first order."""
    b_one = 1.0 - b_e
    b_near = tl.maximum(b_e, -1e9)  # beyond it nothing to speak of is lost
    return tl.log2(b_one) + LOG2_E * (((1.0 - b_near) - 1.0) + b_near) / -b_one
