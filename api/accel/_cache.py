"""What replacements keep between calls: results of the last inputs, up to a number of bytes.

Grid searches ask for the same kernel matrix once for each ridge, and published scripts for the same features. Entries
are found by the content of the inputs (`content_key`), never by the identity of objects alone (`identity_key`).

Environment: KERNEL_DISTILL_ACCEL_CACHE is the number of bytes, by default 1 GiB.
"""

import collections
import hashlib
import math
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
    value = kept(key)
    if value is None:
        value = make()
        keep(key, value, nbytes)
    return value


def kept(key: Hashable) -> Any:
    """The value of a key; None where it is not kept."""
    with _lock:
        if key not in _entries:
            return None
        _entries.move_to_end(key)
        return _entries[key][0]


def keep(key: Hashable, value: Any, nbytes: int) -> None:
    """Keep a value, in place of an earlier one of the same key, where it fits the budget."""
    room = budget()
    with _lock:
        _entries.pop(key, None)
        if nbytes > room:
            return
        _entries[key] = (value, nbytes)
        while sum(size for _, size in _entries.values()) > room:
            _entries.popitem(last=False)


def content_key(array: Any) -> tuple[Any, ...]:
    """Shape, dtype and a 128-bit hash of the numbers of an array of NumPy or torch (on the CPU)."""
    values = array.detach().numpy() if hasattr(array, "detach") else np.asarray(array)
    digest = hashlib.blake2b(np.ascontiguousarray(values).view(np.uint8).data, digest_size=16).digest()
    return (values.shape, values.dtype.str, digest)


def identity_key(array: Any) -> tuple[Any, ...]:
    """Of an array of NumPy or torch that is too large to be hashed at every call: the object, its layout, and sums.

    Notes
    -----
    The object is held weakly, and an object that is gone is equal to none. Torch counts changes in place in
    `_version`. Those that it does not see (through NumPy, `.data`) are seen in the sums of its memory, laid out as a
    square of 64-bit integers, along both sides: all of them cancel only where whole rectangles change by amounts that
    do. Two passes over the memory, several times cheaper than `content_key`.
    """
    import torch
    from torch.utils.weak import WeakIdRef

    is_tensor = isinstance(array, torch.Tensor)
    version = array._version if is_tensor and not array.is_inference() else None
    values = array.detach() if is_tensor else torch.from_numpy(_plain(array))
    # Axes in the order of memory, so that an array that is dense in some order is not copied.
    order = sorted(range(values.ndim), key=lambda axis: -values.stride(axis))
    flat = values.permute(order).reshape(-1).view(torch.uint8)
    if flat.storage_offset() % 8:
        flat = flat.clone()
    words = flat[: len(flat) // 8 * 8].view(torch.int64)
    side = max(1, math.isqrt(len(words)))
    square = words[: len(words) // side * side].view(-1, side)
    rest = flat[square.numel() * 8 :]
    parts = [square.sum(0), square.sum(1), rest]
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    shape, strides = tuple(values.shape), tuple(values.stride())
    return (WeakIdRef(array), version, shape, strides, str(values.dtype), str(values.device), digest.digest())


def _plain(array: Any) -> Any:
    """An array that torch can look at: its own memory, and bytes in the order of this machine."""
    import numpy as np

    values = np.ascontiguousarray(array) if any(s < 0 for s in array.strides) else array
    if not values.flags.writeable:
        values = values.copy()
    return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))


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
