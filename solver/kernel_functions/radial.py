r"""Radial kernels, :math:`k(x, y) = \rho(\|x - y\|/\sigma)`: the families of `kernels.radial` by name.

The bandwidth :math:`\sigma` is a number in units of the transformed inputs, or "median": the median distance of two
rows of a sample, in the norm of the kernel (Garreau, Jitkrittum and Kanagawa, "Large sample analysis of the
median heuristic", 2017). What is stored is the number.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ...kernels import (
    Cauchy,
    Gaussian,
    Laplacian,
    Matern,
    RationalQuadratic,
    kernel_matrix,
    median_bandwidth,
)
from ...kernels.radial import RadialKernel
from .base import KernelFunction

# Rows of a sample among which 1-norm distances are taken, as many as `median_bandwidth` draws.
_ROWS = 500


class Radial(KernelFunction):
    """Base of the radial kernels.

    Parameters
    ----------
    input_shape : tuple of int
    bandwidth : float
        σ of `kernels.radial`, positive. `build` also takes "median", its default.

    Raises
    ------
    ValueError
        If a number is not positive and finite.
    """

    family: ClassVar[type[RadialKernel]]

    def __init__(self, input_shape: tuple[int, ...], *, bandwidth: float, **numbers: float) -> None:
        super().__init__(input_shape)
        self._numbers = {
            key: _number(value, key) for key, value in {"bandwidth": bandwidth, **numbers}.items()
        }
        self.kernel = self.family(**self._numbers)

    @property
    def bandwidth(self) -> float:
        """σ."""
        return self._numbers["bandwidth"]

    @classmethod
    def build(cls, input_shape: tuple[int, ...], *, seed: int, sample: Tensor | None, **params: Any) -> Self:
        """Make the kernel; a bandwidth that is missing or "median" is taken from `sample`."""
        if cls.needs_sample(params):
            if sample is None:
                raise ValueError(
                    "`bandwidth` is 'median' and there is no sample to take it from: set a number"
                )
            params["bandwidth"] = _median(sample.flatten(1), cls.family.metric, seed)
        return cls(input_shape, **params)

    @classmethod
    def needs_sample(cls, params: Mapping[str, Any]) -> bool:
        """Whether the bandwidth is left to be taken from data."""
        return params.get("bandwidth", "median") == "median"

    def parameters(self) -> dict[str, Any]:
        """Bandwidth and shape of the kernel."""
        return {**super().parameters(), **self._numbers}

    def _matrix(self, X: Tensor, Y: Tensor | None, precision: str) -> Tensor:
        return kernel_matrix(
            self.kernel,
            X.flatten(1),
            None if Y is None else Y.flatten(1),
            precision=precision,
            psd_safe=Y is None,
        )


class GaussianKernel(Radial):
    r""":math:`e^{-\|x-y\|^2/2\sigma^2}`."""

    name = "gaussian"
    family = Gaussian

    def __init__(self, input_shape: tuple[int, ...], *, bandwidth: float) -> None:
        super().__init__(input_shape, bandwidth=bandwidth)


class LaplacianKernel(Radial):
    r""":math:`e^{-\|x-y\|_1/\sigma}`."""

    name = "laplacian"
    family = Laplacian

    def __init__(self, input_shape: tuple[int, ...], *, bandwidth: float) -> None:
        super().__init__(input_shape, bandwidth=bandwidth)


class CauchyKernel(Radial):
    r""":math:`1/(1 + \|x-y\|^2/\sigma^2)`."""

    name = "cauchy"
    family = Cauchy

    def __init__(self, input_shape: tuple[int, ...], *, bandwidth: float) -> None:
        super().__init__(input_shape, bandwidth=bandwidth)


class MaternKernel(Radial):
    """Matérn kernel of smoothness `nu`: 0.5, 1.5 (default) or 2.5."""

    name = "matern"
    family = Matern

    def __init__(self, input_shape: tuple[int, ...], *, bandwidth: float, nu: float = 1.5) -> None:
        super().__init__(input_shape, bandwidth=bandwidth, nu=nu)


class RationalQuadraticKernel(Radial):
    r""":math:`(1 + \|x-y\|^2/2\alpha\sigma^2)^{-\alpha}`, `alpha` 1 by default."""

    name = "rational-quadratic"
    family = RationalQuadratic

    def __init__(self, input_shape: tuple[int, ...], *, bandwidth: float, alpha: float = 1.0) -> None:
        super().__init__(input_shape, bandwidth=bandwidth, alpha=alpha)


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"`{name}` must be a positive number, got {value!r}")
    return float(value)


def _median(rows: Tensor, metric: str, seed: int) -> float:
    """Median distance of two different rows, in the norm that the kernel is a function of."""
    if metric == "manhattan" and len(rows) > 1:
        found = float(torch.nn.functional.pdist(rows[:_ROWS].double(), p=1).median())
    else:
        found = float(median_bandwidth(rows.double(), seed=seed))
    if found == 0:
        raise ValueError("half of the sampled rows are equal, so their median distance is 0: set `bandwidth`")
    return found
