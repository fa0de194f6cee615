"""The identity map: features are the flattened inputs, so ridge regression on them is the linear model."""

from typing import Any, ClassVar, Self

from torch import Tensor

from .base import FeatureMap


class Identity(FeatureMap):
    """``phi(x) = x`` flattened; p = d. The map for raw pixels and for embeddings that are already computed."""

    name: ClassVar[str] = "identity"
    homogeneous: ClassVar[bool] = True

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__(input_shape, n_features=_size(input_shape))

    @classmethod
    def build(cls, input_shape: tuple[int, ...], *, seed: int, sample: Tensor | None, **params: Any) -> Self:
        """Make the map; nothing about it is random."""
        del seed, sample
        return cls(input_shape, **params)

    @property
    def surjective(self) -> bool:
        """Always."""
        return True

    def _features(self, X: Tensor) -> Tensor:
        return X.flatten(1)

    def _preimage(self, F: Tensor, near: Tensor | None) -> Tensor:
        return F


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for axis in shape:
        size *= axis
    return size
