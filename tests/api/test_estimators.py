"""The estimators keep scikit-learn's contract, and are the ridge models that they claim to be."""

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.datasets import load_diabetes, load_digits, load_iris, make_regression
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

import kernel_distill as kd

# Wider than the columns of most checks, so that points live in feature space; a given length scale, since
# one that is measured on rows depends on how often each is there.
FOURIER = {"feature_map": "fourier", "feature_params": {"n_features": 40, "length_scale": 2.0}}
# Two units would not separate the two-dimensional blobs of the checks.
WIDE = {"feature_map": "fcnn", "feature_params": {"widths": 32}}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Hundreds of fits of a few rows each: a second thread only waits for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CHECKED = [
    kd.KernelDistiller(),
    kd.KernelDistiller(ridge=1.0),
    kd.KernelDistiller(ridge=1.0, fit_intercept=False, per_class=2),
    kd.KernelDistiller(ridge=1.0, near="data"),
    kd.KernelDistiller(ridge=1e-3, **FOURIER),
    kd.KernelDistiller(ridge=1.0, **WIDE),
    kd.KernelDistillerRegressor(),
    kd.KernelDistillerRegressor(ridge=1.0),
    kd.KernelDistillerRegressor(ridge=1e-3, **FOURIER),
    kd.KernelDistillerRegressor(ridge=1.0, feature_map="fcnn"),
]


def expected_failures(estimator):
    if isinstance(estimator.ridge, str):
        return {
            "check_sample_weight_equivalence_on_dense_data": (
                "leave-one-out takes one row away, which is all of a weighted row and one of several repeated"
                " ones, and generalised cross-validation counts rows: the two choose different ridges"
            )
        }
    return {}


@parametrize_with_checks(CHECKED, expected_failed_checks=expected_failures)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def test_kinds():
    classifier, regressor = kd.KernelDistiller(), kd.KernelDistillerRegressor()
    assert is_classifier(classifier)
    assert is_regressor(regressor)
    assert get_tags(regressor).target_tags.multi_output
    assert not get_tags(classifier).target_tags.multi_output
    assert get_tags(classifier).input_tags.three_d_array
    # A parameter of that name would make pipelines take them for transformers.
    assert not hasattr(classifier, "transform")
    assert not hasattr(regressor, "transform")


def one_hot(y):
    return (y[:, None] == np.unique(y)).astype(float)


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def digits():
    return load_digits(return_X_y=True)


def weights(n, weighted):
    return np.random.default_rng(0).uniform(0.1, 3.0, n) if weighted else None


MAPS = pytest.mark.parametrize(
    "params",
    [
        {},
        {"near": "data", "per_class": 3},
        {"feature_map": "fourier"},
        {"feature_map": "fourier", "feature_params": {"n_features": 50}},
        {"feature_map": "fcnn"},
        {"distilled_ridge": 10.0},
    ],
    ids=["identity", "near-data", "fourier", "fourier-features", "fcnn", "distilled-ridge"],
)


@MAPS
@pytest.mark.parametrize("intercept", [True, False], ids=["intercept", "origin"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_scores_are_those_of_ridge_on_one_hot_targets(iris, params, intercept, weighted):
    X, y = iris
    w, ridge = weights(len(X), weighted), 0.3
    model = kd.KernelDistiller(input_transform="none", ridge=ridge, fit_intercept=intercept, **params)
    model.fit(X, y, sample_weight=w)
    F = model.distilled_.encoder(torch.from_numpy(X)).numpy()
    plain = Ridge(alpha=ridge, fit_intercept=intercept).fit(F, one_hot(y), sample_weight=w)
    np.testing.assert_allclose(model.decision_function(X), plain.predict(F), rtol=0, atol=1e-8)
    assert model.certificate_.stored_error < 1e-8
    assert len(model.x_) == 3 * params.get("per_class", 1)


def test_two_classes_are_ridge_classifier(iris):
    X, y = iris[0][50:], np.array(["no", "yes"])[iris[1][50:] - 1]
    model = kd.KernelDistiller(ridge=0.7).fit(X, y)
    plain = RidgeClassifier(alpha=0.7).fit(X, y)
    np.testing.assert_allclose(model.decision_function(X), plain.decision_function(X), rtol=0, atol=1e-8)
    np.testing.assert_array_equal(model.predict(X), plain.predict(X))


@MAPS
@pytest.mark.parametrize("outputs", [None, 1, 3], ids=["vector", "column", "matrix"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_values_are_those_of_ridge(params, outputs, weighted):
    params = {key: value for key, value in params.items() if key != "per_class"}
    X, y = make_regression(
        80, 6, n_informative=4, n_targets=outputs or 1, noise=3.0, bias=20.0, random_state=0
    )
    y = y.reshape(80, *([] if outputs is None else [outputs]))
    w = weights(len(X), weighted)
    model = kd.KernelDistillerRegressor(input_transform="none", ridge=0.3, **params).fit(X, y, w)
    F = model.distilled_.encoder(torch.from_numpy(X)).numpy()
    plain = Ridge(alpha=0.3).fit(F, y, sample_weight=w)
    values = model.predict(X)
    assert values.shape == y.shape
    np.testing.assert_allclose(values, plain.predict(F).reshape(y.shape), rtol=0, atol=1e-8 * np.abs(y).max())
    assert model.y_.shape == (len(model.x_), *y.shape[1:])
    assert len(model.x_) == (outputs or 1) + 1


def test_anyone_can_train_on_the_points(iris):
    """The points and soft labels are a training set: least squares on them is the model of all rows."""
    X, y = iris
    model = kd.KernelDistiller(ridge=0.3).fit(X, y)
    other = LinearRegression().fit(model.x_, model.y_)
    np.testing.assert_allclose(other.predict(X), model.decision_function(X), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "ridge", ["auto", "loo", "gcv", "holdout", [0.1, 10.0], kd.Ridge(1e-3, "per-sample")]
)
def test_every_way_to_choose_the_ridge(iris, ridge):
    X, y = iris
    model = kd.KernelDistiller(ridge=ridge).fit(X, y)
    plain = Ridge(alpha=model.certificate_.ridge).fit(X, one_hot(y))
    np.testing.assert_allclose(model.decision_function(X), plain.predict(X), rtol=0, atol=1e-8)


@pytest.mark.parametrize("params", [{}, {"feature_map": "fourier"}, {"input_transform": "standardize"}])
@pytest.mark.parametrize("ridge", ["loo", "gcv", "holdout"])
def test_weight_zero_is_not_there(iris, params, ridge):
    """Nothing that is taken from rows sees them: λ, length scale, standardisation, held-out rows, classes."""
    X, y = iris
    w = np.where(np.arange(len(X)) % 3 == 0, 0.0, 2.0)
    w[y == 2] = 0.0
    model = kd.KernelDistiller(ridge=ridge, **params).fit(X, y, w)
    other = kd.KernelDistiller(ridge=ridge, **params).fit(X[w > 0], y[w > 0], w[w > 0])
    assert model.classes_.tolist() == [0, 1]
    np.testing.assert_array_equal(model.decision_function(X), other.decision_function(X))


def test_fewer_points_than_classes_say_what_is_lost(digits):
    X, y = digits
    model = kd.KernelDistiller(n_points=5, ridge=1.0).fit(X, y)
    assert model.x_.shape == (5, 64)
    assert model.certificate_.status is kd.Status.LOW_RANK
    assert model.predict(X).shape == y.shape


LABELS = {
    "int": np.array([-3, 4, 10]),
    "uint8": np.array([0, 7, 255], dtype=np.uint8),
    "uint64": np.array([0, 1, 2**64 - 1], dtype=np.uint64),
    "float": np.array([0.0, 1.0, 5.0]),
    "str": np.array(["a", "bb", "ccc"]),
    "object": np.array(["a", "bb", "ccc"], dtype=object),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_dtype(iris, kind, tmp_path):
    X, y = iris[0], LABELS[kind][iris[1]]
    model = kd.KernelDistiller().fit(X, y)
    assert model.classes_.dtype == model.labels_.dtype == model.predict(X).dtype == y.dtype
    assert model.labels_.tolist() == model.classes_.tolist() == LABELS[kind].tolist()
    assert model.score(X, y) > 0.8
    model.distilled_.save(tmp_path / "set.safetensors")
    stored = kd.load(tmp_path / "set.safetensors")
    if kind in ("uint64", "float"):
        np.testing.assert_array_equal(model.classes_[stored.predict(X)], model.predict(X))
        assert stored.class_names == tuple(map(str, model.classes_))
    else:
        np.testing.assert_array_equal(stored.predict(X), model.predict(X))


def test_boolean_labels(iris):
    X, y = iris[0], iris[1] > 0
    predicted = kd.KernelDistiller().fit(X, y).predict(X)
    assert predicted.dtype == bool
    assert (predicted == y).mean() > 0.95


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (2, 4, 8)])
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_images(digits, shape, dtype):
    X, y = digits
    X = X.astype(dtype).reshape(-1, *shape)
    model = kd.KernelDistiller(ridge=1.0).fit(X, y)
    assert model.n_features_in_ == 64
    assert model.x_.shape == (10, *shape)
    assert model.distilled_.encoder.transform.name == "standardize"
    assert model.score(X, y) > 0.9
    points, labels = model.fit_resample(X, y)
    assert points.shape == (10, *shape)
    assert labels.tolist() == list(range(10))
    for wrong in (X.reshape(-1, 64), X.reshape(-1, 4, 16), X[..., :4]):
        with pytest.raises(ValueError, match=r"shape|features"):
            model.predict(wrong)


def test_images_of_a_regressor_are_torch_tensors_too(digits):
    X, y = digits
    model = kd.KernelDistillerRegressor(ridge=1.0).fit(torch.from_numpy(X.reshape(-1, 8, 8)), y)
    np.testing.assert_array_equal(
        model.predict(torch.from_numpy(X.reshape(-1, 8, 8))), model.predict(X.reshape(-1, 8, 8))
    )


def test_fit_resample_makes_a_training_set(digits):
    X, y = digits
    names = np.array([f"digit {value}" for value in range(10)])[y]
    sampler = kd.KernelDistiller(ridge=100.0, per_class=2, near="data")
    points, labels = sampler.fit_resample(X, names)
    assert points.shape == (20, 64)
    assert labels.dtype == names.dtype
    np.testing.assert_array_equal(np.unique(labels, return_counts=True)[1], 2)
    other = LogisticRegression(max_iter=1000).fit(points, labels)
    assert other.score(X, names) > 0.5
    points[:] = labels[:] = 0
    assert sampler.x_.any()
    assert sampler.labels_[0] == "digit 0"


def test_fit_resample_of_values():
    X, y = load_diabetes(return_X_y=True)
    model = kd.KernelDistillerRegressor(ridge=0.1)
    points, targets = model.fit_resample(X, y)
    assert points.shape == (2, 10)
    assert targets.shape == (2,)
    np.testing.assert_allclose(
        LinearRegression().fit(points, targets).predict(X), model.predict(X), rtol=1e-8
    )


def test_fit_resample_refuses_what_is_no_training_set(digits):
    X, y = digits
    wide = {"feature_map": "fourier", "feature_params": {"n_features": 100}, "ridge": 1.0}
    for estimator in (kd.KernelDistiller(**wide), kd.KernelDistillerRegressor(**wide)):
        with pytest.raises(ValueError, match=r"64 inputs and 100 features has no preimage.*at most 64"):
            estimator.fit_resample(X, y)
        assert estimator.x_.shape[1] == 100
    images = torch.from_numpy(X).reshape(-1, 1, 8, 8)
    per_sample = kd.transforms.ZCARfad.fit(lambda: [images], (1, 8, 8), per_sample=True)
    normalised = kd.KernelDistiller(input_transform=per_sample, ridge=1.0)
    with pytest.raises(ValueError, match=r"'zca-rfad', which cannot be undone.*input_transform"):
        normalised.fit_resample(images, y)
    directions = kd.KernelDistiller(method="all-ridges", fit_intercept=False, ridge=1.0)
    with pytest.raises(ValueError, match="belong to no class"):
        directions.fit_resample(X, y)
    assert directions.labels_ is None
    assert directions.score(X, y) > 0.9


def test_pipeline_and_cross_validation(digits):
    X, y = digits
    pipeline = make_pipeline(StandardScaler(), kd.KernelDistiller(ridge=10.0))
    assert cross_val_score(pipeline, X, y, cv=3).min() > 0.85
    assert not hasattr(pipeline, "transform")


def test_grid_search(iris):
    X, y = iris
    grid = {"kerneldistiller__ridge": [0.1, 10.0], "kerneldistiller__n_points": [1, 2, 3, None]}
    search = GridSearchCV(
        make_pipeline(StandardScaler(), kd.KernelDistiller()), grid, cv=3, error_score="raise"
    )
    search.fit(X, y)
    assert search.best_params_["kerneldistiller__n_points"] in (3, None)
    assert search.best_score_ > 0.7
    X, y = load_diabetes(return_X_y=True)
    grid = {"ridge": [0.1, 1e6], "n_points": [1, 2]}
    search = GridSearchCV(kd.KernelDistillerRegressor(), grid, cv=3, error_score="raise").fit(X, y)
    assert search.best_params_ == {"ridge": 0.1, "n_points": 2}


def test_clone_keeps_objects_and_arrays(iris):
    X, y = iris
    feature_map = kd.feature_maps.RandomFourier((4,), 20, length_scale=2.0)
    model = kd.KernelDistiller(feature_map=feature_map, near=X[::60], labels="solved", ridge=kd.Ridge(0.1))
    copy = clone(model)
    assert copy.feature_map is not feature_map
    scores = model.fit(X, y).decision_function(X)
    np.testing.assert_array_equal(copy.fit(X, y).decision_function(X), scores)


def test_random_state(iris):
    X, y = iris

    def scores(random_state):
        model = kd.KernelDistiller(feature_map="fourier", ridge=0.1, random_state=random_state)
        return model, model.fit(X, y).decision_function(X)

    _, first = scores(None)
    np.testing.assert_array_equal(first, scores(0)[1])
    np.testing.assert_array_equal(first, scores(np.int32(0))[1])
    assert np.abs(first - scores(1)[1]).max() > 1e-3
    model, drawn = scores(np.random.RandomState(0))
    np.testing.assert_array_equal(drawn, scores(np.random.RandomState(0))[1])
    assert np.abs(drawn - model.fit(X, y).decision_function(X)).max() > 1e-3
    with pytest.raises(ValueError, match="cannot be used to seed"):
        scores("seven")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"feature_map": "forier"}, "did you mean 'fourier'"),
        ({"ridge": -1.0}, "not negative"),
        ({"per_class": 0}, "per_class"),
        ({"n_points": 2.5}, "n_points"),
        ({"near": "data", "per_class": 60}, "has 50 rows"),
        ({"method": "theorem"}, "no intercept"),
    ],
)
def test_bad_parameters_raise_in_fit(iris, params, message):
    with pytest.raises(ValueError, match=message):
        kd.KernelDistiller(**params).fit(*iris)


def test_one_class_raises(iris):
    X, y = iris
    with pytest.raises(ValueError, match=r"one class only.*0.*at least two"):
        kd.KernelDistiller().fit(X[:50], y[:50])
    with pytest.raises(ValueError, match="one class only"):
        kd.KernelDistiller().fit(X, y, sample_weight=y == 1)


def test_doctests():
    import doctest

    for estimator in (kd.KernelDistiller, kd.KernelDistillerRegressor):
        for test in doctest.DocTestFinder(recurse=False).find(estimator, estimator.__name__):
            result = doctest.DocTestRunner().run(test)
            assert result.attempted
            assert not result.failed


def test_learned_methods_work_in_the_estimator():
    data = kd.load_data("digits")
    estimator = kd.KernelDistiller(method=kd.KIP(batch_size=200), loop=kd.Loop(steps=2), random_state=0)
    estimator.fit(data.x_train.reshape(len(data.x_train), -1), data.y_train)
    assert estimator.certificate_.status == "learned"
    assert estimator.score(data.x_test.reshape(len(data.x_test), -1), data.y_test) > 0.3
    with pytest.raises(ValueError, match="takes no `ridge`"):
        kd.KernelDistiller(method="kip", ridge=1.0).fit(data.x_train, data.y_train)
