"""What the networks are made of: a list of layers that knows the shape of the image so far.

The norms are those of the published ConvNet: "instance" and "group" are group norms with one channel a group and
with four groups, so they have neither running averages nor a difference between training and evaluation; "layer"
has a scale and a shift for every entry of the image. Every layer's starting value is torch's, but drawn elsewhere
(`draws`).
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

NORMS = ("none", "batch", "layer", "instance", "group")
ACTIVATIONS = ("relu", "sigmoid", "leaky-relu", "swish")
POOLINGS = ("average", "max", "none")
GROUPS = 4


def activation_layer(name: str) -> nn.Module:
    """The activation of one of `ACTIVATIONS`."""
    if name == "relu":
        return nn.ReLU(inplace=True)
    if name == "sigmoid":
        return nn.Sigmoid()
    return nn.LeakyReLU(0.01) if name == "leaky-relu" else nn.SiLU()


class AveragePooling(nn.Module):
    """2 x 2 averages; what is left of odd sides is cut off.

    On a CPU, where torch's pooling of contiguous images takes four times as long as that of images with channels
    last, as a product of each pair of pixel rows with a constant matrix.
    """

    def forward(self, X: Tensor) -> Tensor:
        """Images (n, c, h // 2, w // 2)."""
        if X.device.type != "cpu" or not X.is_contiguous():
            return functional.avg_pool2d(X, 2)
        height, width = X.shape[2] // 2, X.shape[3] // 2
        quarters = torch.full((width,), 0.25, dtype=X.dtype, device=X.device).diag()
        pairs = X[..., : 2 * height, : 2 * width].reshape(*X.shape[:2], height, 4 * width)
        return pairs @ quarters.repeat_interleave(2, 0).repeat(2, 1)


class ImageLayers:
    """Layers in the order in which they are added, and the shape of the image they make.

    Parameters
    ----------
    input_shape : (c, h, w)
    what : str
        The network's name, for messages.

    Attributes
    ----------
    channels, height, width : int
        Of the image after the layers so far.

    Raises
    ------
    ValueError
        While layers are added: if nothing is left of the image, or a norm has nothing to normalise.
    """

    def __init__(self, input_shape: tuple[int, ...], what: str) -> None:
        self.channels, self.height, self.width = input_shape
        self._layers: list[nn.Module] = []
        self._what = f"network {what!r} on images of {self.height} x {self.width} pixels"
        # The published networks take MNIST's 28 x 28 images as if they were 32 x 32.
        self.border = 2 if (self.height, self.width) == (28, 28) else 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the image after the layers so far."""
        return self.channels, self.height, self.width

    def module(self) -> nn.Sequential:
        """The layers, one after the other."""
        return nn.Sequential(*self._layers)

    def average(self) -> None:
        """The average over all pixels."""
        self.add(nn.AdaptiveAvgPool2d(1))
        self.height = self.width = 1

    def flatten(self) -> None:
        """Rows in the order (c, h, w), which are one channel a number and one pixel from here on."""
        self.add(nn.Flatten())
        self.channels, self.height, self.width = self.channels * self.height * self.width, 1, 1

    def dense(self, width: int) -> None:
        """A dense layer, after `flatten`."""
        self.add(nn.Linear(self.channels, width))
        self.channels = width

    def branch(self) -> "ImageLayers":
        """An empty list of layers that starts with the image as it is."""
        other = copy.copy(self)
        other._layers = []
        return other

    def add(self, layer: nn.Module) -> None:
        """A layer that keeps the shape."""
        self._layers.append(layer)

    def convolution(self, channels: int, size: int, padding: int, stride: int = 1, bias: bool = True) -> None:
        """A convolution with a square filter."""
        self.add(nn.Conv2d(self.channels, channels, size, stride, padding, bias=bias))
        self.channels = channels
        self._resize(size, stride, padding)

    def pool(self, kind: str) -> None:
        """A 2 x 2 pooling of one of `POOLINGS`."""
        if kind != "none":
            self.add(nn.MaxPool2d(2) if kind == "max" else AveragePooling())
            self._resize(2, 2, 0)

    def overlapping_pool(self) -> None:
        """The maximum over 3 x 3 pixels around every second one."""
        self.add(nn.MaxPool2d(3, 2, 1))
        self._resize(3, 2, 1)

    def norm(self, kind: str) -> None:
        """A norm of one of `NORMS`."""
        if kind == "batch":
            self.add(nn.BatchNorm2d(self.channels))
        elif kind == "layer":
            self.add(nn.LayerNorm(list(self.shape)))
        elif kind == "group":
            if self.channels % GROUPS:
                raise ValueError(
                    f"norm 'group' has {GROUPS} groups, got {self.channels} channels: choose a multiple of {GROUPS}"
                )
            self.add(nn.GroupNorm(GROUPS, self.channels))
        elif kind == "instance":
            if self.height * self.width == 1:
                raise ValueError(
                    f"{self._what} would normalise single pixels: give larger images, fewer blocks or another norm"
                )
            self.add(nn.GroupNorm(self.channels, self.channels))

    def _resize(self, size: int, stride: int, padding: int) -> None:
        self.height = (self.height + 2 * padding - size) // stride + 1
        self.width = (self.width + 2 * padding - size) // stride + 1
        if min(self.height, self.width) < 1:
            raise ValueError(
                f"{self._what} pools until nothing is left: give larger images, fewer blocks or another network"
            )
