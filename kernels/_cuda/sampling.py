"""Launches the kernels of ``sampling.cu``: the race of `_race` on a GPU, to the same bits.

One read of the weights (or of the rows that make them), sixty bytes for each item wanted, and one wait for the device,
at the end: the time by which enough items have arrived is estimated on the device, and whether it was right, and
whether the weights were valid, comes back together with the number found. A wrong estimate costs another turn.
"""

import functools
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._philox import stream_key
from .._race import NEVER, Arrivals, check_weights, enough_for, key_of
from ..loss_sampling import cross_entropy_losses, rows_within, squared_losses
from ._loader import launch

_BLOCK = 256  # threads; BLOCK of the source
_TILE = 4096  # rows whose losses a block holds; TILE of the source
_MANY = 64 * _TILE  # rows for which large blocks still fill the device
_SAMPLE = 4096  # weights from which the time is estimated


def first_arrivals(weights: Tensor, want: int, *, start: int, **options: Any) -> Arrivals:
    """As `kernels._first_arrivals.first_arrivals`."""
    weights = weights.contiguous()
    n = len(weights)

    def describe(place: int) -> None:
        check_weights(
            torch.inf, -torch.inf, lambda: weights[place : place + 1].double().cpu().numpy(), start + place
        )

    return _race(
        f"weights_{_name(weights)}",
        (weights.data_ptr(),),
        16 * _BLOCK,
        weights[:: max(1, n // _SAMPLE)].double().contiguous(),
        describe,
        n=n,
        want=want,
        start=start,
        **options,
    )


def loss_arrivals(
    outputs: Tensor, targets: Tensor, loss: str, *, memory_budget: int, want: int, start: int, **options: Any
) -> Arrivals:
    """As `kernels.loss_sampling.loss_arrivals`; nothing of the size of the losses is ever written."""
    outputs = outputs.contiguous()
    targets = (targets if loss == "squared" else targets.to(torch.int64)).contiguous()
    n, columns = outputs.shape
    lanes = 1  # threads a row: four columns each, at most a warp
    while lanes < 32 and 4 * lanes < columns:
        lanes *= 2
    rows = _TILE if columns <= 32 and n > _MANY else 2 * _BLOCK  # a block
    step = max(1, n // min(_SAMPLE, rows_within(memory_budget, outputs)))
    some, theirs = outputs[::step].to(torch.promote_types(outputs.dtype, torch.float32)), targets[::step]
    if loss == "squared":
        sample = squared_losses(some, theirs.to(some.dtype))
    else:
        sample = cross_entropy_losses(some, theirs.clamp(0, columns - 1))

    def describe(place: int) -> None:
        if loss == "cross-entropy" and not 0 <= (label := int(targets[place])) < columns:
            raise ValueError(f"classes must be 0 ... {columns - 1}, but row {place} of `targets` is {label}")
        raise ValueError(f"losses must be finite: that of row {place} is not")

    return _race(
        f"{loss.replace('-', '_')}_{_name(outputs)}",
        (outputs.data_ptr(), targets.data_ptr(), columns, lanes, rows),
        rows,
        sample.double(),
        describe,
        n=n,
        want=want,
        start=start,
        **options,
    )


def _race(
    kernel: str,
    inputs: tuple[int, ...],
    items_a_block: int,
    sample: Tensor,
    describe: Callable[[int], None],
    *,
    n: int,
    want: int,
    seed: int,
    stream: str,
    start: int,
    replacement: bool,
    bound: int = NEVER,
) -> Arrivals:
    """Filter, arrive, look at what came; again with another time if that was too little or too much."""
    device = sample.device
    if n == 0:
        return Arrivals.none(device)
    first, rest, again = (stream_key(f"{stream}.{name}") for name in ("first", "rest", "again"))
    blocks = -(-(start % 16 + n) // items_a_block)
    mean = 1.1 * enough_for(want)  # a tenth more, for the error of the sample
    capacity = int(1.3 * mean) + n // 2**15 + 4096  # any item passes the filter once in 2**16 times
    late, early = bound, None  # times found too late and too early
    tried, stride = None, 2**52
    while True:
        header = torch.zeros(6, dtype=torch.int64, device=device)
        header[3:4].fill_(NEVER)
        header[4:5].fill_(tried or 0)
        kept, keys, items = (torch.empty(capacity, dtype=torch.int64, device=device) for _ in range(3))
        values, weights = (torch.empty(capacity, dtype=torch.float64, device=device) for _ in range(2))
        sums = torch.empty(blocks, dtype=torch.float64, device=device)
        run = functools.partial(_launch, device)
        if tried is None:
            run("estimate", 1, sample, len(sample), n / len(sample), mean, int(replacement), bound, header)
        run(kernel, blocks, *inputs, seed, first, start, n, capacity, kept, values, header, sums)
        lists = (capacity, kept, values, keys, items, weights, header)
        run("arrive", min(1024, -(-capacity // _BLOCK)), seed, rest, again, start, int(replacement), *lists)
        header[5:].view(torch.float64).copy_(sums.sum())
        passed, arrived, positive, invalid, tried, bits = header.tolist()  # waits for the device
        total = struct.unpack("d", struct.pack("q", bits))[0]
        if invalid != NEVER:
            describe(invalid)
        check_weights(total, 0.0, lambda: np.zeros(0), start)
        if positive == 0:
            return Arrivals.none(device)
        crowded = max(passed, arrived) > capacity
        if not crowded and (arrived >= want or tried == bound):
            found = Arrivals(keys[:arrived], items[:arrived], weights[:arrived], Fraction(total))
            return found.smallest(want)
        if not replacement and positive <= want:
            tried, capacity = bound, positive
        elif crowded:
            # The weights as a whole say when; if it was said already, halfway between too early and too late.
            late = tried
            if early is not None and late - early < 2**40:
                # Hardly any time between: weights so small that the filter overflows turn nobody away. Let all in.
                capacity, late = max(capacity, passed, arrived), bound
                continue
            tried = (early + late) // 2 if early is not None else min(key_of(mean, total), late - 2**52)
        else:
            early, stride = tried, 2 * stride
            tried = (early + late) // 2 if late != bound else min(early + stride, bound)


def _launch(device: torch.device, kernel: str, blocks: int, *arguments: Tensor | int | float) -> None:
    numbers = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    launch("sampling", kernel, blocks, _BLOCK, *numbers, device=device)


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
