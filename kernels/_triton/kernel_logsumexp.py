r"""Log-sum-exp over the columns of a kernel matrix, tile by tile, in base two.

Each row keeps c, the largest exponent so far rounded up to a whole number, and the sum of :math:`2^{a_j - c}`: a
larger c rescales the sum by a power of two, which is exact. Strips give one logarithm each; those are combined in
float64.
"""

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..radial import Gaussian, MixtureOfGaussians, RadialKernel, RationalQuadratic
from . import radial
from ._points import points
from ._resources import Variant
from ._tiles import bands, gpu, halves_of, product, step, strip_tile, strips, variants


def kernel_logsumexp(
    kernel: RadialKernel,
    X: Tensor,
    Y: Tensor,
    log_weights: Tensor | None,
    *,
    same: bool,
    leave_one_out: bool,
    precision: str,
    memory_budget: int | None,
) -> Tensor:
    """See `kernels.kernel_logsumexp.kernel_logsumexp`; "low" runs as "medium", which costs the same."""
    radial.check_vanishes(kernel)
    n, m = X.shape[0], Y.shape[0]
    if not n or not m:
        return torch.full((n,), -math.inf, device=X.device)
    split, on = precision == "high", gpu(X.device)
    form = radial.form(kernel, split)
    launch = strip_tile(X.shape[1], split, 1 + radial.crowding(form), on)
    x = points(X, launch["BK"], split)
    y = x if same else points(Y, launch["BK"], split)
    rows, columns = triton.cdiv(n, launch["BN"]), triton.cdiv(m, launch["BM"])
    count = strips(rows, columns, on)
    weights = x.numbers if log_weights is None else log_weights.float().contiguous()
    numbers = radial.parameters(kernel, x.numbers)
    result = torch.empty(n, dtype=torch.float32, device=X.device)
    # Beside the logarithms of a band there are three times as many of their float64 temporaries.
    for first, high, top, bottom in bands(n, launch["BN"], 28 * count * launch["BN"], memory_budget):
        logs = torch.empty(count, bottom - top, dtype=torch.float32, device=X.device)
        _logsumexp_kernel[(high * count,)](
            *(x.rows, x.numbers, y.rows, y.numbers, weights, numbers, logs),
            *(n, m, x.width, first, bottom - top, count, triton.cdiv(columns, count)),
            FORM=form,
            SAME=same,
            LEFT_OUT=leave_one_out,
            WEIGHTED=log_weights is not None,
            SPLIT=split,
            enable_fp_fusion=True,
            **launch,
        )
        result[top:bottom] = torch.logsumexp(logs.double() * math.log(2), 0)
    return result


@triton.jit
def _logsumexp_kernel(
    p_x, p_xn, p_y, p_yn, p_w, p_k, p_out, n, m, width, first, high, count, length,
    FORM: tl.constexpr, SAME: tl.constexpr, LEFT_OUT: tl.constexpr, WEIGHTED: tl.constexpr,
    SPLIT: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, RESIDENT: tl.constexpr,
):  # fmt: skip
    i_strip = tl.program_id(0) % count
    i_row = tl.program_id(0) // count
    top = (first + i_row) * BN
    row = width * (2 if SPLIT else 1)
    p_x += top.to(tl.int64) * row
    o_x = tl.minimum(tl.arange(0, BN), n - 1 - top)
    o_n = top + tl.arange(0, BN)
    factor, slope, alpha = radial.factors(p_k, p_xn, n, p_yn, m, FORM)
    b_xn = radial.norms(p_xn, o_n, n, factor, FORM)
    if RESIDENT:
        b_x, b_x_low = halves_of(p_x, o_x, width, SPLIT, BK)
    b_shift = tl.full((BN,), float("-inf"), tl.float32)
    b_total = tl.zeros((BN,), tl.float32)
    begin = i_strip * length
    for j in range(begin, tl.minimum(begin + length, tl.cdiv(m, BM))):
        left = j * BM
        o_m = left + tl.arange(0, BM)
        p_ym = p_y + left.to(tl.int64) * row
        o_y = tl.minimum(tl.arange(0, BM), m - 1 - left)
        if RESIDENT:
            b_sum = step(b_x, b_x_low, p_ym, o_y, width, None, SPLIT, BK)
        else:
            b_sum = product(p_x, p_ym, o_x, o_y, width, SPLIT, BK)
        b_e = radial.exponents(b_sum, slope, b_xn, radial.norms(p_yn, o_m, m, factor, FORM))
        crosses = (left < top + BN) & (top < left + BM)
        if SAME and crosses:
            b_e = radial.on_diagonal(b_e, o_n, o_m, False, False, FORM)
        if WEIGHTED:
            b_w = tl.load(p_w + o_m, mask=o_m < m, other=float("-inf")) * radial.LOG2_E
        else:
            b_w = tl.where(o_m < m, 0.0, float("-inf"))
        b_a = radial.log2_profile(b_e, alpha, FORM) + b_w[None, :]
        if LEFT_OUT and crosses:
            b_a = tl.where(o_n[:, None] == o_m[None, :], float("-inf"), b_a)
        b_above = tl.maximum(b_shift, tl.ceil(tl.max(b_a, 1)))
        b_base = tl.where(b_above == float("-inf"), 0.0, b_above)  # of rows without a term so far
        b_total = b_total * tl.exp2(b_shift - b_base) + tl.sum(tl.exp2(b_a - b_base[:, None]), 1)
        b_shift = b_above
    p_out += i_strip.to(tl.int64) * high + i_row * BN
    # Without a term the shift is -inf.
    tl.store(
        p_out + tl.arange(0, BN), b_shift + tl.log2(tl.where(b_total == 0.0, 1.0, b_total)), mask=o_n < n
    )


def _variants(kernel: RadialKernel, d: int, precision: str, same: bool = False) -> Iterator[Variant]:
    split = precision == "high"
    form = radial.form(kernel, split)
    return variants(
        f"kernel log-sum-exp, {kernel.name}, {precision}{', X = Y' if same else ''}",
        _logsumexp_kernel,
        "p_x: p_xn p_y: p_yn p_w p_k p_out",
        "n m width first high count length",
        lambda on: strip_tile(d, split, 1 + radial.crowding(form), on),
        {"FORM": form, "SAME": same, "LEFT_OUT": same, "WEIGHTED": True, "SPLIT": split},
    )


VARIANTS = [
    *_variants(Gaussian(), 64, "medium"),
    *_variants(Gaussian(), 512, "medium", same=True),
    *_variants(MixtureOfGaussians(), 64, "medium"),
    *_variants(RationalQuadratic(), 512, "high", same=True),
]
