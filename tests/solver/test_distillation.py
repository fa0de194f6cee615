"""From data to a distilled set: what is promised exact is exact, what is certified is true, bad input is refused."""

import numpy as np
import pytest
import torch

import kernel_distill as kd
from kernel_distill.solver import model
from kernel_distill.solver.distillation import METHODS
from kernel_distill.solver.feature_maps import Identity, make_feature_map
from kernel_distill.solver.transforms import make_transform

from ..cases import (
    EPS,
    INVERTIBLE,
    WIDE,
    D,
    K,
    condition,
    fourier,
    map_condition,
    one_hot,
    params_of,
    problem,
    relative,
    rounding,
    train,
)

RIDGE = 0.5
EVERY = params_of(INVERTIBLE) + params_of(WIDE)


def made(case, X=None, y=None, **options):
    if X is None:
        X, y = problem()
    if "transform" not in options:
        options["transform"] = "none"
    return kd.distill(
        case.inputs(X), y, feature_map=case.name, feature_params=case.params, **{"ridge": RIDGE, **options}
    )


def features(distilled, X):
    """Features of raw rows in float64, and of the points from x as it is stored."""
    encoder = distilled.encoder
    F = encoder(torch.as_tensor(X), torch.float64).numpy()
    x = distilled.x.double()
    if distilled.space == "input":
        x = encoder.transform.forward(x)
    return F, (x if distilled.space == "features" else encoder.feature_map.features(x)).numpy()


def limit(distilled, F, S, ridge, *, intercept=False):
    """What rounding may cost: in the set's own training, in its preimage, and in the full model.

    Whatever λ_S, the filters that make labels of weights and weights of labels multiply to the condition of the
    set at most: s / (s² + λ) · (t² + λ) / t <= s / t.
    """
    kappa = condition(S - S.mean(axis=0) if intercept else S)
    if distilled.space != "features":
        z = distilled.x.double()
        z = distilled.encoder.transform.forward(z) if distilled.space == "input" else z
        kappa *= map_condition(distilled.encoder.feature_map, z)
    # Of W, the part along the data's weakest direction is as large as the condition of G + λ allows.
    whole = min((np.linalg.norm(F, 2) ** 2 + ridge) / max(ridge, 1e-300), condition(F) ** 2)
    return rounding(kappa, size=max(S.shape)) + rounding(whole, size=max(S.shape))


def check_exact(distilled, X, Y, *, weight=None, intercept=False, ridge=None):
    """NumPy on the points gives NumPy on the data."""
    F, S = features(distilled, X)
    ridge = distilled.certificate.ridge if ridge is None else ridge
    wanted, bias = train(F, Y, ridge, weight, intercept=intercept)
    W, b = train(S, distilled.y.double(), distilled.distilled_ridge, intercept=intercept)
    allowed = limit(distilled, F, S, ridge, intercept=intercept)
    assert allowed < 1e-4, "this case is too ill conditioned to say anything"
    assert relative(W, wanted) < allowed
    predicted = F @ wanted + bias
    assert relative(F @ W + b, predicted) < allowed * max(
        1.0, np.linalg.norm(F) * np.linalg.norm(wanted) / np.linalg.norm(predicted)
    )
    assert relative(distilled.model.weights, wanted) < allowed
    assert distilled.certificate.stored_error < allowed
    assert distilled.certificate.weight_error < allowed
    assert distilled.certificate.status == "exact"


# --- Exactness -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distilled_ridge", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("per_class", [1, 2])
@pytest.mark.parametrize("near", ["noise", "data"])
@pytest.mark.parametrize("case", EVERY)
def test_closed_form_is_exact_for_every_map(case, near, per_class, distilled_ridge):
    """C-1, C-2 for the points themselves: training on them gives the model of the data."""
    X, y = problem()
    distilled = made(case, near=near, per_class=per_class, distilled_ridge=distilled_ridge)
    assert len(distilled) == per_class * K
    assert distilled.space == ("features" if not distilled.encoder.feature_map.has_preimage else "input")
    check_exact(distilled, case.inputs(X), one_hot(y))


@pytest.mark.parametrize("near", ["noise", "data"])
@pytest.mark.parametrize("distilled_ridge", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("per_class", [1, 2])
@pytest.mark.parametrize("case", EVERY)
def test_theorem_is_exact_for_every_map(case, per_class, distilled_ridge, near):
    X, y = problem()
    distilled = made(case, method="theorem", per_class=per_class, distilled_ridge=distilled_ridge, near=near)
    check_exact(distilled, case.inputs(X), one_hot(y))


@pytest.mark.parametrize("labels", ["one-hot", "solved"])
@pytest.mark.parametrize("case", params_of(INVERTIBLE, "identity", "fcnn-1", "fourier-gaussian", "conv-1"))
def test_points_are_made_for_the_labels_asked_for(case, labels):
    X, y = problem()
    distilled = made(case, labels=labels, per_class=2)
    check_exact(distilled, case.inputs(X), one_hot(y))
    scaled = distilled.y.numpy() / np.abs(distilled.y.numpy()).max()
    rows = one_hot(np.repeat(np.arange(K), 2))
    if labels == "one-hot":
        assert scaled == pytest.approx(rows, abs=1e-8)
        assert distilled.hard_labels.tolist() == np.repeat(np.arange(K), 2).tolist()
    else:
        assert np.abs(scaled - rows).max() > 0.1
        # Noise has no class of its own, so a point is what the model says it is.
        assert distilled.hard_labels.tolist() == scaled.argmax(axis=1).tolist()


@pytest.mark.parametrize("transform", ["none", "standardize", "zca-kornia", "zca-kip", "zca-rfad"])
@pytest.mark.parametrize("case", params_of(INVERTIBLE, "fcnn-1", "fourier-gaussian", "conv-1", "coupling"))
def test_exact_under_every_transform(case, transform):
    X, y = problem()
    distilled = made(case, transform=transform)
    assert distilled.space == ("transformed" if transform == "zca-kip" else "input")
    check_exact(distilled, case.inputs(X), one_hot(y))


@pytest.mark.parametrize("case", EVERY)
def test_feature_space_is_always_exact(case):
    X, y = problem()
    distilled = made(case, space="features", per_class=2)
    assert distilled.space == "features"
    assert distilled.x.shape == (2 * K, distilled.encoder.feature_map.n_features)
    check_exact(distilled, case.inputs(X), one_hot(y))


@pytest.mark.parametrize("case", params_of(WIDE))
def test_input_space_without_preimage_is_refused_with_the_options(case):
    p = case.make().n_features
    options = rf"Use space='features' \(exact\), method='label-solve' with at least {p} points \(exact\), or method="
    with pytest.raises(ValueError, match=r"has no preimage\. " + options):
        made(case, space="input")


@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize("distilled_ridge", [0.0, 1e-3])
@pytest.mark.parametrize("case", EVERY)
def test_label_solve_is_exact_from_p_points_on(case, intercept, distilled_ridge):
    """C-9: given points, labels solved; with an intercept one point more."""
    X, y = problem()
    distilled = made(
        case,
        method="label-solve",
        n_points=case.make().n_features + 1,
        intercept=intercept,
        distilled_ridge=distilled_ridge,
    )
    # Where no point moves, nothing is inverted.
    check_exact(distilled, case.inputs(X), one_hot(y), intercept=intercept)


@pytest.mark.parametrize("case", EVERY)
@pytest.mark.parametrize("n", [200, 8], ids=["n>p", "n<p"])
def test_one_set_for_every_ridge(case, n):
    """The Gram set reproduces W(λ) for a grid of λ, in the input space where the map can be inverted."""
    X, y = problem(n)
    distilled = made(case, X, y, method="all-ridges")
    F, S = features(distilled, case.inputs(X))
    certificate = distilled.certificate
    scale = distilled.distilled_ridge / certificate.ridge
    assert scale <= 1
    assert len(distilled) == np.linalg.matrix_rank(F)
    # Relative to the data, small directions of the set are as accurate as G, that is as their squares.
    kappa = condition(F) ** 2
    if distilled.space != "features":
        kappa *= map_condition(distilled.encoder.feature_map, distilled.x.double())
    for ridge in np.logspace(-3, 3, 7) * np.trace(F.T @ F) / len(F.T):
        wanted, _ = train(F, one_hot(y), ridge)
        found, _ = train(S, distilled.y.double(), ridge * scale)
        assert relative(found, wanted) < rounding(kappa, size=60)


@pytest.mark.parametrize(
    "case", params_of(INVERTIBLE, "identity", "fcnn-3", "fourier-gaussian") + params_of(WIDE)
)
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("distilled_ridge", [0.0, 0.1])
def test_fewer_points_than_classes_lose_the_tail(case, rank, distilled_ridge):
    """C-5: the best error that so few points can have, and the certificate says it."""
    distilled = made(case, n_points=rank, distilled_ridge=distilled_ridge)
    F, S = features(distilled, case.inputs(problem()[0]))
    truth, _ = train(F, one_hot(problem()[1]), RIDGE)
    s = np.linalg.svd(truth, compute_uv=False)
    tail = np.sqrt((s[rank:] ** 2).sum() / (s**2).sum())
    W, _ = train(S, distilled.y, distilled_ridge)
    certificate = distilled.certificate
    # Projected in the metric of predictions only where storage moved the span: here it did not.
    assert relative(W, truth) == pytest.approx(tail, rel=1e-6)
    assert certificate.weight_error == pytest.approx(tail, rel=1e-6)
    assert certificate.stored_error == pytest.approx(tail, rel=1e-6)
    assert (certificate.status, certificate.rank, certificate.model_rank) == ("low-rank", rank, K)
    assert any(f"{rank} points carry rank {rank} of the model" in note for note in certificate.notes)


@pytest.mark.parametrize("ridge", [0.0, 1e-9, RIDGE, "loo", "holdout", "gcv"], ids=str)
@pytest.mark.parametrize("case", params_of(INVERTIBLE, "identity", "fcnn-1", "fourier-gaussian", "coupling"))
def test_centred_targets_need_k_minus_one_points(case, ridge):
    X, y = problem(400)
    distilled = made(case, X, y, targets="centred", n_points=K - 1, ridge=ridge)
    assert len(distilled) == K - 1
    check_exact(distilled, case.inputs(X), one_hot(y) - 1 / K)
    assert distilled.certificate.model_rank == K - 1
    assert distilled.predict(case.inputs(X)).tolist() == distilled.full_model.predict(case.inputs(X)).tolist()


SUM_TO_ZERO = {
    "intercept": {"intercept": True},
    "centred": {"targets": "centred"},
    "standardised": {"transform": "standardize"},
    "standardised-intercept": {"transform": "standardize", "intercept": True},
}


@pytest.mark.parametrize("per_class", [1, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("options", [pytest.param(value, id=name) for name, value in SUM_TO_ZERO.items()])
@pytest.mark.parametrize("ridge", [1e-9, RIDGE, "holdout"], ids=str)
@pytest.mark.parametrize(
    "case", params_of(INVERTIBLE, "identity", "deep-linear", "fcnn-1", "fourier-gaussian")
)
def test_models_whose_outputs_sum_to_zero(case, ridge, options, seed, per_class):
    """Their rank is k - 1, up to rounding, which must not be taken for a direction of the model."""
    X, y = problem(400, seed=seed)
    distilled = made(case, X, y, ridge=ridge, per_class=per_class, seed=seed, **options)
    intercept = options.get("intercept", False)
    targets = one_hot(y) - (1 / K if options.get("targets") == "centred" else 0)
    check_exact(distilled, case.inputs(X), targets, intercept=intercept)
    outputs = np.abs(distilled.full_model.weights.numpy().sum(axis=1)).max()
    if outputs < 1e-9:  # nonlinear features of standardised data have means
        assert distilled.certificate.model_rank == K - 1
    assert distilled.certificate.condition < 1e6


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4])
@pytest.mark.parametrize("near", ["noise", "data"])
def test_intercepts_far_from_zero(offset, near):
    """Raw data with a large mean: centring leaves what there is to leave."""
    X, y = problem()
    distilled = made(INVERTIBLE["identity"], X + offset, y, intercept=True, near=near, per_class=2, ridge=1.0)
    wanted, bias = train(X, one_hot(y), 1.0, intercept=True)
    # The mean is subtracted from sums of squares: (offset / spread)² relative digits are lost.
    assert relative(distilled.model.weights, wanted) < rounding(
        condition(X) ** 2, (1 + offset) ** 2, size=200
    )
    predicted = distilled.decision_function(X + offset)
    assert predicted == pytest.approx(
        X @ wanted + bias, abs=rounding(condition(X) ** 2, (1 + offset) ** 2, size=200)
    )
    assert distilled.certificate.rank <= 2 * K - 1
    assert distilled.certificate.condition < 1e4


@pytest.mark.parametrize(
    "case", params_of(INVERTIBLE, "identity", "fcnn-1", "fourier-gaussian") + params_of(WIDE, "fourier-wide")
)
@pytest.mark.parametrize("method", ["closed-form", "theorem", "all-ridges"])
def test_interpolating_models_have_no_kip_loss(case, method):
    """C-12 (Theorem 6.1): n <= p and λ = 0: the set's model predicts the training labels exactly."""
    X, y = problem(8)
    distilled = made(case, X, y, ridge=0.0, method=method)
    loss = ((distilled.decision_function(case.inputs(X)) - one_hot(y)) ** 2).sum()
    assert loss < 1e-18


@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weights"])
@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(
    "case", params_of(INVERTIBLE, "identity", "fcnn-1", "fourier-gaussian") + params_of(WIDE, "fcnn-wide")
)
def test_regression_is_exact(case, outputs, intercept, weighted):
    X, _ = problem()
    Y = np.tanh(X[:, :outputs]) + np.random.default_rng(0).normal(size=(200, outputs))
    weight = np.random.default_rng(1).uniform(0.1, 2, 200) if weighted else None
    distilled = made(
        case, X, Y[:, 0] if outputs == 1 else Y, task="regression", intercept=intercept, sample_weight=weight
    )
    assert len(distilled) == outputs + intercept
    check_exact(distilled, case.inputs(X), Y, intercept=intercept, weight=weight)
    predicted = distilled.predict(case.inputs(X))
    assert predicted.shape == ((200,) if outputs == 1 else (200, 3))
    assert distilled.hard_labels is None
    residual = ((Y - predicted.reshape(200, -1)) ** 2).sum(axis=0) / ((Y - Y.mean(axis=0)) ** 2).sum(axis=0)
    assert distilled.score(case.inputs(X), Y) == pytest.approx((1 - residual).mean(), rel=1e-9)


@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
def test_weighted_rows(intercept):
    X, y = problem()
    weight = np.random.default_rng(1).uniform(0, 2, 200)
    distilled = made(INVERTIBLE["fcnn-1"], sample_weight=weight, intercept=intercept)
    check_exact(distilled, X, one_hot(y), weight=weight, intercept=intercept)


@pytest.mark.parametrize(
    "case", params_of(INVERTIBLE, "identity", "fcnn-1", "fcnn-3", "deep-linear", "conv-1")
)
def test_scaled_data_give_the_same_predictions(case):
    """For homogeneous maps and a relative ridge nothing depends on units."""
    X, y = problem()
    base, scaled = (made(case, c * X, y, ridge=kd.Ridge(0.01, "trace")) for c in (1.0, 1e3))
    assert (
        relative(scaled.decision_function(1e3 * case.inputs(X)), base.decision_function(case.inputs(X)))
        < 1e-9
    )


@pytest.mark.parametrize("method", METHODS)
def test_predictions_are_those_of_the_full_model(method):
    X, y = problem(500)
    test, labels = X[200:], y[200:]
    distilled = made(
        INVERTIBLE["fcnn-1"],
        X[:200],
        y[:200],
        method=method,
        n_points=D if method == "label-solve" else K,
    )
    assert distilled.predict(test).tolist() == distilled.full_model.predict(test).tolist()
    assert distilled.score(test, labels) == distilled.full_model.score(test, labels)
    scores = distilled.decision_function(test)
    assert scores.shape == (300, K)
    assert distilled.predict(test).tolist() == scores.argmax(axis=1).tolist()
    assert distilled.score(test, labels) == (scores.argmax(axis=1) == labels).mean()


# --- Certificates --------------------------------------------------------------------------------------------

CERTIFIED = {
    "exact": {},
    "low-rank": {"n_points": 2},
    "label-solve": {"method": "label-solve", "per_class": 2},
    "full-kip": {"method": kd.FullKIP(inner=3, steps=1), "near": "noise", "progress": False},
    "full-kip-fixed": {
        "method": kd.FullKIP(inner=3, steps=1, labels="fixed", ridge=1e-3),
        "near": "noise",
        "progress": False,
    },
    "float16": {"storage": "float16", "bounds": "data"},
    "float32": {"storage": "float32"},
    "all-ridges": {"method": "all-ridges"},
    "theorem": {"method": "theorem", "per_class": 2, "distilled_ridge": 0.1},
}


@pytest.mark.parametrize("rule", [RIDGE, "holdout", "gcv"], ids=["given", "holdout", "gcv"])
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weights"])
@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize("options", [pytest.param(value, id=name) for name, value in CERTIFIED.items()])
def test_every_number_of_the_certificate_is_what_it_says(options, intercept, weighted, rule):
    if intercept and options.get("method") in ("theorem", "all-ridges"):
        with pytest.raises(ValueError, match="no intercept"):
            made(INVERTIBLE["fcnn-1"], intercept=True, **options)
        return
    X, y = problem(300)
    weight = np.random.default_rng(1).uniform(0.1, 2, 300) if weighted else None
    distilled = made(
        INVERTIBLE["fcnn-1"], X, y, ridge=rule, intercept=intercept, sample_weight=weight, **options
    )
    c = distilled.certificate
    F, S = features(distilled, X)
    wanted, bias = train(F, one_hot(y), c.ridge, weight, intercept=intercept)
    W, b = train(S, distilled.y.double(), distilled.distilled_ridge, intercept=intercept)
    # What both solvers agree on, for errors that are not rounding themselves.
    assert c.stored_error == pytest.approx(relative(W, wanted), rel=1e-3, abs=1e-9)
    w = np.ones(300) if weight is None else weight
    difference, whole = (w @ (V**2).sum(axis=1) for V in (F @ (W - wanted) + b - bias, F @ wanted + bias))
    assert c.prediction_error == pytest.approx((difference / whole) ** 0.5, rel=1e-3, abs=1e-9)
    centred = S - S.mean(axis=0) if intercept else S
    # Rounding of the mean is no direction: the sets here have condition numbers far below 1e9.
    assert c.rank == np.linalg.matrix_rank(centred, tol=1e-9 * np.linalg.norm(centred, 2))
    kept = np.linalg.svd(centred, compute_uv=False)[: c.rank]
    assert c.condition == pytest.approx(kept[0] / kept[-1], rel=1e-6)
    assert c.model_rank == np.linalg.matrix_rank(wanted, tol=1e-9 * np.linalg.norm(wanted, 2))
    assert c.max_abs_x == np.abs(distilled.x.numpy().astype(float)).max()
    assert c.distilled_ridge == distilled.distilled_ridge
    assert c.n_rows == 300
    assert c.ridge_rule == ("given" if rule == RIDGE else rule)
    if rule == RIDGE:
        assert c.ridge == RIDGE
    assert c.status == {
        "low-rank": "low-rank",
        "label-solve": "projected",
        "full-kip": "refined",
        "full-kip-fixed": "refined",
        "float16": "rounded",
    }.get(next(name for name, value in CERTIFIED.items() if value is options), "exact")
    assert c.status.explanation


@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize("n_points", [2, 3])
def test_low_rank_models_with_an_intercept_predict_the_mean(n_points, intercept):
    """The best intercept of any W is the one that makes predictions agree with targets on average."""
    X, y = problem()
    distilled = made(INVERTIBLE["identity"], X + 1, y, n_points=n_points, intercept=intercept)
    if intercept:
        assert distilled.decision_function(X + 1).mean(axis=0) == pytest.approx(
            one_hot(y).mean(axis=0), abs=1e-9
        )


def test_the_certificate_is_frozen_and_complete():
    c = made(INVERTIBLE["identity"]).certificate
    with pytest.raises(ValueError, match="frozen"):
        c.stored_error = 0.0
    assert {
        "weight_error",
        "stored_error",
        "ridge",
        "distilled_ridge",
        "rank",
        "condition",
        "max_abs_x",
        "status",
    } <= set(type(c).model_fields)


# --- The same numbers however it is run ----------------------------------------------------------------------


@pytest.mark.parametrize("near", ["noise", "data"])
@pytest.mark.parametrize("case", params_of(INVERTIBLE, "identity", "fourier-gaussian", "conv-1"))
def test_same_seed_same_set(case, near):
    first, again, other = (made(case, near=near, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, again.y)
    assert not torch.equal(first.x, other.x)


@pytest.mark.parametrize("near", ["noise", "data"])
@pytest.mark.parametrize("rule", ["holdout", "gcv"])
def test_batches_do_not_matter(rule, near):
    X, y = problem(500)
    small, large = (
        kd.distill(X, y, feature_map="fourier", ridge=rule, near=near, batch_bytes=size, seed=3)
        for size in (1, None)
    )
    assert small.certificate.ridge == pytest.approx(large.certificate.ridge, rel=1e-12)
    assert relative(small.x, large.x) < 1e-6
    assert relative(small.decision_function(X), large.decision_function(X)) < 1e-9


def test_streams_give_the_set_of_the_arrays():
    X, y = problem(500)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(y)), batch_size=37
    )
    arrays = kd.distill(X, y, feature_map="fourier", ridge="holdout", near="data", per_class=2)
    stream = kd.distill(loader, n_classes=K, feature_map="fourier", ridge="holdout", near="data", per_class=2)
    assert relative(stream.x, arrays.x) < 1e-6
    assert stream.certificate.n_rows == 500


@pytest.mark.parametrize("kind", ["list", "torch", "float32", "int", "uint8", "bool", "fortran"])
def test_any_array_will_do(kind):
    X, y = problem()
    X = np.round(20 * X + 100)
    as_given = {
        "list": lambda: X.tolist(),
        "torch": lambda: torch.from_numpy(X),
        "float32": lambda: X.astype(np.float32),
        "int": lambda: X.astype(np.int32),
        "uint8": lambda: X.clip(0, 255).astype(np.uint8),
        "bool": lambda: X > 100,
        "fortran": lambda: np.asfortranarray(X),
    }[kind]()
    distilled = kd.distill(as_given, y, feature_map="identity", ridge=1e3, precision="exact")
    values = np.asarray(as_given, dtype=np.float64)
    wanted, _ = train(values, one_hot(y), 1e3)
    assert relative(distilled.model.weights, wanted) < 1e-9


# --- What may be asked of a set ------------------------------------------------------------------------------


def test_a_set_answers():
    X, y = problem()
    distilled = kd.distill(
        X, y, feature_map="identity", ridge=1.0, class_names=tuple("abcd"), provenance={"by": "test"}
    )
    x, labels = distilled.numpy()
    assert (x.shape, labels.shape) == ((K, D), (K, K))
    assert distilled.nbytes == x.nbytes + labels.nbytes == 8 * (K * D + K * K)
    assert distilled.class_names == tuple("abcd")
    assert distilled.provenance["by"] == "test"
    assert distilled.provenance["seed"] == 0
    assert distilled.predict(X[:0]).shape == (0,)
    assert relative(distilled.features(), x) == 0


def test_images_are_accepted_with_and_without_their_channel():
    X, y = problem()
    images = X.reshape(200, 4, 3)
    distilled = kd.distill(images, y, feature_map="conv", ridge=1.0)
    assert distilled.x.shape == (K, 1, 4, 3)
    scores = distilled.decision_function(images)
    assert np.array_equal(distilled.decision_function(images[:, None]), scores)
    for wrong in (X, images.transpose(0, 2, 1), images[:, :, :2], images[:, None].repeat(3, axis=1), X[0]):
        with pytest.raises(
            ValueError,
            match=r"expected rows of shape \(1, 4, 3\), got .*: this model was made for other data",
        ):
            distilled.predict(wrong)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 70])
def test_rows_to_predict_must_be_finite(value, row, monkeypatch):
    X, y = problem()
    distilled = made(INVERTIBLE["identity"])
    whole = distilled.decision_function(X)
    monkeypatch.setattr(model, "batch_rows", lambda *_: 64)
    assert relative(distilled.decision_function(X), whole) < rounding()
    X[row, 3] = value
    with pytest.raises(
        ValueError, match=rf"`X` holds {'NaN' if value != value else 'infinity'} in row {row} "
    ):
        distilled.predict(X)
    with pytest.raises(ValueError, match="200 rows of `X` but 199 of `y`"):
        made(INVERTIBLE["identity"]).score(problem()[0], y[:-1])


def test_labels_of_any_kind():
    X, y = problem()
    for labels in (
        y * 10 - 5,
        y.astype(np.uint8),
        y.tolist(),
        torch.from_numpy(y),
        np.array(["w", "x", "yy", "zzz"])[y],
    ):
        distilled = kd.distill(X, labels, feature_map="identity", ridge=1.0)
        assert set(np.asarray(distilled.predict(X)).tolist()) <= set(np.asarray(labels).tolist())
        assert distilled.score(X, labels) > 0.5


@pytest.mark.parametrize("transform", ["none", "standardize"])
def test_noise_has_the_mean_and_spread_of_the_data(transform):
    X, y = problem()
    X = X * np.geomspace(1, 1000, D) + 50
    x = kd.distill(
        X, y, feature_map="identity", ridge=1.0, method="label-solve", n_points=2000, transform=transform
    ).x.numpy()
    # Means and deviations of 2000 normal values, within 4.5 standard errors.
    assert np.abs((x.mean(axis=0) - X.mean(axis=0)) / X.std(axis=0)).max() < 4.5 / 2000**0.5
    assert np.abs(x.std(axis=0) / X.std(axis=0) - 1).max() < 4.5 / 4000**0.5


@pytest.mark.parametrize("per_class", [1, 3])
def test_near_data_are_different_rows_of_each_class(per_class):
    X, y = problem()
    made_near = kd.distill(
        X, y, feature_map="identity", ridge=1.0, method="label-solve", near="data", per_class=per_class
    )
    where = [int(np.flatnonzero((row == X).all(axis=1))[0]) for row in made_near.x.numpy()]
    assert y[where].tolist() == np.repeat(np.arange(K), per_class).tolist()
    assert made_near.hard_labels.tolist() == y[where].tolist()
    assert len(set(where)) == K * per_class


def test_near_given_points():
    X, y = problem()
    near = np.random.default_rng(0).normal(size=(K, D))
    distilled = kd.distill(X, y, feature_map="identity", ridge=1.0, near=near)
    check_exact(distilled, X, one_hot(y))
    # Nearest: the r smallest singular values of the reference outside col(W), and the floor.
    Q = np.linalg.svd(distilled.full_model.weights.numpy(), full_matrices=False)[0]
    assert np.linalg.norm(distilled.x.numpy() - near) <= np.linalg.norm(near - near @ Q @ Q.T) * 1.5
    images = kd.distill(
        X.reshape(200, 1, 4, 3), y, feature_map="identity", ridge=1.0, near=near.reshape(K, 1, 4, 3)
    )
    assert images.x.shape == (K, 1, 4, 3)


# --- Refusals ------------------------------------------------------------------------------------------------


def changed(row, column, value, dtype=None):
    X, y = problem()
    X = X if dtype is None else X.astype(dtype)
    X[row, column] = value
    return X, y


def relabelled(row, value):
    X, y = problem()
    y[row] = value
    return X, y


X_, Y_ = problem()
BAD_DATA = {
    "nan": (*changed(17, 3, np.nan), {}, "`X` holds NaN in row 17 "),
    "inf": (*changed(199, 0, np.inf), {}, "`X` holds infinity in row 199 "),
    "minus-inf-float32": (*changed(70, 0, -np.inf, np.float32), {}, "`X` holds infinity in row 70 "),
    "nan-standardised": (*changed(17, 3, np.nan), {"transform": "standardize"}, "`X` holds NaN in row 17 "),
    "nan-whitened": (*changed(170, 3, np.nan), {"transform": "zca-kornia"}, "`X` holds NaN in row 170 "),
    "nan-sampled": (*changed(17, 3, np.nan), {"feature_map": "fourier"}, "`X` holds NaN in row 17 "),
    "empty": (np.empty((0, D)), np.empty(0, int), {}, "`X` is empty: there are no rows to distil"),
    "no-columns": (np.empty((5, 0)), np.arange(5), {}, "`X` has no values"),
    "vector": (np.ones(5), np.arange(5), {}, r"must have shape \(n, ...\)"),
    "one-class": (X_, np.zeros(200, int), {}, "found one class only"),
    "lengths": (X_, Y_[:-1], {}, "`X` has 200 rows but `y` has 199: they must pair up"),
    "weights": (
        X_,
        Y_,
        {"sample_weight": np.ones(5)},
        r"`sample_weight` must have shape \(200,\), got \(5,\)",
    ),
    "negative-weights": (X_, Y_, {"sample_weight": -np.ones(200)}, "`sample_weight` must not be negative"),
    "outside": (
        *relabelled(3, 9),
        {"n_classes": K},
        r"label 9 in row 3 is outside the 4 known classes \(0, 1, 2, 3\)",
    ),
    "negative-label": (*relabelled(3, -1), {"n_classes": K}, "label -1 in row 3 is outside"),
    "outside-later": (
        *relabelled(150, 9),
        {"n_classes": K, "batch_bytes": 1},
        "label 9 in row 150 is outside",
    ),
    "float-labels": (
        X_,
        Y_ + 0.5,
        {},
        "labels are float64: cast class labels to int, or pass task='regression'",
    ),
    "one-hot-labels": (
        X_,
        one_hot(Y_).astype(int),
        {},
        r"labels must have shape \(n,\), got .*: take argmax of one-hot",
    ),
    "text-for-numbers": (
        X_,
        Y_.astype(str),
        {"n_classes": K},
        "labels are <U.*, the classes are int64: use one kind",
    ),
    "text-regression": (X_, Y_.astype(str), {"task": "regression"}, "`y`|numbers|values"),
    "nan-values": (
        X_,
        np.where(np.arange(200) == 150, np.nan, 1.0 * Y_),
        {"task": "regression", "batch_bytes": 1},
        "`y` holds .* in row 150",
    ),
    "objects": (X_.astype(object), Y_, {}, "`X` is an object array: convert it to numbers"),
    "object-labels": (X_, Y_.astype(object), {}, "`y` is an object array: convert it to numbers"),
    "complex": (X_ + 1j, Y_, {}, "Complex data not supported: `X` is complex128"),
    "complex-labels": (X_, Y_ + 1j, {}, "Complex data not supported: `y` is complex128"),
    "complex-torch": (
        torch.complex(torch.from_numpy(X_), torch.from_numpy(X_)),
        Y_,
        {},
        "Complex data not supported",
    ),
    "no-labels": (X_, None, {}, "`y` is missing: pass labels or values"),
    "stream-of-unknown-classes": (
        [(X_, Y_)],
        None,
        {},
        "a stream cannot be searched for its classes beforehand: give n_classes",
    ),
    "overflow": (X_ * 1e200, Y_, {}, "overflow|too large|not finite|rescale"),
    "zeros": (np.zeros((200, D)), Y_, {}, "the full model is zero"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_are_refused(name):
    X, y, options, message = BAD_DATA[name]
    with pytest.raises(ValueError, match=message):
        kd.distill(X, y, **{"feature_map": "identity", "ridge": 1.0, **options})


class Unread:
    """A stream whose first piece may be looked at, and no other."""

    def __iter__(self):
        yield X_[:50], Y_[:50]
        raise AssertionError("the data were read before the arguments were checked")


BAD_OPTIONS = {
    "per_class-zero": ({"per_class": 0}, "`per_class` must be an integer of at least 1, got 0"),
    "per_class-float": ({"per_class": 1.5}, "`per_class` must be an integer of at least 1, got 1.5"),
    "per_class-bool": ({"per_class": True}, "`per_class` must be an integer"),
    "n_points-zero": ({"n_points": 0}, "`n_points` must be an integer of at least 1, got 0"),
    "ridge-negative": ({"ridge": -1.0}, "`ridge` must be finite and not negative, got -1.0"),
    "ridge-nan": ({"ridge": float("nan")}, "`ridge` must be finite"),
    "ridge-name": ({"ridge": "hold-out"}, "unknown ridge rule 'hold-out'; did you mean 'holdout'"),
    "distilled_ridge": (
        {"distilled_ridge": -0.1},
        "`distilled_ridge` must be finite and not negative, got -0.1",
    ),
    "method": ({"method": "closed"}, "unknown method 'closed'; did you mean 'closed-form'"),
    "labels": ({"labels": "onehot"}, "unknown labels 'onehot'; did you mean 'one-hot'"),
    "space": ({"space": "inputs"}, "unknown space 'inputs'; did you mean 'input'"),
    "storage": ({"storage": "float8"}, "unknown storage type 'float8'; did you mean 'float"),
    "bounds": ({"bounds": "dta"}, "unknown bounds 'dta'; did you mean 'data'"),
    "near": ({"near": "dta"}, "unknown points to start from .*'dta'; did you mean 'data'"),
    "targets": ({"targets": "centered"}, "unknown target encoding 'centered'; did you mean 'centred'"),
    "task": ({"task": "classify"}, "unknown task 'classify'; did you mean 'classification'"),
    "transform": (
        {"transform": "standardise"},
        "unknown transform 'standardise'; did you mean 'standardize'",
    ),
    "feature_map": ({"feature_map": "identiy"}, "unknown feature map 'identiy'; did you mean 'identity'"),
    "precision": ({"precision": "exactly"}, "unknown precision 'exactly'; did you mean 'exact'"),
    "n_classes": ({"n_classes": 1}, "`n_classes` must be an integer of at least 2, got 1"),
    "seed": ({"seed": -1}, r"`seed` must be an integer in \[0, 2\*\*64\), got -1"),
    "device": ({"device": "cuda"}, "closed forms run on the CPU: device 'cuda'"),
    "map-of-other-data": (
        {"feature_map": Identity((D + 1,))},
        r"the feature map takes \(13,\), the data have shape \(12,\)",
    ),
    "transform-of-other-data": (
        {"transform": make_transform("standardize", lambda: [torch.ones(2, 1, 4, 4)], (1, 4, 4))},
        r"the transform was fitted on rows of shape \(1, 4, 4\), the data have \(12,\)",
    ),
    "features-as-bytes": ({"space": "features", "storage": "uint8"}, "features cannot be stored as uint8"),
    "label-solve-in-features": (
        {"method": "label-solve", "space": "features"},
        "makes points in the input space",
    ),
    "class_names": ({"class_names": ("a", "b")}, "2 class names for 4 classes"),
    "batch_bytes-text": ({"batch_bytes": "64M"}, "`batch_bytes` must be an integer of at least 1, got '64M'"),
    "batch_bytes-negative": ({"batch_bytes": -1}, "`batch_bytes` must be an integer of at least 1, got -1"),
    "theorem-too-few": ({"method": "theorem", "n_points": 2}, "at least one point a class"),
    "theorem-intercept": ({"method": "theorem", "intercept": True}, "no intercept"),
    "one-hot-too-few": (
        {"labels": "one-hot", "n_points": 2},
        "one-hot labels need classes and at least one point a class, got 2",
    ),
    "all-ridges-ridge": ({"method": "all-ridges", "distilled_ridge": 0.1}, "leave distilled_ridge at 0"),
    "all-ridges-intercept": ({"method": "all-ridges", "intercept": True}, "no intercept"),
}
CHECKED_EARLY = (
    "per_class-zero",
    "per_class-float",
    "n_points-zero",
    "ridge-negative",
    "ridge-name",
    "distilled_ridge",
    "method",
    "labels",
    "space",
    "storage",
    "bounds",
    "near",
    "targets",
    "task",
    "transform",
    "feature_map",
    "precision",
    "n_classes",
    "device",
    "map-of-other-data",
    "transform-of-other-data",
)


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options_are_refused(name):
    options, message = BAD_OPTIONS[name]
    with pytest.raises(ValueError, match=message):
        kd.distill(X_, Y_, **{"feature_map": "identity", "ridge": 1.0, **options})


@pytest.mark.parametrize("name", CHECKED_EARLY)
def test_bad_options_are_refused_before_the_data_are_read(name):
    options, message = BAD_OPTIONS[name]
    with pytest.raises(ValueError, match=message):
        kd.distill(
            Unread(),
            **{"feature_map": "identity", "ridge": 1.0, "n_classes": K, "transform": "none", **options},
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["bounds", "near"])
def test_names_are_checked_by_every_method(name, method):
    options, message = BAD_OPTIONS[name]
    with pytest.raises(ValueError, match=message):
        kd.distill(X_, Y_, feature_map="identity", ridge=1.0, method=method, **options)


@pytest.mark.parametrize(
    ("near", "message"),
    [
        pytest.param(
            np.ones((K + 1, D)), rf"`near` must hold {K} points of shape \({D},\), got \(5, 12\)", id="count"
        ),
        pytest.param(np.ones((K, D + 1)), "`near` must hold 4 points", id="length"),
        pytest.param(np.ones((D, K)), "`near` must hold 4 points", id="transposed"),
        pytest.param(np.full((K, D), np.nan), "`near` holds NaN in row 0", id="nan"),
        pytest.param(
            np.where(np.arange(K)[:, None] == 2, np.inf, np.ones((K, D))),
            "`near` holds infinity in row 2",
            id="inf",
        ),
        pytest.param(np.ones((K, D), object), "numbers|object", id="objects"),
        pytest.param(np.ones((K, D), complex), "numbers|[Cc]omplex", id="complex"),
    ],
)
@pytest.mark.parametrize("method", ["closed-form", "label-solve"])
def test_bad_reference_points_are_refused(near, message, method):
    with pytest.raises(ValueError, match=message):
        kd.distill(X_, Y_, feature_map="identity", ridge=1.0, near=near, method=method)


def test_too_few_rows_of_a_class_to_place_points_near():
    X, y = problem()
    y = np.where(y == 2, 1, y)
    y[5] = 2
    with pytest.raises(
        ValueError, match="class 2 has 1 rows, near='data' needs 3: lower per_class or use near='noise'"
    ):
        kd.distill(X, y, feature_map="identity", ridge=1.0, near="data", per_class=3)
    with pytest.raises(
        ValueError, match="near='data' needs 3 rows of class 2, the data have 1: lower per_class"
    ):
        kd.distill([(X, y)], n_classes=K, feature_map="identity", ridge=1.0, near="data", per_class=3)
    assert len(kd.distill(X, y, feature_map="identity", ridge=1.0, near="noise", per_class=3)) == 3 * K
    with pytest.raises(ValueError, match="near='data' needs 250 rows"):
        kd.distill(
            X, X[:, 0], task="regression", feature_map="identity", ridge=1.0, near="data", n_points=250
        )


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(np.int64(3), id="numpy"),
        pytest.param({1, 2}, id="set"),
        pytest.param(float("nan"), id="nan"),
    ],
)
def test_provenance_that_no_file_can_hold_is_refused_at_once(value, tmp_path):
    """Not when the finished set is to be saved."""
    try:
        distilled = kd.distill(X_, Y_, feature_map="identity", ridge=1.0, provenance={"value": value})
    except ValueError:
        return
    distilled.save(tmp_path / "set")
    found = kd.load(tmp_path / "set").provenance["value"]
    assert found == value or (value != value and found != found)


def test_regression_has_no_one_hot_labels():
    for options in ({"labels": "one-hot"}, {"method": "theorem"}):
        with pytest.raises(ValueError, match=r"labels need classes|needs class labels"):
            kd.distill(X_, X_[:, 0], task="regression", feature_map="identity", ridge=1.0, **options)


def test_input_space_that_a_transform_cannot_give_is_refused():
    """Per-sample whitening has no inverse, so points in raw units would not be the points of the set."""
    with pytest.raises(ValueError, match=r"zca-kip|transform"):
        kd.distill(X_, Y_, feature_map="identity", ridge=1.0, transform="zca-kip", space="input")


# --- Corners -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_few_inputs(d, k, intercept):
    """d < k: the model has rank d at most, and that many points suffice (one more with an intercept)."""
    X, y = problem(100, d, k)
    distilled = kd.distill(
        X, y, feature_map="identity", ridge=0.1, n_points=min(d, k) + intercept, intercept=intercept
    )
    wanted, _ = train(X, one_hot(y, k), 0.1, intercept=intercept)
    assert relative(distilled.model.weights, wanted) < 1e-9
    assert distilled.certificate.status == "exact"


def test_one_point_with_an_intercept_predicts_the_mean():
    distilled = kd.distill(X_, Y_, feature_map="identity", ridge=1.0, intercept=True, n_points=1)
    assert distilled.decision_function(X_) == pytest.approx(
        np.tile(one_hot(Y_).mean(axis=0), (200, 1)), abs=1e-12
    )


def test_rank_deficient_data():
    X, y = problem()
    X = X[:, :5] @ np.random.default_rng(0).normal(size=(5, D))
    for ridge in (0.0, 1e-3, RIDGE):
        distilled = kd.distill(X, y, feature_map="identity", ridge=ridge)
        wanted, _ = train(X, one_hot(y), ridge)
        # Rounding of X in directions without data, which NumPy's answer has and the library's leaves out.
        noise = EPS * np.linalg.norm(X) * 200**0.5 / ridge / np.linalg.norm(wanted) if ridge else 0.0
        assert relative(distilled.model.weights, wanted) < rounding(condition(X) ** 2, size=200) + 10 * noise
        assert any("features have rank 5 of 12" in note for note in distilled.certificate.notes)


def test_single_precision_features_of_float32_data():
    """The dtype ladder: float32 features cost float32 rounding, and 'exact' does not."""
    X, y = problem()
    case = fourier()
    F = make_feature_map(case.name, (D,), params=case.params).features(
        torch.from_numpy(X.astype(np.float32)).double()
    )
    wanted, _ = train(F, one_hot(y), RIDGE)
    kappa = np.linalg.norm(F, 2) ** 2 / RIDGE + 1
    single, double = (made(case, X.astype(np.float32), y, precision=name) for name in ("auto", "exact"))
    assert relative(double.full_model.weights, wanted) < rounding(kappa, size=60)
    error = relative(single.full_model.weights, wanted)
    assert 100 * EPS < error < rounding(kappa) * np.finfo(np.float32).eps / EPS
    # Either set is exact with respect to the model that was fitted.
    assert single.certificate.stored_error < 1e-10
