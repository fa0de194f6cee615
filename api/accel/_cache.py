"""What replacements keep between calls: results of the last inputs, up to a number of bytes.

Grid searches ask for the same kernel matrix once for each ridge, and published scripts for the same features. Entries
are found by the content of the inputs (`content_key`), never by the identity of objects alone.

Environment: KERNEL_DISTILL_ACCEL_CACHE is the number of bytes, by default 1 GiB.
"""

import collections
import hashlib
import os
import threading
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

_DEFAULT = 1 << 30
_entries: collections.OrderedDict[Hashable, tuple[Any, int]] = collections.OrderedDict()
_lock = threading.Lock()


def cached(key: Hashable, make: Callable[[], Any], nbytes: int) -> Any:
    """The value of a key, made where it is not kept; the least recently used ones make room for it.

    Parameters
    ----------
    key : hashable
    make : callable
    nbytes : int
        Of the value; one that is larger than the whole budget is not kept.
    """
    with _lock:
        if key in _entries:
            _entries.move_to_end(key)
            return _entries[key][0]
    value = make()
    with _lock:
        room = budget() - nbytes
        if room >= 0:
            _entries[key] = (value, nbytes)
            _entries.move_to_end(key)
            while sum(size for _, size in _entries.values()) > room + nbytes:
                _entries.popitem(last=False)
    return value


def content_key(array: Any) -> tuple[Any, ...]:
    """Shape, dtype and a 128-bit hash of the numbers of an array of NumPy or torch (on the CPU)."""
    values = array.detach().numpy() if hasattr(array, "detach") else np.asarray(array)
    digest = hashlib.blake2b(np.ascontiguousarray(values).view(np.uint8).data, digest_size=16).digest()
    return (values.shape, values.dtype.str, digest)


def budget() -> int:
    """Bytes that may be kept.

    Raises
    ------
    ValueError
        If KERNEL_DISTILL_ACCEL_CACHE is not a number of bytes.
    """
    given = os.environ.get("KERNEL_DISTILL_ACCEL_CACHE", str(_DEFAULT))
    if not given.isdigit():
        raise ValueError(f"KERNEL_DISTILL_ACCEL_CACHE must be a number of bytes, got {given!r}")
    return int(given)


def clear() -> None:
    """Forget everything."""
    with _lock:
        _entries.clear()
