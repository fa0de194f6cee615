"""The loss over all rows, its derivative, and its minimisation over points, leg by leg."""

import numpy as np
import pytest
import torch

import kernel_distill as kd
from kernel_distill.solver.distillation import distill_points
from kernel_distill.solver.encoder import Encoder
from kernel_distill.solver.feature_maps import make_feature_map
from kernel_distill.solver.fit import fit_full_model, full_model_from_statistics
from kernel_distill.solver.learners.full_kip import FullKIP, FullKIPLearner
from kernel_distill.solver.learners.full_loss import FullLoss
from kernel_distill.solver.loop import Loop, run_loop
from kernel_distill.solver.source import as_source
from kernel_distill.solver.statistics import Statistics
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import Identity, make_transform

from ..cases import INVERTIBLE, WIDE, D, K, MapCase, fourier, one_hot, params_of, problem, relative, train

MAPS = params_of(INVERTIBLE, "identity", "fcnn-1", "fourier-gaussian", "conv-1", "coupling") + params_of(WIDE)
FEW = params_of(INVERTIBLE, "identity", "conv-1") + params_of(WIDE, "fourier-wide")
LABELS = ("solved", "fixed", "learned")
INTERCEPT = pytest.mark.parametrize("intercept", [False, True], ids=["plain", "intercept"])
PRIMAL_AND_DUAL = pytest.mark.parametrize("n", [200, 8], ids=["primal", "dual"])
RIDGE = 0.5
# Of a set, relative: large enough to be seen in its model.
SET_RIDGE = 0.1


def fitted(case, n=200, *, intercept=False, weight=None, ridge=RIDGE, transform=None):
    """A full model, and features and targets of every row for the oracles."""
    X, y = problem(n)
    X = case.inputs(X)
    encoder = Encoder(transform or Identity(case.input_shape), case.make(), "exact")
    targets = Targets("one-hot", K, tuple(range(K)))
    source = as_source(X, y, weight)
    full = fit_full_model(source, encoder, targets, ridge=ridge, intercept=intercept, progress=False)
    return full, encoder(torch.from_numpy(X)).numpy(), one_hot(y)


def points(case=INVERTIBLE["identity"], m=5, seed=5):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(m, *case.input_shape)))


def labels_of(m=5):
    return torch.from_numpy(one_hot(np.arange(m) % K))


def learner(full, start, labels="solved", **options):
    given = None if labels == "solved" else labels_of(len(start))
    return FullKIPLearner(full, start, FullKIP(labels=labels, **{"ridge": SET_RIDGE, **options}), given)


def brute_loss(F, Y, W, b, ridge, weight=None):
    """In KIP's units: half the mean over rows and outputs of the squared residuals, and the penalty alike."""
    w = np.ones(len(F)) if weight is None else weight
    total = w @ ((Y - F @ W - b) ** 2).sum(axis=1) + ridge * (W**2).sum()
    return 0.5 * total / (w.sum() * Y.shape[1])


def best_in_span(F, Y, S, ridge, *, intercept, weight=None):
    """Brute force: of all W in the row space of S (about their mean) and all b, the least loss over the data."""
    w = np.ones(len(F)) if weight is None else weight
    S = S - S.mean(axis=0) if intercept else S
    basis = np.linalg.svd(S, full_matrices=False)[2][: np.linalg.matrix_rank(S)].T
    # An orthonormal basis leaves the ridge term as it is.
    C, b = train(F @ basis, Y, ridge, w, intercept=intercept)
    return basis @ C, b


def set_model(S, Y, *, intercept):
    """The set's own ridge regression, λ_S relative to the trace."""
    C = S - S.mean(axis=0) if intercept else S
    return train(S, Y, SET_RIDGE * (C**2).sum() / len(S), intercept=intercept)


# --- The loss ------------------------------------------------------------------------------------------------


@INTERCEPT
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weights"])
@PRIMAL_AND_DUAL
@pytest.mark.parametrize("ridge", [RIDGE, 0.0], ids=["penalised", "plain"])
def test_loss_of_any_model_equals_brute_force(ridge, n, weighted, intercept):
    rng = np.random.default_rng(3)
    weight = rng.uniform(0.1, 2, n) if weighted else None
    full, F, Y = fitted(WIDE["fourier-wide"], n, intercept=intercept, weight=weight)
    W = rng.normal(size=(F.shape[1], K))
    b = rng.normal(size=K) if intercept else np.zeros(K)
    found = FullLoss(full).of_model(torch.from_numpy(W), torch.from_numpy(b), ridge=ridge)
    assert found == pytest.approx(brute_loss(F, Y, W, b, ridge, weight), rel=1e-12)


@pytest.mark.parametrize(
    ("m", "intercept"),
    # One point spans nothing about its mean, so an intercept starts from two.
    [pytest.param(m, i, id=f"m={m}{'-intercept' * i}") for i in (False, True) for m in (1 + i, 4, 9, 40)],
)
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weights"])
@PRIMAL_AND_DUAL
def test_solved_loss_equals_brute_force(m, intercept, weighted, n):
    weight = np.random.default_rng(1).uniform(0.1, 2, n) if weighted else None
    full, F, Y = fitted(INVERTIBLE["fourier-gaussian"], n, intercept=intercept, weight=weight)
    S = full.model.encoder.feature_map.features(points(m=m))
    loss = FullLoss(full)
    excess = float(loss.solved(S))
    W, b = best_in_span(F, Y, S.numpy(), RIDGE, intercept=intercept, weight=weight)
    wanted = brute_loss(F, Y, W, b, RIDGE, weight)
    # The jitter is 7e-15 m of the scaled system, which the condition of these points enlarges.
    assert loss.least + loss.unit * excess == pytest.approx(wanted, rel=1e-8)
    # Relative to what the full model takes away of the targets' squares.
    best, bias = train(F, Y, RIDGE, weight, intercept=intercept)
    least = brute_loss(F, Y, best, bias, RIDGE, weight)
    w = np.ones(n) if weight is None else weight
    nothing = brute_loss(F, Y, 0 * best, w @ Y / w.sum() if intercept else 0, RIDGE, weight)
    assert loss.least == pytest.approx(least, rel=1e-10)
    assert excess == pytest.approx((wanted - least) / (nothing - least), abs=1e-8)
    assert 0 <= excess < 1 + 1e-8
    assert (excess < 1e-9) == (m >= D + intercept)


@INTERCEPT
@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weights"])
@PRIMAL_AND_DUAL
@pytest.mark.parametrize("m", [2, 5, 40])
def test_loss_of_given_labels_equals_brute_force(m, n, weighted, intercept):
    rng = np.random.default_rng(1)
    weight = rng.uniform(0.1, 2, n) if weighted else None
    full, F, Y = fitted(INVERTIBLE["fourier-gaussian"], n, intercept=intercept, weight=weight)
    S, labels = full.model.encoder.feature_map.features(points(m=m)), rng.normal(size=(m, K))
    loss = FullLoss(full)
    found = loss.least + loss.unit * float(loss.given(S, torch.from_numpy(labels), SET_RIDGE))
    W, b = set_model(S.numpy(), labels, intercept=intercept)
    assert found == pytest.approx(brute_loss(F, Y, W, b, RIDGE, weight), rel=1e-10)


def test_solved_loss_is_of_the_span_alone():
    full, _, _ = fitted(INVERTIBLE["identity"])
    loss, S = FullLoss(full), points()
    mix = torch.from_numpy(np.random.default_rng(3).normal(size=(5, 5)))
    found = float(loss.solved(S))
    assert float(loss.solved(mix @ S)) == pytest.approx(found, abs=1e-9)
    scaled = torch.diag(torch.logspace(-6, 6, 5).double()) @ S
    assert float(loss.solved(scaled)) == pytest.approx(found, abs=1e-9)
    assert float(loss.solved(torch.cat([S, S]))) == pytest.approx(found, abs=1e-9)
    assert float(loss.solved(torch.cat([S, 0 * S]))) == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("case", MAPS)
def test_p_points_and_exact_sets_have_no_excess(case):
    X, y = problem()
    made = kd.distill(
        case.inputs(X),
        y,
        feature_map=case.name,
        feature_params=case.params,
        ridge=RIDGE,
        per_class=2,
        transform="none",
    )
    full, _, _ = fitted(case)
    loss, feature_map = FullLoss(full), full.model.encoder.feature_map
    assert float(loss.solved(made.features())) == pytest.approx(0, abs=1e-9)
    # As many points as features span everything; their condition enlarges the jitter.
    p = feature_map.n_features
    enough = feature_map.features(points(case, m=p))
    assert float(loss.solved(enough)) < min(1e-14 * p * float(torch.linalg.cond(enough)) ** 2, 1e-3)


@INTERCEPT
def test_no_labels_beat_the_solved_ones(intercept):
    full, _, _ = fitted(WIDE["fourier-wide"], intercept=intercept)
    S, loss = full.model.encoder.feature_map.features(points()), FullLoss(full)
    solved = float(loss.solved(S))
    for seed in range(5):
        labels = torch.from_numpy(np.random.default_rng(seed).normal(size=(5, K)))
        assert float(loss.given(S, labels, SET_RIDGE)) > solved


@INTERCEPT
@PRIMAL_AND_DUAL
@pytest.mark.parametrize("labels", ["solved", "given"])
@pytest.mark.parametrize("case", MAPS)
def test_gradients(case, labels, n, intercept):
    full, _, _ = fitted(case, n, intercept=intercept)
    features, loss = full.model.encoder.feature_map.features, FullLoss(full)
    z, y = points(case).requires_grad_(), labels_of().requires_grad_()

    def function(z, *y):
        return loss.given(features(z), *y, SET_RIDGE) if y else loss.solved(features(z))

    inputs = (z, y) if labels == "given" else (z,)
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-6, rtol=1e-4)


def test_a_model_without_weights_is_refused():
    X, _ = problem()
    source = as_source(X, np.ones((len(X), 1)))
    encoder = Encoder(Identity((D,)), make_feature_map("identity", (D,)), "exact")
    full = fit_full_model(
        source, encoder, Targets.from_values(1), ridge=RIDGE, intercept=True, progress=False
    )
    with pytest.raises(ValueError, match="the full model has no weights"):
        FullKIPLearner(full, points(), FullKIP())


# --- Legs ----------------------------------------------------------------------------------------------------


@INTERCEPT
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("case", MAPS)
def test_legs_lower_the_loss(case, labels, intercept):
    full, _, _ = fitted(case, intercept=intercept)
    start = points(case)
    before = start.clone()
    made = learner(full, start, labels, inner=4)
    figures = [made.evaluate()]
    for step in range(4):
        advanced = made.advance(step)
        assert advanced["loss"] == pytest.approx(figures[-1]["loss"], rel=1e-12)
        assert advanced["excess"] == figures[-1]["excess"]
        assert 1 <= advanced["iterations"] <= 4 <= advanced["evaluations"] + 3
        figures.append(made.evaluate())
        assert figures[-1]["loss"] <= figures[-2]["loss"]
    assert torch.equal(start, before)
    # Labels that stay as they are can hold a start back, but not all the way.
    assert figures[-1]["excess"] < (0.95 if labels == "fixed" else 0.7) * figures[0]["excess"]


@INTERCEPT
@pytest.mark.parametrize("labels", LABELS)
def test_figures_are_those_of_the_model_that_is_learned(labels, intercept):
    full, F, Y = fitted(WIDE["fourier-wide"], intercept=intercept)
    made = learner(full, points(), labels, inner=5)
    made.advance(0)
    figures, learned = made.evaluate(), made.learned()
    S = full.model.encoder.feature_map.features(learned["x"]).numpy()
    W, b = train(S, learned["y"], float(learned["ridge"]), intercept=intercept)
    assert figures["loss"] == pytest.approx(brute_loss(F, Y, W, b, RIDGE), rel=1e-8)
    assert figures["squared_error"] == pytest.approx(brute_loss(F, Y, W, b, 0.0), rel=1e-8)
    if labels == "solved":
        assert relative(W, best_in_span(F, Y, S, RIDGE, intercept=intercept)[0]) < 1e-6
    else:
        assert torch.equal(learned["y"], labels_of()) == (labels == "fixed")
        assert relative(W, set_model(S, learned["y"].numpy(), intercept=intercept)[0]) < 1e-9


@pytest.mark.parametrize("labels", LABELS)
def test_legs_end_at_a_stationary_point(labels):
    full, _, _ = fitted(fourier(n_features=30))
    made = learner(full, points(m=4), labels, inner=400)
    features, loss = full.model.encoder.feature_map.features, FullLoss(full)
    gradients = []
    for _ in range(2):
        learned = made.learned()
        z, y = learned["x"].requires_grad_(), learned["y"].requires_grad_(labels == "learned")
        excess = loss.solved(features(z)) if labels == "solved" else loss.given(features(z), y, SET_RIDGE)
        parts = torch.autograd.grad(excess, [z, y] if labels == "learned" else [z])
        gradients.append(float(torch.cat([part.flatten() for part in parts]).norm()))
        made.advance(0)
    # Learned labels crawl along a valley: their scale trades for that of the points.
    assert gradients[1] < (1e-2 if labels == "learned" else 1e-3) * gradients[0]


@pytest.mark.parametrize("labels", LABELS)
def test_legs_hold_where_features_end(labels):
    """Beyond the edge of a map's domain the loss is not a number: the points stay at the last one that is."""

    class Edge(torch.nn.Module):
        def forward(self, x):
            return torch.cat([x, (4 - x).sqrt(), (4 + x).sqrt()], dim=1)

    X, y = problem()
    encoder = Encoder(Identity((D,)), make_feature_map(Edge(), (D,)), "exact")
    source, targets = as_source(X.clip(-3.9, 3.9), y), Targets("one-hot", K, tuple(range(K)))
    full = fit_full_model(source, encoder, targets, ridge=RIDGE, progress=False)
    for scale in (1, 2):
        made = learner(full, (scale * points(m=4)).clamp(-3.99, 3.99), labels, inner=30)
        figures = [made.evaluate()["excess"]]
        for step in range(2):
            made.advance(step)
            figures.append(made.evaluate()["excess"])
        assert figures == sorted(figures, reverse=True)


def test_linear_maps_end_at_an_exact_set():
    """k points suffice for a linear map, so the loss can be brought to nothing."""
    full, _, _ = fitted(INVERTIBLE["identity"])
    made = learner(full, points(m=K), inner=400)
    assert made.evaluate()["excess"] > 0.1
    made.advance(0)
    assert made.evaluate()["excess"] < 1e-8
    assert distill_points(full, made.learned()).certificate.stored_error < 1e-3


def test_units_of_targets_do_not_matter():
    X, _ = problem()
    encoder = Encoder(Identity((D,)), fourier(n_features=30).make(), "exact")
    found = []
    for unit in (1.0, 2.0**40):
        y = unit * (np.sin(X[:, :2]) + X[:, 2:4])
        full = fit_full_model(as_source(X, y), encoder, Targets.from_values(2), ridge=RIDGE, progress=False)
        made = FullKIPLearner(full, points(m=3), FullKIP(inner=10))
        made.advance(0)
        found.append(made)
    first, second = found
    # A power of two changes no digit.
    assert torch.equal(first.learned()["x"], second.learned()["x"])
    assert second.evaluate()["loss"] == first.evaluate()["loss"] * 2.0**80


# --- State ---------------------------------------------------------------------------------------------------


@INTERCEPT
@pytest.mark.parametrize("labels", LABELS)
def test_a_resumed_run_ends_in_the_same_bits(labels, intercept, tmp_path):
    full, _, _ = fitted(WIDE["fcnn-wide"], intercept=intercept)

    def run(steps, checkpoint=None):
        made = learner(full, points(WIDE["fcnn-wide"]), labels, inner=3)
        loop = Loop(checkpoint=checkpoint)
        return run_loop(made, loop, steps=steps, evaluate_every=1, label="full-kip", progress=False)

    whole, path = run(5), tmp_path / "run.checkpoint"
    for steps in (1, 3, 5):
        resumed = run(steps, path)
    assert whole.steps == resumed.steps == 5
    assert whole.history == resumed.history
    for name, value in whole.learned.items():
        assert torch.equal(value, resumed.learned[name])


@pytest.mark.parametrize("labels", LABELS)
def test_state_is_points_and_learned_labels(labels):
    full, _, _ = fitted(WIDE["fourier-wide"])
    made = learner(full, points(), labels, inner=3)
    made.advance(0)
    tensors, plain = made.state()
    kept = {name: value.clone() for name, value in tensors.items()}
    assert set(kept) == ({"x"} if labels == "solved" else {"x", "y"})
    first, figures = made.learned(), made.advance(1)
    made.advance(2)
    made.restore(kept, plain)
    assert all(torch.equal(value, first[name]) for name, value in made.learned().items())
    assert made.advance(1) == figures
    # What was handed out before is not changed by later steps.
    assert all(torch.equal(value, tensors[name]) for name, value in kept.items())


def test_identity_tells_runs_apart():
    full, _, _ = fitted(WIDE["fourier-wide"])
    other, _, _ = fitted(WIDE["fourier-wide"], 199)
    base = FullKIPLearner(full, points(), FullKIP()).identity
    assert FullKIPLearner(full, points(), FullKIP(steps=7, evaluate_every=2)).identity == base
    for changed in (
        FullKIPLearner(full, points(), FullKIP(inner=7)),
        FullKIPLearner(full, points(seed=6), FullKIP()),
        FullKIPLearner(full, points(m=6), FullKIP()),
        FullKIPLearner(other, points(), FullKIP()),
        FullKIPLearner(fitted(WIDE["fourier-paired"])[0], points(), FullKIP()),
        FullKIPLearner(fitted(WIDE["fourier-wide"], ridge=1.0)[0], points(), FullKIP()),
        FullKIPLearner(fitted(WIDE["fourier-wide"], intercept=True)[0], points(), FullKIP()),
    ):
        assert changed.identity != base


# --- Bounds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", ["free", "data"])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("scaled", [False, True], ids=["none", "standardize"])
@pytest.mark.parametrize("case", FEW)
def test_bounds_are_kept(case, scaled, labels, bounds):
    X = case.inputs(problem()[0])
    raw = torch.from_numpy(X)
    transform = make_transform("standardize" if scaled else "none", lambda: [raw], case.input_shape)
    full, _, _ = fitted(case, transform=transform)
    start = 3 * points(case, m=K)
    assert float(transform.inverse(start).abs().max()) > np.abs(X).max()
    made = learner(full, start, labels, bounds=bounds, inner=10)
    assert torch.equal(made.learned()["x"], start) == (bounds == "free")
    for step in range(3):
        if bounds == "data":
            x = transform.inverse(made.learned()["x"])
            slack = 1e-12 * np.abs(X).max()  # of standardising and back
            assert X.min() - slack <= float(x.min()) <= float(x.max()) <= X.max() + slack
        before = made.evaluate()["excess"]
        made.advance(step)
        assert made.evaluate()["excess"] < before


def test_bounds_that_cannot_be_kept_are_refused():
    case, X = fourier(n_features=30), problem()[0]
    mixing = make_transform("zca-kornia", lambda: [torch.from_numpy(X)], (D,))
    full, F, Y = fitted(case, transform=mixing)
    with pytest.raises(ValueError, match="bounds='data' needs a transform that acts on values one by one"):
        learner(full, points(), bounds="data")
    statistics = Statistics(
        30, K, Encoder(Identity((D,)), case.make(), "exact"), Targets("one-hot", K, tuple(range(K)))
    )
    statistics.add(torch.from_numpy(F), torch.from_numpy(Y))
    full = full_model_from_statistics(statistics, ridge=RIDGE)
    with pytest.raises(ValueError, match="range of the data"):
        learner(full, points(), bounds="data")
    made = learner(full, points(), inner=5)
    made.advance(0)
    assert made.evaluate()["excess"] < 1


# --- Sets ----------------------------------------------------------------------------------------------------


@INTERCEPT
@pytest.mark.parametrize("labels", LABELS)
def test_sets_are_what_was_learned(labels, intercept):
    full, F, Y = fitted(WIDE["fourier-wide"], intercept=intercept)
    made = learner(full, points(), labels, inner=5)
    made.advance(0)
    learned = made.learned()
    distilled = distill_points(full, learned, steps=7, selected_step=3, notes=("said",))
    c = distilled.certificate
    assert (c.status, c.steps, c.selected_step) == ("refined", 7, 3)
    assert "said" in c.notes
    assert relative(distilled.x, learned["x"]) < 1e-15
    assert distilled.distilled_ridge == float(learned["ridge"])
    assert distilled.labels.tolist() == distilled.y.argmax(dim=1).tolist()
    W, b = distilled.model.weights.numpy(), distilled.model.bias.numpy()
    assert brute_loss(F, Y, W, b, RIDGE) == pytest.approx(made.evaluate()["loss"], rel=1e-8)
    if labels != "solved":
        assert torch.equal(distilled.y, learned["y"])


@INTERCEPT
def test_labels_are_solved_again_for_the_points_as_stored(intercept):
    full, F, Y = fitted(WIDE["fourier-wide"], intercept=intercept)
    made = learner(full, points(), inner=5)
    made.advance(0)
    distilled = distill_points(full, made.learned(), storage="float16")
    assert distilled.x.dtype == torch.float16
    W, b = best_in_span(F, Y, distilled.features().numpy(), RIDGE, intercept=intercept)
    # Labels are stored in float32.
    assert relative(distilled.model.weights, W) < 1e-4
    assert distilled.model.bias.numpy() == pytest.approx(b, abs=1e-5)


def test_values_that_storage_clips_are_noted():
    full, _, _ = fitted(WIDE["fourier-wide"])
    made = learner(full, points())
    notes = distill_points(full, made.learned(), storage="uint8").certificate.notes
    assert any("clipped to 0..255" in note for note in notes)


def test_networks_are_distilled_too():
    """A module has no preimage and no names of its own: its derivative is all that is needed."""
    X, y = problem()
    net = torch.nn.Sequential(torch.nn.Linear(D, 30), torch.nn.Tanh())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.from_numpy(np.random.default_rng(0).normal(size=parameter.shape) * 0.3))
    errors = [
        kd.distill(
            X, y, feature_map=net, ridge=RIDGE, method=method, near="noise", progress=False
        ).certificate.prediction_error
        for method in ("label-solve", FullKIP(inner=20, steps=1))
    ]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.data
def test_loss_equals_that_over_all_rows_of_mnist(data_root):
    with np.load(data_root / "mnist.npz") as arrays:
        X, y = arrays["x_train"][:, None], arrays["y_train"].astype(np.int64)
    transform = make_transform("standardize", lambda: [torch.from_numpy(X)], (1, 28, 28))
    case = MapCase("fourier", {"n_features": 256, "length_scale": 30.0}, (1, 28, 28))
    encoder, source = Encoder(transform, case.make(), "exact"), as_source(X, y)
    full = fit_full_model(source, encoder, Targets.from_labels(y, "centred"), ridge=1.0, progress=False)
    made = FullKIPLearner(full, transform.forward(torch.from_numpy(X[:10])), FullKIP(inner=10))
    made.advance(0)
    figures, learned = made.evaluate(), made.learned()
    S = full.model.encoder.feature_map.features(learned["x"]).numpy()
    W, _ = train(S, learned["y"])
    Y = np.eye(10)[y] - 0.1
    total = sum(
        ((Y[i : i + 5000] - encoder(torch.from_numpy(X[i : i + 5000])).numpy() @ W) ** 2).sum()
        for i in range(0, len(X), 5000)
    )
    wanted = 0.5 * total / Y.size
    assert figures["squared_error"] == pytest.approx(wanted, rel=1e-8)
    assert figures["loss"] == pytest.approx(wanted + 0.5 * (W**2).sum() / Y.size, rel=1e-8)


# --- Bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "solvd"}, "labels"),
        ({"bounds": "box"}, "bounds"),
        ({"ridge": 0.0}, "ridge"),
        ({"ridge": float("inf")}, "ridge"),
        ({"inner": 0}, "inner"),
        ({"memory": 0}, "memory"),
        ({"steps": -1}, "steps"),
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"iner": 3}, "iner"),
        ({"method": "kip"}, "method"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FullKIP(**options)


BAD_STARTS = {
    "shape": (points(MapCase("identity", {}, (D + 1,))), None, "solved", r"got \(5, 13\)"),
    "none": (points()[:0], None, "solved", "one or more transformed points"),
    "nan": (torch.full((5, D), torch.nan), None, "solved", "`start` holds NaN in row 0"),
    "no labels": (points(), None, "fixed", "labels='fixed' needs labels that the points start with"),
    "labels of other points": (points(), labels_of(4), "learned", r"shape \(5, 4\), got \(4, 4\)"),
    "labels not finite": (points(), labels_of() / 0, "learned", "`labels` holds"),
}


@pytest.mark.parametrize("name", BAD_STARTS)
def test_bad_starts_are_refused(name):
    start, labels, kind, message = BAD_STARTS[name]
    full, _, _ = fitted(WIDE["fourier-wide"])
    with pytest.raises(ValueError, match=message):
        FullKIPLearner(full, start, FullKIP(labels=kind), labels)


def test_an_intercept_needs_two_points():
    full, _, _ = fitted(WIDE["fourier-wide"], intercept=True)
    with pytest.raises(ValueError, match="`start` must hold two or more"):
        FullKIPLearner(full, points(m=1), FullKIP())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": points(MapCase("identity", {}, (D + 1,)))}, "do not fit a model of inputs"),
        ({"y": labels_of(4)}, "do not fit a model of inputs"),
        ({"x": points() / 0}, "`x` holds infinity"),
        ({"y": labels_of() / 0}, "`y` holds"),
    ],
)
def test_learned_points_that_do_not_fit_are_refused(change, message):
    full, _, _ = fitted(WIDE["fourier-wide"])
    learned = {"x": points(), "y": labels_of(), "ridge": torch.tensor(0.1)}
    with pytest.raises(ValueError, match=message):
        distill_points(full, {**learned, **change})
