"""Items looked up byte by byte against PIL and the transforms, on classes of our own with torchvision's interface."""

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset

from kernel_distill.accel import _cache
from kernel_distill.accel._call import Settings, accelerated, forget_calls
from kernel_distill.accel._fingerprint import fingerprint_of
from kernel_distill.accel._records import record, records
from kernel_distill.accel.registry.torchvision import ITEMS, TARGETS

KNOWN = {target.name.partition(".")[2]: target for target in ITEMS}
MNIST_MOMENTS = ([0.1307], [0.3081])
CIFAR_MOMENTS = ((0.4914, 0.4822, 0.4465), [0.2023, 0.1994, 0.2010])


class Compose:
    def __init__(self, *transforms):
        self.transforms = list(transforms)

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image


class ToTensor:
    def __call__(self, image):
        pixels = torch.from_numpy(np.array(image)).view(*image.size[::-1], len(image.getbands()))
        return pixels.permute(2, 0, 1).contiguous().to(torch.get_default_dtype()).div(255)


class Normalize(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, image):
        mean, std = (
            torch.as_tensor(each, dtype=image.dtype).view(-1, 1, 1) for each in (self.mean, self.std)
        )
        if (std == 0).any():
            raise ValueError("std evaluated to zero")
        return image.clone().sub_(mean).div_(std)


for kind in (Compose, ToTensor, Normalize):
    kind.__module__ = "torchvision.transforms.transforms"


class Images:
    """What the data sets share."""

    def __init__(self, data, labels, transform, target_transform=None):
        self.data, self.targets, self.labels = data, labels, labels
        self.transform, self.target_transform = transform, target_transform

    def __len__(self):
        return len(self.data)

    def _finished(self, image, label):
        image = image if self.transform is None else self.transform(image)
        return image, label if self.target_transform is None else self.target_transform(label)


class Mnist(Images):
    def __getitem__(self, index):
        return self._finished(Image.fromarray(self.data[index].numpy()), int(self.targets[index]))


class Cifar(Images):
    def __getitem__(self, index):
        return self._finished(Image.fromarray(self.data[index]), self.targets[index])


class Svhn(Images):
    def __getitem__(self, index):
        return self._finished(Image.fromarray(self.data[index].transpose(1, 2, 0)), int(self.labels[index]))


@pytest.fixture(autouse=True)
def fresh():
    _cache.clear()
    records.clear()
    yield
    _cache.clear()
    for target in TARGETS:
        forget_calls(target.name)
    Settings.verify = 0


def bytes_of(*shape):
    """Every byte, and more of them."""
    size = int(np.prod(shape))
    return (np.random.default_rng(0).permutation(size) % 256).astype(np.uint8).reshape(shape)


def data_set(name, normalized=True, **options):
    moments = MNIST_MOMENTS if name == "mnist_item" else CIFAR_MOMENTS
    transform = Compose(ToTensor(), Normalize(*moments)) if normalized else ToTensor()
    transform = options.pop("transform", transform)
    if name == "mnist_item":
        return Mnist(torch.from_numpy(bytes_of(6, 13, 9)), torch.arange(6), transform, **options)
    if name == "cifar_item":
        # The layout that torchvision has: channels first in memory.
        return Cifar(bytes_of(6, 3, 8, 7).transpose(0, 2, 3, 1), list(range(6)), transform, **options)
    return Svhn(bytes_of(6, 3, 8, 7), np.arange(6), transform, **options)


def stand_in(name, data):
    return accelerated(KNOWN[name], type(data).__getitem__)


def assert_same(expected, result):
    assert type(result) is tuple
    image, label = result
    assert type(label) is type(expected[1])
    assert label == expected[1]
    assert type(image) is torch.Tensor
    assert (image.dtype, image.stride()) == (expected[0].dtype, expected[0].stride())
    assert torch.equal(image, expected[0])


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("name", KNOWN)
def test_bits_of_every_item(name, normalized):
    data = data_set(name, normalized)
    get, state = stand_in(name, data), torch.get_rng_state()
    for index in range(len(data)):
        assert_same(data[index], get(data, index))
    assert_same(data[3], get(data, np.int64(3)))
    assert record(KNOWN[name].name).accelerated == 7
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", KNOWN)
def test_transforms_that_change_are_met_anew(name):
    data = data_set(name)
    get = stand_in(name, data)
    get(data, 0)
    data.transform.transforms[1].mean = [0.5] * len(data.transform.transforms[1].mean)
    assert_same(data[0], get(data, 0))
    data.transform = Compose(ToTensor())
    assert_same(data[0], get(data, 0))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(data[0], get(data, 0))
    finally:
        torch.set_default_dtype(before)
    data.data[0] = 255 - data.data[0]
    assert_same(data[0], get(data, 0))
    assert not record(KNOWN[name].name).declined


@pytest.mark.parametrize("name", KNOWN)
def test_items_are_the_callers_own(name):
    data = data_set(name)
    get = stand_in(name, data)
    first = get(data, 1)[0]
    expected = first.clone()
    first.zero_()
    assert torch.equal(get(data, 1)[0], expected)


class Flip:
    def __call__(self, image):
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def hooked():
    step = Normalize(*MNIST_MOMENTS)
    step.register_forward_hook(lambda module, args, output: output + 1)
    return Compose(ToTensor(), step)


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (None, "transform is neither"),
        (Compose(), "transform is neither"),
        (Compose(Flip(), ToTensor()), "transform is neither"),
        (Compose(ToTensor(), Normalize([0.1], [0.2]), Normalize([0.1], [0.2])), "transform is neither"),
        (Compose(ToTensor(), Normalize(np.array([0.1]), [0.2])), "not a number for each channel"),
        (Compose(ToTensor(), Normalize([torch.tensor(0.1)], [0.2])), "not a number for each channel"),
        (hooked(), "hooked"),
    ],
)
def test_other_transforms_are_the_originals(transform, reason):
    data = data_set("mnist_item", transform=transform)
    image, label = stand_in("mnist_item", data)(data, 1)
    assert type(image) is type(data[1][0])
    assert torch.equal(image, data[1][0]) if isinstance(image, torch.Tensor) else image == data[1][0]
    assert label == 1
    assert [reason in each for each in record("torchvision.mnist_item").declined] == [True]


@pytest.mark.parametrize("name", KNOWN)
def test_calls_that_are_the_originals(name):
    data = data_set(name, target_transform=str)
    get = stand_in(name, data)
    assert get(data, 2)[1] == "2"
    data.target_transform = None
    assert_same(data[-1], get(data, -1))
    with pytest.raises(IndexError):
        get(data, len(data))
    assert_same(data[1], get(data, torch.tensor(1) if name == "mnist_item" else np.int32(1)))
    data.data = data.data[:, :, :, None] if name == "mnist_item" else data.data.astype(np.float32)
    with pytest.raises((TypeError, RuntimeError)):
        get(data, 0)
    assert record(KNOWN[name].name).accelerated == 0


def test_a_deviation_of_zero_raises_what_it_raised():
    data = data_set("mnist_item", transform=Compose(ToTensor(), Normalize([0.1], [0.0])))
    with pytest.raises(ValueError, match="std evaluated to zero"):
        stand_in("mnist_item", data)(data, 0)


@pytest.mark.parametrize("name", KNOWN)
def test_verified_through_a_loader(name, monkeypatch):
    data = data_set(name)
    expected = next(iter(DataLoader(Subset(data, [4, 0, 5]), batch_size=3)))
    monkeypatch.setattr(type(data), "__getitem__", stand_in(name, data))
    Settings.verify = 5
    result = next(iter(DataLoader(Subset(data, [4, 0, 5]), batch_size=3)))
    assert all(torch.equal(a, b) for a, b in zip(expected, result, strict=True))
    assert (record(KNOWN[name].name).verified, record(KNOWN[name].name).difference) == (3, 0.0)


@pytest.mark.data
def test_torchvision_itself():
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    from torchvision import datasets, transforms

    for name, kind in (
        ("mnist_item", datasets.MNIST),
        ("cifar_item", datasets.CIFAR10),
        ("svhn_item", datasets.SVHN),
    ):
        assert fingerprint_of(kind.__getitem__) in KNOWN[name].hashes
        like = data_set(name)
        data = kind.__new__(kind)
        vars(data).update(vars(like))
        moments = MNIST_MOMENTS if name == "mnist_item" else CIFAR_MOMENTS
        for transform in (
            transforms.ToTensor(),
            transforms.Compose([transforms.ToTensor(), transforms.Normalize(*moments)]),
        ):
            data.transform = transform
            for index in range(len(data)):
                assert_same(
                    kind.__getitem__(data, index), accelerated(KNOWN[name], kind.__getitem__)(data, index)
                )
        assert not record(KNOWN[name].name).declined
