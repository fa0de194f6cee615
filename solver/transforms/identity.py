"""The transform that changes nothing: features of raw values."""

from typing import Any, Self

from torch import Tensor

from .base import Chunks, Transform


class Identity(Transform):
    """Cast to floating point and nothing else; registered as ``"none"``."""

    name = "none"

    @classmethod
    def fit(cls, chunks: Chunks, input_shape: tuple[int, ...]) -> Self:
        """Nothing to fit: `chunks` is not called."""
        del chunks
        return cls(input_shape)

    @classmethod
    def restore(cls, parameters: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """Make the transform that `parameters` describe."""
        del tensors
        return cls(tuple(parameters["input_shape"]))

    @property
    def elementwise(self) -> bool:
        """Always."""
        return True

    def _forward(self, X: Tensor) -> Tensor:
        return X

    def _inverse(self, Z: Tensor) -> Tensor:
        return Z
