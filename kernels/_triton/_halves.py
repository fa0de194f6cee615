r"""Matrices in half precision for tensor cores, without loss of range, and of float32 accuracy where wanted.

Along the contracted axis every vector is divided by a power of two (exact) that brings its largest entry to just
below 2¹⁵, near the top of float16, and split into what float16 holds and what float16 holds of the rest:

.. math:: m = s\,(h + l) + \epsilon, \qquad |\epsilon| \le 2^{-22}\,|m| + 2^{-39}\,\max|m|.

Three products :math:`h h' + h l' + l h'`, summed in float32, are then as good as a float32 product (Markidis et al.,
2018; the scaling is what keeps l above the smallest float16); the first alone is that of float16, or of bfloat16.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._precision import power_of_two
from ._resources import Variant

HALF = (torch.float16, torch.bfloat16)
_BLOCK = {"BN": 16, "BM": 128}
_WARPS = 4
_GROUP = tl.constexpr(8)  # rows of tiles that run together and share their operands in the cache


class Halves(NamedTuple):
    """``scale * (high + low)``; where there is no second part, `low` is `high` and `split` is false."""

    high: Tensor
    low: Tensor
    scale: Tensor
    split: bool


def halves(M: Tensor, precision: str, contracted: int) -> Halves:
    """Prepare a matrix for a product over its axis `contracted`; half-precision ones are not rounded further.

    Rows are padded with zeros to a multiple of 16 numbers and begin at one, which keeps the loads of a kernel wide.
    """
    n, m = M.shape
    kept = 1 - contracted
    if M.dtype in HALF:
        scale = torch.ones(M.shape[kept], device=M.device)
        if m % 16 or M.stride(0) % 16 or M.stride(1) != 1:
            M = torch.nn.functional.pad(M, (0, -m % 16)).contiguous()
        return Halves(M, M, scale, False)
    split = precision == "high"
    dtype = torch.bfloat16 if precision == "low" else torch.float16
    if M.numel():
        exponent = torch.frexp(torch.linalg.vector_norm(M, math.inf, dim=contracted)).exponent
    else:
        exponent = torch.zeros(M.shape[kept], dtype=torch.int32, device=M.device)
    scale = power_of_two((exponent - 15).clamp(-126, 126))
    high = torch.empty(n, -(-m // 16) * 16, dtype=dtype, device=M.device)
    low = torch.empty_like(high) if split else high
    blocks = -(-n // _BLOCK["BN"]) * -(-high.shape[1] // _BLOCK["BM"])
    if blocks:
        _split_kernel[(blocks,)](
            *(M, 1 / scale, high, low, n, m, high.shape[1], M.stride(0), M.stride(1)),
            **_BLOCK,
            BY_ROW=contracted == 1,
            SPLIT=split,
            num_warps=_WARPS,
            enable_fp_fusion=True,
        )
    return Halves(high, low, scale, split)


@triton.jit
def _split_kernel(
    p_m, p_scale, p_high, p_low, n, m, width, s_n, s_m,
    BN: tl.constexpr, BM: tl.constexpr, BY_ROW: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(width, BM)
    o_n = (tl.program_id(0) // across).to(tl.int64) * BN + tl.arange(0, BN)
    o_m = (tl.program_id(0) % across).to(tl.int64) * BM + tl.arange(0, BM)
    inside = (o_n < n)[:, None] & (o_m < m)[None, :]
    b_m = tl.load(p_m + o_n[:, None] * s_n + o_m[None, :] * s_m, mask=inside, other=0.0)
    if BY_ROW:
        b_m = b_m * tl.load(p_scale + o_n, mask=o_n < n, other=1.0)[:, None]
    else:
        b_m = b_m * tl.load(p_scale + o_m, mask=o_m < m, other=1.0)[None, :]
    b_high = b_m.to(p_high.dtype.element_ty)
    o_out = o_n[:, None] * width + o_m[None, :]
    stored = (o_n < n)[:, None] & (o_m < width)[None, :]
    tl.store(p_high + o_out, b_high, mask=stored)
    if SPLIT:
        b_low = b_m - b_high.to(tl.float32)
        tl.store(p_low + o_out, b_low.to(p_low.dtype.element_ty), mask=stored)


@triton.jit
def grouped(i, height, width):
    """Tile (row, column) number i of height x width, in bands of `_GROUP` rows, column by column."""
    band = i // (_GROUP * width)
    rows = tl.minimum(height - band * _GROUP, _GROUP)
    within = i % (_GROUP * width)
    return band * _GROUP + within % rows, within // rows


@triton.jit
def dot(b_left, b_right, b_sum, INTERPRETED: tl.constexpr):
    if INTERPRETED:  # its bfloat16 products are wrong
        b_left, b_right = b_left.to(tl.float32), b_right.to(tl.float32)
    return tl.dot(b_left, b_right, b_sum, input_precision="ieee", out_dtype=tl.float32)


@triton.jit
def add_nearest(b_sum, b_part):
    """Add a product outside the tensor cores, which truncate what they add (Khattak and Mikaitis, 2025).

    Written as a difference, because the compiler would turn the sum back into an accumulator of the product.
    """
    return b_sum - (-b_part)


VARIANTS = [
    Variant(
        label=f"split in halves, scaled by {'row' if by_row else 'column'}",
        kernel=_split_kernel,
        arguments={
            **{"p_m": "*fp32", "p_scale": "*fp32", "p_high": "*fp16", "p_low": "*fp16"},
            **{"n": "i32", "m": "i32", "width": "i32", "s_n": "i32", "s_m": "i32"},
        },
        constants={**_BLOCK, "BY_ROW": by_row, "SPLIT": True},
        warps=_WARPS,
        odd=("n", "s_m"),
    )
    for by_row in (True, False)
]
