"""Neural tangent and Gaussian process kernels of convolutional networks of infinite width.

The network and the recursion are those of `kernels.arc_cosine_conv`. The defaults are the ConvNet of RFAD and of
dataset condensation (three blocks, each followed by a 2 x 2 average pooling); pooling (0, 1, 1, 0) with depth 4 and
a global average is the Myrtle-5 network of KIP.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from ...kernels import conv_arc_cosine_kernel, normal
from .._check import check_count, check_name, check_non_negative
from .base import KernelFunction

PADDINGS = ("zero", "circular")
READOUTS = ("flatten", "global_average")
# Side of the images of a fingerprint, or what the poolings need.
_SIDE = 8


class WideConvNetwork(KernelFunction):
    """Base of the convolutional ones.

    Parameters
    ----------
    input_shape : (c, h, w)
    depth : int, default 3
        Number of blocks, each a convolution and a ReLU.
    pooling : int or sequence of int, default 1
        Number of 2 x 2 average poolings after each block, one for all or one for each.
    filter_size : int, default 3
        Odd.
    padding : {"zero", "circular"}
        What convolutions see outside the image.
    readout : {"flatten", "global_average"}
        What comes before the last dense layer. The average costs about four times (h w)² pairs of pixels for each
        pair of images.
    weight_std, bias_std : float, default sqrt(2) and 0.1
        Standard deviations of all layers.

    Raises
    ------
    ValueError
        If the inputs are not images, or too small for the poolings.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        input_shape: tuple[int, ...],
        *,
        depth: int = 3,
        pooling: int | Sequence[int] = 1,
        filter_size: int = 3,
        padding: str = "zero",
        readout: str = "flatten",
        weight_std: float = 2**0.5,
        bias_std: float = 0.1,
    ) -> None:
        super().__init__(input_shape)
        if len(self.input_shape) != 3:
            raise ValueError(
                f"a {self.name!r} kernel takes images (c, h, w), got inputs of shape {input_shape}"
            )
        self.depth = check_count(depth, "depth")
        self.pooling: int | tuple[int, ...] = (
            tuple(check_count(count, "pooling", 0) for count in pooling)
            if isinstance(pooling, (list, tuple))
            else check_count(pooling, "pooling", 0)
        )
        self.filter_size = check_count(filter_size, "filter_size")
        self.padding = check_name(padding, PADDINGS, "padding")
        self.readout = check_name(readout, READOUTS, "readout")
        self.weight_std = check_non_negative(weight_std, "weight_std")
        self.bias_std = check_non_negative(bias_std, "bias_std")
        # No rows cost nothing, and whatever does not fit the image is refused here rather than at the first step.
        self.matrix(normal(0, "none", (0, *self.input_shape)))

    def parameters(self) -> dict[str, Any]:
        """The network."""
        return {
            **super().parameters(),
            "depth": self.depth,
            "pooling": list(self.pooling) if isinstance(self.pooling, tuple) else self.pooling,
            "filter_size": self.filter_size,
            "padding": self.padding,
            "readout": self.readout,
            "weight_std": self.weight_std,
            "bias_std": self.bias_std,
        }

    def fingerprint(self) -> list[float]:
        """Values on small images: they tell the network too, and a global average of large ones takes half a minute."""
        counts = self.pooling if isinstance(self.pooling, tuple) else (self.pooling,) * self.depth
        side = max(_SIDE, 2 ** sum(counts))
        channels, *size = self.input_shape
        small = {**self.parameters(), "input_shape": (channels, *(min(length, side) for length in size))}
        probe = normal(0, "fingerprint", (3, *small["input_shape"]))
        return type(self)(**small).matrix(probe).flatten().tolist()

    def _matrix(self, X: Tensor, Y: Tensor | None, precision: str) -> Tensor:
        return conv_arc_cosine_kernel(
            X,
            Y,
            depth=self.depth,
            pooling=self.pooling,
            filter_size=self.filter_size,
            kind=self.kind,
            weight_std=self.weight_std,
            bias_std=self.bias_std,
            padding=self.padding,
            readout=self.readout,
            precision=precision,
        )


class ConvNTK(WideConvNetwork):
    """Kernel of the trained network."""

    name = "conv-ntk"
    kind = "ntk"


class ConvNNGP(WideConvNetwork):
    """Kernel of the network at initialisation."""

    name = "conv-nngp"
    kind = "nngp"
