r"""Random Fourier features (Rahimi and Recht, NeurIPS 2007) of shift-invariant kernels.

:math:`\varphi(x) = \sqrt{2/p}\,\cos(A x + b)`, with the rows of A drawn from the kernel's spectral density
and b uniform, satisfies :math:`E\,\varphi(x)\cdot\varphi(y) = k(x - y)`. With length scale :math:`\ell`:

=============  =====================================  ==========================================
kernel         k(r)                                   rows of A (times :math:`1/\ell`)
=============  =====================================  ==========================================
gaussian       exp(-|r|² / 2 ℓ²)                      standard normal
laplacian      exp(-|r|₁ / ℓ)                         independent standard Cauchy entries
cauchy         ∏ⱼ 1 / (1 + rⱼ² / ℓ²)                  independent standard Laplace entries
matern-ν       Matérn of order ν = 1/2, 3/2, 5/2      multivariate t with 2ν degrees of freedom
=============  =====================================  ==========================================

*Orthogonal* features (Yu et al., NeurIPS 2016) draw directions without replacement, from Haar-random frames,
and keep the lengths of independent draws; the variance falls and nothing is biased. *Paired* features put
:math:`\cos` and :math:`\sin` of p/2 frequencies beside each other, so that :math:`\|\varphi(x)\| = 1` exactly.

**Preimage** (plain and orthogonal, p ≤ d): :math:`x = (A^\top)^{+}(\theta - b)` with
:math:`\cos\theta = \sqrt{p/2}\,\varphi`. Every branch :math:`\theta = 2\pi j \pm \arccos(\cdot)` gives the
same features; the branch nearest to the phases of a reference point keeps the preimage near that point.
Values beyond :math:`\sqrt{2/p}` have no preimage: callers scale features (and labels) into the bound first.
Paired features lie on a product of circles and have no preimage.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ...kernels import normal, uniform
from .._check import check_name
from .base import FeatureMap
from .linear_system import LinearSystem

_MATERN = {"matern-1/2": 1, "matern-3/2": 3, "matern-5/2": 5}  # degrees of freedom 2 nu
KERNELS = ("gaussian", "laplacian", "cauchy", *_MATERN)


class RandomFourier(FeatureMap):
    """Random Fourier features.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of one input; flattened to d values.
    n_features : int, optional
        p; default d, the most that keeps an exact preimage.
    length_scale : float
        ℓ in the table above, in units of the transformed inputs. `build` sets it from data.
    kernel : {"gaussian", "laplacian", "cauchy", "matern-1/2", "matern-3/2", "matern-5/2"}
    variant : {"plain", "orthogonal", "paired"}, default "plain"
        "orthogonal" needs a rotation-invariant kernel (Gaussian or Matérn); "paired" an even p.
    seed : int, default 0
        Defines A and b.

    Raises
    ------
    ValueError
        For unknown names, a length scale that is not positive, an odd p with "paired".

    Notes
    -----
    The published closed form (Chen et al. 2024, distill.py) is the plain Gaussian map with p = d and
    ℓ² = 1000 on channel-standardised images.
    """

    name: ClassVar[str] = "fourier"

    def __init__(
        self,
        input_shape: tuple[int, ...],
        n_features: int | None = None,
        *,
        length_scale: float,
        kernel: str = "gaussian",
        variant: str = "plain",
        seed: int = 0,
    ) -> None:
        d = math.prod(input_shape)
        super().__init__(input_shape, n_features=d if n_features is None else n_features)
        self.kernel = check_name(kernel, KERNELS, "kernel")
        self.variant = check_name(variant, ("plain", "orthogonal", "paired"), "variant")
        self.length_scale = float(length_scale)
        if not 0 < self.length_scale < math.inf:
            raise ValueError(f"`length_scale` must be positive and finite, got {length_scale!r}")
        if variant == "orthogonal" and kernel in ("laplacian", "cauchy"):
            raise ValueError(
                f"orthogonal features need a rotation-invariant kernel (gaussian, matern-*), got {kernel!r}"
            )
        if variant == "paired" and self.n_features % 2:
            raise ValueError(
                f"paired features come as cos and sin: `n_features` must be even, got {n_features}"
            )
        self.seed = seed
        self.feature_bound = None if variant == "paired" else math.sqrt(2 / self.n_features)
        rows = self.n_features // 2 if variant == "paired" else self.n_features
        self._frequencies = (self._draw(rows, d) / self.length_scale).float().double()
        self._phases = (2 * math.pi * uniform(seed, "fourier.phase", rows)).float().double()
        self._system = LinearSystem(self._frequencies)
        self._cast: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    @classmethod
    def build(cls, input_shape: tuple[int, ...], *, seed: int, sample: Tensor | None, **params: Any) -> Self:
        """Make the map; a missing length scale becomes the root mean squared distance between rows.

        That is ``sqrt(2 tr Cov)``; on standardised MNIST it gives ℓ² = 1.1e3, the published 1000 within 11 %.
        """
        if params.get("length_scale") is None:
            if sample is None:
                raise ValueError("`length_scale` is not set and there is no sample to set it from")
            spread = 2 * float(sample.double().flatten(1).var(dim=0, correction=0).sum())
            params["length_scale"] = math.sqrt(spread) if spread > 0 else 1.0
        return cls(input_shape, seed=seed, **params)

    @classmethod
    def needs_sample(cls, params: Mapping[str, Any]) -> bool:
        """Whether the length scale is left to be set from data."""
        return params.get("length_scale") is None

    @property
    def surjective(self) -> bool:
        """Onto the box of the feature bound, when p ≤ d and cos stands without its sin."""
        return self.variant != "paired" and self.n_features <= self.n_inputs

    def parameters(self) -> dict[str, Any]:
        """Everything but A and b, which the seed defines."""
        return {
            **super().parameters(),
            "n_features": self.n_features,
            "length_scale": self.length_scale,
            "kernel": self.kernel,
            "variant": self.variant,
            "seed": self.seed,
        }

    def _features(self, X: Tensor) -> Tensor:
        key = (X.dtype, X.device)
        if key not in self._cast:
            self._cast[key] = (self._frequencies.to(X), self._phases.to(X))
        frequencies, phases = self._cast[key]
        if self.variant == "paired":
            phase = X.flatten(1) @ frequencies.T
            return torch.cat([phase.cos(), phase.sin()], dim=1) * math.sqrt(2 / self.n_features)
        phase = torch.addmm(phases, X.flatten(1), frequencies.T)
        scale = math.sqrt(2 / self.n_features)
        return phase.cos() * scale if X.requires_grad else phase.cos_().mul_(scale)

    def _preimage(self, F: Tensor, near: Tensor | None) -> Tensor:
        values = F * math.sqrt(self.n_features / 2)
        excess = float(values.abs().max()) if values.numel() else 0.0
        if excess > 1 + 1e-12:
            raise ValueError(
                f"features reach {excess:.3g} times the bound of this map: scale them (and the labels) by"
                f" 1/{excess:.3g} first"
            )
        angles = torch.arccos(values.clamp(-1, 1))
        if near is None:
            return self._system.solve(angles - self._phases)
        reference = torch.addmm(self._phases, near.flatten(1), self._frequencies.T)
        turn = 2 * math.pi
        up = angles + turn * torch.round((reference - angles) / turn)
        down = -angles + turn * torch.round((reference + angles) / turn)
        nearest = torch.where((up - reference).abs() <= (down - reference).abs(), up, down)
        return self._system.solve(nearest - self._phases, near.flatten(1))

    def _draw(self, rows: int, d: int) -> Tensor:
        """Rows of A at length scale 1, float64."""
        if self.kernel in ("laplacian", "cauchy"):
            u = uniform(self.seed, "fourier.frequency", (rows, d))
            if self.kernel == "laplacian":
                return torch.tan(math.pi * (u - 0.5))
            return -torch.sign(u - 0.5) * torch.log1p(-2 * (u - 0.5).abs())
        if self.variant == "orthogonal":
            A = self._orthogonal(rows, d)
        else:
            A = normal(self.seed, "fourier.frequency", (rows, d))
        if self.kernel in _MATERN:
            dof = _MATERN[self.kernel]
            chi2 = normal(self.seed, "fourier.chi2", (rows, dof)).square().sum(dim=1, keepdim=True)
            A = A * torch.sqrt(dof / chi2)
        return A

    def _orthogonal(self, rows: int, d: int) -> Tensor:
        """Frames of d orthonormal rows each, with the lengths of independent Gaussian vectors."""
        frames = []
        for block in range(math.ceil(rows / d)):
            Q, R = torch.linalg.qr(normal(self.seed, f"fourier.frame.{block}", (d, d)))
            frames.append(Q * torch.sign(torch.diagonal(R)))  # Haar: the QR with a positive diagonal
        lengths = normal(self.seed, "fourier.length", (rows, d)).norm(dim=1, keepdim=True)
        return torch.cat(frames)[:rows] * lengths
