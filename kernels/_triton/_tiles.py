r"""Tiles of inner products of rows: their sizes, the loop that fills one, and how a grid of them is cut up.

**Accumulation.** Tensor cores add to their accumulator with truncation (Fasi, Higham, Mikaitis & Pranesh, 2021, up to
the A100; not measured here), which biases long sums. Where float32 accuracy is meant (`SPLIT`: rows in two float16
parts, three products) the sum of each step is therefore added to the total outside of them, rounded to nearest.

**Strips.** A program of the operations that reduce over columns takes one row of tiles and a strip of its columns, and
keeps its sums on the chip, in float32. Strips are short enough that rounding stays near 10⁻⁷, and many enough to keep
every multiprocessor busy, on tiles of X and Y that they share in the second-level cache. Their sums lie side by side
until they are added up in float64, in one order: nothing is added atomically, and results do not change from run to
run. Bands of rows keep them within a byte budget.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from .._dispatch import INTERPRETED, compute_capability
from .._thresholds import HALF_TILES, LONG_ROWS, SHORT_ROWS
from .._tiled import DEFAULT_BUDGET
from ._resources import Variant

_LEAST_STRIPS = 8
_LONGEST = 64  # tiles
_PROGRAMS = 32  # wanted for each multiprocessor, so that the last ones to finish are few


class Gpu(NamedTuple):
    """What launch parameters depend on. Of the interpreter: capability 0."""

    capability: int
    shared: int  # bytes of shared memory for one program
    processors: int


KNOWN = (Gpu(80, 163 << 10, 108), Gpu(90, 227 << 10, 132), Gpu(100, 227 << 10, 148))


def gpu(device: torch.device) -> Gpu:
    """What launches on this device depend on; asked of the driver once."""
    if INTERPRETED:
        return Gpu(0, 0, 0)
    return _gpu(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def _gpu(index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    major, minor = compute_capability(torch.device("cuda", index))
    return Gpu(10 * major + minor, properties.shared_memory_per_block_optin, properties.multi_processor_count)


def tile(d: int, split: bool, crowding: int, on: Gpu) -> dict[str, Any]:
    """Tile, step, warps and stages for rows of `d` columns.

    Short rows: tiles of four warps, several of which share a multiprocessor, so that one multiplies while another takes
    exponentials. Longer ones: the larger the tile, the less it asks of the second-level cache for its work. Within
    that, the largest that the registers of each generation hold; `crowding` counts what else wants them, beside the
    profile of a Gaussian: that of another family, and any more than sums.
    """
    if on.capability == 0:  # small, so that small problems have many tiles
        return {"BN": 32, "BM": 32, "BK": 16 if d <= 16 else 32, "num_warps": 4, "num_stages": 2}
    short, roomy = d <= SHORT_ROWS, on.shared >= 160 << 10
    if split:
        columns = 128 if crowding == 0 and on.capability < 100 else 64
    elif short:
        columns = 128 if crowding < 2 and roomy and on.capability >= 90 else 64
    elif d >= LONG_ROWS and crowding == 0 and on.capability // 10 == 9:
        columns = 256
    else:
        columns = 128 if crowding < 2 else 64
    return {
        "BN": 64 if short else 128,
        "BM": columns,
        "BK": min(32 if split else 64, max(16, triton.next_power_of_2(d))),
        "num_warps": 4 if short else 8,
        "num_stages": 3 if roomy else 2,
    }


def strip_tile(d: int, split: bool, crowding: int, on: Gpu) -> dict[str, Any]:
    """The same for a strip.

    RESIDENT: rows of X stay on the chip along it, in one step, if they fit beside those of Y.
    """
    launch = tile(d, split, crowding, on)
    longest = SHORT_ROWS if on.capability else 32
    if d <= longest >> split:
        return {**launch, "BK": max(16, triton.next_power_of_2(d)), "RESIDENT": True}
    return {**launch, "RESIDENT": False}


def half_pays(d: int, on: Gpu) -> bool:
    """Whether rows are so long that sums over both sides of a tile cost less than the other half of the tiles."""
    return d >= (HALF_TILES if on.capability else 33)


def strips(rows: int, columns: int, on: Gpu) -> int:
    """Strips into which to cut `columns` tiles for each of `rows` rows of tiles."""
    least = _LEAST_STRIPS if on.capability else 2  # of several tiles each
    wanted = max(least, triton.cdiv(_PROGRAMS * on.processors, rows), triton.cdiv(columns, _LONGEST))
    return min(columns, wanted)


def bands(n: int, BN: int, row_bytes: int, budget: int | None) -> Iterator[tuple[int, int, int, int]]:
    """Cut rows of tiles, each with `row_bytes` of partial sums, into bands within the budget.

    Yields the first row of tiles and their number, the first row and the one past the last.
    """
    rows = triton.cdiv(n, BN)
    band = max(1, (budget or DEFAULT_BUDGET["cuda"]) // row_bytes)
    for first in range(0, rows, band):
        high = min(band, rows - first)
        yield first, high, first * BN, min(n, (first + high) * BN)


def variants(
    label: str,
    kernel: Any,
    pointers: str,
    sizes: str,
    launch: Callable[[Gpu], dict[str, Any]],
    constants: dict[str, Any],
) -> Iterator[Variant]:
    """A kernel as it is launched on the known GPUs: once for every set of launch parameters among them.

    `pointers` names the pointer arguments in order, those to float16 with a colon behind; `sizes` the others, all i32.
    """
    parameters = {on.capability: launch(on) for on in KNOWN}
    kinds = {name.rstrip(":"): "*fp16" if name.endswith(":") else "*fp32" for name in pointers.split()}
    for capability, chosen in parameters.items():
        targets = tuple(other for other in parameters if parameters[other] == chosen)
        if capability != targets[0]:
            continue
        size = f"{chosen['BN']}x{chosen['BM']}x{chosen['BK']}"
        compiled = {name: value for name, value in chosen.items() if name not in ("num_warps", "num_stages")}
        yield Variant(
            label=f"{label}{', half the tiles' if chosen.get('HALF') else ''}, {size}",
            kernel=kernel,
            arguments=kinds | dict.fromkeys(sizes.split(), "i32"),
            constants=constants | compiled,
            warps=chosen["num_warps"],
            stages=chosen["num_stages"],
            dot=True,
            odd=tuple(name for name in sizes.split() if name not in ("m", "width")),
            targets=targets,
        )


@triton.jit
def product(p_x, p_y, o_x, o_y, width, SPLIT: tl.constexpr, BK: tl.constexpr):
    """Inner products of rows o_x below p_x and o_y below p_y, step by step."""
    b_sum = tl.zeros((o_x.shape[0], o_y.shape[0]), tl.float32)
    for k in range(0, width, BK):
        b_x, b_x_low = halves_of(p_x + k, o_x, width, SPLIT, BK)
        if SPLIT:
            b_sum += step(b_x, b_x_low, p_y + k, o_y, width, None, SPLIT, BK)
        else:
            b_sum = step(b_x, b_x_low, p_y + k, o_y, width, b_sum, SPLIT, BK)
    return b_sum


@triton.jit
def halves_of(p_rows, o_rows, width, SPLIT: tl.constexpr, BK: tl.constexpr):
    """BK columns of some rows: both parts, or the only one twice."""
    p_tile = p_rows + o_rows[:, None] * (2 * width if SPLIT else width) + tl.arange(0, BK)[None, :]
    b_high = tl.load(p_tile)
    return b_high, tl.load(p_tile + width) if SPLIT else b_high


@triton.jit
def step(b_x, b_x_low, p_y, o_y, width, b_sum, SPLIT: tl.constexpr, BK: tl.constexpr):
    """`b_sum` and the products over BK columns, small ones first."""
    b_y, b_y_low = halves_of(p_y, o_y, width, SPLIT, BK)
    if SPLIT:
        b_sum = dot(b_x_low, b_y.T, b_sum)
        b_sum = dot(b_x, b_y_low.T, b_sum)
    return dot(b_x, b_y.T, b_sum)


@triton.jit
def dot(b_left, b_right, b_sum):
    """Product of float16 tiles, added in float32 to `b_sum` where there is one."""
    return tl.dot(b_left, b_right, b_sum, input_precision="ieee", out_dtype=tl.float32)


@triton.jit
def triangle(index):
    """Row and column (not beyond the row) of entry number `index` of a triangle counted row by row."""
    row = ((tl.sqrt(8.0 * index.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int64)
    # The root is off by one at most, for up to 2^23 rows.
    row = tl.where(row * (row + 1) // 2 > index, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= index, row + 1, row)
    return row.to(tl.int32), (index - row * (row + 1) // 2).to(tl.int32)
