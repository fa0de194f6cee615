"""Items of torchvision's data sets under ToTensor, or ToTensor and Normalize: a look-up of bytes.

Both transforms treat every number by itself, so that the result of a channel is one of 256 numbers for each byte. The
transform itself is applied once, to an image that holds every byte in every channel, and the numbers are read from
there: the same bits. What is saved is the image of PIL, which is built, encoded and decoded again for each item, and
the moments of Normalize, which are made into tensors for each item (behaviour of `torchvision.datasets` and
`torchvision.transforms.transforms`, 0.26 to 0.29).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._cache import cached

_TRANSFORMS = "torchvision.transforms.transforms"
_FLOATS = (torch.float32, torch.float64)
_NUMBERS = (float, int)
_COLOURS = np.arange(3)[:, None, None] * 256


def mnist_item(self: Any, index: int) -> tuple[Tensor, int]:
    """Image and class of MNIST and its kin: the original's bits, without an image of PIL between."""
    image = byte_table(self.transform, 1).take(self.data.numpy()[index, :, :, None])
    return torch.from_numpy(image.transpose(2, 0, 1)), int(self.targets[index])


def why_not_mnist_item(self: Any, index: int) -> str | None:
    """Images that are not bytes of one channel, and whatever `_why_not_item` names."""
    data = self.data
    if type(data) is not Tensor or not data.is_cpu or data.dtype is not torch.uint8 or data.ndim != 3:
        return "its images are not a tensor of bytes with one channel"
    return _why_not_item(self, index, len(data), 1)


def cifar_item(self: Any, index: int) -> tuple[Tensor, Any]:
    """Image and class of CIFAR-10 and CIFAR-100: the original's bits, without an image of PIL between."""
    image = byte_table(self.transform, 3).take(self.data[index].transpose(2, 0, 1) + _COLOURS)
    return torch.from_numpy(image), self.targets[index]


def why_not_cifar_item(self: Any, index: int) -> str | None:
    """Images that are not bytes of three channels, and whatever `_why_not_item` names."""
    data = self.data
    if type(data) is not np.ndarray or data.dtype != np.uint8 or data.ndim != 4 or data.shape[3] != 3:
        return "its images are not an array of bytes with three channels"
    return _why_not_item(self, index, len(data), 3)


def svhn_item(self: Any, index: int) -> tuple[Tensor, int]:
    """Image and class of SVHN: the original's bits, without an image of PIL between."""
    image = byte_table(self.transform, 3).take(self.data[index] + _COLOURS)
    return torch.from_numpy(image), int(self.labels[index])


def why_not_svhn_item(self: Any, index: int) -> str | None:
    """Images that are not bytes of three channels, and whatever `_why_not_item` names."""
    data = self.data
    if type(data) is not np.ndarray or data.dtype != np.uint8 or data.ndim != 4 or data.shape[1] != 3:
        return "its images are not an array of bytes with three channels"
    return _why_not_item(self, index, len(data), 3)


def byte_table(transform: Any, channels: int) -> np.ndarray:
    """What a transform makes of each byte, channel after channel: 256 numbers for each."""
    steps = _steps(transform)
    moments = () if len(steps) == 1 else (*steps[1].mean, *steps[1].std)
    dtype = torch.get_default_dtype()
    key = ("torchvision item", channels, dtype, *map(type, steps), *moments)
    return cached(key, lambda: _tabulated(transform, channels), 256 * channels * dtype.itemsize)


def _tabulated(transform: Any, channels: int) -> np.ndarray:
    from PIL import Image

    every = np.arange(256, dtype=np.uint8)[None]
    image = Image.fromarray(every if channels == 1 else np.stack([every] * channels, axis=-1))
    return transform(image).numpy().reshape(-1)


def _why_not_item(self: Any, index: int, length: int, channels: int) -> str | None:
    """Transforms other than these two, labels that are transformed, positions that are no position."""
    if self.target_transform is not None:
        return "its labels are transformed"
    if type(index) is not int and type(index) is not np.int64:
        return "it is asked for something else than one position"
    if not 0 <= index < length:
        return "the position is negative or past the end"
    steps = _steps(self.transform)
    if not _is(steps[0], "ToTensor") or not (
        len(steps) == 1 or (len(steps) == 2 and _is(steps[1], "Normalize"))
    ):
        return "its transform is neither ToTensor nor ToTensor and Normalize"
    if torch.get_default_dtype() not in _FLOATS:
        return "the default dtype is of half precision"
    return None if len(steps) == 1 else _why_not_normalize(steps[1], channels)


def _why_not_normalize(step: Any, channels: int) -> str | None:
    for moments in (step.mean, step.std):
        if type(moments) not in (list, tuple) or len(moments) != channels:
            return "the moments of Normalize are not a number for each channel"
        for number in moments:
            if type(number) not in _NUMBERS:
                return "the moments of Normalize are not a number for each channel"
    own = vars(step)
    if own.get("_forward_hooks") or own.get("_forward_pre_hooks") or "forward" in own:
        return "Normalize is hooked"
    return None


def _steps(transform: Any) -> list[Any] | tuple[Any, ...]:
    """Of a Compose, or the transform alone; never empty."""
    return (_is(transform, "Compose") and transform.transforms) or (transform,)


def _is(step: Any, name: str) -> bool:
    kind = type(step)
    return kind.__name__ == name and kind.__module__ == _TRANSFORMS
