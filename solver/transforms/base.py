"""What every input transform is: raw inputs in, the values that a feature map sees out, and back.

A distilled set is useless without its transform (the commonest complaint about published sets), so
transforms are named, fitted on training data in a stream, stored in the file, and inverted when points
are handed out in raw units.
"""

import abc
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from .._check import check_count

# A function that starts a new pass over the raw training rows, each item a Tensor (rows, *shape).
Chunks = Callable[[], Iterable[Tensor]]


def check_shape(input_shape: Iterable[int]) -> tuple[int, ...]:
    """Return a shape of at least one axis of positive size."""
    shape = tuple(check_count(size, "input_shape") for size in input_shape)
    if not shape:
        raise ValueError("`input_shape` is empty: one input is a vector (d,) or an image (c, h, w)")
    return shape


class Transform(abc.ABC):
    """Base of all transforms.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of one raw input, without the batch axis: ``(d,)`` or ``(c, h, w)``.

    Attributes
    ----------
    name : str
        Name in the registry and in files.
    input_shape : tuple of int
        The transform keeps shapes: this is the shape of a transformed input too.
    """

    name: ClassVar[str]

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        self.input_shape = check_shape(input_shape)
        self._moved: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    @property
    def bijective(self) -> bool:
        """Whether ``forward(inverse(Z)) == Z`` for every Z.

        Where it is not (per-sample normalisation), distilled points are kept in the transformed space and
        `inverse` serves for viewing only.
        """
        return True

    @classmethod
    @abc.abstractmethod
    def fit(cls, chunks: Chunks, input_shape: tuple[int, ...]) -> Self:
        """Fit on a stream of raw rows; `chunks()` may be called more than once, in float64, O(d²) memory.

        Parameters of a kind are keywords with defaults.
        """

    @property
    def elementwise(self) -> bool:
        """Whether every value is transformed by itself, so that a range of raw values stays a range."""
        return False

    def forward(self, X: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Transform raw rows.

        Parameters
        ----------
        X : Tensor, shape (n, *input_shape), any real dtype
            Left as it is.
        dtype : torch.dtype, default float64
            float32 or float64. float64 rows are worked on in float64 and rounded last, because a column
            with a large offset (a time stamp) has nothing left in float32 once the offset is subtracted.

        Returns
        -------
        Tensor, shape (n, *input_shape), of `dtype`
            On the device of `X`, differentiable in `X`.

        Raises
        ------
        ValueError
            If the shape or `dtype` does not fit.
        """
        if tuple(X.shape[1:]) != self.input_shape:
            raise ValueError(
                f"this {self.name!r} transform was fitted on rows of shape {self.input_shape}, got"
                f" {tuple(X.shape[1:])}: it belongs to other data"
            )
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"`dtype` must be torch.float32 or torch.float64, got {dtype}")
        work = torch.float64 if X.dtype == torch.float64 else dtype
        return self._forward(X.to(work)).to(dtype)

    def inverse(self, Z: Tensor) -> Tensor:
        """Raw float64 rows whose transform is `Z`, shape (n, *input_shape) or (n, d)."""
        return self._inverse(Z.double().reshape(Z.shape[0], *self.input_shape))

    def parameters(self) -> dict[str, Any]:
        """Plain JSON values from which `restore` makes the same transform again."""
        return {"input_shape": list(self.input_shape)}

    def tensors(self) -> dict[str, Tensor]:
        """Arrays stored beside the parameters."""
        return {}

    @classmethod
    @abc.abstractmethod
    def restore(cls, parameters: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """Make the transform that `parameters` and `tensors` describe."""

    @abc.abstractmethod
    def _forward(self, X: Tensor) -> Tensor:
        """`forward` after the checks; must not change `X`."""

    @abc.abstractmethod
    def _inverse(self, Z: Tensor) -> Tensor:
        """`inverse` after the checks."""

    def _as(self, name: str, like: Tensor) -> Tensor:
        """Attribute `name` on the device and in the dtype of `like`, moved there once and kept."""
        key = (name, like.device, like.dtype)
        if key not in self._moved:
            self._moved[key] = getattr(self, name).to(like)
        return self._moved[key]

    @classmethod
    def _stored(cls, tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
        """Take one array of a file, refusing what cannot have been written by `tensors`."""
        if name not in tensors:
            raise ValueError(f"a stored {cls.name!r} transform needs {name!r}, found {sorted(tensors)}")
        value = tensors[name]
        if tuple(value.shape) != shape or value.dtype != torch.float64 or not torch.isfinite(value).all():
            raise ValueError(
                f"{name!r} of a stored {cls.name!r} transform must be finite float64 of shape {shape}, got"
                f" {value.dtype} of shape {tuple(value.shape)}: the file is damaged"
            )
        return value
