"""Coresets that are not drawn: each against the definition, tried out row by row."""

import warnings

import numpy as np
import pytest
import torch

from kernel_distill import kernels
from kernel_distill.solver.coresets import select
from kernel_distill.solver.coresets.k_means import k_means

from .test_coresets import KERNELS, clusters, gram


def greedy(n, m, cost):
    """The m rows that, one after another, make `cost` of a list of rows least; the first of equals."""
    chosen = []
    for _ in range(m):
        left = [i for i in range(n) if i not in chosen]
        chosen.append(min(left, key=lambda i: cost([*chosen, i])))
    return chosen


# --- Herding -------------------------------------------------------------------------------------------------


def distance_of_means(X):
    X = np.asarray(X, np.float64)
    return lambda rows: np.sum((X[rows].mean(0) - X.mean(0)) ** 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, 100.0])
@pytest.mark.parametrize("seed", range(3))
def test_herding_is_greedy_in_the_distance_of_means(seed, shift, dtype):
    X = clusters(40, seed=seed, dtype=dtype) + shift
    found = select(X, None, 15, "herding", seed=0)
    assert found.indices.tolist() == greedy(40, 15, distance_of_means(X))
    assert set(found.weights.tolist()) == {40 / 15}


def test_herding_takes_the_first_of_equals():
    """Whole numbers with a mean of zero, so that ties are exact: rows 1 and 4, then 2 and 3, ..."""
    X = torch.tensor([[8.0], [1.0], [-2.0], [-2.0], [1.0], [-8.0], [2.0]], dtype=torch.float64)
    assert float(X.mean()) == 0
    found = select(X, None, 7, "herding", seed=0).indices.tolist()
    assert found == greedy(7, 7, lambda rows: float(X[rows].sum()) ** 2)
    assert found[:2] == [1, 2]


def test_herding_beats_random_rows_and_the_published_argmax():
    """Ten rows: the argmax of a published library takes outliers, and is worse than random rows."""
    X = clusters(200)
    cost = distance_of_means(X)
    found = cost(select(X, None, 10, "herding", seed=0).indices.tolist())
    random = np.mean([cost(select(X, None, 10, "random", seed=s).indices.tolist()) for s in range(20)])
    worst = cost(greedy(200, 10, lambda rows: -cost(rows)))
    assert 100 * found < random < worst


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_herding_is_greedy_in_the_mean_discrepancy(kernel):
    X, sigma = clusters(36), 2.0
    K = gram(X, kernel, sigma)

    def mmd(rows):
        return K.mean() - 2 * K[rows].mean() + K[np.ix_(rows, rows)].mean()

    found = select(X, None, 12, "kernel-herding", seed=0, kernel=kernel, bandwidth=sigma)
    assert found.indices.tolist() == greedy(36, 12, mmd)
    assert set(found.weights.tolist()) == {3.0}
    assert found.inclusion_probabilities is None


def test_kernel_herding_takes_a_kernel_and_the_median():
    X = clusters(80)
    kernel = kernels.MixtureOfGaussians(1.0, ratios=(1.0, 2.0))
    K = gram(X, "gaussian", 1.0) + gram(X, "gaussian", 2.0)
    found = select(X, None, 6, "kernel-herding", seed=0, kernel=kernel).indices.tolist()
    assert found == greedy(80, 6, lambda rows: K[np.ix_(rows, rows)].mean() - 2 * K[rows].mean())
    median = select(X, None, 6, "kernel-herding", seed=0)
    scaled = select(1000 * X + 5, None, 6, "kernel-herding", seed=0)  # the median follows
    assert torch.equal(median.indices, scaled.indices)


def test_kernel_herding_beats_random_rows():
    X = clusters(200)
    kernel = kernels.Gaussian(2.0)

    def mmd(indices):
        return float(kernels.mmd2(X[indices], X, kernel, biased=True))

    found = mmd(select(X, None, 10, "kernel-herding", seed=0, bandwidth=2.0).indices)
    assert 3 * found < np.mean([mmd(select(X, None, 10, "random", seed=s).indices) for s in range(20)])


def test_kernel_herding_stores_no_matrix(monkeypatch):
    from kernel_distill.solver.coresets import herding

    widths = []

    def watched(kernel, X, Y, **options):
        widths.append(len(Y))
        return kernels.kernel_matrix(kernel, X, Y, **options)

    monkeypatch.setattr(herding, "kernel_matrix", watched)
    select(clusters(30), None, 5, "kernel-herding", seed=0)
    assert widths == [1] * 5


# --- K-center ------------------------------------------------------------------------------------------------


def nearest_counts(X, chosen):
    X = np.asarray(X, np.float64)
    nearest = ((X[:, None] - X[chosen][None]) ** 2).sum(-1).argmin(1)
    return np.bincount(nearest, minlength=len(chosen)).tolist()


def test_k_center_picks_the_farthest_and_counts_cells():
    X = clusters(60)
    found = select(X, None, 7, "k-center", seed=2)
    first = found.indices.tolist()[0]
    assert torch.equal(kernels.k_center_greedy(X, 7, first=first).indices, found.indices)
    assert found.weights.tolist() == nearest_counts(X, found.indices.tolist())


def test_equal_rows_weigh_nothing_after_the_first():
    X = torch.tensor([[0.0], [0.0], [5.0], [5.0], [5.0]], dtype=torch.float64)
    found = select(X, None, 4, "k-center", seed=0)
    weights = dict(zip(found.indices.tolist(), found.weights.tolist(), strict=True))
    assert sorted(weights.values()) == [0, 0, 2, 3]
    assert {float(X[i]) for i, weight in weights.items() if weight} == {0.0, 5.0}


# --- K-means -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 64])
def test_k_means_finds_the_middle_of_separate_clusters(batch_size):
    rng = np.random.default_rng(0)
    which = rng.permutation(np.repeat([0, 1, 2], [20, 30, 10]))
    X = torch.from_numpy(np.array([[0.0, 0], [50, 0], [0, 80]])[which] + rng.normal(size=(60, 2)))
    options = {} if batch_size is None else {"batch_size": batch_size}
    found = select(X, None, 3, "k-means", seed=0, **options)
    sizes = {}
    for row, weight in zip(found.indices.tolist(), found.weights.tolist(), strict=True):
        members = np.flatnonzero(which == which[row])
        if batch_size is None:
            # Centres are the means; their nearest row is the one of the cluster.
            distances = ((X[members] - X[members].mean(0)) ** 2).sum(1)
            assert row == members[int(distances.argmin())]
        sizes[int(which[row])] = weight
    assert sizes == {0: 20, 1: 30, 2: 10}


def test_k_means_lowers_the_cost_of_its_seeds():
    X = clusters(300)
    found = select(X, None, 12, "k-means", seed=1)
    own = int(kernels.random_bits(1, "coreset.k-means.0", 1)[0])
    seeds = kernels.k_means_plus_plus(X, 12, seed=own)

    def cost(rows):
        return float(((X[:, None] - X[rows][None]) ** 2).sum(-1).min(1).values.sum())

    assert cost(found.indices) < 0.9 * cost(seeds.indices)
    assert found.weights.tolist() == nearest_counts(X, found.indices.tolist())


def test_k_means_fills_cells_that_end_empty(monkeypatch):
    """A clustering that leaves a cell empty: the row farthest from those chosen takes its place."""
    import sklearn.cluster

    X = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [30.0]], dtype=torch.float64)

    class Half:
        def __init__(self, m, **options):
            self.cluster_centers_ = np.array([[1.0], [10.4], [99.0]])

        def fit(self, rows):
            self.labels_ = np.array([0, 0, 0, 1, 1, 1])
            return self

    monkeypatch.setattr(sklearn.cluster, "KMeans", Half)
    found = k_means(X, 3, 0)
    assert found.indices.tolist() == [1, 3, 5]
    assert found.weights.tolist() == [3, 2, 1]


def test_k_means_of_rows_that_repeat_does_not_warn():
    X = torch.cat([clusters(20)] * 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = select(X, None, 20, "k-means", seed=0)
    assert len({tuple(row) for row in X[found.indices].tolist()}) == 20
    assert set(found.weights.tolist()) == {5.0}
