"""Test rows of a loader as tensors, kept between calls: published code decodes all of them anew for every network.

They are taken from data that is the same at every reading: stored tensors, or stored bytes under torchvision's ToTensor
and Normalize. What is kept is found by the stored arrays themselves, so that rows that were changed in place are read
anew.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset, default_collate

from .._cache import budget, cached, content_key, identity_key
from .._call import random_state_kept
from ..registry.vico import EVALUATE_SYNSET
from .known_sources import source_of
from .torchvision_items import byte_table, why_not_cifar_item, why_not_mnist_item, why_not_svhn_item

# By module: why an item of its classes is no look-up of bytes, and channels.
_BYTES = {
    "torchvision.datasets.mnist": (why_not_mnist_item, 1),
    "torchvision.datasets.cifar": (why_not_cifar_item, 3),
    "torchvision.datasets.svhn": (why_not_svhn_item, 3),
}
# The published data set of two tensors.
_PUBLISHED = EVALUATE_SYNSET.requires["TensorDataset"]
_ROWS = 1024


def why_not_rows(loader: Any) -> str | None:
    """Why rows are not taken from a loader: whatever does not go, batch by batch, through stored data in order."""
    if type(loader) is not DataLoader or loader.collate_fn is not default_collate or loader.worker_init_fn:
        return "the test loader is no plain DataLoader"
    data: Any = loader.dataset
    batches = loader.batch_sampler
    if (
        type(batches) is not BatchSampler
        or type(batches.sampler) is not SequentialSampler
        or batches.sampler.data_source is not data
    ):
        return "the test loader does not take its rows in order"
    reason = _why_not_stored(data)
    if reason is not None:
        return reason
    if batches.drop_last or not len(data):
        return "the test loader drops rows, or has none"
    if _nbytes(data) > budget() // 2:
        return "test rows take more than half of what may be kept"
    return None


def loaded_rows(loader: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """All rows of a loader from which they are taken.

    Parameters
    ----------
    loader : DataLoader
    device : torch.device

    Returns
    -------
    X : Tensor, shape (n, ...), float32
        On the device.
    classes : Tensor, shape (n,), int64
        On the device.

    Notes
    -----
    No random numbers are drawn. Where the rows are kept, the cost is that of looking through the stored arrays.
    """
    data = loader.dataset
    key = ("loaded rows", *_key(data), str(device))
    return cached(key, lambda: _read(data, device), _nbytes(data))


def _read(data: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    with random_state_kept():
        batches = [(X.float(), classes.long()) for X, classes in DataLoader(data, batch_size=_ROWS)]
    X, classes = (torch.cat(parts).to(device) for parts in zip(*batches, strict=True))
    return X, classes


def _arrays(data: Any) -> tuple[Any, Any] | None:
    """Rows and classes that a data set stores; None where it is none that we know."""
    kind = type(data)
    if kind is TensorDataset:
        return data.tensors if len(data.tensors) == 2 else None
    if kind.__name__ == "TensorDataset" and source_of(kind) in _PUBLISHED:
        return data.images, data.labels
    if _bytes(kind) is not None:
        return data.data, data.labels if hasattr(data, "labels") else data.targets
    return None


def _bytes(kind: type) -> tuple[Callable[[Any, int], str | None], int] | None:
    """Of a class of torchvision that stores bytes: why an item is no look-up of them, and channels."""
    # The method is of the library too, or stands for the one that is.
    item = inspect.unwrap(getattr(kind, "__getitem__", _bytes))
    return _BYTES.get(kind.__module__) if item.__module__ == kind.__module__ else None


def _why_not_stored(data: Any) -> str | None:
    """Why rows of a data set may be others at the next reading, or are no pairs."""
    arrays, known = _arrays(data), _bytes(type(data))
    if arrays is None:
        return "test rows are made anew at each reading"
    rows, classes = arrays
    if known is None and any(type(each) is not Tensor or each.layout != torch.strided for each in arrays):
        return "test rows are no plain tensors"
    if rows.ndim < 2 or np.ndim(classes) != 1 or len(classes) != len(rows):
        return "test rows are no pairs of a tensor and a class"
    return None if known is None or not len(data) else known[0](data, 0)


def _key(data: Any) -> tuple[Any, ...]:
    """What decides the rows of a data set."""
    arrays, known = _arrays(data), _bytes(type(data))
    assert arrays is not None
    rows, classes = arrays
    if known is None:
        return (identity_key(rows), identity_key(classes))
    table = byte_table(data.transform, known[1])
    return (type(data), identity_key(rows), content_key(np.asarray(classes)), table.tobytes())


def _nbytes(data: Any) -> int:
    arrays = _arrays(data)
    return 0 if arrays is None else 4 * math.prod(arrays[0].shape)
