"""The kernels as data: formulas, parameters, the ladder of exponentials, what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from sklearn.gaussian_process import kernels as sklearn_kernels
from sklearn.metrics.pairwise import laplacian_kernel, rbf_kernel

from kernel_distill.kernels.kernel_matrix import kernel_matrix
from kernel_distill.kernels.radial import (
    Cauchy,
    Gaussian,
    Laplacian,
    Matern,
    MixtureOfGaussians,
    RationalQuadratic,
)

from .radial_cases import KERNELS, normals

distances = st.floats(0, 1e4)
bandwidths = st.floats(0.05, 50)


@pytest.mark.parametrize("case", KERNELS)
@given(s=distances, bandwidth=bandwidths)
def test_profiles(case, s, bandwidth):
    """Value, logarithm and the in-place form agree with the formula (s plays both distances)."""
    kernel = case.make(bandwidth)
    s = torch.tensor([s], dtype=torch.float64)
    parameters = kernel.parameters(s)
    wanted = float(case.formula(s.numpy(), s.numpy(), bandwidth)[0])
    # An exponent of size E is right to E eps, and so is the exponential.
    exponent = 1 + abs(math.log(wanted)) if wanted > 0 else 800
    close = dict(rel=20 * exponent * np.finfo(float).eps * 64, abs=1e-300)
    assert float(kernel.profile(s, *parameters)[0]) == pytest.approx(wanted, **close)
    assert float(kernel.profile_(s.clone(), *parameters)[0]) == pytest.approx(wanted, **close)
    log = float(kernel.log_profile(s, *parameters)[0])
    assert math.isfinite(log)
    if wanted > 1e-300:
        assert log == pytest.approx(math.log(wanted), rel=1e-9, abs=1e-12)


def test_as_scikit_learn():
    X, Y = normals(6, 4), normals(5, 4, seed=1)
    for ours, theirs in (
        (Gaussian.from_gamma(0.3), rbf_kernel(X, Y, 0.3)),
        (Laplacian(1 / 0.3), laplacian_kernel(X, Y, 0.3)),
        (Matern(1.7, 0.5), sklearn_kernels.Matern(1.7, nu=0.5)(X, Y)),
        (Matern(1.7, 1.5), sklearn_kernels.Matern(1.7, nu=1.5)(X, Y)),
        (Matern(1.7, 2.5), sklearn_kernels.Matern(1.7, nu=2.5)(X, Y)),
        (RationalQuadratic(1.7, 0.4), sklearn_kernels.RationalQuadratic(1.7, 0.4)(X, Y)),
    ):
        np.testing.assert_allclose(kernel_matrix(ours, X, Y).numpy(), theirs, rtol=1e-12)


def test_relatives():
    """Cauchy is rational quadratic, rational quadratic of large alpha Gaussian, a mixture of one Gaussian."""
    X = normals(6, 4)
    one = kernel_matrix(Cauchy(1.5), X)
    torch.testing.assert_close(one, kernel_matrix(RationalQuadratic(1.5 / math.sqrt(2), 1.0), X))
    gaussian = kernel_matrix(Gaussian(1.5), X)
    torch.testing.assert_close(gaussian, kernel_matrix(RationalQuadratic(1.5, 1e8), X), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gaussian, kernel_matrix(MixtureOfGaussians(0.5, (3.0,)), X))


@pytest.mark.parametrize(
    ("ratios", "squarings"),
    [
        ((1, 2, 4, 8, 16), (2, 2, 2, 2)),
        ((1, 2**0.5, 2, 2**1.5, 4), (1, 1, 1, 1)),  # the copied snippet: 2 sigma^2 doubles
        ((16, 1, 4), (4, 4)),
        ((1, 1), (0,)),
        ((3.0,), ()),
        ((1, 16), (8,)),
        ((1, 32), None),  # ten squarings would lose ten bits
        ((1, 3), None),
        ((1, 1.5, 2), None),
    ],
)
def test_ladder_of_exponentials(ratios, squarings):
    mixture = MixtureOfGaussians(1.0, ratios)
    assert mixture.squarings == squarings
    s = torch.linspace(0, 6000, 4001, dtype=torch.float32)
    exact = sum(torch.exp(-s.double() / (2 * ratio**2)) for ratio in ratios)
    found = mixture.profile(s, *mixture.parameters(s)).double()
    # Squaring doubles relative errors: the e^(2^j) of the ladder is off by 2^j of the first's half ulp and exponent.
    assert ((found - exact).abs() / exact.clamp(min=1e-30))[exact > 1e-20].max() < 1.2e-5


def test_weights():
    X = normals(5, 3)
    mixture = MixtureOfGaussians(1.0, (2, 1), weights=(0.0, 3.0))
    torch.testing.assert_close(kernel_matrix(mixture, X), 3 * kernel_matrix(Gaussian(1.0), X))
    s = torch.zeros(1)
    assert mixture.log_profile(s, *mixture.parameters(s)) == pytest.approx(math.log(3))


def test_gamma_may_be_learned():
    gamma = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(kernel_matrix(Gaussian.from_gamma(gamma), normals(2, 1))[0, 1], gamma)
    s = float(np.square(np.diff(normals(2, 1), axis=0)).sum())
    assert float(found) == pytest.approx(-s * math.exp(-0.3 * s))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(0), "`bandwidth` must be positive and finite, got 0.0"),
        (lambda: Gaussian(float("nan")), "`bandwidth` must be positive"),
        (lambda: Cauchy(torch.tensor(-1.0)), "`bandwidth` must be positive"),
        (lambda: Gaussian(torch.ones(2)), "0-d tensor, got shape \\(2,\\)"),
        (lambda: Gaussian.from_gamma(-1), "`gamma` must be positive"),
        (lambda: Matern(1.0, 3.5), "`nu` must be 0.5, 1.5 or 2.5"),
        (lambda: RationalQuadratic(1.0, 0), "`alpha` must be positive"),
        (lambda: MixtureOfGaussians(1.0, ()), "must be of one length"),
        (lambda: MixtureOfGaussians(1.0, (1, 2), (1,)), "must be of one length"),
        (lambda: MixtureOfGaussians(1.0, (1, 2), (1, -1)), "not negative"),
        (lambda: MixtureOfGaussians(1.0, (1, -2)), "`ratios` must be positive"),
    ],
)
def test_bad_numbers(make, message):
    with pytest.raises(ValueError, match=message):
        make()
