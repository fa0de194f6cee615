r"""K(X, Y) V for several columns: a second product, of the tile of kernel values while it is in registers.

Kernel values are at most k(0), so a constant power of two puts them near the top of float16; V is prepared by
`_halves`, each column with a scale of its own. Where float32 accuracy is meant both are split in two and multiplied
three times.
"""

import math
from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl

from ..radial import Gaussian
from . import radial
from ._resources import Variant
from ._tiles import Gpu, dot, half_pays, halves_of, product, step, strip_tile, variants

_MOST = 64  # columns of V at a time: the tile of values is formed again for the next


def tile(form: tuple[Any, ...], d: int, split: bool, t: int, same: bool, on: Gpu) -> dict[str, Any]:
    """Launch parameters; half the tiles where the registers allow."""
    launch = strip_tile(d, split, 1 + radial.crowding(form), on)
    launch["BT"] = min(_MOST if on.capability else 16, max(16, triton.next_power_of_2(t)))
    roomy = launch["BT"] == 16 and not (split and on.capability >= 100)
    launch["HALF"] = same and roomy and half_pays(d, on)
    return launch


def largest_power(form: tuple[Any, ...]) -> float:
    """The power of two that brings k(0), the sum of weights, below 2^13."""
    largest = sum(form[2])
    return 2.0 ** (13 - math.ceil(math.log2(largest))) if largest > 0 else 1.0


@triton.jit
def products_kernel(
    p_x, p_xn, p_y, p_yn, p_v, p_v_low, p_v_scale, p_k, p_columns, p_rows,
    n, m, width, first, high, count, length, t,
    FORM: tl.constexpr, SAME: tl.constexpr, LEFT_OUT: tl.constexpr, HALF: tl.constexpr, SPLIT: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BT: tl.constexpr, TOP: tl.constexpr,
    RESIDENT: tl.constexpr,
):  # fmt: skip
    v_width = tl.cdiv(t, 16) * 16
    i_block = tl.program_id(0) % tl.cdiv(t, BT)
    i_strip = tl.program_id(0) // tl.cdiv(t, BT) % count
    i_row = tl.program_id(0) // tl.cdiv(t, BT) // count
    top = (first + i_row) * BN
    row = width * (2 if SPLIT else 1)
    p_x += top.to(tl.int64) * row
    o_x = tl.minimum(tl.arange(0, BN), n - 1 - top)
    o_n = top + tl.arange(0, BN)
    o_t = i_block * BT + tl.arange(0, BT)
    factor, slope, alpha = radial.factors(p_k, p_xn, n, p_yn, m, FORM)
    b_xn = radial.norms(p_xn, o_n, n, factor, FORM)
    b_scale = tl.load(p_v_scale + o_t, mask=o_t < t, other=0.0) * (1.0 / TOP)
    if RESIDENT:
        b_x, b_x_low = halves_of(p_x, o_x, width, SPLIT, BK)
    b_total = tl.zeros((BN, BT), tl.float32)
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
        b_k = radial.profile(b_e, alpha, FORM) * TOP
        if HALF and not LEFT_OUT and crosses:  # both sums have the diagonal
            b_k = tl.where(o_n[:, None] == o_m[None, :], 0.5 * b_k, b_k)
        b_high = b_k.to(tl.float16)
        b_low = (b_k - b_high.to(tl.float32)).to(tl.float16) if SPLIT else b_high
        b_part = _times(b_high, b_low, p_v, p_v_low, o_m, m, o_t, v_width, SPLIT)
        b_total += b_part
        if HALF:
            b_part = _times(b_high.T, b_low.T, p_v, p_v_low, o_n, n, o_t, v_width, SPLIT)
            p_part = p_rows + (i_row.to(tl.int64) * n + o_m)[:, None] * t + o_t[None, :]
            tl.store(p_part, b_part * b_scale[None, :], mask=(o_m < m)[:, None] & (o_t < t)[None, :])
    p_out = (
        p_columns + (i_strip.to(tl.int64) * high + i_row * BN + tl.arange(0, BN))[:, None] * t + o_t[None, :]
    )
    tl.store(p_out, b_total * b_scale[None, :], mask=(o_n < n)[:, None] & (o_t < t)[None, :])


@triton.jit
def _times(b_high, b_low, p_v, p_v_low, o_m, m, o_t, v_width, SPLIT: tl.constexpr):
    """A tile of values times the rows o_m of V, small products first."""
    o_v = o_m.to(tl.int64)[:, None] * v_width + o_t[None, :]
    inside = (o_m < m)[:, None] & (o_t < v_width)[None, :]
    b_v = tl.load(p_v + o_v, mask=inside, other=0.0)
    b_sum = None
    if SPLIT:
        b_sum = dot(b_low, b_v, b_sum)
        b_sum = dot(b_high, tl.load(p_v_low + o_v, mask=inside, other=0.0), b_sum)
    return dot(b_high, b_v, b_sum)


def _variants(d: int, precision: str, t: int, same: bool = False) -> Iterator[Variant]:
    split = precision == "high"
    form = radial.form(Gaussian(), split)
    return variants(
        f"kernel times {min(_MOST, max(16, t))} columns, {precision}",
        products_kernel,
        "p_x: p_xn p_y: p_yn p_v: p_v_low: p_v_scale p_k p_columns p_rows",
        "n m width first high count length t",
        lambda on: tile(form, d, split, t, same, on),
        {"FORM": form, "SAME": same, "LEFT_OUT": False, "SPLIT": split, "TOP": largest_power(form)},
    )


VARIANTS = [
    *_variants(64, "medium", 10),
    *_variants(512, "medium", 64),
    *_variants(512, "medium", 10, same=True),
    *_variants(64, "high", 64),
    *_variants(3072, "high", 10, same=True),
]
