r"""Farthest-first traversal and D² seeding: each pick one pass over X that keeps nothing but n running minima.

Distances are sums of squared differences in float32: exact zeros for equal rows, nothing to cancel, no norms. Each
program brings a few rows up to date with the last centre (or with several candidates for one, read once for all).

The farthest row is found by an atomic maximum over 64-bit keys, the bits of the distance above and the complement of
the row's index below: whatever the order of programs, the greatest distance of lowest index wins, and the next launch
finds the centre in memory. D² draws need sums instead; a second, small launch adds the programs' sums in fixed order,
keeps the best candidate, and draws the next ones by inverting the cumulated sums. No step waits for the device.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._resources import Variant

_INDEX = tl.constexpr(2**31 - 1)
_DRAW_WARPS = 8
_PARTS = 256  # sums of programs that the drawing kernel reads at a time


def k_center_greedy(
    x: Tensor, start: list[int], new: int, *, memory_budget: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.k_center._torch`."""
    n, d = x.shape
    given, tile = len(start), config(1)
    squared = torch.full((n,), torch.inf, dtype=torch.float32, device=x.device)
    # Key j is the centre that launch j applies; the last launch finds a radius, and the last key is never read.
    keys = torch.zeros(given + new + 2, dtype=torch.int64, device=x.device)
    keys[:given] = _INDEX.value - torch.tensor(start, device=x.device)
    for step in range(given + new):
        found = step + 1 if step + 1 >= given else given + new + 1
        _k_center_kernel[(triton.cdiv(n, tile["BN"]),)](
            *(x, squared, keys, n, d, x.stride(0), x.stride(1), step, found), enable_fp_fusion=True, **tile
        )
    found = keys[given : given + new + 1]
    radii = (found >> 32).to(torch.int32).view(torch.float32)
    return _INDEX.value - (found[:new] & _INDEX.value), radii, squared


def k_means_plus_plus(
    x: Tensor, w: Tensor | None, first: Tensor, uniforms: Tensor, *, memory_budget: int
) -> tuple[Tensor, Tensor]:
    """See `kernels.k_means_seeding._torch`."""
    n, d = x.shape
    k, trials = len(uniforms) + 1, uniforms.shape[1]
    tile = config(triton.next_power_of_2(trials))
    BT = tile["BT"]
    repeats = tiles_of_a_program(n, tile["BN"])
    parts = triton.cdiv(n, tile["BN"] * repeats)
    # Candidates past the number of trials repeat the first one, which changes nothing.
    columns = [t if t < trials else 0 for t in range(BT)]
    targets = torch.cat([uniforms, uniforms.new_zeros(1, trials)])[:, columns].to(x.device).contiguous()
    candidates = first.expand(2, BT).contiguous()
    minima = torch.full((2, BT, n), torch.inf, dtype=torch.float32, device=x.device)
    sums = torch.zeros(BT, parts, dtype=torch.float64, device=x.device)
    best = torch.zeros(2, dtype=torch.int32, device=x.device)
    indices = torch.zeros(k, dtype=torch.int64, device=x.device)
    weights = minima if w is None else w
    for pick in range(k):
        _candidates_kernel[(parts,)](
            *(x, weights, candidates, best, minima, sums, n, d, x.stride(0), x.stride(1), parts, pick % 2),
            WEIGHTED=w is not None, REPEATS=repeats, enable_fp_fusion=True, **tile,
        )  # fmt: skip
        _draw_kernel[(1,)](
            *(weights, candidates, best, minima, sums, targets, indices, n, parts, pick, pick % 2),
            WEIGHTED=w is not None, SPAN=tile["BN"] * repeats, BT=BT, BP=_PARTS,
            num_warps=_DRAW_WARPS, num_stages=1, enable_fp_fusion=True,
        )  # fmt: skip
    plane = (k - 1) % 2
    return indices, minima[plane].index_select(0, best[plane : plane + 1].long())[0]


def config(candidates: int) -> dict[str, int]:
    """Tile and warps: running sums in registers, over at least 32 columns."""
    wide = 64 if candidates <= 4 else 32
    sums = 2048 if candidates == 1 else 8192
    return {
        "BN": max(1, sums // (wide * candidates)),
        "BT": candidates,
        "BD": wide,
        "num_warps": 4,
        "num_stages": 1,
    }


def tiles_of_a_program(n: int, BN: int) -> int:
    """As many as leave 8,192 programs, at most 16: the sums of programs are added by one."""
    return min(16, triton.next_power_of_2(max(1, n // (BN * 8192))))


@triton.jit(do_not_specialize=["i_from", "i_to"])
def _k_center_kernel(
    p_x, p_squared, p_keys, n, d, s_n, s_d, i_from, i_to,
    BN: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    o_n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    m_n = o_n < n
    centre = _INDEX - (tl.load(p_keys + i_from) & _INDEX) + tl.zeros((BT,), tl.int64)
    b_new = tl.sum(_squared_distances(p_x, tl.minimum(o_n, n - 1), centre, d, s_n, s_d, BN, BT, BD), axis=1)
    b_old = tl.load(p_squared + o_n, mask=m_n, other=-1.0)
    b_min = tl.where(b_new < b_old, b_new, b_old)  # a distance that is NaN changes nothing
    b_min = tl.where(o_n == tl.max(centre, axis=0), -1.0, b_min)
    tl.store(p_squared + o_n, b_min, mask=m_n)
    key = (b_min.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (_INDEX - o_n)
    tl.atomic_max(p_keys + i_to, tl.max(tl.where(b_min >= 0, key, 0), axis=0), sem="relaxed")


@triton.jit(do_not_specialize=["i_plane"])
def _candidates_kernel(
    p_x, p_weights, p_candidates, p_best, p_minima, p_sums, n, d, s_n, s_d, parts, i_plane,
    WEIGHTED: tl.constexpr, REPEATS: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    i_part = tl.program_id(0).to(tl.int64)
    o_t = tl.arange(0, BT)
    rows = tl.maximum(tl.load(p_candidates + i_plane * BT + o_t), 0)
    best = tl.load(p_best + 1 - i_plane).to(tl.int64)
    p_old = p_minima + ((1 - i_plane) * BT + best) * n
    p_new = p_minima + (i_plane * BT + o_t).to(tl.int64)[None, :] * n
    b_sum = tl.zeros((BT,), tl.float64)
    for repeat in range(REPEATS):
        o_n = (i_part * REPEATS + repeat) * BN + tl.arange(0, BN)
        m_n = o_n < n
        b_new = _squared_distances(p_x, tl.minimum(o_n, n - 1), rows, d, s_n, s_d, BN, BT, BD)
        b_old = tl.load(p_old + o_n, mask=m_n, other=0.0)[:, None]
        b_min = tl.where(b_new < b_old, b_new, b_old)
        tl.store(p_new + o_n[:, None], b_min, mask=m_n[:, None])
        b_mass = b_min.to(tl.float64)
        if WEIGHTED:
            b_mass *= tl.load(p_weights + o_n, mask=m_n, other=0.0)[:, None]
        b_sum += tl.sum(tl.where(m_n[:, None], b_mass, 0.0), axis=0)
    tl.store(p_sums + o_t.to(tl.int64) * parts + i_part, b_sum)


@triton.jit(do_not_specialize=["i_pick", "i_plane"])
def _draw_kernel(
    p_weights, p_candidates, p_best, p_minima, p_sums, p_targets, p_indices, n, parts, i_pick, i_plane,
    WEIGHTED: tl.constexpr, SPAN: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    o_t = tl.arange(0, BT)
    o_p = tl.arange(0, BP)
    p_row = p_sums + o_t.to(tl.int64)[:, None] * parts
    b_sum = tl.zeros((BT, BP), tl.float64)
    for start in range(0, parts, BP):
        m_p = start + o_p < parts
        b_sum += tl.load(p_row + (start + o_p)[None, :], mask=m_p[None, :], other=0.0)
    b_total = tl.sum(b_sum, axis=1)
    best = tl.argmin(b_total, axis=0)
    rows = tl.load(p_candidates + i_plane * BT + o_t)
    tl.store(p_indices + i_pick, tl.sum(tl.where(o_t == best, rows, 0), axis=0))
    tl.store(p_best + i_plane, best)

    # The first part whose cumulated mass passes the target; by rounding there may be none: then the last with mass.
    total = tl.sum(tl.where(o_t == best, b_total, 0.0), axis=0)
    target = tl.load(p_targets + i_pick.to(tl.int64) * BT + o_t) * total
    part = tl.full((BT,), -1, tl.int32)
    rest = tl.full((BT,), float("inf"), tl.float64)
    last = -1
    carry = total * 0.0
    p_row = p_sums + best.to(tl.int64) * parts
    for start in range(0, parts, BP):
        i_p = start + o_p
        b_mass = tl.load(p_row + i_p, mask=i_p < parts, other=0.0)
        b_upto = carry + tl.cumsum(b_mass, axis=0)
        m_past = (b_upto[None, :] > target[:, None]) & (b_mass > 0)[None, :]
        hit = tl.min(tl.where(m_past, i_p[None, :], _INDEX), axis=1)
        new = (part < 0) & (hit < _INDEX)
        before = tl.sum(tl.where(i_p[None, :] == hit[:, None], (b_upto - b_mass)[None, :], 0.0), axis=1)
        rest = tl.where(new, target - before, rest)
        part = tl.where(new, hit, part)
        last = tl.maximum(last, tl.max(tl.where(b_mass > 0, i_p, -1), axis=0))
        carry = tl.sum(tl.where(o_p == BP - 1, b_upto, 0.0), axis=0)
    part = tl.where(part < 0, last, part)

    # The same inside the part; without any mass left the candidate is -1.
    p_min = p_minima + (i_plane * BT + best).to(tl.int64) * n
    for t in range(BT):
        o_n = tl.sum(tl.where(o_t == t, part, 0), axis=0).to(tl.int64) * SPAN + tl.arange(0, SPAN)
        m_n = (o_n >= 0) & (o_n < n)
        b_mass = tl.load(p_min + o_n, mask=m_n, other=0.0).to(tl.float64)
        if WEIGHTED:
            b_mass *= tl.load(p_weights + o_n, mask=m_n, other=0.0)
        m_past = (tl.cumsum(b_mass, axis=0) > tl.sum(tl.where(o_t == t, rest, 0.0), axis=0)) & (b_mass > 0)
        item = tl.min(tl.where(m_past, o_n, n), axis=0)
        item = tl.where(item < n, item, tl.max(tl.where(b_mass > 0, o_n, -1), axis=0))
        tl.store(p_candidates + (1 - i_plane) * BT + t, item)


@triton.jit
def _squared_distances(
    p_x, i_rows, i_centres, d, s_n, s_d, BN: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr
):
    """Squared distances (BN, BT) of rows to rows, by differences; sums over columns are made once, at the end."""
    if BT == 1:  # two axes: with a third, Triton 3.6 passes the tile through shared memory
        p_rows = p_x + (i_rows * s_n)[:, None]
        p_centre = p_x + tl.sum(i_centres, axis=0) * s_n
        b_sum = tl.zeros((BN, BD), tl.float32)
        for start in range(0, d, BD):
            o_d = start + tl.arange(0, BD)
            m_d = o_d < d
            o_d = o_d.to(tl.int64) * s_d
            b_x = tl.load(p_rows + o_d[None, :], mask=m_d[None, :], other=0.0).to(tl.float32)
            b_c = tl.load(p_centre + o_d, mask=m_d, other=0.0).to(tl.float32)
            b_difference = b_x - b_c[None, :]
            b_sum += b_difference * b_difference
        return tl.sum(b_sum, axis=1)[:, None]
    p_rows = p_x + (i_rows * s_n)[:, None, None]
    p_centres = p_x + (i_centres * s_n)[None, :, None]
    b_sum = tl.zeros((BN, BT, BD), tl.float32)
    for start in range(0, d, BD):
        o_d = start + tl.arange(0, BD)
        m_d = (o_d < d)[None, None, :]
        o_d = (o_d.to(tl.int64) * s_d)[None, None, :]
        b_x = tl.load(p_rows + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_c = tl.load(p_centres + o_d, mask=m_d, other=0.0).to(tl.float32)
        b_difference = b_x - b_c
        b_sum += b_difference * b_difference
    return tl.sum(b_sum, axis=2)


def _variant(
    label: str,
    kernel: Any,
    tile: dict[str, int],
    arguments: dict[str, str],
    odd: tuple[str, ...],
    **constants: Any,
) -> Variant:
    return Variant(
        label=f"{label}, {tile['BN']}x{tile['BD']}",
        kernel=kernel,
        arguments=arguments,
        constants={"s_d": 1, **{name: tile[name] for name in ("BN", "BT", "BD")}, **constants},
        warps=tile["num_warps"],
        stages=tile["num_stages"],
        odd=odd,
    )


_SIZES = {"n": "i32", "d": "i32", "s_n": "i32"}
_STATE = {"p_candidates": "*i64", "p_best": "*i32", "p_minima": "*fp32", "p_sums": "*fp64"}
VARIANTS = [
    *(
        _variant(
            *(f"k_center_greedy, {dtype}", _k_center_kernel, config(1)),
            {
                "p_x": f"*{dtype}",
                "p_squared": "*fp32",
                "p_keys": "*i64",
                **_SIZES,
                "i_from": "i32",
                "i_to": "i32",
            },
            odd=("i_from", "i_to"),
        )
        for dtype in ("fp32", "fp16")
    ),
    *(
        _variant(
            *(f"k_means_plus_plus, fp32, {candidates} candidates", _candidates_kernel, config(candidates)),
            {"p_x": "*fp32", "p_weights": "*fp64", **_STATE, **_SIZES, "parts": "i32", "i_plane": "i32"},
            odd=("parts", "i_plane"),
            **{"WEIGHTED": True, "REPEATS": 1},
        )
        for candidates in (1, 8, 16)
    ),
    Variant(
        label="k_means_plus_plus, draw of 8",
        kernel=_draw_kernel,
        arguments={
            **{"p_weights": "*fp64", **_STATE, "p_targets": "*fp64", "p_indices": "*i64"},
            **{"n": "i32", "parts": "i32", "i_pick": "i32", "i_plane": "i32"},
        },
        constants={"WEIGHTED": True, "SPAN": config(8)["BN"], "BT": 8, "BP": _PARTS},
        warps=_DRAW_WARPS,
        odd=("parts", "i_pick", "i_plane"),
    ),
]
