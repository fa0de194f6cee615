"""Accuracy of provable-KRR's weights: the same images are tested 27 times, and their features kept.

Behaviour of `test_kernel_machine` of `distill.py` and `distill_kip.py` (see `krr`). Features are known by everything
that decides them: the bytes and labels of a torchvision data set and what its transform makes of each byte, the rows of
a `Subset`, batches, and the network's weights or the frequencies. Whatever may not be the same twice is the original's.
"""

import inspect
import types
from collections.abc import Callable, Sized
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, Subset, default_collate

from .. import _call
from .._cache import budget, cached, content_key, identity_key
from ..registry.krr import FEATURES
from ..registry.torchvision import TARGETS as ITEMS
from .known_sources import source_of
from .krr import FLOATS, is_autocast, is_plain
from .torchvision_items import byte_table


@torch.no_grad()
def test_kernel_machine(W: Tensor, net: Any, test_loader: Any, cal_feature: Callable[..., Tensor]) -> float:
    """Accuracy of weights: the original's number.

    The first call costs what the original's does and keeps the features, n p numbers; a later one costs 2 n p k
    operations. Each makes one iterator of the loader, which draws from torch's generator.
    """
    batches = iter(test_loader)
    rows = len(test_loader.dataset)
    key = (_key_of_rows(test_loader), _key_of_features(net, cal_feature), str(W.device), *_arithmetic())
    features = cached(
        ("krr.test_kernel_machine", key),
        lambda: [(cal_feature(net, X.to(W.device)), Y.to(W.device)) for X, Y in batches],
        _size_of_features(W, rows),
    )
    correct = torch.tensor(0.0, device=W.device)
    for phi, Y in features:
        correct += torch.sum(((W @ phi).argmax(dim=0) == Y).float())
    return correct.item() / rows


def why_not_test_kernel_machine(W: Any, net: Any, test_loader: Any, cal_feature: Any) -> str | None:
    """Features or rows that may not be the same twice, or that are more than is kept."""
    if type(W) is not Tensor or W.ndim != 2 or W.dtype not in FLOATS or is_autocast(W):
        return "weights are not a matrix of float32 or float64, or mixed precision is on"
    if _key_of_features(net, cal_feature) is None:
        return "features are none of those that were published"
    loader, data = test_loader, cast(Sized, getattr(test_loader, "dataset", ()))
    if type(loader) is not DataLoader or loader.num_workers or loader.collate_fn is not default_collate:
        return "the loader is not a plain DataLoader without workers"
    if type(loader.batch_sampler) is not BatchSampler or not _is_in_order(loader.batch_sampler.sampler, data):
        return "the loader does not go through its data in order"
    if _key_of_data(data) is None:
        return "the data is not of torchvision under ToTensor, or ToTensor and Normalize"
    if _size_of_features(W, len(data)) > budget():
        return "the features are more than KERNEL_DISTILL_ACCEL_CACHE bytes"
    return None


def _key_of_features(net: Any, cal_feature: Any) -> tuple[Any, ...] | None:
    """What decides the features of given rows; None if that is not known."""
    original = cal_feature
    if type(original) is types.FunctionType and original.__globals__ is vars(_call):  # a stand-in of ours
        original = inspect.getattr_static(original, "__wrapped__")
    if type(original) is not types.FunctionType or hasattr(original, "__wrapped__"):
        return None
    name = FEATURES.get(source_of(original) or "")
    if name == "cal_x_feature":
        return (name,)
    if name == "cal_random_fourier" and type(net) in (tuple, list):
        return (name, *map(identity_key, net)) if {type(each) for each in net} == {Tensor} else None
    if name == "cal_nngp_feature" and is_plain(net):
        return (name, repr(net), *map(identity_key, net.parameters()))
    return None


def _is_in_order(sampler: Any, data: Any) -> bool:
    return type(sampler) is SequentialSampler and sampler.data_source is data


def _key_of_rows(loader: Any) -> tuple[Any, ...]:
    batches = loader.batch_sampler
    return (batches.batch_size, batches.drop_last, _key_of_data(loader.dataset))


def _key_of_data(data: Any) -> tuple[Any, ...] | None:
    """What decides the rows of a data set of torchvision, or of some of its rows; None if they may change."""
    if type(data) is Subset:
        inner = _key_of_data(data.dataset) if type(data.indices) is list else None
        return None if inner is None else ("rows", content_key(np.asarray(data.indices)), *inner)
    kind = type(data)
    source = source_of(inspect.unwrap(kind.__getitem__)) if hasattr(data, "targets") else None
    target = next((each for each in ITEMS if each.module == kind.__module__ and source in each.hashes), None)
    guard = None if target is None else target.load("guard")
    if target is None or guard is None or not len(data) or guard(data, 0) is not None:
        return None
    images, labels = identity_key(data.data), content_key(np.asarray(data.targets))
    table = byte_table(data.transform, 1 if isinstance(data.data, Tensor) else 3)
    return (target.name, images, labels, table.tobytes())


def _size_of_features(W: Tensor, rows: int) -> int:
    return rows * (W.shape[1] * W.element_size() + 8)


def _arithmetic() -> tuple[Any, ...]:
    """What the bits of a product depend on, beside its factors."""
    return (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
    )
