r"""Rows as tensor cores take them, and their squared norms, which distances need besides.

All rows are divided by one power of two (exact) that brings the largest finite entry just below 2¹⁵, and split into
float16 parts as in `_halves`. One scale for all, because then an epilogue needs but one number for each column; the
smallest entries lose what is below 2⁻³⁹ of the largest, which no distance notices. Rows are padded with zeros to the
width of a tile's step, so that no load along them needs a mask. A row that is not finite spoils nothing but itself.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._resources import Variant

_BLOCK = {"BN": 8, "BD": 256}
_WARPS = 4


class Points(NamedTuple):
    """Rows prepared for a product.

    Parameters
    ----------
    rows : Tensor, shape (n, width) or (n, 2 width), float16
        High parts, followed by low parts where there are any.
    numbers : Tensor, shape (n + 1,), float32
        Squared norms; then the scale.
    width : int
    """

    rows: Tensor
    numbers: Tensor
    width: int


def points(X: Tensor, step: int, split: bool, rounded_norms: bool = False) -> Points:
    """Prepare the rows of `X`, of any floating-point dtype, for products in steps of `step` columns.

    With `rounded_norms` the norms are those of the rows as rounded, else those of the rows as given. Three launches
    and two reads of X, which must have rows.
    """
    X = X.contiguous()
    n, d = X.shape
    width = max(1, triton.cdiv(d, step)) * step
    rows = torch.empty(n, width * (1 + split), dtype=torch.float16, device=X.device)
    numbers = torch.empty(n + 1, dtype=torch.float32, device=X.device)
    grid = (triton.cdiv(n, _BLOCK["BN"]),)
    peaks = torch.empty(n, dtype=torch.float32, device=X.device)
    _peaks_kernel[grid](X, peaks, n, d, **_BLOCK, num_warps=_WARPS, enable_fp_fusion=True)
    _points_kernel[grid](
        *(X, peaks.amax(), rows, numbers, n, d, width),
        **_BLOCK,
        SPLIT=split,
        ROUNDED=rounded_norms,
        num_warps=_WARPS,
        enable_fp_fusion=True,
    )
    return Points(rows, numbers, width)


@triton.jit
def _peaks_kernel(p_x, p_peaks, n, d, BN: tl.constexpr, BD: tl.constexpr):
    o_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    o_d = tl.arange(0, BD)
    b_peak = tl.zeros((BN, BD), tl.float32)
    for k in range(0, d, BD):
        inside = (o_n < n)[:, None] & (k + o_d < d)[None, :]
        b_x = tl.abs(
            tl.load(p_x + o_n[:, None] * d + (k + o_d)[None, :], mask=inside, other=0.0).to(tl.float32)
        )
        b_peak = tl.maximum(b_peak, tl.where(b_x < float("inf"), b_x, 0.0))
    tl.store(p_peaks + o_n, tl.max(b_peak, 1), mask=o_n < n)


@triton.jit
def _points_kernel(
    p_x, p_peak, p_rows, p_numbers, n, d, width,
    BN: tl.constexpr, BD: tl.constexpr, SPLIT: tl.constexpr, ROUNDED: tl.constexpr,
):  # fmt: skip
    o_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    o_d = tl.arange(0, BD)
    m_n = (o_n < n)[:, None]
    # Biased exponents of the peak and, with all its bits in the exponent, of the power of two and its inverse.
    exponent = (tl.load(p_peak).to(tl.int32, bitcast=True) >> 23) - 126 - 15
    exponent = tl.minimum(tl.maximum(exponent, -126), 126)
    scale = ((127 + exponent) << 23).to(tl.float32, bitcast=True)
    inverse = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    b_norm = tl.zeros((BN,), tl.float32)
    p_out = p_rows + o_n[:, None] * (2 * width if SPLIT else width)
    for k in range(0, width, BD):
        b_x = tl.load(
            p_x + o_n[:, None] * d + (k + o_d)[None, :], mask=m_n & (k + o_d < d)[None, :], other=0.0
        )
        b_x = b_x.to(tl.float32)
        m_out = m_n & (k + o_d < width)[None, :]
        b_high = (b_x * inverse).to(tl.float16)
        tl.store(p_out + (k + o_d)[None, :], b_high, mask=m_out)
        b_seen = b_high.to(tl.float32)
        if SPLIT:
            b_low = (b_x * inverse - b_seen).to(tl.float16)
            tl.store(p_out + width + (k + o_d)[None, :], b_low, mask=m_out)
            b_seen += b_low.to(tl.float32)
        if ROUNDED:
            b_x = b_seen * scale
        b_norm += tl.sum(b_x * b_x, 1)
    tl.store(p_numbers + o_n, b_norm, mask=o_n < n)
    tl.store(p_numbers + n, scale, mask=tl.program_id(0) == 0)


def _variant(label: str, kernel: object, pointers: str, sizes: str, **constants: bool) -> Variant:
    kinds = {name: "*fp16" if name == "p_rows" else "*fp32" for name in pointers.split()}
    return Variant(
        label=f"rows for products, {label}",
        kernel=kernel,
        arguments=kinds | dict.fromkeys(sizes.split(), "i32"),
        constants={**_BLOCK, **constants},
        warps=_WARPS,
        odd=("n",),
    )


VARIANTS = [
    _variant("peaks", _peaks_kernel, "p_x p_peaks", "n d"),
    _variant(
        "one half", _points_kernel, "p_x p_peak p_rows p_numbers", "n d width", SPLIT=False, ROUNDED=False
    ),
    _variant(
        "two halves", _points_kernel, "p_x p_peak p_rows p_numbers", "n d width", SPLIT=True, ROUNDED=True
    ),
]
