r"""What a kernel function is: :math:`k(x, y)` of transformed inputs, as an object that knows its file form.

A feature map is a kernel with a finite map behind it; the kernels here have none (wide networks, radial
functions), so a set keeps its points and predicts by :math:`K(x, X_S)(K_{SS} + \lambda_S)^{-1} Y_S`.

Kernels are immutable after construction and say everything that is needed to make them again: `parameters`
(plain JSON). What a kernel takes from data (a bandwidth) is a number among them.
"""

import abc
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ...kernels import normal
from .._check import check_count, check_name

PRECISIONS = ("high", "medium", "low")


class KernelFunction(abc.ABC):
    """Base of all kernel functions; immutable.

    Attributes
    ----------
    name : str
        Name in the registry and in files.
    input_shape : tuple of int
        Shape of one input, without the batch axis: ``(d,)`` or ``(c, h, w)``.
    """

    name: ClassVar[str]

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        self.input_shape = tuple(check_count(size, "input_shape") for size in input_shape)

    @classmethod
    def build(cls, input_shape: tuple[int, ...], *, seed: int, sample: Tensor | None, **params: Any) -> Self:
        """Make a kernel for inputs of `input_shape`; `sample` holds transformed rows for those that look at them."""
        del seed, sample
        return cls(input_shape, **params)

    @classmethod
    def needs_sample(cls, params: Mapping[str, Any]) -> bool:
        """Whether `build` with these parameters looks at a sample of the data."""
        del params
        return False

    @property
    def n_inputs(self) -> int:
        """d, the number of values in one input."""
        return math.prod(self.input_shape)

    def matrix(self, X: Tensor, Y: Tensor | None = None, *, precision: str = "high") -> Tensor:
        """Kernel matrix of two sets of rows.

        Parameters
        ----------
        X : Tensor, shape (n, *input_shape), float32 or float64
            Transformed inputs.
        Y : Tensor, shape (m, *input_shape), of the dtype of `X`, optional
            Default `X` itself: the matrix is then exactly symmetric, at half the work.
        precision : {"high", "medium", "low"}, default "high"
            "high" is accurate to the rounding of the dtype: for whatever is solved. "medium" computes float32 rows
            of wide networks in float32 and, on a GPU, forms products of narrower operands: for the large block
            between a batch and the points, which is only multiplied. Float64 rows are float64 in all of them.

        Returns
        -------
        Tensor, shape (n, m), of the dtype of `X`
            On its device, differentiable in `X` and `Y`.

        Raises
        ------
        ValueError
            If shapes or dtypes do not fit, or the precision is unknown.

        Notes
        -----
        5000 rows by 100 points of 3072 values in float32, one-hidden-layer NTK, one core: 0.45 s with "high",
        0.20 s with "medium", gradient in the points included; the gradient is then right to 3e-7 of its norm.
        """
        check_name(precision, PRECISIONS, "precision")
        for rows in (X,) if Y is None else (X, Y):
            if rows.dtype not in (torch.float32, torch.float64) or rows.dtype != X.dtype:
                raise ValueError(
                    f"inputs must be float32 or float64, and all of one dtype, got {rows.dtype} (the first:"
                    f" {X.dtype}): transform them first"
                )
            if tuple(rows.shape[1:]) != self.input_shape:
                raise ValueError(
                    f"this {self.name!r} kernel takes inputs of shape {self.input_shape}, got rows of shape"
                    f" {tuple(rows.shape[1:])}: was it made for other data?"
                )
        return self._matrix(X, Y, precision)

    def parameters(self) -> dict[str, Any]:
        """Plain JSON values from which `restore` makes the same kernel again."""
        return {"input_shape": list(self.input_shape)}

    @classmethod
    def restore(cls, parameters: dict[str, Any]) -> Self:
        """Make the kernel that `parameters` describe."""
        return cls(**{**parameters, "input_shape": tuple(parameters["input_shape"])})

    def fingerprint(self) -> list[float]:
        """Values between three fixed points: tells the kernel from any other when a file is read."""
        probe = normal(0, "fingerprint", (3, *self.input_shape))
        return self.matrix(probe).flatten().tolist()

    @abc.abstractmethod
    def _matrix(self, X: Tensor, Y: Tensor | None, precision: str) -> Tensor:
        """`matrix` after the checks."""
