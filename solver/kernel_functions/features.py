"""The linear kernel of a finite feature map, so that methods written for kernels run with any map."""

from typing import Any

from torch import Tensor

from ..feature_maps import FeatureMap
from .base import KernelFunction


class FeatureKernel(KernelFunction):
    """``features(x) . features(y)``.

    It has no file form of its own: a set made with it is stored with an ordinary `Encoder` of its feature map,
    which predicts the same without forming kernels.

    Parameters
    ----------
    feature_map : FeatureMap
    """

    name = "features"

    def __init__(self, feature_map: FeatureMap) -> None:
        super().__init__(feature_map.input_shape)
        self.feature_map = feature_map

    def parameters(self) -> dict[str, Any]:
        """Name and parameters of the map, to tell one from another; `restore_kernel_function` refuses them."""
        return {
            **super().parameters(),
            "feature_map": {"name": self.feature_map.name, "parameters": self.feature_map.parameters()},
        }

    def _matrix(self, X: Tensor, Y: Tensor | None, precision: str) -> Tensor:
        del precision  # the map's own arithmetic, in the dtype of the rows
        F = self.feature_map.features(X)
        return F @ (F if Y is None else self.feature_map.features(Y)).mT
