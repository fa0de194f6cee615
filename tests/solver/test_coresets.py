"""Coresets: what every method owes its user, and what draws are worth."""

import itertools

import numpy as np
import pytest
import torch

from kernel_distill import kernels
from kernel_distill.solver.coresets import CORESETS, coreset_rows, select
from kernel_distill.solver.coresets.radial import median_distance, radial_kernel
from kernel_distill.solver.learners.rows import TrainingRows
from kernel_distill.solver.source import ArraySource
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import make_transform

DRAWN = ("random", "lightweight", "kernel-density", "rbf", "leverage")
# Small features: what is tested does not depend on how many there are.
SMALL = {"leverage": {"n_features": 16}}
KERNELS = {
    "gaussian": lambda r2, r1: np.exp(-r2 / 2),
    "laplacian": lambda r2, r1: np.exp(-r1),
    "cauchy": lambda r2, r1: 1 / (1 + r2),
    "matern-1/2": lambda r2, r1: np.exp(-np.sqrt(r2)),
    "matern-3/2": lambda r2, r1: (1 + np.sqrt(3 * r2)) * np.exp(-np.sqrt(3 * r2)),
    "matern-5/2": lambda r2, r1: (1 + np.sqrt(5 * r2) + 5 * r2 / 3) * np.exp(-np.sqrt(5 * r2)),
    "rational-quadratic": lambda r2, r1: 1 / (1 + r2 / 2),
}


def clusters(n=60, d=3, seed=0, dtype=torch.float64):
    """Nine rows in ten about one place, the rest about two others far away."""
    rng = np.random.default_rng(seed)
    places = np.array([[0.0] * d, [12.0] * d, [-9.0] * d])
    which = np.where(np.arange(n) % 10 == 0, 1 + (np.arange(n) // 10) % 2, 0)
    return torch.from_numpy(places[which] + rng.normal(size=(n, d))).to(dtype)


def gram(X, name, sigma):
    """K by its definition, and no shared code."""
    X = np.asarray(X, np.float64)
    difference = X[:, None] - X[None]
    return KERNELS[name]((difference**2).sum(-1) / sigma**2, np.abs(difference).sum(-1) / sigma)


DATA = {
    "clusters": clusters(),
    "float32": clusters(dtype=torch.float32),
    "one-column": clusters(d=1),
    "wide": torch.from_numpy(np.random.default_rng(1).normal(size=(12, 40))),
    "all-equal": torch.full((12, 3), 7.25, dtype=torch.float64),
    "mostly-equal": torch.cat([torch.zeros(20, 2), torch.arange(6.0).reshape(3, 2)]).double(),
    "far-from-zero": 1e4 + clusters(),
    "one-row": torch.ones(1, 2, dtype=torch.float64),
}


@pytest.mark.parametrize("count", ["one", "some", "all"])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("method", CORESETS)
def test_distinct_rows_with_weights_that_stand_for_all(method, data, count):
    X = DATA[data]
    n = len(X)
    m = {"one": 1, "some": max(1, n // 3), "all": n}[count]
    found = select(X, None, m, method, seed=3, **SMALL.get(method, {}))
    assert (found.method, found.seed, len(found)) == (method, 3, m)
    assert (found.indices.dtype, found.weights.dtype) == (torch.int64, torch.float64)
    assert len(set(found.indices.tolist())) == m
    assert 0 <= int(found.indices.min()) <= int(found.indices.max()) < n
    assert (found.weights >= 0).all()
    indices, weights = found
    assert indices is found.indices
    assert weights is found.weights
    chances = found.inclusion_probabilities
    if method not in DRAWN:
        assert chances is None
        assert float(weights.sum()) == pytest.approx(n, rel=1e-12)
    else:
        assert chances is not None
        assert ((chances > 0) & (chances <= 1)).all()
        torch.testing.assert_close(weights * chances, torch.ones(m, dtype=torch.float64), rtol=1e-14, atol=0)
    if m == n:
        # A drawn set of all rows, and every mean of all rows, is the set itself; cells of equal rows go to one.
        if method not in ("k-means", "k-center"):
            torch.testing.assert_close(weights, torch.ones(n, dtype=torch.float64), rtol=1e-14, atol=0)
        assert sorted(indices.tolist()) == list(range(n))
    again = select(X, None, m, method, seed=3, **SMALL.get(method, {}))
    assert torch.equal(again.indices, indices)
    assert torch.equal(again.weights, weights)


@pytest.mark.parametrize("method", CORESETS)
def test_classes_are_chosen_each_by_itself(method):
    """In class order; and the rows of one class do not depend on those of another."""
    X, options = clusters(90), SMALL.get(method, {})
    groups = torch.from_numpy(np.random.default_rng(0).permutation(np.arange(90) % 3))
    found = select(X, groups, [4, 0, 7], method, seed=5, **options)
    assert groups[found.indices].tolist() == [0] * 4 + [2] * 7
    changed = X.clone()
    changed[groups == 0] = changed[groups == 0].flip(0) * 3
    again = select(changed, groups, [1, 2, 7], method, seed=5, **options)
    assert torch.equal(again.indices[3:], found.indices[4:])
    assert torch.equal(again.weights[3:], found.weights[4:])
    if method not in DRAWN:
        sizes = groups.bincount()
        assert float(found.weights[:4].sum()) == pytest.approx(int(sizes[0]), rel=1e-12)
        assert float(found.weights[4:].sum()) == pytest.approx(int(sizes[2]), rel=1e-12)


@pytest.mark.parametrize("method", [name for name in CORESETS if name not in ("herding", "kernel-herding")])
def test_seeds_differ(method):
    X = clusters()
    chosen = {
        tuple(select(X, None, 6, method, seed=s, **SMALL.get(method, {})).indices.tolist()) for s in range(4)
    }
    assert len(chosen) > 1


@pytest.mark.parametrize("method", DRAWN)
def test_classes_of_equal_rows_are_drawn_apart(method):
    """The same rows in two classes: equal draws would share their luck."""
    X = clusters()
    both, groups = torch.cat([X, X]), torch.arange(120) // 60
    found = select(both, groups, [12, 12], method, seed=0, **SMALL.get(method, {}))
    assert set(found.indices[:12].tolist()) != {i - 60 for i in found.indices[12:].tolist()}


# --- Draws ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", DRAWN)
def test_weighted_sums_are_unbiased(method):
    """The mean over seeds of sum w f, and of the indicators of rows: within five standard errors."""
    X, seeds = clusters(30), 300
    f = torch.from_numpy(np.random.default_rng(2).normal(size=30) + np.arange(30))
    totals, rows = [], torch.zeros(seeds, 30, dtype=torch.float64)
    for seed in range(seeds):
        indices, weights = select(X, None, 8, method, seed=seed, **SMALL.get(method, {}))
        totals.append(float((weights * f[indices]).sum()))
        rows[seed, indices] = weights
    error = (np.mean(totals) - float(f.sum())) / (np.std(totals) / np.sqrt(seeds))
    assert abs(error) < 5
    # A row i counts 1/pi_i where it is drawn: one on average, for each row.
    errors = (rows.mean(0) - 1) / (rows.std(0) / np.sqrt(seeds))
    assert float(errors.abs().max()) < 5


def test_rows_are_drawn_as_often_as_their_scores_say():
    """Against the probability of successive draws without replacement, summed over all orders."""
    X = torch.tensor([[0.0], [1.0], [1.5], [6.0], [-3.0]], dtype=torch.float64)
    scores = kernels.lightweight_sensitivity(X).numpy()
    wanted = np.zeros(5)
    for i, j in itertools.permutations(range(5), 2):
        wanted[[i, j]] += scores[i] * scores[j] / (1 - scores[i])
    seeds = 1000
    found = torch.stack([select(X, None, 2, "lightweight", seed=s).indices for s in range(seeds)])
    frequency = found.flatten().bincount(minlength=5).numpy() / seeds
    assert np.all(np.abs(frequency - wanted) < 5 * np.sqrt(wanted * (1 - wanted) / seeds))
    assert np.abs(wanted - 0.4).max() > 0.2  # far from uniform: the test could fail


def test_random_rows_have_the_probability_of_all():
    found = select(clusters(50), None, 20, "random", seed=0)
    assert found.inclusion_probabilities is not None
    assert set(found.inclusion_probabilities.tolist()) == {0.4}
    assert set(found.weights.tolist()) == {2.5}


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_density_scores_are_shares_at_the_rows_own_place(kernel):
    X, sigma = clusters(40), 1.7
    scores = 1 / gram(X, kernel, sigma).sum(1)
    agrees_with_scores("kernel-density", X, scores, kernel=kernel, bandwidth=sigma)


def test_kernel_density_of_a_given_kernel():
    X = clusters(40)
    K = gram(X, "gaussian", 0.5) + 2 * gram(X, "gaussian", 1.0)
    kernel = kernels.MixtureOfGaussians(0.5, ratios=(1.0, 2.0), weights=(1.0, 2.0))
    agrees_with_scores("kernel-density", X, 3 / K.sum(1), kernel=kernel)


def test_gaussian_density_scores_are_those_of_the_kernels():
    X = clusters(40)
    agrees_with_scores("kernel-density", X, kernels.kernel_density_sensitivity(X, 1.7), bandwidth=1.7)


def test_rbf_and_lightweight_scores_are_those_of_the_kernels():
    X = clusters(40)
    agrees_with_scores("rbf", X, kernels.rbf_sensitivity(X).scores)
    agrees_with_scores("lightweight", X, kernels.lightweight_sensitivity(X))


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "matern-3/2"])
def test_leverage_scores_are_those_of_the_kernel(kernel):
    """The diagonal of K (K + n lambda)^-1, the ridge being n times that of a row; approached by many features."""
    X, sigma, ridge = clusters(40), 3.0, 0.05
    K = gram(X, kernel, sigma)
    wanted = np.diag(K @ np.linalg.inv(K + 40 * ridge * np.eye(40)))
    found = select(
        X, None, 10, "leverage", seed=0, kernel=kernel, bandwidth=sigma, ridge=ridge, n_features=2048
    )
    assert found.inclusion_probabilities is not None
    # pi = 1 - exp(-s tau): the scores of drawn rows up to the common tau, to the error of the features.
    scores = -torch.log1p(-found.inclusion_probabilities)
    ratio = scores / torch.from_numpy(wanted[found.indices.numpy()])
    assert float(ratio.max() / ratio.min()) < 1.2
    assert wanted[found.indices.numpy()].max() > 1.5 * wanted[found.indices.numpy()].min()


def agrees_with_scores(method, X, scores, **options):
    """The rows drawn, and their probabilities, are those of the scores for the seed that `select` uses."""
    seed = int(kernels.random_bits(9, f"coreset.{method}.0", 1)[0])
    wanted = kernels.weighted_sample(torch.as_tensor(scores).double(), 12, seed=seed, stream="coreset")
    found = select(X, None, 12, method, seed=9, **options)
    assert torch.equal(found.indices, wanted.indices)
    torch.testing.assert_close(
        found.inclusion_probabilities, wanted.inclusion_probabilities, rtol=1e-9, atol=0
    )


def k_means_cost(X, centres, weights=None):
    nearest = ((X[:, None] - centres[None]) ** 2).sum(-1).min(1).values
    return float(nearest.sum() if weights is None else (weights * nearest).sum())


def test_lightweight_error_falls_as_the_root_of_its_size():
    """|cost of the coreset - cost| over (cost + cost of the mean)/2, on random centres."""
    rng = np.random.default_rng(3)
    X = clusters(1500, d=2)
    queries = [X[torch.from_numpy(rng.choice(1500, 3, replace=False))] + 1.0 for _ in range(6)]
    costs = [k_means_cost(X, Q) for Q in queries]
    spread = k_means_cost(X, X.mean(0, keepdim=True))

    def error(m):
        found = []
        for seed in range(60):
            indices, weights = select(X, None, m, "lightweight", seed=seed)
            for Q, cost in zip(queries, costs, strict=True):
                found.append(abs(k_means_cost(X[indices], Q, weights) - cost) / (cost / 2 + spread / 2))
        return np.sqrt(np.mean(np.square(found)))

    small, large = error(20), error(180)
    # Three times smaller; without replacement a little more, by a factor of 1/sqrt(1 - 180/1500).
    assert 2.6 < small / large < 4
    assert large < 0.1


def test_density_coreset_is_unbiased_and_beats_uniform_rows_on_clusters():
    """Densities at the two rare clusters, which uniform rows may miss altogether."""
    X = clusters(300)
    queries = torch.tensor([[0.0] * 3, [12.0] * 3, [-9.0] * 3], dtype=torch.float64)
    kernel = kernels.Gaussian(1.5)
    at_queries = kernels.kernel_matrix(kernel, X, queries)
    wanted = at_queries.mean(0)

    def estimates(method, **options):
        found = []
        for seed in range(200):
            indices, weights = select(X, None, 20, method, seed=seed, **options)
            found.append((weights[:, None] * at_queries[indices]).sum(0) / 300 / wanted)
        return torch.stack(found)

    uniform, drawn = estimates("random"), estimates("kernel-density", bandwidth=1.5)
    errors = (drawn.mean(0) - 1) / (drawn.std(0) / np.sqrt(200))
    assert float(errors.abs().max()) < 5
    assert (drawn.std(0)[1:] < 0.6 * uniform.std(0)[1:]).all()


# --- Bandwidths ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["squared", "manhattan"])
def test_median_distance(metric):
    X = clusters(40)
    difference = (X[:, None] - X[None]).numpy()
    distances = np.abs(difference).sum(-1) if metric == "manhattan" else np.sqrt((difference**2).sum(-1))
    values = np.sort(distances[np.triu_indices(40, 1)])
    assert median_distance(X, 0, metric) == pytest.approx(values[(len(values) - 1) // 2], rel=1e-12)
    assert median_distance(4 * X, 0, metric) == pytest.approx(4 * median_distance(X, 0, metric), rel=1e-12)


def test_median_distance_passes_over_equal_rows():
    X = torch.cat([torch.zeros(50, 1), torch.tensor([[3.0]])])
    assert median_distance(X, 0) == 3
    assert median_distance(torch.zeros(5, 2), 0) == 0
    large = clusters(2000)
    assert median_distance(large, 0) == pytest.approx(median_distance(large, 1), rel=0.2)
    assert median_distance(large, 0) != median_distance(large, 1)


def test_equal_rows_have_no_bandwidth_and_it_is_noted():
    found = select(torch.ones(9, 2), torch.arange(9) // 5, [2, 2], "kernel-density", seed=0, names=["a", "b"])
    note = "all rows looked at are equal: the bandwidth is 1 and says nothing"
    assert found.notes == (f"class 'a': {note}", f"class 'b': {note}")


def test_fewer_different_rows_than_asked_for_are_noted():
    X = DATA["mostly-equal"]
    for method in ("k-center", "k-means"):
        found = select(X, None, 6, method, seed=0)
        assert found.notes == ("6 rows were asked for and only 4 are different: equal rows are among them",)
        assert len({tuple(row) for row in X[found.indices].tolist()}) == len(
            {tuple(row) for row in X.tolist()}
        )
    assert select(X, None, 3, "k-center", seed=0).notes == ()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kernel": "gauss"}, "unknown kernel 'gauss'; did you mean 'gaussian'"),
        ({"bandwidth": "mean"}, "unknown bandwidth 'mean'"),
        ({"bandwidth": 0.0}, "`bandwidth` must be positive"),
        ({"bandwidth": -1.0}, "`bandwidth` must be finite and not negative"),
        ({"kernel": kernels.Gaussian(1.0), "bandwidth": 2.0}, "has a bandwidth: leave `bandwidth` out"),
    ],
)
def test_kernels_that_cannot_be(options, match):
    with pytest.raises(ValueError, match=match):
        select(clusters(), None, 3, "kernel-density", seed=0, **options)


def test_names_of_kernels_are_their_definitions():
    X = clusters(10)
    for name in KERNELS:
        kernel, notes = radial_kernel(name, 1.3, X, 0)
        np.testing.assert_allclose(kernels.kernel_matrix(kernel, X).numpy(), gram(X, name, 1.3), atol=1e-12)
        assert notes == ()


# --- Bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((clusters(), None, 3, "kcenter"), "unknown coreset 'kcenter'; did you mean 'k-center'"),
        ((clusters(), None, 61, "random"), "61 rows are asked for, but there are 60"),
        ((clusters(), None, 0, "random"), "`counts` must be an integer of at least 1, got 0"),
        ((clusters(), None, [3, 3], "random"), "counts by class need the class of each row"),
        (
            (clusters(), torch.arange(60) % 2, 3, "random"),
            "`counts` must be one number for each class, got 3",
        ),
        (
            (clusters(), torch.arange(60) % 3, [3, 3], "random"),
            "must lie in 0 ... 1, for as many .* got 0 ... 2",
        ),
        ((clusters(), torch.arange(60) % 2, [0, 0], "random"), "no rows are asked for"),
        ((clusters(), torch.arange(60) % 2, [3, -1], "random"), "`counts` must be an integer of at least 0"),
        ((clusters(), torch.arange(50) % 2, [3, 3], "random"), "`groups` must be 60 integers"),
        ((clusters().long(), None, 3, "random"), "must be a float32 or float64 matrix with samples as rows"),
        ((clusters()[0], None, 3, "random"), "must be a float32 or float64 matrix with samples as rows"),
        (
            (clusters().index_fill(0, torch.tensor([4]), torch.nan), None, 3, "random"),
            "`X` holds NaN in row 4",
        ),
    ],
)
def test_bad_input_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        select(*arguments, seed=0)


def test_small_classes_are_named():
    groups = torch.tensor([0] * 5 + [1] * 2)
    with pytest.raises(ValueError, match="class 'dog': 3 rows are asked for, but there are 2"):
        select(clusters(7), groups, [3, 3], "k-center", seed=0, names=("cat", "dog"))
    with pytest.raises(ValueError, match="class 2: 1 rows are asked for, but there are 0"):
        select(clusters(7), groups, [3, 2, 1], "k-center", seed=0)


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        ("k-center", {"kernel": "gaussian"}, "coreset 'k-center' takes no option 'kernel': it has none"),
        ("kernel-herding", {"ridge": 1.0}, "takes no option 'ridge': it has kernel, bandwidth"),
        ("k-means", {"max_iterations": 0}, "`max_iterations` must be an integer of at least 1"),
        ("leverage", {"kernel": "rational-quadratic"}, "unknown kernel 'rational-quadratic'"),
        ("leverage", {"n_features": 7}, "even"),
        ("leverage", {"ridge": 0.0, "n_features": 128}, "not positive definite.*use a larger ridge"),
        ("leverage", {"ridge": -1.0}, "`ridge` must be finite and not negative"),
    ],
)
def test_bad_options_are_refused(method, options, match):
    with pytest.raises(ValueError, match=match):
        select(clusters(), None, 3, method, seed=0, **options)


# --- Training rows -------------------------------------------------------------------------------------------


def training_rows(X, y, holdout=0.0, transform="none", **rest):
    source = ArraySource(X, y)
    classes = np.asarray(y).dtype.kind != "f"
    targets = Targets.from_labels(y) if classes else Targets.from_values(1)
    fitted = make_transform(transform, lambda: (batch.X for batch in source.batches(64)), source.input_shape)
    return TrainingRows(source, fitted, targets, seed=1, holdout=holdout, **rest)


IMAGES = np.random.default_rng(4).normal(size=(80, 2, 3, 3))
LABELS = np.array(["b", "a", "c", "b"] * 20)


@pytest.mark.parametrize("method", CORESETS)
def test_training_rows_are_compared_after_their_transform(method):
    rows = training_rows(IMAGES, LABELS, holdout=0.25, transform="standardize", dtype=torch.float64)
    assert rows.n == 60
    flat = torch.cat([inputs.flatten(1) for _, inputs, _ in rows.chunks()])
    options = SMALL.get(method, {})
    found = coreset_rows(rows, method, [2, 3, 1], seed=7, **options)
    wanted = select(flat, rows.classes, [2, 3, 1], method, seed=7, **options)
    assert torch.equal(found.indices, wanted.indices)
    assert torch.equal(found.weights, wanted.weights)
    assert rows.classes is not None
    assert rows.classes[found.indices].tolist() == [0, 0, 1, 1, 1, 2]
    rows.chunk = 7  # pieces are put together as they were
    assert torch.equal(coreset_rows(rows, method, [2, 3, 1], seed=7, **options).indices, found.indices)
    whole = coreset_rows(rows, method, 5, seed=7, **options)
    assert torch.equal(whole.indices, select(flat, None, 5, method, seed=7, **options).indices)


def test_training_rows_by_an_embedding():
    rows = training_rows(IMAGES, LABELS)

    def embedding(images):
        assert images.shape[1:] == (2, 3, 3)
        return images[:, 1:, :2]

    found = coreset_rows(rows, "k-center", [3, 3, 3], seed=0, embedding=embedding)
    flat = torch.from_numpy(IMAGES[:, 1:, :2].reshape(80, -1)).float()
    assert torch.equal(found.indices, select(flat, rows.classes, [3, 3, 3], "k-center", seed=0).indices)
    with pytest.raises(ValueError, match="`the embedding of X` holds NaN"):
        coreset_rows(rows, "k-center", 3, seed=0, embedding=lambda images: images / 0 * 0)


def test_training_rows_without_classes():
    rows = training_rows(IMAGES, np.arange(80.0))
    assert len(coreset_rows(rows, "herding", 4, seed=0)) == 4
    with pytest.raises(ValueError, match="rows without classes take one number of rows"):
        coreset_rows(rows, "herding", [4], seed=0)


def test_training_rows_name_a_small_class():
    with pytest.raises(ValueError, match="class 'c': 21 rows are asked for, but there are 20"):
        coreset_rows(training_rows(IMAGES, LABELS), "random", [1, 1, 21], seed=0)
