"""scikit-learn's kernel matrices: against float64 differences of rows, and through scikit-learn itself."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse
import sklearn.metrics.pairwise as pairwise
import torch
from scipy.spatial.distance import cdist
from sklearn.kernel_approximation import Nystroem

from kernel_distill import accel
from kernel_distill.accel._call import only_originals
from kernel_distill.accel._fingerprint import fingerprint_of
from kernel_distill.accel._records import record, records
from kernel_distill.accel.registry.sklearn import TARGETS
from kernel_distill.accel.replacements import row_distances, sklearn_kernels

KNOWN = {target.name: target for target in TARGETS}
# What the module promises of float32 values, and some rounding of the exponential.
FLOAT32 = 2.0**-19 + 2.0**-22


@pytest.fixture
def patched():
    records.clear()
    with accel.patched("sklearn.rbf_kernel", "sklearn.laplacian_kernel", verify=1000):
        yield
    records.clear()


def rows(n, d, dtype, seed=0):
    return np.random.default_rng(seed).random((n, d)).astype(dtype)


def gaussian_of(X, Y, gamma):
    return np.exp(-gamma * cdist(X.astype(np.float64), Y.astype(np.float64), "sqeuclidean"))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("n", "m", "d"), [(90, 70, 200), (1100, 3, 400), (1, 5000, 300), (700, None, 5), (40, None, 900)]
)
@pytest.mark.parametrize("gamma", [None, 1e-3, 2, 50.0])
def test_gaussian_values(dtype, n, m, d, gamma):
    X = rows(n, d, dtype)
    Y = X if m is None else rows(m, d, dtype, 1)
    K = sklearn_kernels.rbf_kernel(X, None if m is None else Y, gamma)
    assert K.dtype == dtype
    assert K.flags.c_contiguous
    assert np.abs(K - gaussian_of(X, Y, gamma or 1 / d)).max() < (FLOAT32 if dtype == np.float32 else 1e-11)
    if m is None:
        assert np.array_equal(K, K.T)
        assert (np.diag(K) == 1).all()
    strided = np.repeat(np.asfortranarray(X), 2, axis=1)[:, ::2]
    again = sklearn_kernels.rbf_kernel(strided, None if m is None else Y, gamma)
    assert again.flags.c_contiguous
    assert np.abs(K - again).max() < (FLOAT32 if dtype == np.float32 else 1e-11)


def awkward():
    """Rows of float32 whose distances a plain float32 product loses."""
    rng = np.random.default_rng(5)
    far = rng.standard_normal((300, 64)).astype(np.float32)
    pairs = np.concatenate([far, far[:5] + np.float32(1e-3)])
    clusters = (100 * far[:4, None] + 1e-2 * rng.standard_normal((4, 75, 64))).reshape(300, 64)
    outlier = np.concatenate([far, 1e5 * far[:1]])
    return {
        "few near pairs": (pairs, 20.0),
        "equal rows": (np.concatenate([far, far[:7]]), 5.0),
        "narrow clusters": (clusters.astype(np.float32), 100.0),
        "far from the origin": (far + np.float32(3e3), 0.5),
        "one far row": (outlier, 0.1),
        "squares that overflow": (far * np.float32(1e25), 1.0),
        "all rows equal": (np.ones((300, 64), np.float32), 1.0),
    }


@pytest.mark.parametrize("case", awkward())
@pytest.mark.parametrize("same", [True, False])
def test_small_distances_of_large_rows(case, same):
    X, gamma = awkward()[case]
    # Equal rows among others whose squares are 1e50 are as far apart here as in scikit-learn.
    Y = X if same else X[::-1].copy() + (case == "squares that overflow") * X[0]
    with np.errstate(over="ignore"):  # distances that float32 cannot hold: scikit-learn warns of them too
        K = sklearn_kernels.rbf_kernel(X, Y, gamma)
    # float32 rows moved to their mean are rows that are off by its rounding: it is zero or exact in all but one case.
    allowed = FLOAT32 if case != "far from the origin" else 4e-5
    assert np.abs(K - gaussian_of(X, Y, gamma)).max() < allowed


@pytest.mark.parametrize(
    ("case", "one_by_one"), [("few near pairs", True), ("narrow clusters", False), ("equal rows", True)]
)
def test_few_doubtful_pairs_are_mended_and_many_go_to_float64(monkeypatch, case, one_by_one):
    panels = []
    original = sklearn_kernels.negative_half_squared
    monkeypatch.setattr(sklearn_kernels, "negative_half_squared", lambda *a: panels.append(a) or original(*a))
    X, gamma = awkward()[case]
    sklearn_kernels.rbf_kernel(X, X.copy(), gamma)
    assert bool(panels) != one_by_one


@pytest.mark.parametrize("factor", [0.95, 1.4])
def test_near_duplicates_of_long_rows(factor):
    signs = np.random.default_rng(0).choice([-1.1, 1.1], (6, 20_000))  # whose sums round one way
    for X, allowed in ((rows(6, 20_000, np.float32), FLOAT32), (signs, 2 * FLOAT32)):
        X = np.concatenate([X, X * (1 + 1e-5)]).astype(np.float32)
        X = np.concatenate([X, -X])
        gamma = factor / np.square(X.astype(np.float64)).sum(1).max()
        for Y in (X, X[::-1].copy()):
            assert np.abs(sklearn_kernels.rbf_kernel(X, Y, gamma) - gaussian_of(X, Y, gamma)).max() < allowed


def test_rows_are_copied_only_where_they_are_moved():
    X = rows(60, 20_000, np.float32)
    sizes = []
    for gamma in (1e-4, 1e-3):
        tracemalloc.start()
        sklearn_kernels.rbf_kernel(X, X[::-1].copy(), gamma)
        sizes.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The reversed rows are one copy.
    assert sizes[0] < 1.5 * X.nbytes < 2.5 * X.nbytes < sizes[1]


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize(
    ("scale", "gamma", "reason"),
    [(1, 1e39, "gamma"), (1, 1e-31, "gamma"), (1e20, 1e-41, "gamma"), (1e20, 1e-20, "squares")],
)
def test_numbers_that_float32_cannot_hold_are_left_to_the_original(scale, gamma, reason):
    X = X32 * np.float32(scale)
    with np.errstate(all="ignore"):
        found = pairwise.rbf_kernel(X, gamma=gamma)
        with only_originals():
            expected = pairwise.rbf_kernel(X, gamma=gamma)
        assert np.array_equal(found, expected, equal_nan=True)
        assert reason in sklearn_kernels.unfit_rbf(X, None, gamma)
        assert reason in sklearn_kernels.unfit_rbf(X32, X, gamma) or scale == 1
    assert not record("sklearn.rbf_kernel").accelerated


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("m", [None, 150])
def test_laplacian_is_the_original_bit_for_bit(threads, dtype, m):
    X = rows(333, 37, dtype)
    Y = None if m is None else rows(m, 37, dtype, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        K = sklearn_kernels.laplacian_kernel(X, Y, 0.3)
    finally:
        torch.set_num_threads(before)
    expected = np.exp(-0.3 * cdist(X, X if Y is None else Y, "cityblock"))
    assert K.dtype == np.float64
    assert np.array_equal(K, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_squared_distances_are_those_of_float64_rows(monkeypatch, dtype):
    monkeypatch.setattr(row_distances, "_WIDENED", 50)
    X, Y = rows(120, 9, dtype) + dtype(100), rows(130, 9, dtype, 1) + dtype(100)
    for other in (X, Y):
        s = row_distances.squared_distances(X, other)
        exact = cdist(X.astype(np.float64), other.astype(np.float64), "sqeuclidean")
        assert s.dtype == dtype
        assert np.abs(s - exact).max() < (3e-7 if dtype == np.float32 else 1e-9)
    assert (np.diag(row_distances.squared_distances(X, X)) == 0).all()


@pytest.mark.usefixtures("patched")
def test_every_way_to_the_functions_is_replaced_and_verified():
    X, Y = rows(300, 40, np.float32), rows(200, 40, np.float32, 1)
    with only_originals():
        expected = Nystroem(n_components=200, random_state=0).fit(X).components_
    assert np.array_equal(Nystroem(n_components=200, random_state=0).fit(X).components_, expected)
    pairwise.pairwise_kernels(X, Y, metric="rbf", gamma=0.1)
    pairwise.PAIRWISE_KERNEL_FUNCTIONS["rbf"](X)
    pairwise.rbf_kernel(X, Y=X)
    pairwise.rbf_kernel(X.astype(np.float64), gamma=3)
    assert record("sklearn.rbf_kernel").verified == 5
    X = rows(600, 40, np.float32)
    pairwise.pairwise_kernels(X, metric="laplacian")
    pairwise.laplacian_kernel(X, gamma=2.0)
    assert record("sklearn.laplacian_kernel").verified == 2
    assert not record("sklearn.rbf_kernel").declined


def test_the_originals_come_back():
    before = pairwise.rbf_kernel, pairwise.laplacian_kernel, dict(pairwise.PAIRWISE_KERNEL_FUNCTIONS)
    with accel.patched("sklearn"):
        assert pairwise.rbf_kernel is not before[0]
        assert pairwise.PAIRWISE_KERNEL_FUNCTIONS["laplacian"] is pairwise.laplacian_kernel is not before[1]
    after = pairwise.rbf_kernel, pairwise.laplacian_kernel, pairwise.PAIRWISE_KERNEL_FUNCTIONS
    assert all(a is b for a, b in zip(before[:2], after[:2], strict=True))
    assert all(value is before[2][name] for name, value in after[2].items())


X32 = rows(300, 40, np.float32)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((X32.tolist(),), "no matrix of NumPy"),
        ((scipy.sparse.csr_array(X32),), "no matrix of NumPy"),
        ((torch.from_numpy(X32),), "no matrix of NumPy"),
        ((np.ma.masked_array(X32),), "no matrix of NumPy"),
        ((X32, X32.astype(np.float64)), "not all of float32"),
        ((X32.astype(np.float16),), "not all of float32"),
        ((X32, X32[:, :3]), "different columns"),
        ((X32[:0],), "no rows"),
        ((X32, None, 0), "no positive number"),
        ((X32, None, np.ones(1)), "no positive number"),
        ((X32, None, float("nan")), "no positive number"),
        ((X32[:9],), "no longer"),
    ],
)
def test_other_calls_are_left_alone(arguments, reason):
    assert reason in sklearn_kernels.unfit_rbf(*arguments)
    assert reason in sklearn_kernels.unfit_laplacian(*arguments)


def test_calls_with_nothing_to_gain_are_left_alone():
    X = rows(600, 300, np.float64)
    assert "product" in sklearn_kernels.unfit_rbf(X)
    assert (
        sklearn_kernels.unfit_rbf(X[:, :100].copy())
        is sklearn_kernels.unfit_rbf(X.astype(np.float32))
        is None
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert "one core" in sklearn_kernels.unfit_laplacian(X, X.copy())
        assert sklearn_kernels.unfit_laplacian(X) is sklearn_kernels.unfit_laplacian(X, X) is None
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.where(X32 > 0.999, np.nan, X32),), "Input contains NaN"),
        ((X32, np.where(X32 > 0.999, np.inf, X32)), "contains infinity"),
        ((X32, X32[:, :7]), "Incompatible dimension"),
        ((X32, None, -1.0), "'gamma' parameter of rbf_kernel must be"),
        (("rows",), "'X' parameter of rbf_kernel must be"),
    ],
)
def test_bad_input_raises_what_the_original_raises(arguments, message):
    with pytest.raises(ValueError, match=message):
        pairwise.rbf_kernel(*arguments)


def test_a_wrong_value_is_found(monkeypatch):
    monkeypatch.setattr(sklearn_kernels, "_PRODUCT_ERROR", 0.0)
    X, gamma = awkward()["few near pairs"]
    with (
        accel.patched("sklearn.rbf_kernel", verify=1000),
        pytest.raises(accel.VerificationError, match="difference"),
    ):
        pairwise.rbf_kernel(1000 * X, (1000 * X)[::-1].copy(), gamma)


@pytest.mark.parametrize("name", ["sklearn.rbf_kernel", "sklearn.laplacian_kernel"])
def test_the_version_at_hand_is_known(name):
    target = KNOWN[name]
    assert fingerprint_of(getattr(pairwise, target.qualname)) in target.hashes
    for qualname, hashes in target.requires.items():
        assert fingerprint_of(getattr(pairwise, qualname)) in hashes
