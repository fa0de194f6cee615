r"""Kernels that depend on a distance alone.

With :math:`s = \|x-y\|^2`, :math:`r = \sqrt s` and the bandwidth :math:`\sigma`, in units of the data:

==================  ==================================================  ==================================
kernel              k(x, y)                                             elsewhere
==================  ==================================================  ==================================
Gaussian            :math:`e^{-s/2\sigma^2}`                            rbf, :math:`\gamma=1/2\sigma^2`
Laplacian           :math:`e^{-\|x-y\|_1/\sigma}`                       scikit-learn, :math:`\gamma=1/\sigma`
Cauchy              :math:`1/(1+s/\sigma^2)`                            RQ, :math:`\alpha=1`, of :math:`\sigma/\sqrt2`
Matern              :math:`f_{\nu-1/2}(2\nu s/\sigma^2)`, see _matern   Rasmussen & Williams, eq. 4.17
RationalQuadratic   :math:`(1+s/2\alpha\sigma^2)^{-\alpha}`             Rasmussen & Williams, eq. 4.19
MixtureOfGaussians  :math:`\sum_q w_q e^{-s/2(\sigma\rho_q)^2}`         Li, Swersky & Zemel 2015
==================  ==================================================  ==================================

A kernel is data: its name, its numbers, and the profile that turns distances into values. Numbers that are tensors are
differentiated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ._check import check_positive
from ._distances import manhattan, pairwise_squared
from ._matern import log_matern_profile, matern_profile

_MOST_SQUARINGS = 8  # as for bandwidths 1, 2, 4, 8, 16


@dataclass(frozen=True, eq=False)
class RadialKernel:
    """Base of the kernels of this module.

    Parameters
    ----------
    bandwidth : float or Tensor of shape (), default 1.0
        σ above, positive. A tensor takes part in differentiation. To scale features one by one, divide the data.

    Raises
    ------
    ValueError
        If a number is not positive and finite (a tensor on a GPU is not looked at: that would wait for it).
    """

    bandwidth: float | Tensor = 1.0
    name: ClassVar[str]
    metric: ClassVar[str] = (
        "squared"  # what `profile` takes: squared Euclidean distances, or "manhattan" ones
    )

    def __post_init__(self) -> None:
        check_positive(self.bandwidth, "bandwidth")

    def parameters(self, like: Tensor) -> tuple[Tensor, ...]:
        """The kernel's numbers as 0-d tensors of the dtype and device of `like`."""
        return (_scalar(self.bandwidth, like),)

    def with_parameters(self, *parameters: Tensor) -> Self:
        """The same kernel with these in place of `parameters`."""
        return replace(self, bandwidth=parameters[0])

    @property
    def temporaries(self) -> int:
        """Arrays of the size of `s` that a profile or its logarithm holds at once, that of `s` included."""
        return 3

    def distances(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances of all pairs, shape (n, m); plain torch, differentiable to any order."""
        return manhattan(x, y) if self.metric == "manhattan" else pairwise_squared(x, y)

    def profile(self, s: Tensor, *parameters: Tensor) -> Tensor:
        """Kernel values of distances `s` of any shape."""
        raise NotImplementedError

    def log_profile(self, s: Tensor, *parameters: Tensor) -> Tensor:
        """Logarithm of `profile`, without underflow where the family allows."""
        return torch.log(self.profile(s, *parameters))

    def profile_(self, s: Tensor, *parameters: Tensor) -> Tensor:
        """`profile`, allowed to overwrite `s`."""
        return self.profile(s, *parameters)


class Gaussian(RadialKernel):
    r""":math:`e^{-s/2\sigma^2}`; `from_gamma` takes scikit-learn's γ."""

    name = "gaussian"

    @classmethod
    def from_gamma(cls, gamma: float | Tensor) -> "Gaussian":
        r"""The kernel :math:`e^{-\gamma s}`."""
        check_positive(gamma, "gamma")
        return cls((2 * gamma) ** -0.5)

    def profile(self, s: Tensor, *parameters: Tensor) -> Tensor:
        return torch.exp(self.log_profile(s, *parameters))

    def log_profile(self, s: Tensor, *parameters: Tensor) -> Tensor:
        return s * (-0.5 / parameters[0].square())

    def profile_(self, s: Tensor, *parameters: Tensor) -> Tensor:
        return s.mul_(-0.5 / parameters[0].square()).exp_()


class Laplacian(RadialKernel):
    r""":math:`e^{-\|x-y\|_1/\sigma}`, scikit-learn's: of the 1-norm (that of the 2-norm is Matérn-1/2)."""

    name = "laplacian"
    metric = "manhattan"

    @property
    def temporaries(self) -> int:
        return 5

    def profile(self, s: Tensor, *parameters: Tensor) -> Tensor:
        return torch.exp(self.log_profile(s, *parameters))

    def log_profile(self, s: Tensor, *parameters: Tensor) -> Tensor:
        return -s / parameters[0]


class Cauchy(RadialKernel):
    r""":math:`1/(1+s/\sigma^2)`."""

    name = "cauchy"

    @property
    def temporaries(self) -> int:
        return 4

    def profile(self, s: Tensor, *parameters: Tensor) -> Tensor:
        return 1 / (1 + s / parameters[0].square())

    def log_profile(self, s: Tensor, *parameters: Tensor) -> Tensor:
        return -torch.log1p(s / parameters[0].square())


@dataclass(frozen=True, eq=False)
class Matern(RadialKernel):
    """Matérn kernel of smoothness `nu`, 0.5, 1.5 or 2.5: the processes are 0, 1 or 2 times differentiable."""

    nu: float = 1.5
    name = "matern"

    @property
    def temporaries(self) -> int:
        return 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nu not in (0.5, 1.5, 2.5):
            raise ValueError(
                f"`nu` must be 0.5, 1.5 or 2.5, got {self.nu!r}; infinitely smooth is the Gaussian kernel"
            )

    def profile(self, s: Tensor, *parameters: Tensor) -> Tensor:
        return matern_profile(s * (2 * self.nu / parameters[0].square()), int(self.nu))

    def log_profile(self, s: Tensor, *parameters: Tensor) -> Tensor:
        return log_matern_profile(s * (2 * self.nu / parameters[0].square()), int(self.nu))


@dataclass(frozen=True, eq=False)
class RationalQuadratic(RadialKernel):
    r""":math:`(1+s/2\alpha\sigma^2)^{-\alpha}`: a Gamma mixture of Gaussians; small `alpha`, heavy tails."""

    alpha: float | Tensor = 1.0
    name = "rational_quadratic"

    @property
    def temporaries(self) -> int:
        return 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self.alpha, "alpha")

    def parameters(self, like: Tensor) -> tuple[Tensor, ...]:
        return (_scalar(self.bandwidth, like), _scalar(self.alpha, like))

    def with_parameters(self, *parameters: Tensor) -> Self:
        return replace(self, bandwidth=parameters[0], alpha=parameters[1])

    def profile(self, s: Tensor, *parameters: Tensor) -> Tensor:
        return torch.exp(self.log_profile(s, *parameters))

    def log_profile(self, s: Tensor, *parameters: Tensor) -> Tensor:
        bandwidth, alpha = parameters
        return -alpha * torch.log1p(s / (2 * alpha * bandwidth.square()))


@dataclass(frozen=True, eq=False)
class MixtureOfGaussians(RadialKernel):
    r""":math:`\sum_q w_q e^{-s/2(\sigma\rho_q)^2}`, the multi-bandwidth kernel of MMD losses.

    Parameters
    ----------
    bandwidth : float or Tensor, default 1.0
        σ, common to all terms.
    ratios : sequence of float, default (1, 2, 4, 8, 16)
        ρ, the bandwidths relative to σ. If their squares are powers of two of each other, as they are in every
        published list, one exponential is evaluated and squared, up to eight times in all (further ones are evaluated
        again): the float32 error stays below 2e-5 of the sum of the weights, 4e-6 for the default ratios.
    weights : sequence of float, optional
        w, not negative, default all one (the published codes add kernels up).
    """

    ratios: Sequence[float] = (1.0, 2.0, 4.0, 8.0, 16.0)
    weights: Sequence[float] | None = None
    name = "mixture_of_gaussians"

    def __post_init__(self) -> None:
        super().__post_init__()
        ratios = tuple(check_positive(ratio, "ratios") for ratio in self.ratios)
        weights = (1.0,) * len(ratios) if self.weights is None else tuple(map(float, self.weights))
        usable = all(0 <= w < math.inf for w in weights) and sum(weights) > 0
        if not ratios or len(weights) != len(ratios) or not usable:
            raise ValueError(
                "`ratios` and `weights` must be of one length, weights not negative and not all zero;"
                f" got {ratios} and {weights}"
            )
        widest_first = sorted(zip(ratios, weights, strict=True), reverse=True)
        object.__setattr__(self, "ratios", tuple(ratio for ratio, _ in widest_first))
        object.__setattr__(self, "weights", tuple(weight for _, weight in widest_first))

    @property
    def temporaries(self) -> int:
        return 5

    @property
    def squarings(self) -> tuple[int, ...] | None:
        """How often to square each term, widest first, to get the next; None if that does not give the family.

        Each squaring doubles the relative error of the first exponential: more than eight in all are too many.
        """
        steps = [math.log2((a / b) ** 2) for a, b in zip(self.ratios, self.ratios[1:], strict=False)]
        powers = []
        for step in steps:
            if abs(step - round(step)) > 1e-9:
                return None
            powers.append(round(step))
        return tuple(powers) if sum(powers) <= _MOST_SQUARINGS else None

    def profile(self, s: Tensor, *parameters: Tensor) -> Tensor:
        weights, squarings = tuple(self.weights or ()), self.squarings
        if squarings is None:
            terms = [torch.exp(s * (-0.5 / (parameters[0] * ratio).square())) for ratio in self.ratios]
            return sum(
                (w * term for w, term in zip(weights[1:], terms[1:], strict=True)), weights[0] * terms[0]
            )
        term = torch.exp(s * (-0.5 / (parameters[0] * self.ratios[0]).square()))
        total = weights[0] * term
        for weight, times in zip(weights[1:], squarings, strict=True):
            for _ in range(times):
                term = term * term
            total = total + weight * term
        return total

    def log_profile(self, s: Tensor, *parameters: Tensor) -> Tensor:
        # The widest term is the largest wherever s is not small: what is left of the others cannot overflow.
        (widest, weight), *others = [
            (ratio, w) for ratio, w in zip(self.ratios, self.weights or (), strict=True) if w > 0
        ]
        rate = -0.5 / (parameters[0] * widest).square()
        total = torch.full_like(s, weight)
        for ratio, w in others:
            total = total + w * torch.exp(s * (rate * ((widest / ratio) ** 2 - 1)))
        return s * rate + torch.log(total)


class SquaredDistance(RadialKernel):
    """s itself: not a kernel, but every operation on pairs serves distances too."""

    name = "squared"

    def parameters(self, like: Tensor) -> tuple[Tensor, ...]:
        return ()

    def with_parameters(self, *parameters: Tensor) -> Self:
        return self

    def profile(self, s: Tensor, *parameters: Tensor) -> Tensor:
        return s


def _scalar(value: float | Tensor, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.to(like)
    limits = torch.finfo(like.dtype)
    if not math.sqrt(limits.tiny) <= value <= math.sqrt(limits.max):
        raise ValueError(
            f"the square of {value!r} does not fit {like.dtype}, the dtype of the rows: rescale them or use float64"
        )
    return like.new_full((), value)  # written on the device: nothing waits
