"""Gaussians: what they say of rows, what is drawn of them, what they take to store, and how they are fitted."""

import math
import pickle

import numpy as np
import pytest
import torch

from kernel_distill.solver.distributions import restore_distribution
from kernel_distill.solver.distributions.fit_gaussians import COVARIANCES, fit_gaussians
from kernel_distill.solver.distributions.gaussians import Gaussians, trapezoid
from kernel_distill.solver.encoder import Encoder
from kernel_distill.solver.feature_maps import make_feature_map
from kernel_distill.solver.learners.rows import TrainingRows
from kernel_distill.solver.ridge import RidgePath
from kernel_distill.solver.source import as_source
from kernel_distill.solver.statistics import Statistics
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import make_transform

from ..cases import relative

EPS = np.finfo(np.float64).eps
SHAPE = (1, 2, 3)
D = 6
SUMS = ("gram", "cross", "feature_sum", "target_sum", "target_square")


def made(ranks=(2, 0, 6), *, varied=True, dtype=torch.float64, seed=0):
    rng = np.random.default_rng(seed)
    m = len(ranks)
    return Gaussians(
        torch.from_numpy(rng.normal(size=(m, *SHAPE))).to(dtype),
        torch.arange(2.0, 2.0 + m),
        [trapezoid(torch.from_numpy(rng.normal(size=(D, r)))).to(dtype) for r in ranks],
        torch.from_numpy(rng.uniform(0, 1, (m, D))).to(dtype) if varied else None,
    )


def covariances(gaussians):
    """(m, d, d), NumPy."""
    found = torch.stack([root.double() @ root.double().T for root in gaussians.roots])
    if gaussians.variances is not None:
        found += torch.diag_embed(gaussians.variances.double())
    return found.numpy()


def equal(a, b):
    """Bit for bit."""
    assert a.parameters() == b.parameters()
    found, wanted = a.tensors(), b.tensors()
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype
        assert torch.equal(found[name], wanted[name])


def encoder_of(name="fourier", shape=SHAPE, **params):
    params = {"n_features": 20, "length_scale": 2.0, **params} if name == "fourier" else params
    return Encoder(make_transform("none", list, shape), make_feature_map(name, shape, params=params))


def in_rows(X, y, **options):
    source = as_source(X, y, None)
    coding = Targets.from_labels(y, "centred")
    transform = make_transform("none", lambda: [torch.from_numpy(X)], source.input_shape)
    return TrainingRows(source, transform, coding, seed=0, holdout=0.0, dtype=torch.float64, **options)


def classes_of(counts, d=D, seed=0, offset=0.0):
    """Rows of classes of different sizes, with correlated values."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(counts)), counts)
    X = rng.normal(size=(len(y), d)) @ rng.normal(size=(d, d)) + offset + y[:, None]
    order = rng.permutation(len(y))
    return X[order], y[order]


def fitted(
    X, y, covariance="full", rank=2, per_class=1, classes=None, seed=0, dtype=torch.float64, **options
):
    k = int(y.max()) + 1
    counts = [per_class] * k
    return fit_gaussians(
        in_rows(X, y, **options),
        counts,
        covariance,
        rank,
        seed,
        dtype,
        range(k) if classes is None else classes,
    )


# Statistics


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["fourier", "identity"])
def test_statistics_are_expected_sums(name, dtype):
    gaussians, encoder = made(dtype=dtype), encoder_of(name)
    y = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 2)))
    found = gaussians.statistics(encoder, Targets.from_values(2), y)
    n = 400_000
    draws = np.random.default_rng(2)
    wanted = Statistics(encoder.feature_map.n_features, 2)
    for mean, covariance, w, target in zip(
        gaussians.means.double().flatten(1).numpy(), covariances(gaussians), [2.0, 3.0, 4.0], y, strict=True
    ):
        X = torch.from_numpy(draws.multivariate_normal(mean, covariance, n))
        F = encoder.feature_map.features(X)
        wanted.add(F, target.expand(n, -1), torch.full((n,), w / n, dtype=torch.float64))
    assert (found.weight, found.count) == (9.0, 9)
    for sums in SUMS:
        # Relative errors of a mean of n terms of about their size; values squared have fourth moments, three times it.
        assert relative(getattr(found, sums), getattr(wanted, sums)) < 6 * 3 / math.sqrt(n), sums


def test_statistics_of_parts_add_up_and_know_their_encoder():
    gaussians, encoder, targets = made(), encoder_of(), Targets.from_values(2)
    y = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 2)))
    whole = gaussians.statistics(encoder, targets, y)
    parts = [
        Gaussians.restore(*one(gaussians, row)).statistics(encoder, targets, y[[row]]) for row in range(3)
    ]
    total = parts[0] + parts[1] + parts[2]
    assert (total.weight, total.count) == (whole.weight, whole.count)
    for sums in SUMS:
        assert relative(getattr(total, sums), getattr(whole, sums)) < 10 * EPS


def one(gaussians, row):
    """Parameters and tensors of one of the Gaussians."""
    part = Gaussians(
        gaussians.means[[row]],
        gaussians.weights[[row]],
        [gaussians.roots[row]],
        None if gaussians.variances is None else gaussians.variances[[row]],
    )
    return part.parameters(), part.tensors()


def test_maps_without_known_moments_leave_the_points_to_train_on():
    other = encoder_of("fcnn", widths=(4,))
    assert made().statistics(other, Targets.from_values(1), torch.zeros(3, 1)) is None


def test_the_model_of_gaussians_is_the_limit_of_that_of_samples():
    """The error of a model of n samples of each falls by 8 from n to 64 n."""
    gaussians, encoder, targets = made(), encoder_of(), Targets.from_values(2)
    y = torch.from_numpy(np.random.default_rng(1).normal(size=(3, 2)))
    wanted, _ = RidgePath.from_statistics(gaussians.statistics(encoder, targets, y)).weights(0.1)
    means, errors = gaussians.means.double().flatten(1).numpy(), []
    for n in (1000, 64_000):
        squares = []
        for seed in range(5):
            rng, sums = np.random.default_rng(seed), Statistics(20, 2)
            for row, covariance in enumerate(covariances(gaussians)):
                X = torch.from_numpy(rng.multivariate_normal(means[row], covariance, n))
                weight = torch.full((n,), float(gaussians.weights[row]) / n, dtype=torch.float64)
                sums.add(encoder.feature_map.features(X), y[row].expand(n, -1), weight)
            squares.append(relative(RidgePath.from_statistics(sums).weights(0.1)[0], wanted) ** 2)
        errors.append(math.sqrt(np.mean(squares)))
    assert errors[1] < 0.05
    assert 4 < errors[0] / errors[1] < 16


# Draws


@pytest.mark.parametrize("varied", [True, False])
def test_draws_have_the_means_and_covariances(varied):
    gaussians, n = made(varied=varied), 4000
    X = torch.stack([gaussians.draw(number, seed=3) for number in range(n)]).double().flatten(2).numpy()
    assert X.shape == (n, 3, D)
    wanted = covariances(gaussians)
    for row in range(3):
        scale = np.sqrt(np.diag(wanted[row])) + 1e-6  # float32
        error = (X[:, row].mean(0) - gaussians.means[row].flatten().numpy()) / scale
        assert np.abs(error).max() < 5 / math.sqrt(n)
        deviation = np.cov(X[:, row].T, bias=True) - wanted[row]
        assert np.abs(deviation / np.outer(scale, scale)).max() < 5 * math.sqrt(2 / n)
    # One Gaussian says nothing of another.
    assert abs(np.corrcoef(X[:, 0, 0], X[:, 2, 0])[0, 1]) < 5 / math.sqrt(n)


def test_draws_follow_from_seed_and_number_alone():
    gaussians = made()
    assert gaussians.draw(3, seed=1).dtype == torch.float32
    assert torch.equal(gaussians.draw(3, seed=1), gaussians.draw(3, seed=1))
    others = [gaussians.draw(3, seed=2), gaussians.draw(4, seed=1)]
    assert not any(torch.equal(gaussians.draw(3, seed=1), other) for other in others)


# Storage


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("varied", [True, False])
def test_every_stored_number_is_counted_and_comes_back(varied, dtype):
    gaussians = made(varied=varied, dtype=dtype)
    numbers = (2 * D - 1) + 0 + D * (D + 1) // 2 + (3 * D if varied else 0)
    size = dtype.itemsize
    assert gaussians.storage() == {"means": 3 * D * size, "weights": 24, "covariances": numbers * size}
    assert sum(gaussians.storage().values()) == sum(value.nbytes for value in gaussians.tensors().values())
    again = restore_distribution("gaussians", gaussians.parameters(), gaussians.tensors())
    equal(again, gaussians)
    assert again.input_shape == SHAPE
    assert torch.equal(again.points(), gaussians.means.double())
    np.testing.assert_array_equal(covariances(again), covariances(gaussians))


def test_joined_gaussians_are_those_that_they_were():
    a, b = made((2, 0)), made((6, 1, 3), seed=1)
    both = Gaussians.joined([a, b])
    assert len(both) == 5
    for row in range(5):
        part, at = (a, row) if row < 2 else (b, row - 2)
        equal(Gaussians.restore(*one(both, row)), Gaussians.restore(*one(part, at)))
    mixed = Gaussians.joined([a, made((1,), varied=False)])
    assert torch.equal(mixed.variances[2], torch.zeros(D, dtype=torch.float64))
    np.testing.assert_array_equal(covariances(mixed)[2], covariances(made((1,), varied=False))[0])
    wider = Gaussians.joined([a, made(dtype=torch.float32)])
    assert wider.means.dtype == wider.variances.dtype == wider.roots[-1].dtype == torch.float64


def test_a_turned_root_has_the_same_covariance():
    for columns in (0, 1, 4, 6, 9):
        root = torch.from_numpy(np.random.default_rng(columns).normal(size=(D, columns)))
        turned = trapezoid(root)
        assert turned.shape == (D, min(columns, D))
        assert not turned.triu(1).any()
        np.testing.assert_allclose(turned @ turned.T, root @ root.T, rtol=0, atol=100 * EPS)


def test_what_is_no_set_of_gaussians_is_refused():
    g = made()
    for wrong, message in [
        ((g.means.long(), g.weights, g.roots, g.variances), "float64 or float32"),
        ((g.means[:0], g.weights[:0], (), None), "at least one"),
        ((g.means, g.weights[:2], g.roots, g.variances), "`weights`"),
        ((g.means, -g.weights, g.roots, g.variances), "above 0"),
        ((g.means, g.weights, g.roots[:2], g.variances), "as many roots"),
        ((g.means, g.weights, (*g.roots[:2], g.roots[2][:4]), g.variances), "`roots`"),
        ((g.means, g.weights, (*g.roots[:2], g.roots[2].float()), g.variances), "`roots`"),
        ((g.means, g.weights, (*g.roots[:2], g.roots[2].T.contiguous()), g.variances), "trapezoid"),
        ((g.means, g.weights, (*g.roots[:2], torch.zeros(6, 7).double()), g.variances), "trapezoid"),
        ((g.means, g.weights, g.roots, g.variances[:2]), "`variances`"),
        ((g.means, g.weights, g.roots, -g.variances), "negative"),
        ((g.means * math.nan, g.weights, g.roots, g.variances), "NaN"),
        ((g.means, g.weights, g.roots, g.variances * math.inf), "infinity"),
    ]:
        with pytest.raises(ValueError, match=message):
            Gaussians(*wrong)
    with pytest.raises(ValueError, match="one shape"):
        Gaussians.joined([])
    with pytest.raises(ValueError, match="one shape"):
        Gaussians.joined([g, Gaussians(torch.zeros(1, 4), torch.ones(1), [torch.zeros(4, 0)])])


@pytest.mark.parametrize("ranks", [[2, 0], [2, 0, 7], [-1, 0, 6], [2, 1, 6]])
def test_a_damaged_file_is_refused(ranks):
    g = made()
    with pytest.raises(ValueError, match=r"damaged|as many roots"):
        restore_distribution("gaussians", {"ranks": ranks}, g.tensors())
    with pytest.raises(ValueError, match="damaged"):
        restore_distribution("gaussians", g.parameters(), {**g.tensors(), "roots": torch.zeros(3)})


# Fits


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
@pytest.mark.parametrize("counts", [(40, 25), (4, 1), (6, 7)], ids=str)
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_fits_have_the_moments_of_the_rows(covariance, counts, cache_bytes):
    X, y = classes_of(counts)
    found = fitted(X, y, covariance, rank=3, cache_bytes=cache_bytes)
    assert found.weights.tolist() == list(counts)
    for c in range(2):
        rows = X[y == c]
        mean, wanted = rows.mean(0), np.cov(rows.T, bias=True)
        S = covariances(found)[c]
        tolerance = 50 * EPS * max(np.abs(wanted).max(), 1)
        np.testing.assert_allclose(found.means[c], mean, rtol=0, atol=20 * EPS * np.abs(rows).max())
        np.testing.assert_allclose(np.diag(S), np.diag(wanted), rtol=0, atol=tolerance)
        if covariance == "full":
            np.testing.assert_allclose(S, wanted, rtol=0, atol=tolerance)
            # No more columns than the rows span about their mean.
            assert found.roots[c].shape[1] == min(D, counts[c] - 1)
        elif covariance == "diagonal":
            assert found.roots[c].shape[1] == 0
        else:
            values, vectors = np.linalg.eigh(wanted)
            axes = vectors[:, -3:] * np.sqrt(np.maximum(values[-3:], 0))
            root = found.roots[c].numpy()
            np.testing.assert_allclose(root @ root.T, axes @ axes.T, rtol=0, atol=1e4 * tolerance)
            assert root.shape[1] == min(3, counts[c] - 1)


def test_a_far_offset_costs_the_digits_of_the_offset_alone():
    X, y = classes_of((30, 30))
    far = fitted(X + 1e6, y)
    np.testing.assert_allclose(covariances(far), covariances(fitted(X, y)), rtol=0, atol=1e6 * 100 * EPS)


def test_pieces_of_rows_make_one_triangle():
    X, y = classes_of((500, 300))
    rows = in_rows(X, y)
    wanted = fit_gaussians(rows, [1, 1], "full", 1, 0, torch.float64, [0, 1])
    rows.chunk = 7
    found = fit_gaussians(rows, [1, 1], "full", 1, 0, torch.float64, [0, 1])
    np.testing.assert_allclose(found.means, wanted.means, rtol=0, atol=100 * EPS)
    np.testing.assert_allclose(covariances(found), covariances(wanted), rtol=1e-12, atol=1e-12)


def test_wide_rows_need_no_square_matrix():
    d = 5000  # d² float64 numbers are 200 MB
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(24, d)), np.arange(24) % 2
    found = fitted(X, y, "low-rank", rank=4)
    assert [root.shape for root in found.roots] == [(d, 4)] * 2
    rows = X[y == 1] - X[y == 1].mean(0)
    spectrum = np.linalg.svd(rows, compute_uv=False)[:4] / math.sqrt(12)
    np.testing.assert_allclose(np.linalg.svd(found.roots[1], compute_uv=False), spectrum, rtol=1e-12)
    total = found.variances[1].sum() + found.roots[1].square().sum()
    np.testing.assert_allclose(total, (rows**2).sum() / 12, rtol=1e-13)


@pytest.mark.parametrize("covariance", ["full", "low-rank"])
def test_values_that_do_not_vary_and_equal_rows_have_no_extent(covariance):
    X, y = classes_of((20, 3))
    X[:, 2] = 7.0
    X[y == 1] = X[y == 1][0]
    found = fitted(X, y, covariance, rank=2)
    S = covariances(found)
    assert found.roots[1].shape[1] == 0
    assert np.abs(S[1]).max() < EPS
    assert np.abs(S[0][2]).max() < 1e3 * EPS
    np.testing.assert_allclose(S[0][2, 2], 0, atol=1e-25)


@pytest.mark.parametrize("per_class", [2, 3])
def test_clusters_of_a_class_have_its_moments_together(per_class):
    X, y = classes_of((60, 40))
    found = fitted(X, y, per_class=per_class)
    assert len(found) == 2 * per_class
    means, S = found.means.numpy(), covariances(found)
    for c in range(2):
        mine = slice(c * per_class, (c + 1) * per_class)
        w = found.weights[mine].numpy()
        assert (w.sum(), w.min() >= 1) == ([60, 40][c], True)
        second = sum(
            n * (s + np.outer(mean, mean)) for n, s, mean in zip(w, S[mine], means[mine], strict=True)
        )
        rows = X[y == c]
        assert relative(second, rows.T @ rows) < 100 * EPS


def test_clusters_are_where_the_rows_are():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0], [50, 0], [0, 50], [50, 50]])
    X = np.concatenate([centre + rng.normal(size=(30, 2)) for centre in centres])
    found = fitted(X, np.repeat([0, 1], 60), per_class=2)
    assert found.weights.tolist() == [30] * 4
    order = [*found.means[:2, 0].argsort().tolist(), *(2 + found.means[2:, 0].argsort()).tolist()]
    np.testing.assert_allclose(found.means[order], centres, atol=1)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_blocks_of_classes_are_fitted_alike_wherever(covariance):
    X, y = classes_of((20, 30, 5, 12))
    whole = fitted(X, y, covariance, per_class=2)
    blocks = [fitted(X, y, covariance, per_class=2, classes=block) for block in ([0], [1, 2], [3])]
    equal(Gaussians.joined(pickle.loads(pickle.dumps(blocks))), whole)
    rounded = fitted(X, y, covariance, per_class=2, dtype=torch.float32)
    assert rounded.means.dtype == torch.float32
    assert torch.equal(rounded.means, whole.means.float())


def test_classes_of_too_few_rows_are_refused():
    X, y = classes_of((5, 2))
    with pytest.raises(ValueError, match="class 1 has 2 training rows, 3 Gaussians need"):
        fitted(X, y, per_class=3)
    X[y == 0] = 1.0
    with pytest.raises(ValueError, match="class 0 cannot have 2 Gaussians"):
        fitted(X, y, per_class=2)
    with pytest.raises(ValueError, match="unknown covariance 'ful'"):
        fitted(X, y, "ful")
    with pytest.raises(ValueError, match="`rank`"):
        fitted(X, y, "low-rank", rank=0)
