"""Class-Gaussian sets through `distill`: what is exact, what it is worth, and what comes back."""

import json
import pickle

import numpy as np
import pytest
import torch

import kernel_distill as kd
from kernel_distill.solver.source import row_keys

from ..cases import problem, relative, train

FULL = kd.ClassGaussians(covariance="full")


@pytest.fixture(scope="module")
def data():
    return kd.load_data("digits")


def distill(X, y, method=FULL, **options):
    return kd.distill(X, y, method=method, progress=False, **options)


def held_out(n):
    """Rows that seed 0 holds out of n, by the default share."""
    return row_keys(0, "holdout", 0, n).argsort(stable=True)[: round(0.05 * n)].sort().values.numpy()


def targets(y, k):
    return np.eye(k)[y] - 1 / k


# The exact case


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("per_class", [1, 2])
@pytest.mark.parametrize("ridge", [0.0, 3.0])
def test_linear_models_of_full_covariances_are_those_of_the_rows(ridge, per_class, intercept):
    X, y = problem()
    ds = distill(
        X,
        y,
        feature_map="identity",
        ridge=ridge,
        per_class=per_class,
        intercept=intercept,
        holdout=0.0,
    )
    W, b = train(X, targets(y, 4), ridge, intercept=intercept)
    assert relative(ds.model.weights, W) < 1e-12
    np.testing.assert_allclose(ds.model.bias, b, rtol=0, atol=1e-12)
    assert "no rows were held out: the score is that of training rows, which flatters the set" in (
        ds.certificate.notes
    )
    chosen = distill(X, y, feature_map="identity", per_class=per_class, intercept=intercept, holdout=0.0)
    assert any("and the ridge was chosen by it" in note for note in chosen.certificate.notes)
    part = distill(X, y, feature_map="identity", ridge=ridge, per_class=per_class, intercept=intercept)
    seen = np.setdiff1d(np.arange(len(X)), held_out(len(X)))
    W, _ = train(X[seen], targets(y[seen], 4), ridge, intercept=intercept)
    assert relative(part.model.weights, W) < 1e-12  # of the rows that were not held out, and of no other


@pytest.mark.parametrize("covariance", ["diagonal", "low-rank"])
def test_other_covariances_leave_something_out(covariance):
    X, y = problem()
    ds = distill(
        X,
        y,
        kd.ClassGaussians(covariance=covariance, rank=2),
        feature_map="identity",
        ridge=3.0,
        holdout=0.0,
    )
    W, _ = train(X, targets(y, 4), 3.0)
    assert 1e-3 < relative(ds.model.weights, W) < 0.5


def test_the_model_of_gaussian_rows_is_nearly_that_of_the_rows():
    """Fourier features: the Gaussians of many Gaussian rows give their model, others that are not do not."""
    rng = np.random.default_rng(0)
    n, options = 20_000, {"feature_map": "fourier", "feature_params": {"n_features": 30, "length_scale": 3.0}}
    y = np.arange(n) % 2
    X = rng.normal(size=(n, 2)) + 1.5 * y[:, None]
    # The same moments at corners of squares.
    corners = rng.choice([-1.0, 1.0], size=(n, 2)) + 1.5 * y[:, None]
    errors = []
    for rows in (X, corners):
        ds = distill(rows, y, ridge=50.0, holdout=0.0, **options)
        F = ds.encoder(torch.from_numpy(rows))
        Y = targets(y, 2)
        W, _ = train(F, Y, 50.0)
        predicted = ds.decision_function(rows)
        errors.append(relative(predicted, F.numpy() @ W))
    assert errors[0] < 0.02  # about 1 / sqrt(n), times what the ridge allows
    assert errors[1] > 2 * errors[0]


# What it is worth


@pytest.mark.parametrize(
    ("method", "floor"),
    [(kd.ClassGaussians(covariance="diagonal"), 0.9), (kd.ClassGaussians(rank=8), 0.93)],
)
def test_digits_beat_random_rows_of_the_same_bytes(method, floor, data):
    ds = distill(data, None, method, feature_params={"n_features": 400}, storage="float32")
    score = ds.score(data.x_test, data.y_test)
    assert score > floor
    # Rows of float32 with an integer each, and the best ridge for the test rows: more than they deserve.
    m = ds.nbytes // (4 * 64 + 4) // 10
    order = row_keys(0, "random", 0, len(data.x_train)).argsort().numpy()
    rows = np.concatenate([order[data.y_train[order] == c][:m] for c in range(10)])
    F, Y = ds.encoder(torch.from_numpy(data.x_train[rows])), targets(data.y_train[rows], 10)
    G = ds.encoder(torch.from_numpy(data.x_test)).numpy()
    scores = [
        ((G @ train(F, Y, ridge)[0]).argmax(1) == data.y_test).mean() for ridge in 10.0 ** np.arange(-4, 2)
    ]
    assert score > max(scores)


# Choice of the ridge


def test_the_ridge_is_chosen_on_rows_that_were_held_out(data):
    options = {"feature_params": {"n_features": 100}, "precision": "exact"}
    ds = distill(data, None, **options)
    rows = held_out(len(data.x_train))
    found = ds.certificate
    assert (found.ridge_rule, found.heldout_rows) == ("holdout", len(rows))
    assert found.heldout_score == ds.score(data.x_train[rows], data.y_train[rows])
    candidates = [1e-3, 30.0, 1e5]
    chosen = distill(data, None, ridge=candidates, **options)
    each = {ridge: distill(data, None, ridge=ridge, **options).certificate for ridge in candidates}
    assert {c.ridge_rule for c in each.values()} == {"given"}
    assert {ridge: c.distilled_ridge for ridge, c in each.items()} == dict(
        zip(candidates, candidates, strict=True)
    )
    best = max(c.heldout_score for c in each.values())
    assert chosen.distilled_ridge == max(r for r, c in each.items() if c.heldout_score == best)
    relative_ridge = distill(data, None, ridge=kd.Ridge(0.5, "per-sample"), **options)
    np.testing.assert_allclose(relative_ridge.distilled_ridge, 0.5 * found.n_rows, rtol=1e-15)


# The set


@pytest.mark.parametrize("transform", ["auto", "zca-kornia"])
@pytest.mark.parametrize("storage", ["float64", "float32"])
def test_a_set_says_what_it_is_and_comes_back(storage, transform, data, tmp_path):
    method = kd.ClassGaussians(rank=3)
    ds = distill(
        data,
        None,
        method,
        per_class=2,
        storage=storage,
        transform=transform,
        feature_params={"n_features": 50},
    )
    assert len(ds) == 20
    assert ds.hard_labels.tolist() == np.repeat(np.arange(10), 2).tolist()
    assert ds.certificate.status is kd.Status.MOMENTS
    assert "Gaussians" in ds.certificate.status.explanation
    size = 8 if storage == "float64" else 4
    rank = 64 * 3 - 3
    assert ds.storage() == {
        "means": 20 * 64 * size,
        "weights": 20 * 8,
        "covariances": 20 * (64 + rank) * size,
        "labels": 20 * 10 * size,
    }
    assert ds.certificate.notes[0].startswith(
        f"{ds.nbytes} bytes, as many as {ds.equivalent_images:.4g} inputs"
    )
    ds.save(tmp_path / "set.safetensors")
    # Nothing of the size of the Gram matrix or of the points is in the file.
    assert (tmp_path / "set.safetensors").stat().st_size < ds.nbytes + 64 * 65 * 8 + 10_000
    again = kd.load(tmp_path / "set.safetensors")
    np.testing.assert_array_equal(
        ds.decision_function(data.x_test), again.decision_function(data.x_test), strict=True
    )
    assert kd.evaluate(again, data).rows[0].score == ds.score(data.x_test, data.y_test)
    assert torch.equal(ds.sample(30, seed=1)[0], again.sample(30, seed=1)[0])


def test_samples_are_inputs_of_their_classes(data):
    ds = distill(data, None, feature_params={"n_features": 200})
    X, y = ds.sample(500)
    assert X.shape == (500, *data.x_train.shape[1:])
    assert (ds.predict(X.numpy()) == y.argmax(1).numpy()).mean() > 0.9
    for c in (0, 7):
        mean = X[y.argmax(1) == c].mean(0)
        wanted = data.x_train[data.y_train == c].mean(0)
        assert relative(mean, wanted) < 0.15


# Subtasks


@pytest.mark.parametrize("subtasks", [3, 10])
def test_subtasks_change_nothing(subtasks, data, tmp_path):
    options = {"method": kd.ClassGaussians(rank=4), "per_class": 2, "feature_params": {"n_features": 50}}
    whole = distill(data, None, **options)
    parts = distill(data, None, subtasks=subtasks, executor="serial", **options)
    files = [tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"]
    for ds, path in zip((whole, parts), files, strict=True):
        ds.save(path)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("covariance", ["full", "low-rank", "diagonal"])
def test_sets_of_different_classes_merge_into_that_of_all(covariance, data):
    options = {
        "method": kd.ClassGaussians(covariance=covariance, rank=4),
        "per_class": 2,
        "holdout": 0.0,
        "ridge": 5.0,
    }
    X, y = data.x_train, data.y_train
    whole = distill(X, y, feature_params={"n_features": 50}, **options)
    encoder = whole.encoder
    parts = [
        distill(X[mine], y[mine], transform=encoder.transform, feature_map=encoder.feature_map, **options)
        for mine in (y >= 7, y < 4, (y >= 4) & (y < 7))
    ]
    merged = kd.merge(parts)
    assert merged.certificate.status is kd.Status.MOMENTS
    np.testing.assert_array_equal(
        merged.decision_function(data.x_test), whole.decision_function(data.x_test), strict=True
    )
    assert merged.nbytes == whole.nbytes


def test_tasks_travel(data):
    """What a task is given and what it returns, as a worker would see them."""
    from kernel_distill.solver.executors import SerialExecutor

    class Travelling(SerialExecutor):
        def map(self, function, tasks, *, shared=(), **options):
            names = [task.name for task in tasks]
            assert len(set(names)) == len(names) == 4
            function, tasks, shared = pickle.loads(pickle.dumps((function, tasks, shared)))
            return pickle.loads(pickle.dumps(super().map(function, tasks, shared=shared, **options)))

    options = {"method": kd.ClassGaussians(rank=4), "feature_params": {"n_features": 50}, "subtasks": 4}
    found = distill(data, None, executor=Travelling(), **options)
    wanted = distill(data, None, **options)
    np.testing.assert_array_equal(found.decision_function(data.x_test), wanted.decision_function(data.x_test))


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_map": "deep-linear"}, "'fourier' or 'identity'"),
        ({"storage": "uint8"}, "storage type of Gaussians"),
        ({"ridge": "loo"}, "'holdout'"),
        ({"ridge": "gcv"}, "'holdout'"),
        ({"near": "data"}, "leave out `near`"),
        ({"device": "cuda"}, "runs on the CPU"),
        ({"loop": kd.Loop(steps=3)}, "takes no `loop`"),
        ({"labels": "solved"}, "takes no `labels`"),
        ({"distilled_ridge": 1.0}, "takes no `distilled_ridge`"),
        ({"sample_weight": np.ones(200)}, "takes no `sample_weight`"),
        ({"n_points": 3}, "raise `n_points`"),
        ({"subtasks": 5}, "4 classes do not make 5 subtasks"),
        ({"per_class": 100}, "lower per_class"),
    ],
)
def test_what_is_of_no_use_here_is_refused(options, message):
    X, y = problem()
    with pytest.raises(ValueError, match=message):
        distill(X, y, **options)


def test_targets_must_be_classes_and_rows_arrays():
    X, y = problem()
    with pytest.raises(ValueError, match="needs classes"):
        distill(X, y.astype(float), task="regression")
    with pytest.raises(ValueError, match="pass arrays"):
        distill([(X, y)], None, n_classes=4, feature_map="identity")


def test_options_are_checked_and_written_to_the_file(data):
    with pytest.raises(ValueError, match="rank"):
        kd.ClassGaussians(rank=0)
    with pytest.raises(ValueError, match="covariance"):
        kd.ClassGaussians(covariance="some")
    ds = distill(data, None, kd.ClassGaussians(rank=1), feature_params={"n_features": 20})
    options = json.loads(json.dumps(ds.provenance))["options"]
    assert (options["method"], options["covariance"], options["rank"]) == ("class-gaussians", "low-rank", 1)
