r"""Row sums of K(X, Y), and its product with one column: the weights enter in float32, and so do all sums.

With `HALF` (Y = X) only tiles that reach above the diagonal are formed. Each gives sums over its columns to its rows,
and sums over its rows to its columns, in a slot of `p_rows` of its own row of tiles.
"""

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from ..radial import Gaussian
from . import radial
from ._resources import Variant
from ._tiles import Gpu, half_pays, halves_of, product, step, strip_tile, variants


def tile(form: tuple[Any, ...], d: int, split: bool, same: bool, on: Gpu) -> dict[str, Any]:
    """Launch parameters."""
    return {**strip_tile(d, split, radial.crowding(form), on), "HALF": same and half_pays(d, on)}


@triton.jit
def sums_kernel(
    p_x, p_xn, p_y, p_yn, p_v, p_k, p_columns, p_rows, n, m, width, first, high, count, length,
    FORM: tl.constexpr, SAME: tl.constexpr, LEFT_OUT: tl.constexpr, HALF: tl.constexpr, WEIGHTED: tl.constexpr,
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
    if HALF and WEIGHTED:
        b_vn = tl.load(p_v + o_n, mask=o_n < n, other=0.0)
    b_total = tl.zeros((BN,), tl.float32)
    begin = i_strip * length
    end = tl.minimum(begin + length, tl.cdiv(m, BM))
    if HALF:
        begin = tl.maximum(begin, top // BM)
    for j in range(begin, end):
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
            b_e = radial.on_diagonal(b_e, o_n, o_m, LEFT_OUT, HALF, FORM)
        b_k = radial.profile(b_e, alpha, FORM)
        if HALF and not LEFT_OUT and crosses:  # both sums have the diagonal
            b_k = tl.where(o_n[:, None] == o_m[None, :], 0.5 * b_k, b_k)
        if WEIGHTED:
            b_v = tl.load(p_v + o_m, mask=o_m < m, other=0.0)
            b_total += tl.sum(b_k * b_v[None, :], 1)
        else:
            b_total += tl.sum(b_k, 1)
        if HALF:
            b_over = tl.sum(b_k * b_vn[:, None] if WEIGHTED else b_k, 0)
            tl.store(p_rows + i_row.to(tl.int64) * n + o_m, b_over, mask=o_m < m)
    p_out = p_columns + i_strip.to(tl.int64) * high + i_row * BN + tl.arange(0, BN)
    tl.store(p_out, b_total, mask=o_n < n)


def _variants(d: int, precision: str, same: bool = False, weighted: bool = False) -> Iterator[Variant]:
    split = precision == "high"
    form = radial.form(Gaussian(), split)
    return variants(
        f"kernel {'times a column' if weighted else 'row sums'}, {precision}",
        sums_kernel,
        "p_x: p_xn p_y: p_yn p_v p_k p_columns p_rows",
        "n m width first high count length",
        lambda on: tile(form, d, split, same, on),
        {"FORM": form, "SAME": same, "LEFT_OUT": False, "WEIGHTED": weighted, "SPLIT": split},
    )


VARIANTS = [
    *_variants(64, "medium"),
    *_variants(64, "medium", weighted=True),
    *_variants(512, "medium"),
    *_variants(512, "medium", same=True),
    *_variants(3072, "high", same=True, weighted=True),
]
