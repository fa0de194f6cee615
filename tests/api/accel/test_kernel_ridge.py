"""scikit-learn's kernel ridge regression beside itself: every option, grid searches, and what is left alone."""

import contextlib
import pickle
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn.kernel_ridge
from scipy.linalg import LinAlgWarning
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV

from kernel_distill import accel
from kernel_distill.accel import _cache
from kernel_distill.accel._call import only_originals
from kernel_distill.accel._fingerprint import fingerprint_of
from kernel_distill.accel._records import record, records
from kernel_distill.accel.registry.sklearn import TARGETS
from kernel_distill.accel.replacements import kernel_ridge, row_pairs

FIT, PREDICT = "sklearn.KernelRidge.fit", "sklearn.KernelRidge.predict"
N, D = 360, 6


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch):
    monkeypatch.setattr(kernel_ridge, "_FEW_ROWS", 300)
    _cache.clear()
    records.clear()
    yield
    _cache.clear()
    records.clear()


@pytest.fixture
def patched():
    with accel.patched(FIT, PREDICT):
        yield


@pytest.fixture
def verified():
    with accel.patched(FIT, PREDICT, verify=1000):
        yield


def data(dtype=np.float64, outputs=None, n=N, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, D)).astype(dtype)
    y = np.sin(X[:, :1]) + rng.standard_normal((n, outputs or 1))
    return X, (y if outputs else y.ravel()).astype(dtype)


def original(model, *arguments, predict=None):
    """The same estimator fitted by scikit-learn alone, and what it predicts."""
    with only_originals():
        twin = clone(model).fit(*arguments)
        return twin, None if predict is None else twin.predict(predict)


@pytest.mark.usefixtures("verified")
@pytest.mark.parametrize(
    "options",
    [
        {"kernel": "rbf"},
        {"kernel": "rbf", "gamma": 0.3, "alpha": 1e-3},
        {"kernel": "laplacian", "gamma": 1},
        {"kernel": "linear", "alpha": 2},
        {"kernel": "poly", "degree": 2, "coef0": 0.5, "gamma": np.float64(0.1)},
        {"kernel": "polynomial", "degree": 2.0},
        {"kernel": "rbf", "gamma": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
@pytest.mark.parametrize("outputs", [None, 3])
def test_models_and_predictions(options, dtype, outputs):
    X, y = data(np.float64, outputs)
    X = (8 * X).astype(dtype) / dtype(8) if dtype != np.int64 else (3 * X).astype(dtype)
    Z = X[:250] + (1 if dtype == np.int64 else dtype(0.1))
    for targets in (y, y.astype(np.float32), np.round(y).astype(int)):
        model = KernelRidge(**options)
        assert model.fit(X, targets) is model
        twin, expected = original(model, X, targets, predict=Z)
        assert vars(model).keys() == vars(twin).keys()
        assert model.X_fit_ is X
        assert model.dual_coef_.dtype == twin.dual_coef_.dtype
        assert model.dual_coef_.shape == twin.dual_coef_.shape
        assert model.dual_coef_.flags.c_contiguous
        found = model.predict(Z)
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        rounding = 1e-3 if model.dual_coef_.dtype == np.float32 else 2e-6 if dtype == np.float32 else 1e-9
        assert np.abs(found - expected).max() < rounding * np.abs(expected).max()
    assert record(FIT).verified == record(PREDICT).verified == 3


@pytest.mark.usefixtures("verified")
@pytest.mark.parametrize(
    "weights", [2.0, 1.0, 3, np.linspace(0.1, 2, N), list(range(1, N + 1)), np.eye(N)[0]]
)
def test_sample_weights(weights):
    X, y = data(outputs=2)
    model = KernelRidge(kernel="rbf", alpha=0.1).fit(X, y, sample_weight=weights)
    twin, expected = original(model, X, y, weights, predict=X[:300])
    assert np.abs(model.dual_coef_ - twin.dual_coef_).max() < 1e-9 * np.abs(twin.dual_coef_).max()
    assert np.abs(model.predict(X[:300]) - expected).max() < 1e-9
    assert record(FIT).verified == 1


@pytest.mark.usefixtures("patched")
def test_names_of_features_and_pickles():
    X, y = data()
    frame = pd.DataFrame(X, columns=list("abcdef"))
    model = KernelRidge(kernel="rbf").fit(frame, y)
    assert list(model.feature_names_in_) == list("abcdef")
    assert model.n_features_in_ == D
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict(frame), model.predict(frame))
    assert not hasattr(clone(model), "dual_coef_")
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[list("fedcba")])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model.predict(X)
    assert record(FIT).accelerated == 1
    assert record(PREDICT).accelerated == 3


def search(**options):
    grid = {"alpha": np.logspace(-3, 1, 4), "gamma": [0.05, 0.2]}
    return GridSearchCV(KernelRidge(kernel="rbf"), grid, cv=5, return_train_score=True, **options)


def test_a_grid_search_forms_distances_of_all_rows_once(monkeypatch):
    pairs, formed = kernel_ridge._KERNELS["rbf"][0], []
    function = pairs.function
    monkeypatch.setattr(pairs, "function", lambda X, Y: formed.append(len(X) * len(Y)) or function(X, Y))
    monkeypatch.setattr(kernel_ridge, "_FEW_ROWS", 200)
    monkeypatch.setattr(kernel_ridge, "_FEW_PAIRS", 0)
    monkeypatch.setattr(row_pairs, "_FEW", 0)
    X, y = data()
    expected = search().fit(X, y)
    with accel.patched(FIT, PREDICT):
        found = search().fit(X, y)
    # All pairs, and the first fold's test rows twice: they enter with the second fit.
    assert sum(formed) < 1.5 * N * N
    assert record(FIT).accelerated == 4 * 2 * 5 + 1
    assert record(PREDICT).accelerated == 4 * 2 * 5 * 2
    assert found.best_params_ == expected.best_params_
    for key in ("mean_test_score", "mean_train_score"):
        assert np.abs(found.cv_results_[key] - expected.cv_results_[key]).max() < 1e-11


@pytest.mark.parametrize("budget", [0, 200 * 200 * 8, 1 << 30])
def test_subsets_orders_and_repeated_rows(monkeypatch, budget):
    monkeypatch.setenv("KERNEL_DISTILL_ACCEL_CACHE", str(budget))
    monkeypatch.setattr(row_pairs, "_FEW", 0)
    pairs = row_pairs.RowPairs("test", kernel_ridge.squared_distances)
    rng = np.random.default_rng(1)
    X = rng.standard_normal((200, 3))
    for _ in range(12):
        chosen = rng.integers(0, 200, rng.integers(1, 150))
        other = rng.integers(0, 200, 40)
        S, T = X[chosen], X[other] + (0 if rng.random() < 0.7 else 1)
        K = pairs.of_one_set(S)
        assert np.abs(K - ((S[:, None] - S) ** 2).sum(2)).max() < 1e-13 * 100
        assert np.array_equal(K, K.T)
        K[:] = np.nan  # the caller's own
        assert np.abs(pairs.of_two_sets(T, S) - ((T[:, None] - S) ** 2).sum(2)).max() < 1e-13 * 100


@pytest.mark.usefixtures("patched")
def test_rows_that_are_changed_in_place_are_other_rows():
    X, y = data()
    KernelRidge(kernel="rbf").fit(X, y)
    X[7, 0] += 1
    model = KernelRidge(kernel="rbf").fit(X, y)
    twin, expected = original(model, X, y, predict=X)
    assert np.abs(model.dual_coef_ - twin.dual_coef_).max() < 1e-12
    model.X_fit_[3] += 1
    twin.X_fit_ = model.X_fit_
    with only_originals():
        expected = twin.predict(X.copy())
    assert np.abs(model.predict(X.copy()) - expected).max() < 1e-12


def warnings_of(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function()
    return result, [(w.category, re.sub(r"\d\S*", "#", str(w.message))) for w in caught]


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("kind", ["singular", "ill-conditioned", "indefinite"])
def test_bad_systems_end_as_they_do_in_the_original(kind):
    X, y = data()
    if kind == "singular":
        model = KernelRidge(kernel="linear", alpha=0)
    elif kind == "ill-conditioned":
        X, model = X[:, :1] * 1e-2, KernelRidge(kernel="rbf", alpha=1e-16 * N * 5)
    else:
        model = KernelRidge(kernel="poly", degree=2, coef0=-3.0, alpha=0.1)
    _, told = warnings_of(lambda: model.fit(X, y))
    (twin, _), told_by_original = warnings_of(lambda: original(model, X, y, predict=X))
    assert told == told_by_original
    assert told
    if kind == "ill-conditioned":
        assert told[0][0] is LinAlgWarning
    else:
        assert "Singular matrix in solving dual problem" in told[0][1]
    scale = np.abs(twin.dual_coef_).max()
    assert np.abs(model.dual_coef_ - twin.dual_coef_).max() < 1e-6 * scale


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize(
    ("options", "scale", "dtype"),
    [
        ({"kernel": "poly", "gamma": 1e200}, 1, np.float64),
        ({"kernel": "poly"}, 1e200, np.float64),
        ({"kernel": "linear"}, 1e200, np.float64),
        ({"kernel": "rbf"}, 1e200, np.float64),
        ({"kernel": "rbf"}, 1e25, np.float32),
    ],
    ids=str,
)
def test_overflow_is_told_as_the_original_tells_it(options, scale, dtype):
    X, y = data(dtype)
    model = KernelRidge(**options | {"gamma": None}).fit(X, y).set_params(**options)  # such rows are known
    X = X * dtype(scale)

    def outcome(context):
        with context:
            try:
                return clone(model).fit(X, y).dual_coef_.sum()
            except ValueError as error:
                return str(error)

    found, told = warnings_of(lambda: outcome(contextlib.nullcontext()))
    expected, told_by_original = warnings_of(lambda: outcome(only_originals()))
    assert found == expected
    assert told == told_by_original
    assert told
    predictions = [
        warnings_of(lambda context=context: _in(context, model.predict, X))
        for context in (contextlib.nullcontext(), only_originals())
    ]
    assert predictions[0][1] == predictions[1][1]
    assert np.array_equal(predictions[0][0], predictions[1][0], equal_nan=True)
    assert not record(FIT).declined
    assert not record(PREDICT).declined


def _in(context, function, *arguments):
    with context:
        return function(*arguments)


@pytest.mark.usefixtures("patched")
def test_bad_input_raises_what_the_original_raises():
    X, y = data()
    spoilt = X.copy()
    spoilt[3, 3] = np.nan
    rbf = KernelRidge(kernel="rbf")
    fitted = clone(rbf).fit(X, y)
    edited = [clone(rbf).fit(X, y) for _ in range(3)]
    for model, kept in zip(edited, (spoilt, X[:, :2], X[0]), strict=True):
        model.X_fit_ = kept
    column = pd.Series(np.ones(N))
    for function, arguments in (
        *((model.predict, (X,)) for model in edited),
        (rbf.fit, (column, y)),
        (fitted.predict, (column,)),
        (rbf.fit, (X, scipy.sparse.csr_array(y[:, None]))),
        (rbf.fit, (spoilt, y)),
        (rbf.fit, (X, spoilt[:, 3])),
        (rbf.fit, (X, y[:-1])),
        (rbf.fit, (X, y, np.ones(3))),
        (rbf.fit, (X, y, -np.ones(N))),
        (KernelRidge(kernel="rbf", degree=-1).fit, (X, y)),
        (KernelRidge(kernel="rbf", alpha=-1).fit, (X, y)),
        (KernelRidge(kernel="poly", gamma=1e200).fit, (X, y)),
        (fitted.predict, (spoilt,)),
        (fitted.predict, (X[:, :2],)),
    ):
        messages = []
        for context in (only_originals(), warnings.catch_warnings()):
            wrong = pytest.raises((ValueError, TypeError), match=r"\w")
            with context, np.errstate(all="ignore"), wrong as caught:
                function(*arguments)
            messages.append((type(caught.value), str(caught.value)))
        assert messages[0] == messages[1]
    with pytest.raises(NotFittedError):
        clone(rbf).predict(X)


class OwnKernel(KernelRidge):
    def _get_kernel(self, X, Y=None):
        return np.eye(len(X))


@pytest.mark.parametrize(
    ("model", "rows", "reason"),
    [
        (KernelRidge(kernel="precomputed"), np.eye(N), "precomputed"),
        (KernelRidge(kernel="cosine"), None, "none of these"),
        (KernelRidge(kernel=lambda a, b: float(a @ b)), None, "a function"),
        (OwnKernel(kernel="rbf"), None, "subclass"),
        (KernelRidge(kernel="rbf", alpha=[1.0]), None, "alpha"),
        (KernelRidge(kernel="rbf", gamma=np.float32(1)), None, "gamma"),
        (KernelRidge(kernel="poly", degree=None), None, "degree"),
        (KernelRidge(kernel="rbf"), scipy.sparse.csr_array(np.eye(N)), "neither a matrix"),
        (KernelRidge(kernel="rbf"), np.eye(N).tolist(), "neither a matrix"),
        (KernelRidge(kernel="rbf"), np.eye(N)[:20], "few rows"),
        (KernelRidge(kernel="rbf"), np.ones(N), "neither a matrix"),
        (KernelRidge(kernel="rbf"), np.eye(N).astype(np.float16), "neither float32"),
        (KernelRidge(kernel="rbf"), pd.DataFrame(np.eye(N), dtype="Float64"), "other types"),
        (KernelRidge(kernel="rbf"), pd.DataFrame(np.eye(N) > 0), "neither float32"),
    ],
)
def test_other_calls_are_left_alone(model, rows, reason):
    X, y = data()
    X = X if rows is None else rows
    assert reason in kernel_ridge.unfit_fit(model, X, y)
    assert kernel_ridge.unfit_predict(model, X) == "the model is not fitted to dense rows"


def test_compare_sees_a_wrong_fit():
    X, y = data()
    a, b = (KernelRidge(kernel="rbf", alpha=alpha).fit(X, y) for alpha in (0.1, 0.1001))
    assert kernel_ridge.difference_of_fits(a, b) > 1e-7
    assert kernel_ridge.difference_of_fits(a, pickle.loads(pickle.dumps(a))) == 0
    b.X_fit_ = X + 1e-3
    assert kernel_ridge.difference_of_fits(a, b) > 1e-5
    b.dual_coef_ = b.dual_coef_.astype(np.float32)
    assert kernel_ridge.difference_of_fits(a, b) == np.inf


@pytest.mark.parametrize("name", [FIT, PREDICT])
def test_the_version_at_hand_is_known(name):
    target = next(target for target in TARGETS if target.name == name)
    assert fingerprint_of(getattr(KernelRidge, target.qualname.split(".")[1])) in target.hashes
    for qualname, hashes in target.requires.items():
        holder = KernelRidge if "." in qualname else sklearn.kernel_ridge
        assert fingerprint_of(getattr(holder, qualname.rpartition(".")[2])) in hashes
