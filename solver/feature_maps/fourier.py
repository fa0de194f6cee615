r"""Random Fourier features (Rahimi and Recht, NeurIPS 2007) of shift-invariant kernels.

:math:`\varphi(x) = \sqrt{2/p}\,\cos(A x + b)`, with the rows of A drawn from the kernel's spectral density
and b uniform, satisfies :math:`E\,\varphi(x)\cdot\varphi(y) = k(x - y)`: see `kernels.frequencies` for the kernels,
their length scales, and *orthogonal* frequencies. *Paired* features put :math:`\cos` and :math:`\sin` of p/2
frequencies beside each other, so that :math:`\|\varphi(x)\| = 1` exactly.

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

from ...kernels.fourier import fourier_features
from ...kernels.frequencies import FOURIER_KERNELS, FOURIER_VARIANTS, fourier_frequencies
from .._check import check_name
from .base import FeatureMap
from .linear_system import LinearSystem


class RandomFourier(FeatureMap):
    """Random Fourier features.

    Parameters
    ----------
    input_shape : tuple of int
        Shape of one input; flattened to d values.
    n_features : int, optional
        p; default d, the most that keeps an exact preimage.
    length_scale : float
        ℓ of `kernels.frequencies`, in units of the transformed inputs. `build` sets it from data.
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
        self.kernel = check_name(kernel, FOURIER_KERNELS, "kernel")
        self.variant = check_name(variant, FOURIER_VARIANTS, "variant")
        self.length_scale = float(length_scale)
        self.seed = seed
        self._frequencies, phases = fourier_frequencies(
            kernel, d, self.n_features, length_scale=self.length_scale, seed=seed, variant=variant
        )
        self._phases = torch.zeros(len(self._frequencies), dtype=torch.float64) if phases is None else phases
        self.feature_bound = None if variant == "paired" else math.sqrt(2 / self.n_features)
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

    @property
    def frequencies(self) -> Tensor:
        """A, shape (p, d) or, when paired, (p/2, d), float64 on the CPU."""
        return self._frequencies

    @property
    def phases(self) -> Tensor:
        """b, one for each frequency; zero when paired."""
        return self._phases

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
        paired = self.variant == "paired"
        return fourier_features(X.flatten(1), frequencies, None if paired else phases, paired=paired)

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
