"""What the kernels of infinitely wide networks have in common: their arguments, checked."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from ._check import check_option
from ._pixel_pairs import Pair
from ._precision import working_dtype

KINDS = ("nngp", "ntk")


def check_network(depth: object, kind: object, leak: object) -> None:
    """Raise unless these describe a network."""
    if isinstance(depth, bool) or not isinstance(depth, (int, np.integer)) or depth < 0:
        raise ValueError(f"`depth` must be a whole number of layers, 0 or more, got {depth!r}")
    check_option(kind, KINDS, "kind")
    if not isinstance(leak, Real) or not math.isfinite(leak):
        raise ValueError(f"`leak` must be a finite number, got {leak!r}")


def computing_dtype(dtype: torch.dtype, precision: str) -> torch.dtype:
    """Dtype of the recursion: float64 wherever float32 accuracy is promised, because angles lose half the digits."""
    kept = precision in ("medium", "low") and working_dtype(dtype, precision) == torch.float32
    return torch.float32 if kept else torch.float64


def as_std(value: float | Tensor, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A standard deviation as a 0-d tensor; values of tensors are not looked at, which would wait for a GPU."""
    if isinstance(value, Tensor):
        if value.ndim or not value.is_floating_point():
            raise ValueError(
                f"`{name}` must be a number or a 0-d floating-point tensor,"
                f" got {value.dtype} of shape {tuple(value.shape)}"
            )
        return value.to(device, dtype)
    if not isinstance(value, Real) or not 0 <= value < math.inf:
        raise ValueError(f"`{name}` must be finite and not negative, got {value!r}")
    return torch.tensor(float(value), device=device, dtype=dtype)


@dataclass(frozen=True)
class ConvNetwork:
    """A convolutional network, and how much of the covariance between pixels its readout needs."""

    sizes: tuple[Pair, ...]  # of the images in each block, and at the readout
    reaches: tuple[Pair, ...]  # offsets needed in each block, and at the readout
    pooling: tuple[int, ...]
    filter_size: int
    kind: str
    leak: float
    circular: bool

    @property
    def cells(self) -> list[int]:
        """Cells of a pair of images in each block, borders of the convolution included."""
        border = self.filter_size - 1
        return [
            (2 * a + 1) * (2 * b + 1) * (h + border) * (w + border)
            for (h, w), (a, b) in zip(self.sizes, self.reaches, strict=True)
        ]

    def numbers(self, channels: int) -> int:
        """Numbers of one image: its channels, and the deviations of all blocks, with their borders."""
        padded = [(h + 2 * a) * (w + 2 * b) for (h, w), (a, b) in zip(self.sizes, self.reaches, strict=True)]
        return channels * padded[0] + sum(padded)


def conv_network(
    size: Pair,
    depth: int,
    pooling: int | Sequence[int],
    filter_size: int,
    kind: str,
    leak: float,
    circular: bool,
    readout: str,
) -> ConvNetwork:
    """The network that these arguments describe, or a sentence saying why there is none."""
    if depth < 1:
        raise ValueError(
            "`depth` must be 1 or more: without a convolution, flatten and use `arc_cosine_kernel`"
        )
    counts = (int(pooling),) * depth if isinstance(pooling, (int, np.integer)) else tuple(pooling)
    if len(counts) != depth or not all(isinstance(q, (int, np.integer)) and q >= 0 for q in counts):
        raise ValueError(f"`pooling` must be a count, or one for each of the {depth} blocks, got {pooling!r}")
    if not isinstance(filter_size, (int, np.integer)) or filter_size < 1 or filter_size % 2 == 0:
        raise ValueError(f"`filter_size` must be odd and positive, got {filter_size!r}")
    sizes = [size]
    for count in counts:
        h, w = sizes[-1]
        if min(h, w) >> count < 1:
            raise ValueError(f"`pooling` {counts} leaves nothing of images of {size[0]} x {size[1]} pixels")
        if circular and (h % 2**count or w % 2**count):
            raise ValueError(f"`padding` 'circular' needs even sizes before a pooling, got {h} x {w} pixels")
        sizes.append((h >> count, w >> count))
    reaches = [(0, 0) if readout == "flatten" else (sizes[-1][0] - 1, sizes[-1][1] - 1)]
    for count in reversed(counts):
        a, b = reaches[0]
        reaches.insert(0, (((a + 1) << count) - 1, ((b + 1) << count) - 1))
    return ConvNetwork(tuple(sizes), tuple(reaches), counts, filter_size, kind, leak, circular)
