"""What replacements keep between calls: results of the last inputs, up to a number of bytes.

Grid searches ask for the same kernel matrix once for each ridge, and published scripts for the same features. Entries
are found by the content of the inputs (`content_key`), never by the identity of objects alone (`identity_key`).

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
    """Of an array of NumPy or torch that is too large to be hashed at every call: the object, its layout, and a sum.

    Notes
    -----
    The object is held weakly, and an object that is gone is equal to none. Torch counts changes in place in
    `_version`; those that it does not see (through NumPy, `.data`) change the sum of all bytes, taken as 64-bit
    integers on the CPU, unless they cancel to the bit. One pass over the memory: 30 times cheaper than `content_key`.
    """
    import torch
    from torch.utils.weak import WeakIdRef

    is_tensor = isinstance(array, torch.Tensor)
    version = array._version if is_tensor and not array.is_inference() else None
    values = array.detach() if is_tensor else array
    strides = values.stride() if isinstance(values, torch.Tensor) else values.strides
    # Axes in the order of memory, so that an array that is dense in some order is not copied.
    order = sorted(range(values.ndim), key=lambda axis: -strides[axis])
    key = (WeakIdRef(array), version, tuple(values.shape), tuple(strides), str(values.dtype))
    if isinstance(values, torch.Tensor):
        flat = values.permute(order).reshape(-1).view(torch.uint8)
        if not flat.is_cpu:
            return (*key, str(flat.device), int(flat.sum()))
        flat = flat.numpy()
    else:
        flat = values.transpose(order).reshape(-1).view(np.uint8)
    whole = len(flat) // 8 * 8
    return (*key, int(np.add.reduce(flat[:whole].view(np.int64))), flat[whole:].tobytes())


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
