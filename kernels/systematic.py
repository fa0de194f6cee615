r"""Systematic sampling: one random start, then equal steps through the weights laid end to end.

Item i lies at :math:`[C_{i-1}, C_i)` with :math:`C_i = q_1 + \dots + q_i`, and is drawn once for each of the k points
:math:`(U + jQ)/k` inside, :math:`Q = C_n` (Madow, *Ann. Math. Statist.* 20, 1949). So it is drawn
:math:`\lfloor k q_i/Q \rfloor` or :math:`\lceil k q_i/Q \rceil` times, and :math:`k q_i/Q` times on average.

Everything is an integer: :math:`q_i` is the weight in units of a power of two chosen from the largest weight and n such
that :math:`Q \le 2^{61}`, rounded down but at least one for a positive weight, and U is uniform on 0 ... Q - 1. The
expected numbers of draws are those of the rounded weights, exactly, so weights of 1/that are unbiased without
qualification; and neither chunks nor devices can change a sum of integers.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ._race import check_weights
from .random import random_bits
from .sample import Sample

MOST_DRAWS = 2**31 - 1


def systematic_sample(
    chunk: Callable[[int, int], Tensor],
    n: int,
    *,
    k: int,
    seed: int,
    stream: str,
    start: int,
    step: int,
    device: torch.device,
) -> Sample:
    """Draw k of n items, in increasing order, some of them repeatedly where their share exceeds 1/k.

    Parameters
    ----------
    chunk : callable
        ``chunk(low, high)`` are the weights of the items low ... high - 1. Each is asked for twice, and a third time
        where a point falls.
    n : int
        Number of items.
    k : int
        Less than 2**31.
    seed, stream : int, str
        U comes from the first two words of "<stream>.start".
    start : int
        Number of the first item.
    step : int
        How many items are asked for at a time.
    device : torch.device
        Where the weights are.
    """
    if k > MOST_DRAWS:
        raise ValueError(f"a systematic sample holds at most {MOST_DRAWS} draws, got k = {k}: draw in parts")
    lows = range(0, n, step)

    def piece(low: int) -> Tensor:
        return chunk(low, min(low + step, n)).double()

    largest = max((_checked_maximum(piece(low), start + low) for low in lows), default=0.0)
    if largest == 0:
        raise ValueError("all weights are zero: there is nothing to draw")
    shift = 61 - n.bit_length() - math.frexp(largest)[1]  # q <= 2**(61 - bit length of n), so Q <= 2**61
    sizes = [int(_units(piece(low), shift).sum()) for low in lows]
    whole = sum(sizes)
    points = _points(whole, k, random_bits(seed, f"{stream}.start", 2))
    offsets = np.cumsum([0, *sizes])
    edges = np.searchsorted(points, offsets)
    items = torch.empty(k, dtype=torch.int64, device=device)
    values, expected = torch.empty(2, k, dtype=torch.float64, device=device)
    for low, offset, first, last in zip(lows, offsets, edges, edges[1:], strict=False):
        if first == last:
            continue
        weights = piece(low)
        units = _units(weights, shift)
        inside = torch.from_numpy(points[first:last] - offset).to(device)
        place = torch.searchsorted(units.cumsum(0), inside, right=True)
        items[first:last] = place + (start + low)
        values[first:last] = weights[place]
        expected[first:last] = units[place].double() * (k / whole)
    try:
        total = math.ldexp(whole, -shift)
    except OverflowError:
        raise ValueError("the sum of the weights is beyond float64: divide them by a power of two") from None
    return Sample(items, 1 / expected, expected, values, total, math.nan)


def _checked_maximum(weights: Tensor, start: int) -> float:
    smallest, largest = (value.item() for value in torch.aminmax(weights))
    check_weights(largest, smallest, lambda: weights.cpu().numpy(), start)
    return largest


def _units(weights: Tensor, shift: int) -> Tensor:
    """Weights in units of ``2**-shift``, rounded down, at least one where positive."""
    half = shift // 2  # 2**shift itself may be beyond float64
    units = (weights * 2.0**half * 2.0 ** (shift - half)).to(torch.int64)
    return torch.maximum(units, (weights > 0).to(torch.int64))


def _points(whole: int, k: int, bits: np.ndarray) -> np.ndarray:
    """floor((U + j whole)/k) for j = 0 ... k - 1, without a product that overflows."""
    start = ((int(bits[0]) << 64 | int(bits[1])) * whole) >> 128
    quotient, remainder = divmod(whole, k)
    j = np.arange(k)
    return j * quotient + (start + j * remainder) // k
