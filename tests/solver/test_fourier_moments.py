"""Moments over Gaussians: against quadrature, samples, and the formula pair by pair."""

import math

import numpy as np
import pytest
import torch

from kernel_distill.kernels import mirror_upper_
from kernel_distill.solver.distributions.fourier_moments import add_moments_, has_moments
from kernel_distill.solver.feature_maps import make_feature_map

EPS = np.finfo(np.float64).eps
VARIANTS = ("plain", "orthogonal", "paired")
SHAPES = {  # columns of the root, variances or none, size of the covariance
    "point": (0, False, 0.0),
    "diagonal": (0, True, 1.0),
    "low-rank": (2, False, 1.0),
    "both": (2, True, 1.0),
    "full": (5, False, 1.0),
    "narrow": (5, True, 1e-6),
    "wide": (5, True, 1e3),
}


def fourier(variant, d=5, p=12, scale=2.0, seed=0):
    params = {"n_features": p, "length_scale": scale, "variant": variant}
    return make_feature_map("fourier", (d,), seed=seed, params=params)


def gaussian(rank, varied, size, d=5, seed=0):
    """Mean, root, variances (or None) and covariance, torch and NumPy."""
    rng = np.random.default_rng(seed)
    mean, root = rng.normal(size=d), math.sqrt(size) * rng.normal(size=(d, rank))
    v = size * rng.uniform(0, 2, d) if varied else np.zeros(d)
    tensors = [torch.from_numpy(mean), torch.from_numpy(root), torch.from_numpy(v) if varied else None]
    return tensors, mean, root @ root.T + np.diag(v)


def moments(feature_map, mean, root, variances, weight=1.0):
    p = feature_map.n_features
    gram = torch.zeros(p, p, dtype=torch.float64)
    expected = add_moments_(gram, feature_map, mean, root, variances, weight)
    return expected.numpy(), mirror_upper_(gram).numpy()


def brute_force(feature_map, mean, covariance):
    """The formulas of the paper, every pair with its own cosines; sines are cosines a quarter turn later."""
    A, b = feature_map.frequencies.numpy(), feature_map.phases.numpy()
    if feature_map.variant == "paired":
        A, b = np.concatenate([A, A]), np.concatenate([b, b - math.pi / 2])
    p = feature_map.n_features
    gram = np.empty((p, p))
    expected = np.empty(p)
    for i in range(p):
        expected[i] = (
            math.sqrt(2 / p) * math.exp(-A[i] @ covariance @ A[i] / 2) * math.cos(A[i] @ mean + b[i])
        )
        for j in range(p):
            gram[i, j] = sum(
                math.exp(-(A[i] + sign * A[j]) @ covariance @ (A[i] + sign * A[j]) / 2)
                * math.cos((A[i] + sign * A[j]) @ mean + b[i] + sign * b[j])
                for sign in (-1, 1)
            )
    return expected, gram / p


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_moments_are_those_of_the_formula(variant, shape):
    feature_map = fourier(variant)
    given, mean, covariance = gaussian(*SHAPES[shape])
    expected, gram = moments(feature_map, *given)
    wanted, wanted_gram = brute_force(feature_map, mean, covariance)
    # Exponents are sums of products of frequencies, and as large as their last digits allow.
    exponent = float((feature_map.frequencies.numpy() ** 2).sum(1).max()) * np.linalg.norm(covariance, 2)
    tolerance = 20 * EPS * (10 + exponent) * 2 / feature_map.n_features
    np.testing.assert_allclose(gram, wanted_gram, rtol=0, atol=tolerance)
    np.testing.assert_allclose(expected, wanted, rtol=0, atol=tolerance * feature_map.n_features)


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("variant", ["plain", "paired"])
def test_moments_are_the_integrals(variant, d):
    feature_map = fourier(variant, d=d, p=8, scale=1.0)
    (mean, root, variances), *_ = gaussian(d, True, 0.5, d=d)
    _, gram = moments(feature_map, mean, root, variances)
    expected, _ = moments(feature_map, mean, root, variances)
    covariance = root @ root.T + torch.diag(variances)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    grid = np.stack([axis.ravel() for axis in np.meshgrid(*[nodes] * d)], axis=1)
    weight = (
        np.prod([axis.ravel() for axis in np.meshgrid(*[weights] * d)], axis=0) / math.sqrt(2 * math.pi) ** d
    )
    points = mean + torch.from_numpy(grid) @ torch.linalg.cholesky(covariance).T
    F = feature_map.features(points).numpy()
    np.testing.assert_allclose(expected, weight @ F, rtol=0, atol=1e-13)
    np.testing.assert_allclose(gram, (F * weight[:, None]).T @ F, rtol=0, atol=1e-13)


@pytest.mark.parametrize("variant", VARIANTS)
def test_moments_are_those_of_many_samples(variant):
    feature_map = fourier(variant)
    given, mean, covariance = gaussian(*SHAPES["both"])
    expected, gram = moments(feature_map, *given)
    n = 200_000
    X = np.random.default_rng(1).multivariate_normal(mean, covariance, n)
    F = feature_map.features(torch.from_numpy(X)).numpy()
    # No product exceeds s²: six of its standard errors at most.
    s2 = 2 / feature_map.n_features
    np.testing.assert_allclose(F.T @ F / n, gram, rtol=0, atol=6 * s2 / math.sqrt(n))
    np.testing.assert_allclose(F.mean(0), expected, rtol=0, atol=6 * math.sqrt(s2 / n))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gaussian_without_extent_is_its_point(variant):
    feature_map = fourier(variant)
    (mean, root, _), *_ = gaussian(0, False, 0.0)
    expected, gram = moments(feature_map, mean, root, torch.zeros(5, dtype=torch.float64))
    F = feature_map.features(mean[None])[0].numpy()
    np.testing.assert_allclose(expected, F, rtol=0, atol=10 * EPS)
    np.testing.assert_allclose(gram, np.outer(F, F), rtol=0, atol=10 * EPS)


@pytest.mark.parametrize("size", [1e-8, 1.0, 1e4, 1e200])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gram_matrices_and_covariances_of_features_are_positive(variant, size):
    feature_map = fourier(variant, p=30)
    given, *_ = gaussian(3, True, size)
    expected, gram = moments(feature_map, *given)
    assert np.isfinite(gram).all()
    np.testing.assert_array_equal(gram, gram.T)
    slack = -1e-14 * np.trace(gram) * (1 + min(size, 1e4) / 100)
    assert np.linalg.eigvalsh(gram)[0] > slack
    assert np.linalg.eigvalsh(gram - np.outer(expected, expected))[0] > slack
    if size > 1e100:  # phases are uniform: cosines are uncorrelated and their squares one half
        np.testing.assert_allclose(gram, np.eye(30) / 30, rtol=0, atol=EPS)
        np.testing.assert_allclose(expected, 0, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_equal_and_opposite_frequencies_overflow_nowhere(seed):
    feature_map = fourier("plain", p=6, seed=seed)
    A = feature_map.frequencies
    A[1], A[2], A[3], A[4] = A[0], -A[0], A[5], -A[5]
    given, *_ = gaussian(3, True, 1e200, seed=seed)
    expected, gram = moments(feature_map, *given)
    assert np.abs(gram).max() <= 2 / 6
    np.testing.assert_array_equal(expected, 0)


def test_paired_features_have_norm_one_whatever_the_gaussian():
    given, *_ = gaussian(*SHAPES["both"])
    _, gram = moments(fourier("paired", p=40), *given)
    assert abs(np.trace(gram) - 1) < 40 * EPS


@pytest.mark.parametrize(("variant", "p"), [("plain", 1), ("plain", 600), ("paired", 2), ("paired", 1100)])
def test_panels_fit_together_and_sums_add_up(variant, p):
    feature_map = fourier(variant, d=3, p=p)
    gram = torch.full((p, p), 2.0, dtype=torch.float64)
    wanted = np.full((p, p), 2.0)
    for seed, weight in ((0, 0.5), (1, 3.0)):
        given, mean, covariance = gaussian(2, True, 1.0, d=3, seed=seed)
        add_moments_(gram, feature_map, *given, weight=weight)
        wanted += weight * by_rows(feature_map, mean, covariance)
    np.testing.assert_allclose(mirror_upper_(gram).numpy(), wanted, rtol=0, atol=100 * EPS)


def by_rows(feature_map, mean, covariance):
    """`brute_force` for many features."""
    A, b = feature_map.frequencies.numpy(), feature_map.phases.numpy()
    if feature_map.variant == "paired":
        A, b = np.concatenate([A, A]), np.concatenate([b, b - math.pi / 2])
    C, theta = A @ covariance @ A.T, A @ mean + b
    q = np.diag(C)
    total = sum(
        np.exp(-(q[:, None] + q + 2 * sign * C) / 2) * np.cos(theta[:, None] + sign * theta)
        for sign in (-1, 1)
    )
    return total / feature_map.n_features


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_models_need_the_first_two_moments(shape):
    feature_map = make_feature_map("identity", (5,))
    given, mean, covariance = gaussian(*SHAPES[shape])
    expected, gram = moments(feature_map, *given, weight=3.0)
    np.testing.assert_array_equal(expected, mean)
    np.testing.assert_allclose(gram, 3 * (covariance + np.outer(mean, mean)), rtol=1e-13)


def test_maps_without_known_moments_and_wrong_shapes_are_refused():
    (mean, root, variances), *_ = gaussian(2, True, 1.0)
    gram = torch.zeros(12, 12, dtype=torch.float64)
    other = make_feature_map("fcnn", (5,), params={"widths": (12,)})
    assert not has_moments(other)
    assert has_moments(fourier("paired"))
    with pytest.raises(ValueError, match="known for 'fourier' and 'identity'"):
        add_moments_(gram, other, mean, root, variances)
    for wrong in [
        (gram[:3], mean, root, variances),
        (gram, mean[:4], root, variances),
        (gram, mean, root[:4], variances),
        (gram, mean, root, variances[:4]),
    ]:
        with pytest.raises(ValueError, match="do not go with a map of 5 inputs to 12 features"):
            add_moments_(wrong[0], fourier("plain"), *wrong[1:])
