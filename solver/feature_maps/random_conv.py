r"""Features of random convolutional networks, whose inner products approach the convolutional NNGP kernel.

With :math:`f_i(x) \in \mathbb{R}^p` the flattened last block of network i of N (`conv_networks`),

.. math:: \varphi(x) = \bigl(\sqrt{2 / (N p)}\,[f_1(x), \dots, f_N(x)],\ 0.1\bigr), \qquad
          \varphi(x)\cdot\varphi(y) \to k_{\mathrm{NNGP}}(x, y),

``kernels.conv_arc_cosine_kernel(kind="nngp")`` with its default deviations, like :math:`1/\sqrt{N w}` for networks of
width w, up to a bias of order 1/w. The last dense layer, of weight variance 2 and bias variance 0.01, is integrated
out exactly. These are the features of RFAD (Loo, Hasani, Amini and Rus, NeurIPS 2022), and what its sets predict with.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from .._check import check_count
from ..conv_networks import (
    BIAS_VARIANCE,
    WEIGHT_VARIANCE,
    ConvNetworks,
    ConvSpec,
    conv_features,
    draw_conv_networks,
)
from .base import FeatureMap


class RandomConv(FeatureMap):
    """Features of convolutional ReLU networks with random weights; images only, no preimage.

    Parameters
    ----------
    input_shape : (c, h, w)
    width : int, default 128
        Channels of each block. The sets of RFAD were learned with 256, at four times the cost.
    depth : int, default 3
        Blocks: a 3 x 3 convolution, ReLU and 2 x 2 average pooling.
    n_networks : int, default 8
    seed : int, default 0
        Defines the weights, which are made again and not stored.

    Raises
    ------
    ValueError
        If the inputs are not images, or too small for the poolings; if a count is below 1.

    Notes
    -----
    Images of 3 x 32 x 32 under the default networks: p = 16,385 features and 0.8 GFLOP an image. Methods that solve
    for the full model take a p x p matrix, 2 GiB for so many features: fewer or narrower networks suit them.
    """

    name: ClassVar[str] = "random-conv"

    def __init__(
        self,
        input_shape: tuple[int, ...],
        *,
        width: int = 128,
        depth: int = 3,
        n_networks: int = 8,
        seed: int = 0,
    ) -> None:
        self.width, self.n_networks = check_count(width, "width"), check_count(n_networks, "n_networks")
        self.spec = ConvSpec(tuple(input_shape), self.width, depth)
        super().__init__(input_shape, self.n_networks * self.spec.n_features + 1)
        self.seed = seed
        self._made: dict[tuple[torch.device, torch.dtype], ConvNetworks] = {}

    def parameters(self) -> dict[str, Any]:
        """Everything but the weights, which the seed defines."""
        return {
            **super().parameters(),
            "width": self.width,
            "depth": self.spec.depth,
            "n_networks": self.n_networks,
            "seed": self.seed,
        }

    def networks(self, device: torch.device, dtype: torch.dtype) -> ConvNetworks:
        """The networks, drawn once for each device and dtype."""
        if (device, dtype) not in self._made:
            self._made[device, dtype] = draw_conv_networks(
                self.spec, self.n_networks, self.seed, self.name, device=device, dtype=dtype
            )
        return self._made[device, dtype]

    def _features(self, X: Tensor) -> Tensor:
        return with_last_layer(conv_features(self.networks(X.device, X.dtype), X))


def with_last_layer(F: Tensor) -> Tensor:
    """Features (n, N p + 1) whose inner products are those of the networks behind a dense layer.

    Parameters
    ----------
    F : Tensor, shape (n, N, p)
        Of `conv_features`.
    """
    scaled = F.flatten(1) * math.sqrt(WEIGHT_VARIANCE / F.shape[1:].numel())
    return torch.cat([scaled, scaled.new_full((len(F), 1), math.sqrt(BIAS_VARIANCE))], dim=1)
