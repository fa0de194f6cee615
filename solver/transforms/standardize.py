"""Zero mean and unit variance: per channel of images, per column of vectors."""

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from .base import Chunks, Transform
from .moments import moments


class Standardize(Transform):
    """``(x - mean) / std``, one pair per channel of ``(c, h, w)`` inputs or per column of ``(d,)`` inputs.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of one raw input; its first axis is the one that has statistics.
    mean, std : Tensor, shape (input_shape[0],), float64
        In raw units. `fit` uses the population deviation (divisor n) and gives a constant channel the
        deviation 1, so that it becomes zero instead of NaN.
    """

    name = "standardize"

    def __init__(self, input_shape: tuple[int, ...], mean: Tensor, std: Tensor) -> None:
        super().__init__(input_shape)
        self.mean, self.std = mean.double().cpu(), std.double().cpu()
        channels = (self.input_shape[0],)
        if tuple(self.mean.shape) != channels or tuple(self.std.shape) != channels:
            raise ValueError(
                f"inputs of shape {self.input_shape} need {channels[0]} means and deviations, got"
                f" {tuple(self.mean.shape)} and {tuple(self.std.shape)}"
            )
        if not torch.isfinite(self.mean).all() or not (torch.isfinite(self.std) & (self.std > 0)).all():
            raise ValueError("`mean` must be finite and `std` finite and positive")
        # One axis of size 1 for each axis after the first, to broadcast over rows.
        self._shape = channels + (1,) * (len(self.input_shape) - 1)
        self._mean, self._std = self.mean.reshape(self._shape), self.std.reshape(self._shape)
        self._gain = 1.0 / self._std

    @classmethod
    def fit(cls, chunks: Chunks, input_shape: tuple[int, ...]) -> Self:
        """Fit on a stream of raw rows: one pass, float64, O(c) memory beyond the chunk."""
        found = moments(chunks, input_shape)
        return cls(input_shape, found.mean, found.std())

    @classmethod
    def from_values(cls, input_shape: tuple[int, ...], mean: Any, std: Any, unit: float = 1.0) -> Self:
        """Use published constants instead of fitting.

        Parameters
        ----------
        input_shape : tuple of int
            Shape of one raw input.
        mean, std : float or sequence of float
            One value, or one for each channel.
        unit : float, default 1.0
            Raw value that the constants call 1. Constants of images are nearly always published for
            pixels in [0, 1]: pass 255 with uint8 data.

        Examples
        --------
        >>> from kernel_distill.solver.transforms import Standardize
        >>> mnist = Standardize.from_values((1, 28, 28), 0.1307, 0.3081, unit=255)
        >>> round(float(mnist.mean), 2)
        33.33
        """
        channels = input_shape[:1]

        def spread(values: Any) -> Tensor:
            array = np.asarray(values, dtype=np.float64) * unit
            if array.shape not in ((), (1,), tuple(channels)):
                raise ValueError(
                    f"inputs of shape {tuple(input_shape)} take one value or {channels[0]}, got {values!r}"
                )
            return torch.from_numpy(np.broadcast_to(array, channels).copy())

        return cls(input_shape, spread(mean), spread(std))

    def tensors(self) -> dict[str, Tensor]:
        """``mean`` and ``std``, float64."""
        return {"mean": self.mean, "std": self.std}

    @classmethod
    def restore(cls, parameters: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """Make the transform that `parameters` and `tensors` describe."""
        shape = tuple(parameters["input_shape"])
        return cls(shape, cls._stored(tensors, "mean", shape[:1]), cls._stored(tensors, "std", shape[:1]))

    @property
    def elementwise(self) -> bool:
        """Always."""
        return True

    def _forward(self, X: Tensor) -> Tensor:
        return (X - self._as("_mean", X)).mul_(self._as("_gain", X))

    def _inverse(self, Z: Tensor) -> Tensor:
        return Z * self._as("_std", Z) + self._as("_mean", Z)
