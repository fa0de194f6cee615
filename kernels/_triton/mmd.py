r"""Sums of kernel values within groups, all groups and all three sums of each in one launch.

Rows of X and, after them, those of Y stand in one array. A *segment* is a range of rows and one of columns: (X, X),
(Y, Y) and (X, Y) of a group. A program takes one row of tiles of a segment and a strip of its columns, and writes one
float64 number; those of a segment are then added in one order, so that results repeat to the last bit.

**Half the tiles.** Only entries above the diagonal are summed, wherever rows and columns are the same: the diagonal is
known. Between X and Y nothing lies on it or below.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from .._mmd import Sums
from ..radial import MixtureOfGaussians
from . import radial
from ._points import points
from ._resources import Variant
from ._tiles import Gpu, gpu, halves_of, product, step, strip_tile, strips, variants


def mmd2(sums: Sums, precision: str, x: Tensor, y: Tensor, *parameters: Tensor) -> Tensor:
    """See `kernels.mmd.mmd2`; "low" runs as "medium", which costs the same."""
    kernel = sums.kernel.with_parameters(*parameters)
    split, on = precision == "high", gpu(x.device)
    form = radial.form(kernel, split)
    launch = tile(form, max(map(max, sums.counts)), x.shape[1], split, on)
    rows = points(torch.cat([x, y]), launch["BK"], split)
    table, lengths = jobs(sums.counts, launch["BN"], launch["BM"], on)
    partial = torch.empty(len(table), dtype=torch.float64, device=x.device)
    _mmd_kernel[(len(table),)](
        *(
            rows.rows,
            rows.numbers,
            radial.parameters(kernel, rows.numbers),
            torch.from_numpy(table).to(x.device),
        ),
        *(partial, len(x) + len(y), rows.width),
        FORM=form,
        SPLIT=split,
        enable_fp_fusion=True,
        **launch,
    )
    lengths = torch.from_numpy(lengths).to(x.device)
    xx, yy, xy = torch.segment_reduce(partial, "sum", lengths=lengths).view(-1, 3).unbind(1)
    n, m = (torch.tensor(of_side, dtype=torch.float64, device=x.device) for of_side in sums.counts)
    if not sums.biased:
        return 2 * (xx / (n * (n - 1)) + yy / (m * (m - 1)) - xy / (n * m))
    at_zero = kernel.profile(partial.new_zeros(()), *(p.double() for p in parameters))
    return (2 * xx / n + at_zero) / n + (2 * yy / m + at_zero) / m - 2 * xy / (n * m)


def tile(form: tuple[Any, ...], longest: int, d: int, split: bool, on: Gpu) -> dict[str, Any]:
    """Launch parameters; smaller tiles where every group has few rows."""
    launch = strip_tile(d, split, radial.crowding(form), on)
    side = max(32, triton.next_power_of_2(longest))
    if side < launch["BM"]:
        launch.update(BN=min(side, launch["BN"]), BM=side, num_warps=4)
    return launch


def jobs(
    counts: tuple[tuple[int, ...], tuple[int, ...]], BN: int, BM: int, on: Gpu
) -> tuple[np.ndarray, np.ndarray]:
    """What each program does, and how many work on each segment.

    Returns
    -------
    table : ndarray of int32, shape (programs, 4)
        First row and end of the segment's rows, first column and end of the strip.
    lengths : ndarray of int64, shape (3 C,)
        Segments of a group follow one another: (X, X), (Y, Y), (X, Y).
    """
    n, m = (np.array(of_side) for of_side in counts)
    x, y = (np.array([0, *accumulate(of_side)][:-1]) for of_side in counts)
    y = y + n.sum()
    top, high = np.stack([x, y, x], 1).ravel(), np.stack([n, m, n], 1).ravel()
    left, wide = np.stack([x, y, y], 1).ravel(), np.stack([n, m, m], 1).ravel()
    columns = -(-wide // BM)
    # Rows of tiles, one after the other, and the first column of tiles that reaches above the diagonal.
    segment, row = _numbered(-(-high // BN))
    begin = np.where((top == left)[segment], row * BN // BM, 0)
    length = -(-columns // np.array([strips(len(segment), c, on) for c in columns]))
    # Their strips.
    which, strip = _numbered(-(-(columns[segment] - begin) // length[segment]))
    segment, row, begin = segment[which], row[which], begin[which] + strip * length[segment[which]]
    bottom, right = top + high, left + wide
    table = np.stack(
        [
            top[segment] + row * BN,
            bottom[segment],
            left[segment] + begin * BM,
            np.minimum(right[segment], left[segment] + (begin + length[segment]) * BM),
        ],
        1,
    )
    return table.astype(np.int32), np.bincount(segment, minlength=len(top))


def _numbered(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Items of several lists in one: the list of each, and its number there."""
    which = np.repeat(np.arange(len(counts)), counts)
    return which, np.arange(len(which)) - (np.cumsum(counts) - counts)[which]


@triton.jit
def _mmd_kernel(
    p_z, p_zn, p_k, p_jobs, p_out, n, width,
    FORM: tl.constexpr, SPLIT: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, RESIDENT: tl.constexpr,
):  # fmt: skip
    p_job = p_jobs + tl.program_id(0).to(tl.int64) * 4
    top = tl.load(p_job)
    bottom = tl.load(p_job + 1)
    first = tl.load(p_job + 2)
    end = tl.load(p_job + 3)
    row = width * (2 if SPLIT else 1)
    p_x = p_z + top.to(tl.int64) * row
    o_x = tl.minimum(tl.arange(0, BN), bottom - 1 - top)
    o_n = top + tl.arange(0, BN)
    factor, slope, alpha = radial.factors(p_k, p_zn, n, p_zn, n, FORM)
    b_xn = radial.norms(p_zn, o_n, bottom, factor, FORM)
    if RESIDENT:
        b_x, b_x_low = halves_of(p_x, o_x, width, SPLIT, BK)
    b_total = tl.zeros((BN,), tl.float32)
    for j in range(tl.cdiv(end - first, BM)):
        left = first + j * BM
        o_m = left + tl.arange(0, BM)
        p_y = p_z + left.to(tl.int64) * row
        o_y = tl.minimum(tl.arange(0, BM), end - 1 - left)
        if RESIDENT:
            b_sum = step(b_x, b_x_low, p_y, o_y, width, None, SPLIT, BK)
        else:
            b_sum = product(p_x, p_y, o_x, o_y, width, SPLIT, BK)
        b_e = radial.exponents(b_sum, slope, b_xn, radial.norms(p_zn, o_m, end, factor, FORM))
        if left < top + BN:
            b_e = radial.on_diagonal(b_e, o_n, o_m, True, True, FORM)
        b_total += tl.sum(radial.profile(b_e, alpha, FORM), 1)
    tl.store(p_out + tl.program_id(0).to(tl.int64), tl.sum(b_total.to(tl.float64), 0))


def _variants(d: int, precision: str, longest: int = 1 << 20) -> Iterator[Variant]:
    split = precision == "high"
    form = radial.form(MixtureOfGaussians(), split)
    for variant in variants(
        f"mmd, {precision}",
        _mmd_kernel,
        "p_z: p_zn p_k p_jobs p_out",
        "n width",
        lambda on: tile(form, longest, d, split, on),
        {"FORM": form, "SPLIT": split},
    ):
        yield replace(variant, arguments=variant.arguments | {"p_jobs": "*i32", "p_out": "*fp64"})


VARIANTS = [
    *_variants(64, "high"),
    *_variants(512, "high"),
    *_variants(512, "medium"),
    *_variants(2048, "high", 30),
]
