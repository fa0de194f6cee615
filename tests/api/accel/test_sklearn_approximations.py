"""RBFSampler, Nystroem and k-means++ of scikit-learn: the original's numbers, and its very picks."""

import numpy as np
import pytest
import sklearn.kernel_approximation as module
from scipy import sparse
from sklearn.cluster import KMeans, _kmeans, kmeans_plusplus
from sklearn.exceptions import NotFittedError
from sklearn.kernel_approximation import Nystroem, RBFSampler
from sklearn.utils.extmath import row_norms

from kernel_distill.accel._call import Settings, accelerated, forget_calls
from kernel_distill.accel._fingerprint import fingerprint_of
from kernel_distill.accel._patches import Patches
from kernel_distill.accel._records import records
from kernel_distill.accel.registry._sklearn_approximations import APPROXIMATIONS
from kernel_distill.accel.replacements import k_means_seeding, sklearn_approximations

TARGETS = {target.name.partition(".")[2]: target for target in APPROXIMATIONS}
SINGLE, DOUBLE = np.float32, np.float64


def forget():
    for target in APPROXIMATIONS:
        forget_calls(target.name)


@pytest.fixture
def verified(monkeypatch):
    """Everything in place, and every call compared with the original's."""
    monkeypatch.setattr(Settings, "verify", 100)
    forget()
    records.clear()
    patches = Patches()
    for place in (module, _kmeans):
        patches.adopt(place, APPROXIMATIONS)
    yield patches
    patches.remove(patches.installed)
    forget()
    records.clear()


def gaussian(n, d, dtype, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


def blobs(n, d, dtype, count=20):
    rng = np.random.default_rng(1)
    return (rng.normal(size=(n, d)) + rng.uniform(-3, 3, (count, d))[rng.integers(0, count, n)]).astype(dtype)


def test_the_installed_version_is_known():
    assert fingerprint_of(RBFSampler.transform) in TARGETS["RBFSampler.transform"].hashes
    assert fingerprint_of(Nystroem.fit) in TARGETS["Nystroem.fit"].requires["Nystroem.fit"]
    assert fingerprint_of(_kmeans._kmeans_plusplus) in TARGETS["kmeans_plusplus"].hashes


@pytest.mark.parametrize(
    ("n", "d", "p", "fitted", "given"),
    [
        (1, 1, 1, SINGLE, SINGLE),
        (7, 3, 5, DOUBLE, DOUBLE),
        (300, 20, 1000, SINGLE, SINGLE),  # several blocks, the last one smaller
        (300, 20, 1000, DOUBLE, DOUBLE),
        (40, 5, 30, SINGLE, DOUBLE),
        (40, 5, 30, DOUBLE, SINGLE),
    ],
)
@pytest.mark.parametrize("form", ["C", "F", "strided", "backward", "read-only"])
def test_features_are_the_cosines(n, d, p, fitted, given, form):
    sampler = RBFSampler(gamma=0.3, n_components=p, random_state=0).fit(gaussian(9, d, fitted))
    X = gaussian(2 * n, d, given)[:n]
    if form == "F":
        X = np.asfortranarray(X)
    elif form == "strided":
        X = gaussian(2 * n, d, given)[::2]
    elif form == "backward":
        X = X[::-1]
    elif form == "read-only":
        X.flags.writeable = False
    found = sklearn_approximations.rbf_sampler_transform(sampler, X)
    weights, offset = sampler.random_weights_.astype(DOUBLE), sampler.random_offset_.astype(DOUBLE)
    expected = np.sqrt(2 / p) * np.cos(X.astype(DOUBLE) @ weights + offset)
    assert type(found) is np.ndarray
    assert found.dtype == np.result_type(fitted, given) == sampler.transform(X).dtype
    phases = np.abs(X).astype(DOUBLE) @ np.abs(weights) + offset
    bound = np.sqrt(2 / p) * np.finfo(found.dtype).eps * ((d + 8) * phases + 4)
    assert (np.abs(found - expected) <= bound).all()


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_transform_in_place_of_the_original(verified, dtype):
    X = gaussian(400, 6, dtype)
    features = RBFSampler(n_components=100, random_state=0).fit_transform(X)
    assert features.dtype == dtype
    assert records["sklearn.RBFSampler.transform"].verified == 1
    few = RBFSampler(n_components=100, random_state=0).fit(X)
    few.transform(X[:3])
    few.transform(sparse.csr_array(X))
    few.transform(X.tolist())
    RBFSampler(n_components=100, random_state=0).fit(X).transform(X.astype(int))
    assert records["sklearn.RBFSampler.transform"].accelerated == 1
    assert set(records["sklearn.RBFSampler.transform"].declined) == {
        "too few features to gain",
        "X is no dense array of float32 or float64",
    }


def test_frames_are_returned_where_they_are_asked_for(verified):
    pandas = pytest.importorskip("pandas")
    X = gaussian(400, 6, DOUBLE)
    sampler = RBFSampler(n_components=100, random_state=0).set_output(transform="pandas").fit(X)
    found = sampler.transform(X)
    assert isinstance(found, pandas.DataFrame)
    assert list(found.columns) == list(sampler.get_feature_names_out())


@pytest.mark.parametrize(
    ("X", "error", "words"),
    [
        (np.full((400, 6), np.nan), ValueError, "contains NaN"),
        (np.ones((400, 5)), ValueError, "X has 5 features, but RBFSampler is expecting 6"),
    ],
)
def test_errors_of_features_are_the_original_ones(verified, X, error, words):
    sampler = RBFSampler(n_components=100, random_state=0)
    Settings.verify = 0
    with pytest.raises(NotFittedError, match="is not fitted yet"):
        sampler.transform(X)
    sampler.fit(gaussian(9, 6, DOUBLE))
    with pytest.raises(error, match=words):
        sampler.transform(X)
    assert records["sklearn.RBFSampler.transform"].declined


@pytest.mark.parametrize("m", [64, 100, 151])
def test_the_inverse_root_is_the_symmetric_one(verified, m):
    X = gaussian(300, 40, DOUBLE)
    found = Nystroem(n_components=m, random_state=3).fit(X)
    K = module.pairwise_kernels(found.components_, metric="rbf")
    root = found.normalization_
    assert np.abs(root @ K @ root - np.eye(m)).max() < 1e-9
    assert np.abs(root - root.T).max() < 1e-12 * np.abs(root).max()
    assert (np.linalg.eigvalsh(root) > 0).all()
    assert records["sklearn.Nystroem.fit"].verified == 1
    np.testing.assert_array_equal(found.component_indices_, np.random.RandomState(3).permutation(300)[:m])


def test_decompositions_have_the_form_of_the_original():
    X = gaussian(80, 40, DOUBLE)
    K = module.pairwise_kernels(X, metric="rbf")
    U, S, V = sklearn_approximations.symmetric_svd(K)
    assert (np.diff(S) <= 0).all()
    for matrix in (U.T @ U, V @ V.T):
        np.testing.assert_allclose(matrix, np.eye(80), atol=1e-12)
    np.testing.assert_allclose(U * S @ V, K, atol=1e-12)


def test_an_ill_conditioned_kernel_is_decomposed_as_before():
    X = gaussian(200, 2, DOUBLE)  # a smooth kernel on a plane: rank far below 100
    expected = Nystroem(n_components=100, random_state=0).fit(X).normalization_
    patches = Patches()
    patches.adopt(module, APPROXIMATIONS)
    try:
        found = Nystroem(n_components=100, random_state=0).fit(X).normalization_
    finally:
        patches.remove(patches.installed)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("options", "dtype", "reason"),
    [
        ({}, SINGLE, "the kernel matrix is no array of float64"),
        ({"n_components": 20}, DOUBLE, "the basis is too small to gain"),
    ],
)
def test_other_decompositions_are_left_alone(verified, options, dtype, reason):
    Nystroem(**({"n_components": 70, "random_state": 0} | options)).fit(gaussian(100, 5, dtype))
    assert list(records["sklearn.Nystroem.fit"].declined) == [reason]


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_matrices_that_are_no_kernels_are_left_alone(value):
    K = np.eye(64)
    assert sklearn_approximations.why_not_symmetric(K) is None
    K[2, 3] = value
    assert sklearn_approximations.why_not_symmetric(K) == "the kernel matrix is not symmetric, or not finite"
    K[3, 2] = value
    if not np.isfinite(value):
        assert (
            sklearn_approximations.why_not_symmetric(K) == "the kernel matrix is not symmetric, or not finite"
        )
    assert sklearn_approximations.why_not_symmetric(K[:, :60]) == "the basis is too small to gain"


def seeds_of_both(X, k, seed=0, weights=None, norms=None, trials=None):
    """Picks of the original and ours, and what the generators give next."""
    weights = np.ones(len(X), X.dtype) if weights is None else weights.astype(X.dtype)
    norms = row_norms(X, squared=True) if norms is None else norms
    found = []
    for function in (_kmeans._kmeans_plusplus, k_means_seeding.greedy_seeds):
        generator = np.random.RandomState(seed)
        centers, indices = function(X, k, norms, weights, generator, trials)
        found.append((centers, indices, generator.uniform(size=3)))
    return found


SCENES = {
    "gaussian": lambda dtype: (gaussian(3000, 40, dtype), {}),
    "blobs": lambda dtype: (blobs(3000, 40, dtype), {}),
    "few columns": lambda dtype: (gaussian(2000, 2, dtype), {}),
    "far from the origin": lambda dtype: (gaussian(2000, 30, dtype) + dtype(300), {}),
    "copies": lambda dtype: (np.repeat(gaussian(40, 30, dtype), 50, axis=0), {}),
    "fewer distinct rows than seeds": lambda dtype: (np.repeat(gaussian(12, 30, dtype), 50, axis=0), {}),
    "all equal": lambda dtype: (np.full((300, 20), 0.1, dtype), {}),
    "all zero": lambda dtype: (np.zeros((300, 20), dtype), {}),
    "tight": lambda dtype: (blobs(2000, 30, dtype, 15) * dtype(1e-4) + blobs(2000, 30, dtype, 1).round(), {}),
    "tiny": lambda dtype: (gaussian(2000, 30, dtype) * dtype(1e-18), {}),
    "mixed scales": lambda dtype: (
        gaussian(2000, 30, dtype) * np.logspace(-12, 4, 2000).astype(dtype)[:, None],
        {},
    ),
    "weights": lambda dtype: (
        gaussian(2000, 30, dtype),
        {"weights": np.random.default_rng(2).choice([0.0, 1e-3, 1.0, 50.0], 2000)},
    ),
    "one trial": lambda dtype: (gaussian(2000, 30, dtype), {"trials": 1}),
    "other norms": lambda dtype: (
        gaussian(2000, 30, dtype),
        {"norms": np.linspace(1, 60, 2000).astype(dtype)},
    ),
    "columns first": lambda dtype: (np.asfortranarray(gaussian(2000, 30, dtype)), {}),
}


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize("scene", SCENES)
def test_the_picks_are_the_original_ones(scene, dtype):
    X, options = SCENES[scene](dtype)
    for seed in range(2):
        (centers, indices, after), (ours, picks, then) = seeds_of_both(X, 24, seed, **options)
        np.testing.assert_array_equal(picks, indices)
        np.testing.assert_array_equal(ours, centers)
        np.testing.assert_array_equal(then, after)
        assert ours.dtype == centers.dtype
        assert picks.dtype == indices.dtype


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
def test_sums_in_float64_as_before_scikit_learn_1_8(monkeypatch, dtype):
    def in_double(values):
        return np.cumsum(values, dtype=np.float64)

    X = gaussian(3000, 20, dtype)
    weights, norms = np.ones(3000, dtype), row_norms(X, squared=True)
    monkeypatch.setattr(_kmeans, "stable_cumsum", in_double, raising=False)
    picks = k_means_seeding.greedy_seeds(X, 30, norms, weights, np.random.RandomState(0))[1]

    generator, distances = np.random.RandomState(0), _kmeans._euclidean_distances
    expected = [generator.choice(3000, p=weights / weights.sum())]
    closest = distances(X[expected], X, squared=True)[0]
    for _ in range(29):
        drawn = generator.uniform(size=5) * (closest @ weights)
        candidates = np.searchsorted(in_double(closest), drawn)
        minima = np.minimum(closest, distances(X[candidates], X, squared=True))
        best = (minima @ weights).argmin()
        closest = minima[best]
        expected.append(candidates[best])
    np.testing.assert_array_equal(picks, expected)


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize("shift", [0, 20])
def test_bounds_are_below_and_the_best_candidate_is_exact(dtype, shift):
    X = blobs(2000, 64, dtype) + dtype(shift)
    weights, norms = np.ones(2000, dtype), row_norms(X, squared=True)
    candidates, seeds = np.arange(6) * 300, np.arange(30) * 61 + 7
    closest = _kmeans._euclidean_distances(X[seeds], X, squared=True).min(0)
    expected = np.minimum(closest, _kmeans._euclidean_distances(X[candidates], X, squared=True))
    bounds = k_means_seeding._Bounds(X, norms)
    found = bounds.minima(X, norms, weights, candidates, closest)
    best = (expected @ weights).argmin()
    room = 1e-14 * norms.max()
    assert (found @ weights).argmin() == best
    assert np.abs(found[best] - expected[best]).max() <= room + 2 * np.finfo(dtype).eps * closest.max()
    assert (found <= expected + room).all()
    assert (found >= expected - 1e-4 * norms.max() - room).all()


def test_most_distances_are_not_formed(monkeypatch):
    formed = []
    original = k_means_seeding._distances

    def counted(X, norms, candidates, rows=slice(None)):
        found = original(X, norms, candidates, rows)
        formed.append(found.size)
        return found

    monkeypatch.setattr(k_means_seeding, "_distances", counted)
    seeds_of_both(gaussian(4000, 64, SINGLE), 64)
    assert sum(formed) < 4000 * 63 * 6 / 10


def test_what_calls_it_gives_the_same(verified):
    X = blobs(9000, 40, SINGLE)
    kmeans_plusplus(X, 10, random_state=0, sample_weight=np.linspace(1, 2, 9000))
    KMeans(10, n_init=2, max_iter=2, tol=1, random_state=np.random.RandomState(0)).fit(X)
    assert records["sklearn.kmeans_plusplus"].verified == 3
    assert records["sklearn.kmeans_plusplus"].difference == 0
    assert not records["sklearn.kmeans_plusplus"].declined


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"X": sparse.csr_array((9000, 40), dtype=SINGLE)}, "X is no dense array of float32 or float64"),
        ({"X": np.ones((9000, 40), int)}, "X is no dense array of float32 or float64"),
        ({"x_squared_norms": np.ones(9000)}, "norms or weights are no array like the rows of X"),
        ({"sample_weight": np.ones(8999, SINGLE)}, "norms or weights are no array like the rows of X"),
        ({"random_state": np.random.default_rng(0)}, "the generator is no RandomState"),
        ({"n_clusters": 7}, "too few rows, columns or seeds to gain"),
        ({"X": np.ones((9000, 31), SINGLE)}, "too few rows, columns or seeds to gain"),
        ({"X": np.ones((9000, 40))}, "norms or weights are no array like the rows of X"),
        ({}, None),
    ],
)
def test_what_is_left_to_the_original(changed, reason):
    arguments = {
        "X": np.ones((9000, 40), SINGLE),
        "n_clusters": 10,
        "x_squared_norms": np.ones(9000, SINGLE),
        "sample_weight": np.ones(9000, SINGLE),
        "random_state": np.random.RandomState(0),
    }
    assert k_means_seeding.why_not(**arguments | changed) == reason


def test_bad_arguments_raise_as_before(verified):
    X = gaussian(9000, 40, SINGLE)
    with pytest.raises(ValueError, match=r"n_samples=9000 should be >= n_clusters=9001"):
        kmeans_plusplus(X, 9001)
    X[3, 3] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        kmeans_plusplus(X, 10)


def test_the_very_objects_are_put_back():
    def state():
        held = vars(RBFSampler)["transform"], Nystroem.fit, Nystroem.fit.__wrapped__.__code__
        return [id(thing) for thing in (*held, _kmeans._kmeans_plusplus)]

    before = state()
    patches = Patches()
    for place in (module, _kmeans):
        patches.adopt(place, APPROXIMATIONS)
    assert all(a != b for a, b in zip(state()[::2], before[::2], strict=True))
    patches.remove(patches.installed)
    assert state() == before


def test_a_stand_in_has_the_name_of_the_original():
    stand_in = accelerated(TARGETS["RBFSampler.transform"], RBFSampler.transform)
    assert stand_in.__qualname__ == RBFSampler.transform.__qualname__
