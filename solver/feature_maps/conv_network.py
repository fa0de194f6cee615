r"""Features of trained convolutional networks, whose weights are stored.

:math:`\varphi(x) = (\varphi_1(x), \dots, \varphi_c(x)) / \sqrt{c}` for c networks, so that the kernel is the mean of
theirs. What training leaves behind (`solver.learners.network_pool`) cannot be made again on another machine to the
last digits, and small differences grow with every update; so all weights are tensors of the file. Random networks,
which a seed does make again, are `random_conv`.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from .._check import check_count
from ..conv_networks import ConvNetworks, ConvSpec, conv_features
from .base import FeatureMap


class ConvNetworkFeatures(FeatureMap):
    """The last blocks of convolutional networks, flattened.

    Parameters
    ----------
    networks : ConvNetworks
        On the CPU, of one network or more; without batch normalisation (`freeze` folds it into the weights),
        which would make the features of a row depend on the other rows.
    padding : int, default 0
        Zeros around each image; the networks take images that are larger by twice that.

    Raises
    ------
    ValueError
        If the networks normalise over the batch, or the padding leaves no image.

    Notes
    -----
    Features cost one forward pass of each network. A file holds four bytes for each weight: 5.9 MB for one network
    of widths 128, 256 and 512 on three channels.
    """

    name: ClassVar[str] = "conv-network"

    def __init__(self, networks: ConvNetworks, *, padding: int = 0) -> None:
        spec = networks.spec
        self.padding = check_count(padding, "padding", 0)
        if spec.norm == "batch":
            raise ValueError(
                "features of one row must not depend on other rows: fold the normalisation over a batch into the"
                " weights first (freeze)"
            )
        channels, *size = spec.input_shape
        shape = (channels, *(length - 2 * self.padding for length in size))
        super().__init__(shape, networks.count * spec.n_features)
        self.networks = networks
        self._cast: dict[tuple[torch.dtype, torch.device], ConvNetworks] = {}

    @classmethod
    def build(cls, input_shape: tuple[int, ...], *, seed: int, sample: Tensor | None, **params: Any) -> Self:
        """Refuse: no seed and no options make trained weights."""
        raise ValueError(
            "a 'conv-network' map is made of trained networks: give the map of a set that has one (train_network), or"
            " take 'random-conv' for random weights"
        )

    def parameters(self) -> dict[str, Any]:
        """The shape of the networks; their weights are `tensors`."""
        spec = self.networks.spec
        return {
            **super().parameters(),
            "width": list(spec.widths),
            "depth": spec.depth,
            "filter_size": spec.filter_size,
            "leak": spec.leak,
            "norm": spec.norm,
            "padding": self.padding,
        }

    def tensors(self) -> dict[str, Tensor]:
        """All weights, each with a first axis for the networks."""
        return dict(self.networks.tensors)

    @classmethod
    def restore(cls, parameters: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """Make the map of a file again.

        Raises
        ------
        ValueError
            If the weights are not those of such networks.
        """
        padding = parameters["padding"]
        others = {
            key: value for key, value in parameters.items() if key not in ("input_shape", "width", "padding")
        }
        spec = ConvSpec(
            padded_shape(tuple(parameters["input_shape"]), padding), _widths(parameters["width"]), **others
        )
        found = {name: tuple(value.shape[1:]) for name, value in tensors.items()}
        if found != spec.shapes or len({len(value) for value in tensors.values()}) != 1:
            raise ValueError(
                f"the weights of a 'conv-network' map must be {spec.shapes} for each network, got {found}"
            )
        return cls(ConvNetworks(spec, {name: tensors[name] for name in spec.shapes}), padding=padding)

    def _features(self, X: Tensor) -> Tensor:
        key = (X.dtype, X.device)
        if key not in self._cast:
            self._cast[key] = self.networks.to(X.device, X.dtype)
        padded = functional.pad(X, (self.padding,) * 4)
        features = conv_features(self._cast[key], padded).flatten(1)
        return features if self.networks.count == 1 else features / math.sqrt(self.networks.count)


def padded_shape(input_shape: tuple[int, ...], padding: int) -> tuple[int, ...]:
    """Shape of images with `padding` zeros on each side."""
    channels, *size = input_shape
    return (channels, *(length + 2 * padding for length in size))


def _widths(width: int | Sequence[int]) -> int | tuple[int, ...]:
    return width if isinstance(width, int) else tuple(width)
