r"""Random frequencies of shift-invariant kernels, the same on every machine and device.

Bochner's theorem: a positive definite :math:`k(x - y)` with :math:`k(0) = 1` is the Fourier transform of a
probability density, from which the rows of A are drawn (Rahimi and Recht, NeurIPS 2007). With length scale
:math:`\ell`:

=============  =====================================  ==========================================
kernel         k(r)                                   rows of A (times :math:`1/\ell`)
=============  =====================================  ==========================================
gaussian       exp(-|r|² / 2 ℓ²)                      standard normal
laplacian      exp(-|r|₁ / ℓ)                         independent standard Cauchy entries
cauchy         ∏ⱼ 1 / (1 + rⱼ² / ℓ²)                  independent standard Laplace entries
matern-ν       Matérn of order ν = 1/2, 3/2, 5/2      multivariate t with 2ν degrees of freedom
=============  =====================================  ==========================================

*Orthogonal* frequencies (Yu et al., NeurIPS 2016) draw directions without replacement, from Haar-random frames,
and keep the lengths of independent draws; the variance of the features falls and nothing is biased.
"""

import math

import torch
from torch import Tensor

from ._check import check_option
from .random import normal, uniform

_MATERN = {"matern-1/2": 1, "matern-3/2": 3, "matern-5/2": 5}  # degrees of freedom 2 nu
FOURIER_KERNELS = ("gaussian", "laplacian", "cauchy", *_MATERN)
FOURIER_VARIANTS = ("plain", "orthogonal", "paired")


def fourier_frequencies(
    kernel: str, d: int, p: int, *, length_scale: float = 1.0, seed: int = 0, variant: str = "plain"
) -> tuple[Tensor, Tensor | None]:
    r"""Frequencies A and phases b of p random Fourier features of inputs of d values.

    Parameters
    ----------
    kernel : {"gaussian", "laplacian", "cauchy", "matern-1/2", "matern-3/2", "matern-5/2"}
        See the table above.
    d, p : int
        Sizes of an input and of its features.
    length_scale : float, default 1.0
        ℓ in the table, in units of the inputs.
    seed : int, default 0
        Defines everything drawn.
    variant : {"plain", "orthogonal", "paired"}, default "plain"
        "orthogonal" needs a rotation-invariant kernel (Gaussian or Matérn). "paired" is for features that put
        the cos and the sin of p/2 frequencies beside each other, so p must be even.

    Returns
    -------
    frequencies : Tensor, shape (p, d) or, when paired, (p/2, d)
        Radians per unit of input. Float64 on the CPU with values that float32 holds exactly, so that ``A.to(X)``
        is the same map in float32 and float64 and on any device.
    phases : Tensor, shape (p,), or None when paired
        Uniform in [0, 2π) radians.

    Raises
    ------
    ValueError
        For unknown names, a length scale that is not positive, an odd p with "paired".

    Notes
    -----
    p d draws by counter (`kernels.random`); "orthogonal" adds QR decompositions of ⌈p/d⌉ frames, d³
    multiplications each, whose last digits depend on the LAPACK (rounding to float32 hides all but a few of them).
    """
    check_option(kernel, FOURIER_KERNELS, "kernel")
    check_option(variant, FOURIER_VARIANTS, "variant")
    if not 0 < length_scale < math.inf:
        raise ValueError(f"`length_scale` must be positive and finite, got {length_scale!r}")
    if variant == "orthogonal" and kernel in ("laplacian", "cauchy"):
        raise ValueError(
            f"orthogonal features need a rotation-invariant kernel (gaussian, matern-*), got {kernel!r}"
        )
    if d < 1 or p < 1:
        raise ValueError(f"`d` and `p` must be positive, got {d} and {p}")
    if variant == "paired" and p % 2:
        raise ValueError(f"paired features come as cos and sin: their number must be even, got {p}")
    rows = p // 2 if variant == "paired" else p
    frequencies = _unit_frequencies(kernel, rows, d, seed, variant == "orthogonal") / length_scale
    if variant == "paired":
        return frequencies.float().double(), None
    phases = 2 * math.pi * uniform(seed, "fourier.phase", rows)
    return frequencies.float().double(), phases.float().double()


def _unit_frequencies(kernel: str, rows: int, d: int, seed: int, orthogonal: bool) -> Tensor:
    """Rows of A at length scale 1, float64."""
    if kernel in ("laplacian", "cauchy"):
        u = uniform(seed, "fourier.frequency", (rows, d))
        if kernel == "laplacian":
            return torch.tan(math.pi * (u - 0.5))
        return -torch.sign(u - 0.5) * torch.log1p(-2 * (u - 0.5).abs())
    A = _frames(rows, d, seed) if orthogonal else normal(seed, "fourier.frequency", (rows, d))
    if kernel in _MATERN:
        dof = _MATERN[kernel]
        chi2 = normal(seed, "fourier.chi2", (rows, dof)).square().sum(dim=1, keepdim=True)
        A = A * torch.sqrt(dof / chi2)
    return A


def _frames(rows: int, d: int, seed: int) -> Tensor:
    """Frames of d orthonormal rows each, with the lengths of independent Gaussian vectors."""
    frames = []
    for block in range(math.ceil(rows / d)):
        Q, R = torch.linalg.qr(normal(seed, f"fourier.frame.{block}", (d, d)))
        frames.append(Q * torch.sign(torch.diagonal(R)))  # Haar: the QR with a positive diagonal
    lengths = normal(seed, "fourier.length", (rows, d)).norm(dim=1, keepdim=True)
    return torch.cat(frames)[:rows] * lengths
