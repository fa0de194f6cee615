r"""Counter-based random numbers: item ``i`` of a stream is a pure function of ``(seed, stream, i)``.

Philox-4x64-10 (Salmon et al., SC'11) turns the counter :math:`\lfloor i/4 \rfloor` under the key
``(seed, stream)`` into four 64-bit words (NumPy counts from one), of which item ``i`` is word ``i mod 4``. So any
slice of a stream can be made alone, in any order, by any number of workers, and is the same numbers.

Uniforms are :math:`(\lfloor w / 2^{12} \rfloor + 1/2)\,2^{-52} \in (0, 1)` (a bit more, and the largest would
round to 1); normals are
:math:`\Phi^{-1}(u)`, rounded to float32 and held as float64. The rounding hides the last-digit differences
between one machine's inverse error function and another's, and makes a float32 and a float64 evaluation of
the same random map use the same weights. (Only the *bits* of NumPy's generators are promised never to
change; its ``standard_normal`` is not, which is why it is not used.)
"""

import hashlib
import math

import numpy as np
import torch
from torch import Tensor


def random_bits(seed: int, stream: str, count: int, start: int = 0) -> np.ndarray:
    """Words ``start .. start + count`` of a stream.

    Parameters
    ----------
    seed : int
        Any non-negative integer below 2**64.
    stream : str
        Name of the use ("holdout", "fcnn.0", ...). Streams of different names are independent.
    count, start : int
        Length and first index of the slice.

    Returns
    -------
    ndarray of uint64, shape (count,)

    Raises
    ------
    ValueError
        If `seed` is not an integer in range.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= int(seed) < 2**64:
        raise ValueError(f"`seed` must be an integer in [0, 2**64), got {seed!r}")
    key = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")
    generator = np.random.Philox(key=np.array([int(seed), key], dtype=np.uint64))
    generator.advance(start // 4)
    skip = start % 4
    return generator.random_raw(skip + count)[skip:]


def uniform(seed: int, stream: str, shape: tuple[int, ...] | int, start: int = 0) -> Tensor:
    """Float64 uniforms in the open interval (0, 1); items are numbered in C order from `start`."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    bits = random_bits(seed, stream, math.prod(shape), start)
    values = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return torch.from_numpy(values).reshape(shape)


def normal(seed: int, stream: str, shape: tuple[int, ...] | int, start: int = 0) -> Tensor:
    """Float64 standard normals that are exactly representable in float32; numbered as in `uniform`."""
    return torch.special.ndtri(uniform(seed, stream, shape, start)).float().double()
