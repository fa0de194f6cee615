"""The kernels under test: what makes one, and its formula over all pairs in float64 NumPy, without a matrix product."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from kernel_distill.kernels.radial import (
    Cauchy,
    Gaussian,
    Laplacian,
    Matern,
    MixtureOfGaussians,
    RationalQuadratic,
)


@dataclass(frozen=True)
class KernelCase:
    name: str
    make: Any  # bandwidth -> kernel
    formula: Any  # (squared distances, 1-norm distances, bandwidth) -> values


def _mixture(*ratios):
    return lambda s, r1, b: sum(np.exp(-s / (2 * (b * ratio) ** 2)) for ratio in ratios)


CASES = [
    KernelCase("gaussian", Gaussian, lambda s, r1, b: np.exp(-s / (2 * b**2))),
    KernelCase("laplacian", Laplacian, lambda s, r1, b: np.exp(-r1 / b)),
    KernelCase("cauchy", Cauchy, lambda s, r1, b: 1 / (1 + s / b**2)),
    KernelCase("matern-1/2", lambda b: Matern(b, 0.5), lambda s, r1, b: np.exp(-np.sqrt(s) / b)),
    KernelCase(
        "matern-3/2",
        lambda b: Matern(b, 1.5),
        lambda s, r1, b: (1 + np.sqrt(3 * s) / b) * np.exp(-np.sqrt(3 * s) / b),
    ),
    KernelCase(
        "matern-5/2",
        lambda b: Matern(b, 2.5),
        lambda s, r1, b: (1 + np.sqrt(5 * s) / b + 5 * s / (3 * b**2)) * np.exp(-np.sqrt(5 * s) / b),
    ),
    KernelCase(
        "rational-quadratic",
        lambda b: RationalQuadratic(b, 0.7),
        lambda s, r1, b: (1 + s / (2 * 0.7 * b**2)) ** -0.7,
    ),
    KernelCase("mixture-ladder", lambda b: MixtureOfGaussians(b, (4.0, 1.0, 2.0)), _mixture(1, 2, 4)),
    KernelCase("mixture-free", lambda b: MixtureOfGaussians(b, (1.0, 1.7)), _mixture(1, 1.7)),
]
KERNELS = [pytest.param(case, id=case.name) for case in CASES]


def normals(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def oracle(case, X, Y, bandwidth):
    """The kernel matrix by direct differences, float64."""
    difference = np.asarray(X, np.float64)[:, None] - np.asarray(Y, np.float64)[None]
    return case.formula((difference**2).sum(-1), np.abs(difference).sum(-1), bandwidth)


def distance_rounding(X, Y, dtype):
    """How far squared distances of centred rows may lie from exact ones.

    (d + 6) eps (|x| + |y|)^2 for norms, product and sums (Higham, section 3.1), with norms after centring, which are
    at most those before and that of the mean; centring rounds each coordinate once more.
    """
    mean = np.linalg.norm(np.asarray(Y, np.float64).mean(0))
    norms = np.linalg.norm(X, axis=1)[:, None] + np.linalg.norm(Y, axis=1)[None] + 2 * mean
    return (X.shape[1] + 6) * np.finfo(dtype).eps * norms**2


def rounding(case, X, Y, bandwidth, dtype):
    """How far kernel values may lie from exact ones.

    Profiles that are smooth in s have slopes of at most 3/(2 b^2), summed over at most three terms; one in the root of
    s moves by at most the root of s's error over b, which a Matern-1/2 does near zero.
    """
    error = distance_rounding(X, Y, dtype) / bandwidth**2
    return 10 * np.finfo(dtype).eps + (np.sqrt(error) if case.name == "matern-1/2" else 5 * error)
