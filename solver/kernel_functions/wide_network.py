"""Neural tangent and Gaussian process kernels of fully connected networks of infinite width.

The network, its parametrisation and the recursion are those of `kernels.arc_cosine`. The defaults are the fully
connected kernel of KIP (Nguyen, Chen and Lee, "Dataset meta-learning from kernel ridge-regression", 2021, and
its published notebook): one hidden layer, ReLU, weight deviation sqrt(2), bias deviation 0.1.
"""

from typing import Any, ClassVar

from torch import Tensor

from ...kernels import arc_cosine_kernel
from .._check import check_count, check_non_negative
from .base import KernelFunction


class WideNetwork(KernelFunction):
    """Base of the fully connected ones; images are flattened.

    Parameters
    ----------
    input_shape : tuple of int
    depth : int, default 1
        Number of hidden layers.
    weight_std, bias_std : float, default sqrt(2) and 0.1
        Standard deviations of all layers.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        input_shape: tuple[int, ...],
        *,
        depth: int = 1,
        weight_std: float = 2**0.5,
        bias_std: float = 0.1,
    ) -> None:
        super().__init__(input_shape)
        self.depth = check_count(depth, "depth", 0)
        self.weight_std = check_non_negative(weight_std, "weight_std")
        self.bias_std = check_non_negative(bias_std, "bias_std")

    def parameters(self) -> dict[str, Any]:
        """Depth and standard deviations."""
        return {
            **super().parameters(),
            "depth": self.depth,
            "weight_std": self.weight_std,
            "bias_std": self.bias_std,
        }

    def _matrix(self, X: Tensor, Y: Tensor | None, precision: str) -> Tensor:
        return arc_cosine_kernel(
            X.flatten(1),
            None if Y is None else Y.flatten(1),
            depth=self.depth,
            kind=self.kind,
            weight_std=self.weight_std,
            bias_std=self.bias_std,
            precision=precision,
        )


class NTK(WideNetwork):
    """Kernel of the trained network."""

    name = "ntk"
    kind = "ntk"


class NNGP(WideNetwork):
    """Kernel of the network at initialisation."""

    name = "nngp"
    kind = "nngp"
