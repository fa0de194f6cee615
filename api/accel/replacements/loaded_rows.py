"""Test rows of a loader as tensors, kept between calls: published code decodes all of them anew for every network."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, default_collate

from .._cache import budget, cached

Rows = tuple[Tensor, Tensor]


def loaded_rows(loader: Any, device: torch.device) -> Rows | str:
    """All rows of a loader.

    Parameters
    ----------
    loader : object
    device : torch.device

    Returns
    -------
    (X, classes) or str
        Float32 (n, ...) and int64 (n,) on the device, or why they are not taken from here: a loader that does not
        go through its data in order, batch by batch of pairs, data that is not the same twice, or more than is kept.

    Notes
    -----
    What is kept belongs to the data set as an object, which is kept with it; before it is used again, its first,
    middle and last rows are read anew and must be the same.
    """
    if type(loader) is not DataLoader or loader.collate_fn is not default_collate:
        return "the test loader is no plain DataLoader"
    if type(loader.sampler) is not SequentialSampler or type(loader.batch_sampler) is not BatchSampler:
        return "the test loader does not take its rows in order"
    data: Any = loader.dataset
    if loader.drop_last or not len(data):
        return "the test loader drops rows, or has none"
    example = data[0]
    if not isinstance(example, tuple) or len(example) != 2 or not isinstance(example[0], Tensor):
        return "test rows are no pairs of a tensor and a class"
    size = 4 * example[0].numel() * len(data)
    if size > budget() // 2:
        return "test rows take more than half of what may be kept"
    X, classes, _ = cached(
        ("loaded rows", id(data), len(data), str(device)), lambda: _read(loader, device), size
    )
    return (X, classes) if _same(data, X, classes) else "test rows are not the same twice"


def _read(loader: Any, device: torch.device) -> tuple[Tensor, Tensor, Any]:
    """Rows, classes, and the data set: as long as it is kept, no other has its identity."""
    batches = [(batch[0].float(), batch[1].long()) for batch in loader]
    X, classes = (torch.cat(parts).to(device) for parts in zip(*batches, strict=True))
    return X, classes, loader.dataset


def _same(data: Any, X: Tensor, classes: Tensor) -> bool:
    for at in (0, len(data) // 2, len(data) - 1):
        row, label = data[at]
        fresh = torch.as_tensor(row).to(X)
        if fresh.shape != X.shape[1:] or not torch.equal(fresh, X[at]) or int(label) != int(classes[at]):
            return False
    return True
