"""`evaluate`: scores, intervals, disagreements, baselines, and what it refuses."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

import kernel_distill as kd
from kernel_distill._evaluation import wilson_interval
from kernel_distill.solver.encoder import Encoder
from kernel_distill.solver.kernel_encoder import KernelEncoder
from kernel_distill.solver.kernel_functions import make_kernel_function
from kernel_distill.solver.learned_set import learned_set
from kernel_distill.solver.source import row_keys
from kernel_distill.solver.targets import Targets


@pytest.fixture(scope="module")
def data():
    return kd.load_data("digits")


@pytest.fixture(scope="module")
def exact(data):
    return kd.distill(data, feature_map="identity", ridge=1.0)


@pytest.fixture(scope="module")
def low_rank(data):
    return kd.distill(data, feature_map="identity", ridge=1.0, n_points=6)


@pytest.fixture(scope="module")
def with_kernel(data, exact):
    """Two real rows a class, moved a little, with their labels, and the kernel of a wide network."""
    rows = np.concatenate([np.flatnonzero(data.y_train == label)[:2] for label in range(10)])
    transform, targets = exact.encoder.transform, Targets("centred", 10, tuple(range(10)))
    x = transform.forward(torch.from_numpy(data.x_train[rows]))
    return learned_set(
        KernelEncoder(transform, make_kernel_function("ntk", transform.input_shape)),
        targets,
        x + 0.1 * torch.from_numpy(np.random.default_rng(0).normal(size=x.shape)),
        targets.encode(data.y_train[rows]),
        relative_ridge=1e-6,
        labels=torch.from_numpy(data.y_train[rows]),
        n_rows=len(data.x_train),
        heldout_score=0.5,
    )


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (8, 10, 0.4901625, 0.9433178),
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (9, 400, 0.01188, 0.0422),
    ],
)
def test_wilson_interval_known_values(hits, n, low, high):
    assert wilson_interval(hits, n) == pytest.approx((low, high), abs=5e-6)


def test_wilson_interval_inverts_the_score_test():
    z = 2.5758293035489004
    for end in wilson_interval(37, 50, confidence=0.99):
        assert abs(37 / 50 - end) == pytest.approx(z * (end * (1 - end) / 50) ** 0.5)


def test_exact_set_agrees_with_full_model(data, exact):
    result = kd.evaluate(exact, data)
    [row] = result.rows
    assert row.name == "identity-10"
    assert (row.points, row.nbytes, row.metric) == (10, exact.nbytes, "accuracy")
    assert row.score == exact.score(data.x_test, data.y_test)
    assert row.full_score == exact.full_model.score(data.x_test, data.y_test)
    assert row.differences == ()
    assert row.n_different == 0
    assert row.interval[0] < row.score < row.interval[1]
    assert (result.data, result.n_test) == ("digits", len(data.x_test))


def test_differing_rows_and_their_margins(data, low_rank):
    [row] = kd.evaluate(low_rank, data).rows
    mine, full = low_rank.predict(data.x_test), low_rank.full_model.predict(data.x_test)
    differing = np.flatnonzero(mine != full)
    assert row.n_different == len(differing) > 5
    assert [found.row for found in row.differences] == differing.tolist()
    scores = np.sort(low_rank.decision_function(data.x_test[differing]), axis=1)
    margins = [found.distilled_margin for found in row.differences]
    np.testing.assert_allclose(margins, scores[:, -1] - scores[:, -2], rtol=1e-9)
    first = row.differences[0]
    assert (first.truth, first.distilled, first.full) == (
        data.y_test[differing[0]],
        mine[differing[0]],
        full[differing[0]],
    )


def test_test_set_is_encoded_once_for_equal_encoders(tmp_path, monkeypatch, data, exact, low_rank):
    exact.save(tmp_path / "a.safetensors")
    low_rank.save(tmp_path / "b.safetensors")
    sets = [exact, tmp_path / "a.safetensors", str(tmp_path / "b.safetensors")]
    for ds in sets[:1]:
        assert ds.model is not None
    rows = 0
    original = Encoder.__call__

    def counted(self, X, dtype=None):
        nonlocal rows
        rows += len(X)
        return original(self, X, dtype)

    monkeypatch.setattr(Encoder, "__call__", counted)
    result = kd.evaluate(sets, data)
    assert rows == len(data.x_test) + 10 + 6  # and the points of the two sets that come from files
    monkeypatch.undo()
    assert [row.score for row in result.rows] == [
        ds.score(data.x_test, data.y_test) for ds in (exact, exact, low_rank)
    ]


def test_names(tmp_path, data, exact):
    exact.save(tmp_path / "a.safetensors")
    path = tmp_path / "a.safetensors"
    assert [row.name for row in kd.evaluate([exact, exact, path], data).rows] == [
        "identity-10",
        "identity-10 (2)",
        str(path),
    ]
    assert [row.name for row in kd.evaluate({"mine": path, "yours": exact}, data).rows] == ["mine", "yours"]


def test_regression_scores_r2():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 5))
    y = X @ rng.normal(size=(5, 2)) + 0.3 * rng.normal(size=(80, 2))
    ds = kd.distill(X[:60], y[:60], task="regression", feature_map="identity", ridge=1.0, intercept=True)
    [row] = kd.evaluate(ds, (X[60:], y[60:])).rows
    assert row.metric == "r2"
    assert row.score == pytest.approx(r2_score(y[60:], ds.predict(X[60:])))
    assert row.full_score == pytest.approx(row.score)
    assert row.interval is None
    assert row.differences is None
    with pytest.raises(ValueError, match=r"predicts 2 value\(s\) a row, `y` has shape \(20, 1\)"):
        kd.evaluate(ds, (X[60:], y[60:, 0]))


@pytest.mark.parametrize("intercept", [False, True])
def test_random_baseline_is_ridge_on_real_rows(data, intercept):
    ds = kd.distill(data, feature_map="fcnn", ridge=1.0, per_class=2, intercept=intercept)
    own, random = kd.evaluate(ds, data, baselines="random", seed=3).rows
    assert (own.trained_on, random.trained_on) == ("distilled", "random")
    assert random.points == 20
    assert random.full_score is None
    keys = row_keys(3, "random", 0, len(data.x_train)).numpy()
    rows = []
    for label in range(10):
        members = np.flatnonzero(data.y_train == label)
        rows += members[np.argsort(keys[members])[:2]].tolist()

    def encode(X):
        return ds.encoder(torch.from_numpy(X), torch.float64).numpy()

    F, Y = encode(data.x_train[rows]), np.eye(10)[data.y_train[rows]]
    ridge = 1e-6 * (F**2).sum() / 20
    phi, mean = (F.mean(axis=0), Y.mean(axis=0)) if intercept else (np.zeros(64), np.zeros(10))
    W = (F - phi).T @ np.linalg.solve((F - phi) @ (F - phi).T + ridge * np.eye(20), Y - mean)
    scores = (encode(data.x_test) - phi) @ W + mean
    assert random.score == (scores.argmax(axis=1) == data.y_test).mean()


def test_random_baseline_of_a_kernel_is_kernel_regression_on_real_rows(data, with_kernel):
    """With the ridge of least generalised cross-validation score among half decades of the mean eigenvalue."""
    own, random = kd.evaluate(with_kernel, data, baselines="random", seed=3).rows
    assert own.score == with_kernel.score(data.x_test, data.y_test)
    assert own.score > 0.5
    assert (own.full_score, own.differences, own.stored_error) == (None, None, None)
    assert (random.trained_on, random.points) == ("random", 20)
    keys = row_keys(3, "random", 0, len(data.x_train)).numpy()
    rows = []
    for label in range(10):
        members = np.flatnonzero(data.y_train == label)
        rows += members[np.argsort(keys[members])[:2]].tolist()
    encoder = with_kernel.encoder
    z, test = (encoder(torch.from_numpy(X)) for X in (data.x_train[rows], data.x_test))
    K, across = encoder.kernel.matrix(z).numpy(), encoder.kernel.matrix(test, z).numpy()
    Y = np.eye(10)[data.y_train[rows]] - 0.1
    candidates = [np.trace(K) / 20 * 10 ** (-11 + step / 2) for step in range(24)]

    def gcv(ridge):
        rest = np.eye(20) - K @ np.linalg.inv(K + ridge * np.eye(20))
        return ((rest @ Y) ** 2).sum() / 20 / (np.trace(rest) / 20) ** 2

    # The least ridges leave residuals of rounding: there one score is as good as the other.
    usable = [ridge for ridge in candidates if ridge > 1e-9 * np.trace(K) / 20]
    ridge = min(usable, key=gcv)
    scores = across @ np.linalg.solve(K + ridge * np.eye(20), Y)
    assert random.score == pytest.approx((scores.argmax(axis=1) == data.y_test).mean(), abs=1.5 / len(scores))


def test_sets_with_a_kernel_stand_in_one_table(tmp_path, monkeypatch, data, exact, with_kernel):
    with_kernel.save(tmp_path / "a")
    sets = [exact, with_kernel, tmp_path / "a"]
    assert with_kernel.model is not None
    rows = 0
    original = KernelEncoder.__call__

    def counted(self, X, *rest):
        nonlocal rows
        rows += len(X)
        return original(self, X, *rest)

    monkeypatch.setattr(KernelEncoder, "__call__", counted)
    result = kd.evaluate(sets, data)
    assert rows == len(data.x_test)
    assert [row.name for row in result.rows] == ["identity-10", "ntk-20", str(tmp_path / "a")]
    assert result.rows[1].score == result.rows[2].score == with_kernel.score(data.x_test, data.y_test)
    assert result.rows[1].interval is not None
    assert "stored error" in str(result)
    alone = kd.evaluate(with_kernel, data)
    assert "stored error" not in str(alone)
    assert json.loads(alone.to_json())["rows"][0]["stored_error"] is None


def test_random_baseline_depends_on_seed_alone(data, exact):
    scores = [
        kd.evaluate(exact, data, baselines=["random"], seed=seed).rows[1].score for seed in (0, 0, 1, 2)
    ]
    assert scores[0] == scores[1]
    assert len(set(scores)) > 1


def test_random_baseline_of_regression_and_of_too_few_rows(data):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 4)), rng.normal(size=60)
    ds = kd.distill(X, y, task="regression", feature_map="identity", ridge=1.0)
    arrays = kd.Data(X[:50], y[:50], X[50:], y[50:], (), "made")
    assert kd.evaluate(ds, arrays, baselines="random").rows[1].points == 1
    ds = kd.distill(data, feature_map="identity", ridge=1.0, per_class=30)
    few = dataclasses.replace(data, x_train=data.x_train[:200], y_train=data.y_train[:200])
    with pytest.raises(
        ValueError, match=r"baseline 'random' needs 30 training rows of class \d, the data have"
    ):
        kd.evaluate(ds, few, baselines="random")


def test_string_labels_meet_class_numbers(data):
    names = tuple("abcdefghij")
    ds = kd.distill(data.x_train, np.array(names)[data.y_train], feature_map="identity", ridge=1.0)
    named = dataclasses.replace(data, class_names=names)
    own, _ = kd.evaluate(ds, named, baselines="random").rows
    assert own.score == own.full_score > 0.9


def test_output_forms(data, exact, low_rank):
    result = kd.evaluate(
        {"exact": exact, "low [red]rank": low_rank}, data, baselines="random", confidence=0.9
    )
    found = json.loads(result.to_json())
    assert found == json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found["rows"][0]["score"] == result.rows[0].score
    assert found["rows"][2]["n_different"] == len(found["rows"][2]["differences"])
    text = str(result)
    lines = text.splitlines()
    assert text.isascii()
    assert lines[0] == f"digits, {len(data.x_test)} test rows, recipe ridge"
    assert {len(line) for line in lines[2:8]} == {len(lines[2])}
    assert "90 % interval" in lines[2]
    assert lines[6].startswith("| low [red]rank | distilled")
    assert f"and {result.rows[2].n_different - 5} more" in lines[-1]
    assert "full data" not in str(kd.evaluate(dataclasses.replace(exact, full_model=None), data))


def test_numbers_that_are_not_finite_become_null(data, exact):
    broken = exact.certificate.model_copy(update={"stored_error": float("inf")})
    result = kd.evaluate(dataclasses.replace(exact, certificate=broken), data)
    assert json.loads(result.to_json())["rows"][0]["stored_error"] is None


def test_refusals(tmp_path, data, exact):
    refused = [
        ((exact, data), {"recipe": "rigde"}, "unknown recipe 'rigde'; did you mean 'ridge'"),
        ((exact, data), {"baselines": "randm"}, "unknown baseline 'randm'; did you mean 'random'"),
        ((exact, data), {"confidence": 95}, "`confidence` must lie between 0 and 1, got 95"),
        ((exact, dataclasses.replace(data, x_test=None, y_test=None)), {}, "'digits' has no test split"),
        ((exact, (data.x_test, data.y_test)), {"baselines": "random"}, "drawn from training rows"),
        ((exact, (data.x_test, data.y_test[:5])), {}, "as many labels as test rows"),
        ((exact, (data.x_test[:0], data.y_test[:0])), {}, "as many labels as test rows"),
        ((exact, data.x_test), {}, "must be what load_data returns"),
        ((exact, (data.x_test.reshape(-1, 64), data.y_test)), {}, "expected rows of shape"),
        ((exact, (data.x_test, data.y_test + 1)), {}, "outside the 10 known classes"),
        (([], data), {}, "`sets` is empty"),
        ((3, data), {}, "`sets` must be"),
        (([3], data), {}, "expected a DistilledSet or a path"),
    ]
    for arguments, options, message in refused:
        with pytest.raises(ValueError, match=message):
            kd.evaluate(*arguments, **options)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        kd.evaluate(tmp_path / "none.safetensors", data)
    other = dataclasses.replace(data, class_names=tuple("abcdefghij"))
    ds = dataclasses.replace(exact, class_names=tuple("klmnopqrst"))
    with pytest.raises(ValueError, match=r"was made for classes k, l, m, n, .*, the test data have a, b"):
        kd.evaluate(ds, other)
