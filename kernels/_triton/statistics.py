r"""Upper tiles of :math:`F^\top F` and all tiles of :math:`F^\top Y` in one launch a chunk of rows.

Every tile of the totals belongs to one program, which sums its products in float32 over the rows of the chunk and adds
them to the float64 totals when it is done: no atomics, so results repeat bit for bit. Tiles (i, j >= i) are
numbered by folding the triangle of T tiles a side into a rectangle: beside the T - i tiles of tile row i stand the i
tiles of row T - i (T odd), or the i + 1 tiles of row T - 1 - i (T even). That takes whole numbers only, and lets
neighbours share tiles of F in the cache as in an ordinary product.
"""

import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import INTERPRETED
from ._halves import add_nearest, dot, grouped, halves
from ._resources import Variant


def statistics_add_(
    gram: Tensor,
    cross: Tensor,
    features: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    *,
    precision: str,
    rows: int,
    memory_budget: int,
) -> None:
    """See `kernels.statistics.statistics_add_`."""
    (n, p), k = features.shape, targets.shape[1]
    if p == 0:
        return
    # Of one row: two halves, padded, and a float32 copy for its weight; of one column: what finds its scale.
    block = max(1, min(rows, (memory_budget - 32 * (p + k)) // (8 * (p + k + 32))))
    for start in range(0, n, block):
        chunk = slice(start, start + block)
        w = None if weights is None else weights[chunk]
        _add_chunk(gram, cross, features[chunk], targets[chunk], w, precision)


def _add_chunk(
    gram: Tensor, cross: Tensor, F: Tensor, Y: Tensor, weights: Tensor | None, precision: str
) -> None:
    if weights is not None:
        root = weights.float().sqrt()[:, None]
        F, Y = F.float() * root, Y.float() * root
    left, right = halves(F, precision, contracted=0), halves(Y, precision, contracted=0)
    (n, p), k = F.shape, Y.shape[1]
    tile = config(p, k, left.split)
    tiles = triton.cdiv(p, tile["BP"])
    grid = tiles * (tiles + 1) // 2 + tiles * triton.cdiv(k, tile["BK"])
    _statistics_kernel[(grid,)](
        *(left.high, left.low, left.scale, right.high, right.low, right.scale, gram, cross),
        *(n, p, k, left.high.shape[1], right.high.shape[1], left.high.stride(0), right.high.stride(0)),
        SPLIT=left.split,
        NEAREST=precision == "high",
        INTERPRETED=INTERPRETED,
        enable_fp_fusion=True,
        **tile,
    )


def config(p: int, k: int, split: bool) -> dict[str, int]:
    """Tiles, warps and stages. Small totals get small tiles, to keep more processors busy (not measured on a GPU)."""
    side = 32 if INTERPRETED else 64 if p < 1536 else 128
    columns = min(64, max(16, triton.next_power_of_2(k)))
    launch = {"num_warps": 4 if side == 64 else 8, "num_stages": 4}
    return {"BP": side, "BK": columns, "BN": 32 if split else 64, **launch}


@triton.jit
def _statistics_kernel(
    p_fh, p_fl, p_fs, p_yh, p_yl, p_ys, p_gram, p_cross, n, p, k, w_f, w_y, s_f, s_y,
    SPLIT: tl.constexpr, NEAREST: tl.constexpr, INTERPRETED: tl.constexpr,
    BP: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(p, BP)
    upper = tiles * (tiles + 1) // 2
    i_tile = tl.program_id(0)
    if i_tile < upper:
        i_p, i_q = upper_tile(i_tile, tiles)
        _add_tile(
            p_fh, p_fl, p_fs, p_fh, p_fl, p_fs, p_gram, i_p, i_q, n, p, p, w_f, w_f, s_f, s_f,
            SPLIT, NEAREST, INTERPRETED, BP, BP, BN,
        )  # fmt: skip
    else:
        _add_tile(
            p_fh, p_fl, p_fs, p_yh, p_yl, p_ys, p_cross, (i_tile - upper) % tiles, (i_tile - upper) // tiles,
            n, p, k, w_f, w_y, s_f, s_y, SPLIT, NEAREST, INTERPRETED, BP, BK, BN,
        )  # fmt: skip


@triton.jit
def upper_tile(i, tiles):
    """Tile (row, column >= row) number i of a triangle of `tiles` tiles a side."""
    even = 1 - tiles % 2
    width = tiles + even
    row, column = grouped(i, (tiles + 1) // 2, width)
    first = column >= row + even
    return tl.where(first, row, tiles - even - row), tl.where(first, column - even, tiles - 1 - column)


@triton.jit
def _add_tile(
    p_lh, p_ll, p_ls, p_rh, p_rl, p_rs, p_total, i_l, i_r, n, m_l, m_r, w_l, w_r, s_l, s_r,
    SPLIT: tl.constexpr, NEAREST: tl.constexpr, INTERPRETED: tl.constexpr,
    BL: tl.constexpr, BR: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Add ``left.T @ right`` to one tile of a row-major total of m_l x m_r; the factors are w_l and w_r wide."""
    o_l = i_l.to(tl.int64) * BL + tl.arange(0, BL)
    o_r = i_r.to(tl.int64) * BR + tl.arange(0, BR)
    o_n = tl.arange(0, BN).to(tl.int64)
    m_left, m_right = (o_l < w_l)[:, None], (o_r < w_r)[None, :]
    b_sum = tl.zeros((BL, BR), tl.float32)
    o_left = o_l[:, None] + o_n[None, :] * s_l
    o_right = o_n[:, None] * s_r + o_r[None, :]
    for start in range(0, n, BN):
        m_n = start + o_n < n
        b_left = tl.load(p_lh + o_left, mask=m_left & m_n[None, :], other=0.0)
        b_right = tl.load(p_rh + o_right, mask=m_n[:, None] & m_right, other=0.0)
        b_part = tl.zeros((BL, BR), tl.float32) if NEAREST else b_sum
        if SPLIT:
            b_rest = tl.load(p_rl + o_right, mask=m_n[:, None] & m_right, other=0.0)
            b_part = dot(b_left, b_rest, b_part, INTERPRETED)
            b_rest = tl.load(p_ll + o_left, mask=m_left & m_n[None, :], other=0.0)
            b_part = dot(b_rest, b_right, b_part, INTERPRETED)
        b_part = dot(b_left, b_right, b_part, INTERPRETED)
        b_sum = add_nearest(b_sum, b_part) if NEAREST else b_part
        o_left += BN * s_l
        o_right += BN * s_r
    b_ls = tl.load(p_ls + o_l, mask=o_l < m_l, other=0.0)
    b_rs = tl.load(p_rs + o_r, mask=o_r < m_r, other=0.0)
    b_sum *= b_ls[:, None] * b_rs[None, :]
    # Float64 takes twice the registers: one half of the columns after the other.
    b_first, b_second = tl.split(tl.permute(tl.reshape(b_sum, (BL, 2, BR // 2)), (0, 2, 1)))
    o_half = i_r.to(tl.int64) * BR + tl.arange(0, BR // 2)
    _add(p_total, b_first, o_l, o_half, m_l, m_r)
    _add(p_total, b_second, o_l, o_half + BR // 2, m_l, m_r)


@triton.jit
def _add(p_total, b_part, o_l, o_r, m_l, m_r):
    p_part = p_total + o_l[:, None] * m_r + o_r[None, :]
    inside = (o_l < m_l)[:, None] & (o_r < m_r)[None, :]
    tl.store(p_part, tl.load(p_part, mask=inside, other=0.0) + b_part.to(tl.float64), mask=inside)


def _variant(label: str, split: bool, nearest: bool, half: str, p: int) -> Variant:
    tile = config(p, 10, split)
    return Variant(
        label=f"statistics, {label}, {tile['BP']}x{tile['BP']}",
        kernel=_statistics_kernel,
        arguments={
            **{"p_fh": f"*{half}", "p_fl": f"*{half}", "p_fs": "*fp32"},
            **{"p_yh": f"*{half}", "p_yl": f"*{half}", "p_ys": "*fp32"},
            **{"p_gram": "*fp64", "p_cross": "*fp64"},
            **dict.fromkeys(("n", "p", "k", "w_f", "w_y", "s_f", "s_y"), "i32"),
        },
        constants={
            "SPLIT": split,
            "NEAREST": nearest,
            "INTERPRETED": False,
            **{name: tile[name] for name in ("BP", "BK", "BN")},
        },
        warps=tile["num_warps"],
        stages=tile["num_stages"],
        dot=True,
        odd=("n", "k"),
    )


VARIANTS = [
    _variant("high", True, True, "fp16", 4096),
    _variant("high", True, True, "fp16", 784),
    _variant("high of float16", False, True, "fp16", 4096),
    _variant("medium", False, False, "fp16", 4096),
    _variant("medium", False, False, "fp16", 784),
    _variant("low", False, False, "bf16", 4096),
]
