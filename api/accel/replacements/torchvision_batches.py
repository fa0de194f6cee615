"""Whole batches of torchvision's data sets under ToTensor, or ToTensor and Normalize: one look-up of bytes.

Behaviour of `_MapDatasetFetcher.fetch` of `torch.utils.data` with `default_collate`, which asks for item after item and
stacks them: 57,000 images in one batch, as published code reads its training set, are 57,000 small tensors. The items
are those of `torchvision_items`, whose guards decide here too.
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, default_collate, get_worker_info

from .._fingerprint import fingerprint_of
from ..registry.torchvision import ITEMS
from .torchvision_items import byte_table, why_not_cifar_item, why_not_mnist_item, why_not_svhn_item

# Bytes that are looked up at a time: NumPy takes eight bytes for the position of each.
_AT_A_TIME = 1 << 20
_WHY_NOT = {
    "torchvision.mnist_item": why_not_mnist_item,
    "torchvision.cifar_item": why_not_cifar_item,
    "torchvision.svhn_item": why_not_svhn_item,
}


def fetch(self: Any, possibly_batched_index: Sequence[int]) -> list[Tensor]:
    """Images (n, c, h, w) and int64 classes (n,): the original's bits, in the memory of the result and of its bytes."""
    data, positions = _inmost(self.dataset, possibly_batched_index)
    kind = _kind(type(data))
    if kind == "torchvision.mnist_item":
        images, labels = data.data.numpy()[positions][:, None], data.targets.numpy()[positions]
    elif kind == "torchvision.cifar_item":
        images, labels = data.data[positions].transpose(0, 3, 1, 2), np.asarray(data.targets)[positions]
    else:
        images, labels = data.data[positions], np.asarray(data.labels)[positions]
    channels = images.shape[1]
    table = byte_table(data.transform, channels)
    found = np.empty(images.shape, table.dtype)
    rows = max(1, _AT_A_TIME // images[0].size)
    for start in range(0, len(images), rows):
        some = slice(start, start + rows)
        places = images[some] + 256 * np.arange(channels)[:, None, None]
        np.take(table, places, out=found[some], mode="clip")
    return [torch.from_numpy(found), torch.tensor(labels.astype(np.int64))]


def why_not_fetch(self: Any, possibly_batched_index: Any) -> str | None:
    """Other data and other ways to batch it are no concern of this; otherwise what the guard of its items says."""
    if not self.auto_collation or self.collate_fn is not default_collate or not possibly_batched_index:
        return ""
    data = _data_of(self.dataset)
    kind = _kind(type(data))
    if kind is None or hasattr(data, "__getitems__"):
        return ""
    if get_worker_info() is not None:
        return "worker processes batch in shared memory"
    _, positions = _inmost(self.dataset, possibly_batched_index)
    if any(type(at) is not int for at in positions) or not 0 <= min(positions) <= max(positions) < len(
        data.data
    ):
        return "positions are not those of items"
    labels = data.labels if kind == "torchvision.svhn_item" else data.targets
    if kind == "torchvision.mnist_item" and not isinstance(labels, Tensor):
        return "its labels are not those that it was made with"
    return _WHY_NOT[kind](data, positions[0])


def _inmost(data: Any, positions: Sequence[int]) -> tuple[Any, Sequence[int]]:
    """The data set within subsets, and positions in it."""
    while type(data) is Subset:
        positions = [data.indices[at] for at in positions]
        data = data.dataset
    return data, positions


def _data_of(data: Any) -> Any:
    while type(data) is Subset:
        data = data.dataset
    return data


@functools.lru_cache(maxsize=64)
def _kind(data: type) -> str | None:
    """The target that knows the items of a data set."""
    item = getattr(data, "__getitem__", None)
    if not inspect.isfunction(item):
        return None
    found = fingerprint_of(inspect.unwrap(item))
    return next((target.name for target in ITEMS if found in target.hashes), None)
