"""The race on the CPU: one pass over the weights, in chunks that stay in cache, O(k) memory beside them.

A chunk is compared with the smallest arrivals found so far, so later chunks contribute ever fewer candidates: about
k log2(n / chunk) in all. Which of them are found does not depend on the chunks or on the threads that work on them.
"""

import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from ._philox import philox_blocks, words_at
from ._race import (
    NEVER,
    Arrivals,
    Smallest,
    arrival_keys,
    check_weights,
    enough_for,
    exponential,
    key_of,
    time_of,
)
from .random import random_bits

_CHUNK = 2**18  # items; what is computed from them takes about 3 MB
_WORKERS = 8


def first_arrivals(
    weights: Tensor, want: int, *, seed: int, stream: str, start: int, replacement: bool, bound: int = NEVER
) -> Arrivals:
    """The `want` first arrivals, or all up to the key `bound` if they are fewer.

    Parameters
    ----------
    weights : Tensor, shape (n,)
        Any floating type, on any device; read once, chunk by chunk.
    want : int
    seed, stream : int, str
        The random numbers, with the items' numbers.
    start : int
        Number of the first item.
    replacement : bool
        Whether an item arrives again after its first arrival.
    bound : int
        Later arrivals need not be found.

    Raises
    ------
    ValueError
        If a weight is negative or not finite, or if the sum of the weights is beyond float64.
    """
    kept = Smallest(want, bound)
    chunks = iter(range(0, len(weights), _CHUNK))
    lock = threading.Lock()

    def work() -> None:
        # An infinite time multiplied by a weight of zero is not a number, and compares as it should.
        with np.errstate(all="ignore"):
            while True:
                with lock:
                    low = next(chunks, None)
                if low is None:
                    return
                found = _of_chunk(
                    _array(weights[low : low + _CHUNK]),
                    want,
                    seed,
                    stream,
                    start + low,
                    replacement,
                    kept.bound,
                )
                with lock:
                    kept.offer(found)

    workers = min(torch.get_num_threads(), _WORKERS, math.ceil(len(weights) / _CHUNK))
    if workers <= 1 or weights.is_cuda:  # other threads would not wait for the stream that makes the weights
        work()
    else:
        with ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(work) for _ in range(workers)]:
                done.result()
    return kept.best().to(weights.device)


def _array(weights: Tensor) -> np.ndarray:
    if weights.dtype not in (torch.float32, torch.float64):
        weights = weights.float()
    return weights.detach().cpu().numpy()


def _of_chunk(
    weights: np.ndarray, want: int, seed: int, stream: str, first: int, replacement: bool, bound: int
) -> Arrivals:
    total = float(weights.sum(dtype=np.float64))
    check_weights(total, weights.min(), lambda: weights, first)
    if total == 0:
        return Arrivals.none()
    # Before there is a bound the chunk sets its own, from the number of arrivals expected; it rarely falls short.
    guess = bound
    if replacement or (bound == NEVER and 4 * want < len(weights)):
        guess = min(bound, key_of(enough_for(want), total))
    fields = random_bits(
        seed, f"{stream}.first", (first + len(weights) - 1) // 4 - first // 4 + 1, first // 4
    )
    fields = fields.view(np.uint16)[first % 4 :][: len(weights)]
    while True:
        keys, items, chosen = _before(weights, fields, seed, stream, first, replacement, guess)
        if guess == bound or len(keys) >= want:
            return Arrivals(
                torch.from_numpy(keys), torch.from_numpy(items), torch.from_numpy(chosen), Fraction(total)
            )
        guess = min(bound, guess + 2**52) if replacement else bound  # with replacement never without a bound


def _before(
    weights: np.ndarray, fields: np.ndarray, seed: int, stream: str, first: int, replacement: bool, bound: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, items and weights of all arrivals up to `bound`."""
    # Rounded up, so that no item is turned away that may arrive: the product's own rounding is far below 2^-20.
    factor = np.nextafter(
        weights.dtype.type(time_of(bound, scale=16) * (1 + 2.0**-20)), weights.dtype.type(np.inf)
    )
    place = np.flatnonzero(weights * factor >= fields)
    place = place[weights[place] > 0]
    items, chosen = first + place, weights[place].astype(np.float64)
    times = exponential(fields[place], words_at(seed, f"{stream}.rest", items) >> np.uint64(12))
    keys = arrival_keys(times, chosen)
    early = keys <= bound
    first_ones = keys[early], items[early], chosen[early]
    if not replacement:
        return first_ones
    parts = [first_ones, *_again(times[early], *first_ones[1:], seed, stream, bound)]
    return tuple(map(np.concatenate, zip(*parts, strict=True)))  # type: ignore[return-value]


def _again(times: np.ndarray, items: np.ndarray, weights: np.ndarray, seed: int, stream: str, bound: int):
    """Arrivals after the first, four times a Philox block for each item, then eight, sixteen ..."""
    block = 0
    for blocks in (2**i for i in itertools.count()):
        if len(items) == 0:
            return
        n = len(items)
        counters = np.broadcast_to(np.arange(block, block + blocks), (n, blocks)).ravel()
        words = philox_blocks(seed, f"{stream}.again", counters, np.repeat(items, blocks))
        words = words.T.reshape(n, 4 * blocks)
        steps = exponential(
            words >> np.uint64(48), ((words & np.uint64(2**48 - 1)) << np.uint64(4)) + np.uint64(8)
        )
        steps[:, 0] += times
        sums = np.cumsum(steps, axis=1)  # in order, as a loop would add
        keys = arrival_keys(sums, weights[:, None])
        early = keys <= bound
        row, _ = np.nonzero(early)
        yield keys[early], items[row], weights[row]
        on = early[:, -1]
        times, items, weights, block = sums[on, -1], items[on], weights[on], block + blocks
