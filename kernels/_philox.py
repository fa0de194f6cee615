"""Words of the streams of `random_bits` at places that are not next to each other.

NumPy's generator runs through consecutive counters in C; this is the same Philox-4x64-10 for counters given one by
one, some fifty times slower a word, so it pays where fewer than one word in fifty is wanted.
"""

import hashlib

import numpy as np

from .random import random_bits

_DENSE = 48  # where one word in this many is wanted, making all of them is faster (measured, one core)
_PIECE = 4096  # blocks computed together: temporaries stay in a core's cache
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def stream_key(stream: str) -> int:
    """The second word of a stream's Philox key."""
    return int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")


def words_at(seed: int, stream: str, index: np.ndarray) -> np.ndarray:
    """Words `index` (increasing int64) of a stream: ``random_bits(seed, stream, 1, i)[0]`` for each i."""
    if len(index) == 0:
        return np.empty(0, np.uint64)
    first, last = int(index[0]), int(index[-1])
    if last - first < _DENSE * len(index):
        return random_bits(seed, stream, last - first + 1, first)[index - first]
    blocks = philox_blocks(seed, stream, index >> 2, np.zeros(len(index), np.int64))
    return np.take_along_axis(blocks, (index & 3)[None], axis=0)[0]


def philox_blocks(seed: int, stream: str, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Four words from each counter ``low + 2**64 high`` (int64): word ``4 low + 2**66 high`` and the three after it.

    Returns
    -------
    ndarray of uint64, shape (4, n)
    """
    found = np.empty((4, len(low)), np.uint64)
    for start in range(0, len(low), _PIECE):
        part = slice(start, start + _PIECE)
        # NumPy's generator steps its counter before it makes a block.
        counter = [low[part].astype(np.uint64) + np.uint64(1), high[part].astype(np.uint64)]
        found[:, part] = _rounds(seed, stream_key(stream), *counter)
    return found


def _rounds(seed: int, key: int, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
    c, d = np.zeros_like(a), np.zeros_like(a)
    for turn in range(10):
        keys = [
            np.uint64((word + turn * step) % 2**64) for word, step in zip((seed, key), _WEYL, strict=True)
        ]
        high_a, low_a = _product(_MULTIPLIERS[0], a)
        high_c, low_c = _product(_MULTIPLIERS[1], c)
        a, b, c, d = high_c ^ b ^ keys[0], low_c, high_a ^ d ^ keys[1], low_a
    return a, b, c, d


def _product(factor: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """High and low word of the 128-bit product, from four products of halves."""
    f_low, f_high = np.uint64(factor & 0xFFFFFFFF), np.uint64(factor >> 32)
    x_low, x_high = x & _LOW, x >> _HALF
    middle = f_high * x_low + (f_low * x_low >> _HALF)
    other = f_low * x_high + (middle & _LOW)
    return f_high * x_high + (middle >> _HALF) + (other >> _HALF), np.uint64(factor) * x
