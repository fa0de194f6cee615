r"""Fourier features in one launch: tiles of :math:`X A^\top` whose epilogue takes the cosine.

The phase t, in radians and float32, becomes turns :math:`z = t / 2\pi` less the nearest whole number. The constant
is in two parts and the first product is fused with the subtraction, so this loses far less than the rounding of t.
What remains of the cosine is an odd polynomial on a quarter turn either way,
:math:`\cos 2\pi r = \sin 2\pi(\tfrac14 - |r|)`, 4·10⁻⁹ from the sine before rounding: more accurate than the
special-function unit (``fast_cosf``, 2⁻²¹) at as many operations a clock, the same under the interpreter, and without
the stack that the full reduction of ``tl.cos`` needs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dispatch import INTERPRETED
from ._halves import Halves, add_nearest, dot, grouped, halves
from ._resources import Variant

_TURN = tl.constexpr(0.15915493667125702)  # 1 / 2 pi in float32, and what that leaves
_TURN_REST = tl.constexpr(6.420638326565253e-09)
# 64 KiB of shared memory and about 128 registers where inputs have one half, so that one program's cosines can run
# beside another's products; twice that for two. Not measured on a GPU. Small when interpreted, for many tiles.
_TILE = {"BN": 128, "BM": 128, "BD": 32}
if INTERPRETED:
    _TILE = {"BN": 32, "BM": 32, "BD": 32}
_LAUNCH = {"num_warps": 8, "num_stages": 4}


def fourier_features(
    X: Tensor,
    A: Tensor,
    b: Tensor | None = None,
    *,
    paired: bool,
    scale: float,
    dtype: torch.dtype,
    precision: str,
    memory_budget: int,
) -> Tensor:
    """See `kernels.fourier.fourier_features`."""
    n, d = X.shape
    p = len(A)
    features = torch.empty(n, 2 * p if paired else p, dtype=dtype, device=X.device)
    if not features.numel():
        return features
    phases = torch.zeros(p, device=X.device) if b is None else b.float().contiguous()
    right = halves(A, precision, contracted=1)
    rows = max(1, memory_budget // (8 * (d + 16)))  # two halves, padded; what finds their scales
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        left = halves(X[block], precision, contracted=1)
        _launch(left, right, phases, features[block], paired, scale, precision == "high")
        del left  # or it stands beside the next one
    return features


def _launch(
    left: Halves, right: Halves, phases: Tensor, out: Tensor, paired: bool, scale: float, nearest: bool
) -> None:
    n, p = len(out), len(phases)
    width = left.high.shape[1]  # zeros pad d to a multiple of 16
    grid = triton.cdiv(n, _TILE["BN"]) * triton.cdiv(p, _TILE["BM"])
    _fourier_kernel[(grid,)](
        *(left.high, left.low, left.scale, right.high, right.low, right.scale, phases, out),
        *(n, p, width, left.high.stride(0), right.high.stride(0), out.stride(0), scale),
        SPLIT=right.split,
        NEAREST=nearest,
        PAIRED=paired,
        INTERPRETED=INTERPRETED,
        enable_fp_fusion=True,
        **_TILE,
        **_LAUNCH,
    )


@triton.jit
def _fourier_kernel(
    p_xh, p_xl, p_xs, p_ah, p_al, p_as, p_b, p_out, n, p, d, s_x, s_a, s_out, scale,
    SPLIT: tl.constexpr, NEAREST: tl.constexpr, PAIRED: tl.constexpr, INTERPRETED: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    i_n, i_m = grouped(tl.program_id(0), tl.cdiv(n, BN), tl.cdiv(p, BM))
    o_n = i_n.to(tl.int64) * BN + tl.arange(0, BN)
    o_m = i_m.to(tl.int64) * BM + tl.arange(0, BM)
    # Rows past the end repeat the last one: no mask in the loop, and they are not stored.
    o_x = tl.minimum(o_n, n - 1)[:, None] * s_x
    o_a = tl.minimum(o_m, p - 1)[None, :] * s_a
    o_d = tl.arange(0, BD)
    b_sum = tl.zeros((BN, BM), tl.float32)
    for start in range(0, d, BD):
        m_d = start + o_d < d
        b_x = tl.load(p_xh + o_x + (start + o_d)[None, :], mask=m_d[None, :], other=0.0)
        b_a = tl.load(p_ah + o_a + (start + o_d)[:, None], mask=m_d[:, None], other=0.0)
        b_part = tl.zeros((BN, BM), tl.float32) if NEAREST else b_sum
        if SPLIT:
            b_rest = tl.load(p_xl + o_x + (start + o_d)[None, :], mask=m_d[None, :], other=0.0)
            b_part = dot(b_rest, b_a, b_part, INTERPRETED)
            b_rest = tl.load(p_al + o_a + (start + o_d)[:, None], mask=m_d[:, None], other=0.0)
            b_part = dot(b_x, b_rest, b_part, INTERPRETED)
        b_part = dot(b_x, b_a, b_part, INTERPRETED)
        b_sum = add_nearest(b_sum, b_part) if NEAREST else b_part
    # One half of the columns after the other, which halves the registers that addresses and cosines take.
    b_first, b_second = tl.split(tl.permute(tl.reshape(b_sum, (BN, 2, BM // 2)), (0, 2, 1)))
    o_half = i_m.to(tl.int64) * BM + tl.arange(0, BM // 2)
    _store(b_first, o_n, o_half, p_xs, p_as, p_b, p_out, n, p, s_out, scale, PAIRED)
    _store(b_second, o_n, o_half + BM // 2, p_xs, p_as, p_b, p_out, n, p, s_out, scale, PAIRED)


@triton.jit
def _store(b_sum, o_n, o_m, p_xs, p_as, p_b, p_out, n, p, s_out, scale, PAIRED: tl.constexpr):
    m_n, m_m = o_n < n, o_m < p
    b_xs = tl.load(p_xs + o_n, mask=m_n, other=0.0)
    b_as = tl.load(p_as + o_m, mask=m_m, other=0.0)
    b_phase = tl.load(p_b + o_m, mask=m_m, other=0.0)
    b_turn = _turns(b_sum * b_xs[:, None] * b_as[None, :] + b_phase[None, :])
    p_tile = p_out + o_n[:, None] * s_out + o_m[None, :]
    inside = m_n[:, None] & m_m[None, :]
    tl.store(p_tile, (scale * _cosine(b_turn)).to(p_out.dtype.element_ty), mask=inside)
    if PAIRED:
        b_sine = _cosine(tl.where(b_turn < -0.25, b_turn + 0.75, b_turn - 0.25))
        tl.store(p_tile + p, (scale * b_sine).to(p_out.dtype.element_ty), mask=inside)


@triton.jit
def _turns(b_t):
    """Radians to turns, less whole turns: within half a turn."""
    b_r = tl.fma(b_t, _TURN, -tl.floor(b_t * _TURN + 0.5)) + b_t * _TURN_REST
    return b_r - tl.floor(b_r + 0.5)  # beyond 2^22 turns the rounding of the first floor is turns itself


@triton.jit
def _cosine(b_r):
    """Cosine of at most half a turn."""
    b_w = 0.25 - tl.abs(b_r)
    b_s = b_w * b_w
    b_c = 39.53581237792969 * b_s - 76.5496597290039
    b_c = b_c * b_s + 81.60099792480469
    b_c = b_c * b_s - 41.34165573120117
    b_c = b_c * b_s + 6.283185005187988
    return b_c * b_w


def _variant(label: str, split: bool, nearest: bool, half: str, out: str, paired: bool = False) -> Variant:
    return Variant(
        label=f"fourier features, {label}, {_TILE['BN']}x{_TILE['BM']}",
        kernel=_fourier_kernel,
        arguments={
            **{"p_xh": f"*{half}", "p_xl": f"*{half}", "p_xs": "*fp32"},
            **{"p_ah": f"*{half}", "p_al": f"*{half}", "p_as": "*fp32"},
            **{"p_b": "*fp32", "p_out": f"*{out}", "n": "i32", "p": "i32", "d": "i32"},
            **{"s_x": "i32", "s_a": "i32", "s_out": "i32", "scale": "fp32"},
        },
        constants={
            **{"SPLIT": split, "NEAREST": nearest, "PAIRED": paired, "INTERPRETED": False},
            **_TILE,
        },
        warps=_LAUNCH["num_warps"],
        stages=_LAUNCH["num_stages"],
        dot=True,
        odd=("n",),
    )


VARIANTS = [
    _variant("high", True, True, "fp16", "fp32"),
    _variant("high paired", True, True, "fp16", "fp32", paired=True),
    _variant("high of float16", False, True, "fp16", "fp16"),
    _variant("medium", False, False, "fp16", "fp16"),
    _variant("medium to float32", False, False, "fp16", "fp32"),
    _variant("low paired", False, False, "bf16", "bf16", paired=True),
]
