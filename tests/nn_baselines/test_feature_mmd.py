"""Squared MMD of classes: what it is, its gradient in pieces, and the distance that kernels are measured by."""

import math

import numpy as np
import pytest
import torch

from kernel_distill.kernels import Gaussian, MixtureOfGaussians, median_bandwidth
from kernel_distill.kernels.radial import SquaredDistance
from kernel_distill.nn_baselines.feature_mmd import class_distance, feature_mmd
from kernel_distill.solver.learners.class_pieces import class_pieces

WIDTHS = (1.0, 2.0, 4.0, 8.0, 16.0)
PUBLISHED = MixtureOfGaussians(1.0, WIDTHS)


def published(x, y, biased=False):
    """The squared MMD of two samples by the published formulas, the biased one with its sizes right."""
    z = torch.cat([x, y])
    s = (z[:, None] - z[None]).square().sum(-1)
    K = sum(torch.exp(-s / (2 * sigma**2)) for sigma in WIDTHS)
    n, m = len(x), len(y)
    xx, yy, xy = K[:n, :n], K[n:, n:], K[:n, n:]
    if biased:
        return xx.mean() + yy.mean() - 2 * xy.mean()
    return (
        (xx.sum() - xx.trace()) / (n * (n - 1))
        + (yy.sum() - yy.trace()) / (m * (m - 1))
        - 2 * xy.sum() / (n * m)
    )


def found(x, y, biased=False, kernel=PUBLISHED):
    """The same by `feature_mmd`, as one class."""
    one = [torch.zeros(len(rows), dtype=torch.int64) for rows in (x, y)]
    return feature_mmd(lambda X: X, x, class_pieces(one[0], None), y, one[1], kernel, biased=biased)


def samples(n, m, d=3, seed=0, spread=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(n, d)))
    return x.requires_grad_(), torch.from_numpy(shift + spread * rng.normal(size=(m, d)))


# --- What it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("n", "m", "d"), [(2, 2, 1), (7, 5, 3), (40, 60, 10)])
def test_it_is_the_published_sum_of_five_kernels(n, m, d, biased):
    x, y = samples(n, m, d, spread=2.0)
    value, wanted = found(x, y, biased), published(x, y, biased)
    assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-10, abs=1e-12)
    a, b = (torch.autograd.grad(loss, x)[0] for loss in (value, wanted))
    assert float((a - b).norm()) <= 1e-10 * float(b.norm())


@pytest.mark.parametrize("biased", [False, True])
def test_the_order_of_a_sample_does_not_matter(biased):
    x, y = samples(9, 6)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    assert float(found(x[order], y.flip(0), biased).detach()) == pytest.approx(
        float(found(x, y, biased).detach()), rel=1e-12
    )


def test_the_biased_one_is_a_squared_distance_and_the_unbiased_one_may_be_negative():
    for seed in range(20):
        x, y = samples(8, 5, seed=seed)
        assert float(found(x, y, biased=True).detach()) > 0
    x, _ = samples(12, 2)
    same = x.detach().clone()
    assert float(found(x, same, biased=True).detach()) == 0.0
    assert abs(float(found(x, same.flip(0), biased=True).detach())) < 1e-14
    assert float(found(x, same).detach()) < -0.01


def test_a_change_of_variance_is_seen_by_gaussians_and_not_by_means():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(20, 4))
    x = torch.from_numpy(np.concatenate([half, -half])).requires_grad_()
    y = 2 * x.detach()
    # -|x - y|^2 / 2 gives the squared distance of the means, which are both zero.
    assert abs(float(found(x, y, True, SquaredDistance()).detach())) < 1e-12
    assert float(found(x, y, True).detach()) > 0.1


def test_its_mean_over_draws_is_that_of_the_populations():
    d, n, m, spread, shift, sigma = 3, 6, 9, 1.7, 0.4, 1.5

    def mean_kernel(variance, offset):
        """E k of a difference with N(offset, variance I): a Gaussian integral."""
        wide = sigma**2 + variance
        return (sigma**2 / wide) ** (d / 2) * math.exp(-d * offset**2 / (2 * wide))

    wanted = mean_kernel(2, 0) + mean_kernel(2 * spread**2, 0) - 2 * mean_kernel(1 + spread**2, shift)
    draws = [
        float(found(*samples(n, m, d, seed, spread, shift), kernel=Gaussian(sigma)).detach())
        for seed in range(400)
    ]
    # Five standard errors.
    assert abs(np.mean(draws) - wanted) <= 5 * np.std(draws) / math.sqrt(len(draws))
    assert wanted > 10 * np.std(draws) / math.sqrt(len(draws))


# --- Classes -------------------------------------------------------------------------------------------------


def class_problem(dtype=torch.float64):
    """Images of classes 0, 2 and 3 in no order, rows of them of other sizes, and a function of images."""
    classes = torch.tensor([3, 0, 2, 0, 3, 2, 0, 3])
    of_rows = torch.tensor([0, 0, 2, 2, 2, 3, 3])
    generator = torch.Generator().manual_seed(0)
    images, rows = (torch.randn(n, 1, 3, 3, generator=generator, dtype=dtype) for n in (8, 7))
    weight = torch.randn(9, 4, generator=generator, dtype=dtype)

    def features(X):
        return (X.flatten(1) @ weight).tanh()

    return images.requires_grad_(), classes, features(rows), of_rows, features


@pytest.mark.parametrize("most", [None, 1, 3, 5])
@pytest.mark.parametrize("biased", [False, True])
def test_classes_are_added_up_in_any_pieces(most, biased):
    images, classes, real, of_rows, features = class_problem()
    value = feature_mmd(
        features, images, class_pieces(classes, most), real, of_rows, PUBLISHED, biased=biased
    )
    wanted = sum(
        published(features(images[classes == c]), real[of_rows == c], biased)
        for c in classes.unique().tolist()
    )
    assert value.dtype == torch.float64
    assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-10)
    a, b = (torch.autograd.grad(3 * loss, images)[0] for loss in (value, wanted))
    assert float((a - b).norm()) <= 1e-10 * float(b.norm())


def test_a_class_without_enough_rows_is_refused():
    images, classes, real, of_rows, features = class_problem()
    keep = torch.tensor([0, 2, 3, 4, 5, 6])
    pieces = class_pieces(classes, None)
    with pytest.raises(ValueError, match="unbiased estimate needs 2 rows"):
        feature_mmd(features, images, pieces, real[keep], of_rows[keep], PUBLISHED)


# --- The distance --------------------------------------------------------------------------------------------


def test_the_distance_is_that_of_pairs_of_one_class():
    F = torch.tensor([[0.0], [100.0], [3.0], [108.0], [-50.0], [1000.0], [1000.0]])
    classes = torch.tensor([0, 1, 0, 1, 2, 3, 3])
    # Of 3, 8 and 0; class 2 has no pair.
    assert float(class_distance(F, classes)) == 3.0


def test_no_row_is_in_two_pairs_and_odd_ones_are_left_out():
    F = torch.tensor([[0.0], [7.0], [2.0], [11.0], [1e6]])
    # 0 with 2 and 7 with 11.
    assert float(class_distance(F, torch.zeros(5, dtype=torch.int64))) == 2.0


def test_the_distance_is_about_the_median_of_all_pairs():
    F = torch.from_numpy(np.random.default_rng(0).normal(size=(400, 20)))
    classes = torch.arange(400) % 4
    offsets = 100.0 * classes[:, None].double()
    wanted = float(median_bandwidth(F))
    # The median of 200 pairs; distances in 20 dimensions vary by about a tenth.
    assert float(class_distance(F + offsets, classes)) == pytest.approx(wanted, rel=0.05)
