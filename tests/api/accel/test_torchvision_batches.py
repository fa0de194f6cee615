"""Whole batches against the loader's own, on classes of our own with torchvision's interface."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset
from torch.utils.data._utils.fetch import _MapDatasetFetcher

from kernel_distill.accel._call import Settings, accelerated
from kernel_distill.accel._fingerprint import fingerprint_of
from kernel_distill.accel._records import record
from kernel_distill.accel.registry.torchvision import ITEMS, TARGETS
from kernel_distill.accel.replacements import torchvision_batches

from .test_torchvision_items import (  # noqa: F401  # `fresh` is a fixture
    KNOWN,
    Compose,
    ToTensor,
    data_set,
    fresh,
)

(BATCH,) = (target for target in TARGETS if target not in ITEMS)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The targets of items know our data sets, and the loader asks the stand-in for batches."""
    kinds = {name: type(data_set(name)) for name in KNOWN}
    items = tuple(
        dataclasses.replace(target, hashes=(fingerprint_of(kinds[name].__getitem__),))
        for name, target in KNOWN.items()
    )
    monkeypatch.setattr(torchvision_batches, "ITEMS", items)
    torchvision_batches._kind.cache_clear()
    yield
    torchvision_batches._kind.cache_clear()


def batches(data, stand_in=True, **options):
    """What a loader gives, with and without the stand-in, from the same state of the generator."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        if stand_in:
            patch.setattr(_MapDatasetFetcher, "fetch", accelerated(BATCH, _MapDatasetFetcher.fetch))
        return list(DataLoader(data, **options))


def assert_same(data, **options):
    expected, found = (batches(data, stand_in, **options) for stand_in in (False, True))
    assert len(expected) == len(found)
    for old, new in zip(expected, found, strict=True):
        assert type(old) is type(new)
        for a, b in zip(old, new, strict=True):
            assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
            assert torch.equal(a, b)


def test_the_source_of_the_fetcher_is_known():
    assert fingerprint_of(_MapDatasetFetcher.fetch) in BATCH.hashes


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("name", KNOWN)
def test_bits_of_batches(name, normalized, monkeypatch):
    monkeypatch.setattr(torchvision_batches, "_AT_A_TIME", 400)
    data = data_set(name, normalized)
    assert_same(data, batch_size=4)
    assert_same(data, batch_size=6, shuffle=True)
    assert_same(Subset(Subset(data, [5, 3, 1, 0]), [3, 0, 2]), batch_size=2)
    assert_same(Subset(data, np.array([4, 2]).tolist()), batch_size=1)
    assert record("torchvision.batch").accelerated == 2 + 1 + 2 + 2
    assert not record("torchvision.batch").declined


def test_verified():
    Settings.verify = 2
    batches(data_set("mnist_item"), batch_size=3)
    entry = record("torchvision.batch")
    assert (entry.verified, entry.difference) == (2, 0.0)


def test_batches_are_the_callers_own():
    data = data_set("cifar_item")
    ((images, labels),) = batches(data, batch_size=6)
    images.zero_()
    labels.zero_()
    assert_same(data, batch_size=6)


@pytest.mark.parametrize(
    "options", [{"batch_size": None}, {"batch_size": 2, "collate_fn": list}], ids=["items", "collate"]
)
def test_other_ways_to_batch_are_no_concern_of_it(options):
    batches(data_set("mnist_item"), **options)
    assert record("torchvision.batch").calls == 0


def test_other_data_is_no_concern_of_it():
    batches(torch.utils.data.TensorDataset(torch.ones(3)), batch_size=2)
    data = data_set("mnist_item")
    batches(type("Other", (type(data),), {"__getitem__": lambda self, at: at})(*[range(3)] * 2, None))
    batches(type("Batches", (type(data),), {"__getitems__": lambda self, at: at})(*[range(3)] * 2, None))
    assert record("torchvision.batch").calls == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target_transform": str}, "its labels are transformed"),
        ({"transform": Compose(ToTensor(), ToTensor)}, "its transform is neither"),
        ({"targets": list(range(6))}, "its labels are not those that it was made with"),
    ],
)
def test_what_is_left_to_the_original(change, reason):
    data = data_set("mnist_item")
    vars(data).update(change)
    fetcher = _MapDatasetFetcher(data, True, torch.utils.data.default_collate, False)
    assert torchvision_batches.why_not_fetch(fetcher, [0, 1]).startswith(reason)


@pytest.mark.parametrize("positions", [[0, -1], [0, 6], [np.int64(1)], [True]])
def test_positions_that_are_left_to_the_original(positions):
    fetcher = _MapDatasetFetcher(data_set("svhn_item"), True, torch.utils.data.default_collate, False)
    assert torchvision_batches.why_not_fetch(fetcher, positions) == "positions are not those of items"


def test_workers_batch_by_themselves():
    data = data_set("mnist_item")
    expected, found = (batches(data, stand_in, batch_size=3, num_workers=1) for stand_in in (False, True))
    assert all(
        torch.equal(a, b)
        for old, new in zip(expected, found, strict=True)
        for a, b in zip(old, new, strict=True)
    )
