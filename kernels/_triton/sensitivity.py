r"""Lightweight sensitivities: two reads of X, sums of columns and then squared distances to their mean.

Both passes compute in float64 from the first subtraction on, so that they are as accurate as the definition. At a
conversion and two or three float64 operations for each number read, data-centre GPUs stay bound by memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._resources import Variant

_SPAN = 512  # rows whose sums a program makes: (n / 512, d) sums are written and read again


def lightweight_spread(x: Tensor, w: Tensor | None, *, memory_budget: int) -> Tensor:
    """See `kernels.sensitivity._torch`; `memory_budget` is kept by using no copies of rows."""
    n, d = x.shape
    spans = triton.cdiv(n, _SPAN)
    sums = torch.empty(spans, d, dtype=torch.float64, device=x.device)
    spread = torch.empty(n, dtype=torch.float64, device=x.device)
    weights = spread if w is None else w
    options = {"WEIGHTED": w is not None, "enable_fp_fusion": True}
    tile = sums_config()
    _sums_kernel[(spans * triton.cdiv(d, tile["BD"]),)](
        *(x, weights, sums, n, d, x.stride(0), x.stride(1)), SPAN=_SPAN, **tile, **options
    )
    mean = sums.sum(0) / (n if w is None else w.sum())
    tile = spread_config()
    _spread_kernel[(triton.cdiv(n, tile["BN"]),)](
        *(x, mean, spread, n, d, x.stride(0), x.stride(1)), enable_fp_fusion=True, **tile
    )
    return spread


def sums_config() -> dict[str, int]:
    """Tile of 16 rows of 512 bytes (float32): 16 running sums a thread."""
    return {"BN": 16, "BD": 128, "num_warps": 4, "num_stages": 1}


def spread_config() -> dict[str, int]:
    """Tile of 32 rows of 256 bytes (float32): 16 running sums a thread."""
    return {"BN": 32, "BD": 64, "num_warps": 4, "num_stages": 1}


@triton.jit
def _sums_kernel(
    p_x, p_weights, p_sums, n, d, s_n, s_d,
    WEIGHTED: tl.constexpr, SPAN: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Sums over `SPAN` rows of the weighted rows less the first row."""
    blocks = tl.cdiv(d, BD)
    i_span = (tl.program_id(0) // blocks).to(tl.int64)
    o_d = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    m_d = o_d < d
    o_columns = o_d.to(tl.int64) * s_d
    b_first = tl.load(p_x + o_columns, mask=m_d, other=0.0).to(tl.float64)
    b_sum = tl.zeros((BN, BD), tl.float64)
    for start in range(i_span * SPAN, tl.minimum(i_span * SPAN + SPAN, n), BN):
        o_n = start + tl.arange(0, BN)
        m_n = o_n < n
        b_x = tl.load(
            p_x + (o_n * s_n)[:, None] + o_columns[None, :], mask=m_n[:, None] & m_d[None, :], other=0.0
        )
        b_x = tl.where(m_n[:, None], b_x.to(tl.float64) - b_first[None, :], 0.0)
        if WEIGHTED:
            b_x *= tl.load(p_weights + o_n, mask=m_n, other=0.0)[:, None]
        b_sum += b_x
    tl.store(p_sums + i_span * d + o_d, tl.sum(b_sum, axis=0), mask=m_d)


@triton.jit
def _spread_kernel(
    p_x, p_mean, p_spread, n, d, s_n, s_d,
    BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Squared distances of the rows to the first row plus `mean`."""
    o_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    m_n = o_n < n
    p_rows = p_x + (tl.minimum(o_n, n - 1) * s_n)[:, None]
    b_sum = tl.zeros((BN, BD), tl.float64)
    for start in range(0, d, BD):
        o_d = start + tl.arange(0, BD)
        m_d = o_d < d
        o_columns = o_d.to(tl.int64) * s_d
        b_x = tl.load(p_rows + o_columns[None, :], mask=m_d[None, :], other=0.0).to(tl.float64)
        b_first = tl.load(p_x + o_columns, mask=m_d, other=0.0).to(tl.float64)
        b_mean = tl.load(p_mean + o_d, mask=m_d, other=0.0)
        b_x = (b_x - b_first[None, :]) - b_mean[None, :]
        b_sum += b_x * b_x
    tl.store(p_spread + o_n, tl.sum(b_sum, axis=1), mask=m_n)


def _variant(
    name: str, kernel: object, tile: dict[str, int], dtype: str, more: dict[str, str], constants: dict
) -> Variant:
    return Variant(
        label=f"lightweight_sensitivity, {name}, {dtype}, {tile['BN']}x{tile['BD']}",
        kernel=kernel,
        arguments={"p_x": f"*{dtype}", **more, "n": "i32", "d": "i32", "s_n": "i32"},
        constants={"s_d": 1, "BN": tile["BN"], "BD": tile["BD"], **constants},
        warps=tile["num_warps"],
        stages=tile["num_stages"],
    )


VARIANTS = [
    variant
    for dtype in ("fp32", "fp16")
    for variant in (
        _variant(
            *("sums", _sums_kernel, sums_config(), dtype, {"p_weights": "*fp64", "p_sums": "*fp64"}),
            {"WEIGHTED": True, "SPAN": _SPAN},
        ),
        _variant(
            "distances", _spread_kernel, spread_config(), dtype, {"p_mean": "*fp64", "p_spread": "*fp64"}, {}
        ),
    )
]
