r"""What every feature map is: :math:`\varphi: \mathbb{R}^{shape} \to \mathbb{R}^p`, applied row by row.

A map is *surjective* when every feature vector is the image of some input; then `preimage` turns features
that were computed in closed form back into points. A map without preimage still distils: the set then
lives in feature space.

Maps are immutable after construction and say everything that is needed to make them again: `parameters`
(plain JSON) and `tensors` (arrays that no seed can regenerate, such as filters taken from data).
"""

import abc
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ...kernels import normal
from .._check import check_count


class FeatureMap(abc.ABC):
    """Base of all feature maps.

    Attributes
    ----------
    name : str
        Name in the registry and in files.
    input_shape : tuple of int
        Shape of one input, without the batch axis: ``(d,)`` or ``(c, h, w)``.
    n_features : int
        p, the length of one feature vector.
    homogeneous : bool
        Whether ``phi(c x) = c phi(x)`` for every c > 0, so that points may be rescaled freely.
    feature_bound : float or None
        b such that ``|phi(x)_j| <= b`` for all x and j and every value inside is reached; None if unbounded.
    surjective : bool
        Whether `preimage` exists for every feature vector. `has_preimage` also covers maps (deep linear
        ones with a bottleneck or more features than inputs) that invert their own range only.
    """

    name: ClassVar[str]
    homogeneous: ClassVar[bool] = False
    feature_bound: float | None = None

    def __init__(self, input_shape: tuple[int, ...], n_features: int) -> None:
        self.input_shape = tuple(check_count(size, "input_shape") for size in input_shape)
        self.n_features = check_count(n_features, "n_features")

    @classmethod
    def build(cls, input_shape: tuple[int, ...], *, seed: int, sample: Tensor | None, **params: Any) -> Self:
        """Make a map for inputs of `input_shape`.

        `sample` holds transformed training rows, shape (n, *input_shape), for maps that set a length scale
        or take filters from data; the others ignore it.
        """
        del sample
        return cls(input_shape, seed=seed, **params)  # pyright: ignore[reportCallIssue]

    @classmethod
    def needs_sample(cls, params: Mapping[str, Any]) -> bool:
        """Whether `build` with these parameters looks at a sample of the data."""
        del params
        return False

    @property
    def n_inputs(self) -> int:
        """d, the number of values in one input."""
        return math.prod(self.input_shape)

    @property
    def surjective(self) -> bool:
        """Whether every feature vector has a preimage."""
        return False

    @property
    def has_preimage(self) -> bool:
        """Whether the feature vectors that a closed form produces have preimages."""
        return self.surjective

    def features(self, X: Tensor) -> Tensor:
        """Features of a batch.

        Parameters
        ----------
        X : Tensor, shape (n, *input_shape) or (n, d), float32 or float64
            Transformed inputs. Arithmetic is done in the dtype of `X`, on its device.

        Returns
        -------
        Tensor, shape (n, p), of the dtype of `X`
            Differentiable in `X`.

        Raises
        ------
        ValueError
            If shape or dtype do not fit.
        """
        if X.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"`X` must be float32 or float64, got {X.dtype}: apply the transform first")
        if tuple(X.shape[1:]) != self.input_shape and tuple(X.shape[1:]) != (self.n_inputs,):
            raise ValueError(
                f"this {self.name!r} map takes inputs of shape {self.input_shape}, got rows of shape"
                f" {tuple(X.shape[1:])}: was it made for other data?"
            )
        return self._features(X.reshape(X.shape[0], *self.input_shape))

    def preimage(self, F: Tensor, near: Tensor | None = None) -> Tensor:
        """Inputs whose features are `F`.

        Parameters
        ----------
        F : Tensor, shape (n, p), float64
            Feature vectors in the range of the map.
        near : Tensor, shape (n, *input_shape), optional
            Where the preimage is not unique, the one nearest to these points is taken (as far as the map
            can tell); by default the one of least norm.

        Returns
        -------
        Tensor, shape (n, *input_shape), float64

        Raises
        ------
        NotImplementedError
            If the map has no preimage.
        ValueError
            If `F` lies outside the range by its shape or its bound.
        """
        if not self.has_preimage:
            raise NotImplementedError(
                f"the {self.name!r} map ({self.n_inputs} inputs, {self.n_features} features) has no preimage:"
                " keep the distilled set in feature space (space='features')"
            )
        if F.ndim != 2 or F.shape[1] != self.n_features:
            raise ValueError(f"`F` must have shape (n, {self.n_features}), got {tuple(F.shape)}")
        if near is not None:
            near = near.double().reshape(F.shape[0], *self.input_shape)
        return self._preimage(F.double(), near).reshape(F.shape[0], *self.input_shape)

    def parameters(self) -> dict[str, Any]:
        """Plain JSON values from which `restore` makes the same map again."""
        return {"input_shape": list(self.input_shape)}

    def tensors(self) -> dict[str, Tensor]:
        """Arrays that the seed does not determine; stored beside the parameters."""
        return {}

    @classmethod
    def restore(cls, parameters: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """Make the map that `parameters` and `tensors` describe."""
        if tensors:
            raise ValueError(f"a {cls.name!r} map stores no arrays, found {sorted(tensors)}")
        return cls(**{**parameters, "input_shape": tuple(parameters["input_shape"])})

    def fingerprint(self) -> list[float]:
        """Features of two fixed points: told apart from any other map, or from other weights.

        At most 32 numbers, compared to 1e-6 when a file is loaded, so that a map that would be regenerated
        differently (another library version, another module) is refused rather than used.
        """
        probe = normal(0, "fingerprint", (2, *self.input_shape))
        values = self.features(probe).flatten()
        step = max(1, values.numel() // 32)
        return values[::step][:32].tolist()

    @abc.abstractmethod
    def _features(self, X: Tensor) -> Tensor:
        """`features` after the checks; `X` has shape (n, *input_shape)."""

    def _preimage(self, F: Tensor, near: Tensor | None) -> Tensor:
        """`preimage` after the checks; any shape with n rows of d values may be returned."""
        raise NotImplementedError
