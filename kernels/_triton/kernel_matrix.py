r"""Kernel matrices, tile by tile: the product's epilogue takes the profile and writes.

For Y = X only tiles on and above the diagonal are formed. Each is written twice, as it stands and transposed, and of
the tiles that the diagonal crosses only the entries above it: the matrix is symmetric to the last bit.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..radial import Gaussian, Matern, MixtureOfGaussians, RadialKernel, RationalQuadratic
from . import radial
from ._points import points
from ._resources import Variant
from ._tiles import Gpu, gpu, product, tile, triangle, variants

_SQUARE = 1024  # rows and columns of the squares of tiles that run together and share rows in the cache


def kernel_matrix(
    kernel: RadialKernel, X: Tensor, Y: Tensor, *, same: bool, precision: str, psd_safe: bool
) -> Tensor:
    """See `kernels.kernel_matrix.kernel_matrix`; "low" runs as "medium", which costs the same."""
    n, m = X.shape[0], Y.shape[0]
    K = torch.empty(n, m, dtype=torch.float32, device=X.device)
    if not K.numel():
        return K
    split = precision == "high"
    form = radial.form(kernel, split)
    launch = _launch(form, X.shape[1], split, gpu(X.device))
    x = points(X, launch["BK"], split, psd_safe)
    y = x if same else points(Y, launch["BK"], split, psd_safe)
    high, wide = (triton.cdiv(size, launch["SQUARE"]) for size in (n, m))
    squares = high * (high + 1) // 2 if same else high * wide
    inside = launch["SQUARE"] ** 2 // (launch["BN"] * launch["BM"])
    _matrix_kernel[(squares * inside,)](
        *(x.rows, x.numbers, y.rows, y.numbers, radial.parameters(kernel, x.numbers), K, n, m, x.width),
        FORM=form,
        SAME=same,
        SPLIT=split,
        enable_fp_fusion=True,
        **launch,
    )
    return K


def _launch(form: tuple[Any, ...], d: int, split: bool, on: Gpu) -> dict[str, Any]:
    launch = tile(d, split, radial.crowding(form), on)
    return {**launch, "SQUARE": _SQUARE if on.capability else 2 * launch["BM"]}


@triton.jit
def _matrix_kernel(
    p_x, p_xn, p_y, p_yn, p_k, p_out, n, m, width,
    FORM: tl.constexpr, SAME: tl.constexpr, SPLIT: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, SQUARE: tl.constexpr,
):  # fmt: skip
    INSIDE: tl.constexpr = (SQUARE // BN) * (SQUARE // BM)
    square = tl.program_id(0) // INSIDE
    within = tl.program_id(0) % INSIDE
    if SAME:
        j_square, i_square = triangle(square)
    else:
        i_square = square // tl.cdiv(m, SQUARE)
        j_square = square % tl.cdiv(m, SQUARE)
    top = i_square * SQUARE + within % (SQUARE // BN) * BN
    left = j_square * SQUARE + within // (SQUARE // BN) * BM
    if top >= n or left >= m:
        return
    if SAME and top >= left + BM:
        return
    o_x = tl.minimum(tl.arange(0, BN), n - 1 - top)
    o_y = tl.minimum(tl.arange(0, BM), m - 1 - left)
    row = width * (2 if SPLIT else 1)
    b_sum = product(p_x + top.to(tl.int64) * row, p_y + left.to(tl.int64) * row, o_x, o_y, width, SPLIT, BK)
    o_n = top + tl.arange(0, BN)
    o_m = left + tl.arange(0, BM)
    factor, slope, alpha = radial.factors(p_k, p_xn, n, p_yn, m, FORM)
    b_xn = radial.norms(p_xn, o_n, n, factor, FORM)
    b_yn = radial.norms(p_yn, o_m, m, factor, FORM)
    b_e = radial.exponents(b_sum, slope, b_xn, b_yn)
    inside = (o_n < n)[:, None] & (o_m < m)[None, :]
    if SAME:
        b_e = tl.where(o_n[:, None] == o_m[None, :], 0.0, b_e)
        inside = inside & (o_n[:, None] <= o_m[None, :])
    b_k = radial.profile(b_e, alpha, FORM)
    o_n, o_m = o_n.to(tl.int64), o_m.to(tl.int64)
    tl.store(p_out + o_n[:, None] * m + o_m[None, :], b_k, mask=inside)
    if SAME:
        tl.store(p_out + o_m[None, :] * m + o_n[:, None], b_k, mask=inside)


def _variants(kernel: RadialKernel, d: int, precision: str, same: bool = False) -> Iterator[Variant]:
    split = precision == "high"
    form = radial.form(kernel, split)
    return variants(
        f"kernel matrix, {kernel.name}, {precision}{', X = Y' if same else ''}",
        _matrix_kernel,
        "p_x: p_xn p_y: p_yn p_k p_out",
        "n m width",
        lambda on: _launch(form, d, split, on),
        {"FORM": form, "SAME": same, "SPLIT": split},
    )


VARIANTS = [
    *_variants(Gaussian(), 512, "medium"),
    *_variants(Gaussian(), 3072, "medium", same=True),
    *_variants(Gaussian(), 3072, "high", same=True),
    *_variants(MixtureOfGaussians(), 64, "medium"),
    *_variants(Matern(nu=2.5), 64, "medium", same=True),
    *_variants(RationalQuadratic(), 64, "high"),
]
