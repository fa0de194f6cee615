"""KIP: its loss and derivative, its labels, and that a run is a function of its seed."""

import json

import numpy as np
import pytest
import torch

from kernel_distill import distill
from kernel_distill._methods import method_options
from kernel_distill.solver.kernel_encoder import KernelEncoder
from kernel_distill.solver.kernel_functions import make_kernel_function
from kernel_distill.solver.learned_set import learned_set
from kernel_distill.solver.learners.augment import augment
from kernel_distill.solver.learners.kip import KIP, KIPLearner
from kernel_distill.solver.learners.label_solve import solve_labels
from kernel_distill.solver.learners.pick import Pick, Picker
from kernel_distill.solver.learners.rows import TrainingRows
from kernel_distill.solver.loop import Loop, run_loop
from kernel_distill.solver.source import ArraySource
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import make_transform

from ..cases import D, K, condition, one_hot, problem, rounding

LABELS = ("fixed", "learned", "solved")
KERNELS = {
    "ntk": {},
    "gaussian": {"bandwidth": 4.0},
    "fourier": {"n_features": 30, "length_scale": 5.0},
}
UNIFORM = Pick(kind="uniform")
BY_LOSS = Pick(kind="loss", refresh=4, refresh_every=2, corrected=True)


def rows_of(*, values=False, n=150, shape=(D,), holdout=0.1, dtype=torch.float32, shift=0):
    X, y = problem(n)
    X[-1, -1] += shift
    if values:
        y = X[:, :2] @ np.array([[1.0, 0.5], [-1.0, 0.2]]) + np.sin(X[:, 2:4])
    targets = Targets.from_values(2) if values else Targets.from_labels(y, "centred")
    source = ArraySource(X.reshape(n, *shape), y)
    transform = make_transform("none", lambda: [], shape)
    return TrainingRows(source, transform, targets, seed=0, holdout=holdout, dtype=dtype)


def learner_of(rows=None, m=8, seed=1, start=None, **options):
    """A learner that starts from points near rows, by default."""
    rows = rows_of() if rows is None else rows
    shape = rows.transform.input_shape
    options = KIP(**{"batch_size": 40, "lr": 0.02, **options})
    kernel = make_kernel_function(options.kernel, shape, params=KERNELS.get(options.kernel))
    if start is None:
        start = rows.inputs(torch.arange(m)).double() + 0.1
    return KIPLearner(rows, kernel, start, rows.outputs(torch.arange(m)), options, seed=seed)


def ntk(A, B, d=D):
    """NTK of one hidden layer as in the published kernel, by NumPy; an arccos is good to 1e-8."""
    w2, b2 = 2.0, 0.01
    dot = w2 * A @ B.T / d + b2
    n = np.sqrt(np.outer(w2 * (A**2).sum(1) / d + b2, w2 * (B**2).sum(1) / d + b2))
    theta = np.arccos(np.clip(dot / n, -1, 1))
    nngp = w2 * n * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / (2 * np.pi) + b2
    return nngp + w2 * (np.pi - theta) / (2 * np.pi) * dot


def batch_of(learner, step=0):
    """The batch of a step, in float64 NumPy."""
    index, weights = learner._picker.draw(step)
    rows = learner._rows
    return rows.inputs(index).double().numpy(), rows.outputs(index).numpy(), weights.numpy()


def arrays(learner):
    return [value.numpy() for value in learner.learned().values()]


# --- The loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
@pytest.mark.parametrize(("precision", "tolerance"), [("exact", 1e-8), ("mixed", 1e-5)])
def test_the_loss_is_that_of_the_published_notebook(precision, tolerance, ridge):
    learner = learner_of(precision=precision, ridge=ridge)
    X, Y, _ = batch_of(learner)
    x, y = arrays(learner)
    K_SS = ntk(x, x)
    regularised = K_SS + abs(ridge) * np.trace(K_SS) * np.eye(len(x)) / len(x)
    wanted = 0.5 * np.mean((ntk(X, x) @ np.linalg.solve(regularised, y) - Y) ** 2)
    assert float(learner.loss(0)[0].detach()) == pytest.approx(wanted, rel=tolerance)


def test_the_default_is_the_published_notebook():
    options = KIP()
    assert (options.kernel, options.ridge, options.labels) == ("ntk", 1e-6, "fixed")
    assert (options.batch_size, options.lr, options.optimizer) == (5000, 0.04, "adam")
    assert options.steps == 300
    learner = learner_of()
    assert np.bincount(batch_of(learner)[1].argmax(1)).tolist() == [10] * K
    assert method_options("kip") == options


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("name", KERNELS)
def test_the_loss_of_solved_labels_is_what_no_labels_could_give(name, values):
    learner = learner_of(rows_of(values=values), kernel=name, labels="solved", precision="exact")
    X, Y, _ = batch_of(learner)
    x = learner.parameters["x"].detach()
    K_TS = learner._kernel.matrix(torch.from_numpy(X), x).numpy()
    best = np.linalg.lstsq(K_TS, Y, rcond=None)[0]
    # The jitter of 1e-10 moves directions by that over their scaled, squared singular value.
    scaled = condition(K_TS / np.linalg.norm(K_TS, axis=0))
    wanted = 0.5 * np.mean((K_TS @ best - Y) ** 2)
    assert float(learner.loss(0)[0].detach()) == pytest.approx(wanted, rel=1e-9 * scaled**2)


@pytest.mark.parametrize("labels", LABELS)
def test_rows_count_by_the_weights_of_their_pick(labels, monkeypatch):
    learner = learner_of(labels=labels, precision="exact", pick=BY_LOSS)
    learner.loss(0)  # the table of a later step holds unlike losses
    draw, drawn = learner._picker.draw, []
    monkeypatch.setattr(learner._picker, "draw", lambda step: drawn.append(draw(step)) or drawn[-1])
    found = float(learner.loss(1)[0].detach())
    index, weights = drawn[0]
    X, Y = learner._rows.inputs(index).double().numpy(), learner._rows.outputs(index).numpy()
    weights = weights.numpy()
    assert np.ptp(weights) > 0.1 * weights.mean()
    x, y = arrays(learner)
    K_TS, K_SS = ntk(X, x), ntk(x, x)
    if labels == "solved":
        root = np.sqrt(weights)[:, None]
        alpha = np.linalg.lstsq(root * K_TS, root * Y, rcond=None)[0]
    else:
        alpha = np.linalg.solve(K_SS + 1e-6 * np.trace(K_SS) / len(x) * np.eye(len(x)), y)
    wanted = 0.5 * np.sum(weights * ((K_TS @ alpha - Y) ** 2).mean(axis=1))
    assert found == pytest.approx(wanted, rel=1e-7)


@pytest.mark.parametrize("labels", LABELS)
def test_rows_are_picked_by_the_losses_of_the_set(labels, monkeypatch):
    learner = learner_of(labels=labels, precision="exact", pick=BY_LOSS)
    learner.loss(0)
    alpha = learner._coefficients().detach().numpy()  # of solved labels, those of the batch before
    told = []
    monkeypatch.setattr(learner._picker, "observe", lambda *each: told.append(each))
    learner.loss(2)
    (index, losses), (batch, seen) = told
    rows, (x, y) = learner._rows, arrays(learner)
    if labels != "solved":
        K_SS = ntk(x, x)
        alpha = np.linalg.solve(K_SS + 1e-6 * np.trace(K_SS) / len(x) * np.eye(len(x)), y)

    def losses_of(index, alpha):
        X, Y = rows.inputs(index).double().numpy(), rows.outputs(index).numpy()
        return 0.5 * ((ntk(X, x) @ alpha - Y) ** 2).mean(axis=1)

    assert 0 < len(index) < rows.n
    assert np.allclose(losses, losses_of(index, alpha), rtol=1e-6)
    assert np.allclose(seen, losses_of(batch, learner._coefficients().detach().numpy()), rtol=1e-6)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", KERNELS)
def test_derivatives_are_those_of_finite_differences(name, labels):
    learner = learner_of(kernel=name, labels=labels, precision="exact", m=4, batch_size=30, ridge=1e-3)
    names = list(learner.parameters)
    assert names == (["x", "y"] if labels == "learned" else ["x"])

    def loss(*values):
        learner.parameters = dict(zip(names, values, strict=True))
        return learner.loss(0)[0]

    values = [value.detach().clone().requires_grad_() for value in learner.parameters.values()]
    assert torch.autograd.gradcheck(loss, values, rtol=1e-4, atol=1e-8)
    assert torch.autograd.grad(loss(*values), values[0])[0].abs().max() > 1e-3


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", KERNELS)
def test_mixed_precision_costs_the_derivative_its_rounding_only(name, labels):
    gradients = []
    for precision in ("exact", "mixed"):
        learner = learner_of(kernel=name, labels=labels, precision=precision, ridge=1e-3)
        gradients.append(torch.autograd.grad(learner.loss(0)[0], learner.parameters["x"])[0])
    assert gradients[0].dtype == gradients[1].dtype == torch.float64
    assert 0 < (gradients[0] - gradients[1]).norm() / gradients[0].norm() < 1e-4


def test_the_closed_form_has_no_loss():
    # Theorem 6.1 of Chen, Huang and Weng: with n <= p rows and λ = 0, the set of the closed form is KIP's optimum.
    X, y = problem(20)
    ds = distill(
        X,
        y,
        per_class=1,
        feature_map="fourier",
        feature_params={"n_features": 40, "length_scale": 5.0},
        transform="none",
        targets="centred",
        ridge=0.0,
        distilled_ridge=1e-3,
        space="features",
        intercept=False,
    )
    # The set lives in feature space: the identity is its map there, and features of the rows are the rows.
    F = ds.encoder(torch.from_numpy(X), torch.float64)
    source = ArraySource(F.numpy(), y)
    rows = TrainingRows(
        source,
        make_transform("none", lambda: [], (40,)),
        ds.targets,
        seed=0,
        holdout=0,
        dtype=torch.float64,
    )
    points = ds.features()
    kernel = make_kernel_function("linear", (40,))
    ridge = ds.distilled_ridge / (float(points.square().sum()) / len(points))
    options = KIP(kernel="linear", ridge=ridge, precision="exact", pick=UNIFORM)
    learner = KIPLearner(rows, kernel, points, ds.y.double(), options, seed=0)
    assert float(learner.loss(0)[0].detach()) <= 1e-20
    assert learner.evaluate()["loss"] <= 1e-20
    moved = KIPLearner(rows, kernel, points + 0.1, ds.y.double(), options, seed=0)
    assert float(moved.loss(0)[0].detach()) > 1e-6


def test_augmented_batches_are_those_of_the_step():
    rows = rows_of(shape=(3, 2, 2))
    plain, changed = (
        learner_of(rows, precision="exact", pick=UNIFORM, augment=names) for names in ((), ("flip", "shift"))
    )
    index, weights = Picker(rows, UNIFORM, 40, 1).draw(3)
    X, Y = rows.inputs(index), rows.outputs(index)
    X = augment(X, index, ("flip", "shift"), seed=1, step=3).double()
    loss = (
        weights
        * (changed._kernel.matrix(X, changed.parameters["x"]) @ changed._coefficients() - Y).square().mean(1)
        / 2
    )
    assert float(changed.loss(3)[0].detach()) == pytest.approx(float(loss.sum().detach()), rel=1e-12)
    assert float(plain.loss(3)[0].detach()) != pytest.approx(float(changed.loss(3)[0].detach()), rel=1e-3)


# --- Learning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("labels", LABELS)
def test_learning_lowers_the_loss_of_all_rows_and_of_those_held_out(labels, values):
    rows = rows_of(values=values, n=400)
    learner = learner_of(rows, labels=labels, lr=0.1, batch_size=200)

    def loss_of_all():
        return learner.figures((X, Y) for _, X, Y in rows.chunks())["loss"]

    before, start = learner.evaluate(), loss_of_all()
    for step in range(40):
        learner.advance(step)
    after = learner.evaluate()
    assert loss_of_all() < 0.9 * start
    assert after["loss"] < before["loss"]
    assert after["score"] >= before["score"]
    assert after["score"] > 0.8


@pytest.mark.parametrize("labels", LABELS)
def test_labels_are_kept_or_learned_or_solved(labels):
    learner = learner_of(labels=labels, label_lr=0.003, lr=0.01)
    x, y = arrays(learner)
    learner.advance(0)
    moved_x, moved_y = arrays(learner)
    # A first step of Adam is its rate in every coordinate, where gradients are far above its ε of 1e-8.
    assert np.allclose(np.abs(moved_x - x), 0.01, rtol=0.01)
    if labels == "fixed":
        assert np.array_equal(moved_y, y)
    elif labels == "learned":
        assert np.allclose(np.abs(moved_y - y), 0.003, rtol=0.01)
    else:
        solved = solve_labels(learner._rows, learner._kernel, learner.parameters["x"].detach())
        assert np.array_equal(moved_y, solved.labels)
        assert not np.array_equal(moved_y, y)


def test_learned_labels_move_at_the_rate_of_points_by_default():
    learner = learner_of(labels="learned", lr=0.01)
    y = arrays(learner)[1]
    learner.advance(0)
    assert np.allclose(np.abs(arrays(learner)[1] - y), 0.01, rtol=0.01)


def test_no_steps_with_solved_labels_are_label_solve():
    learner = learner_of(labels="solved")
    result = run_loop(learner, Loop(), steps=0, evaluate_every=1, label="labels")
    solved = solve_labels(learner._rows, learner._kernel, learner.parameters["x"].detach())
    assert torch.equal(result.learned["y"], solved.labels)
    fixed = learner_of(labels="fixed")
    assert result.figures["loss"] < fixed.evaluate()["loss"]


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", KERNELS)
def test_evaluations_are_those_of_the_set_that_is_stored(name, labels):
    rows = rows_of(dtype=torch.float64)
    learner = learner_of(rows, kernel=name, labels=labels, ridge=1e-3)
    for step in range(3):
        learner.advance(step)
    found, figures = learner.learned(), learner.evaluate()
    encoder = KernelEncoder(rows.transform, learner._kernel)
    stored = learned_set(
        encoder, rows.targets, found["x"], found["y"], relative_ridge=1e-3, labels=None, n_rows=rows.n
    )
    X, Y = (torch.cat(part).numpy() for part in zip(*rows.held_out(), strict=True))
    scores = stored.decision_function(X)
    points = learner.parameters["x"].detach()
    lost = rounding(condition(learner._kernel.matrix(points).numpy() + 1e-3 * np.eye(len(points))))
    assert figures["loss"] == pytest.approx(0.5 * np.mean((scores - Y) ** 2), rel=max(lost, 1e-7))
    assert figures["score"] == np.mean(scores.argmax(1) == Y.argmax(1))


def test_what_is_handed_out_is_a_copy():
    for labels in LABELS:
        learner = learner_of(labels=labels)
        kept = learner.learned()
        before = {name: value.clone() for name, value in kept.items()}
        learner.advance(0)
        assert all(torch.equal(kept[name], before[name]) for name in kept)
        assert not any(value.requires_grad for value in kept.values())


# --- Runs ----------------------------------------------------------------------------------------------------

RUNS = {
    "fixed": {},
    "learned-sgd": {"labels": "learned", "optimizer": "sgd", "pick": UNIFORM},
    "learned-loss": {"labels": "learned", "pick": BY_LOSS},
    "solved-loss": {"labels": "solved", "pick": BY_LOSS},
    "augmented": {"augment": ("flip", "shift")},
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_a_restored_run_goes_on_in_the_same_bits(options):
    shape = (3, 2, 2) if "augment" in options else (D,)
    first, second = (learner_of(rows_of(shape=shape), **options) for _ in range(2))
    for step in range(5):
        first.advance(step)
    tensors, plain = first.state()
    kept = {name: value.clone() for name, value in tensors.items()}
    learned = first.learned()
    wanted = [float(first.advance(step)["loss"]) for step in range(5, 8)]
    second.advance(0)  # what is restored replaces what was
    second.evaluate()
    second.restore(kept, json.loads(json.dumps(plain)))
    assert all(torch.equal(second.learned()[name], value) for name, value in learned.items())
    assert [float(second.advance(step)["loss"]) for step in range(5, 8)] == wanted
    for name, value in first.learned().items():
        assert torch.equal(second.learned()[name], value)


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_a_prolonged_run_is_a_long_run(tmp_path, options):
    rows = rows_of(shape=(3, 2, 2) if "augment" in options else (D,))

    def run(steps, checkpoint=None):
        loop = Loop(checkpoint=checkpoint)
        return run_loop(learner_of(rows, **options), loop, steps=steps, evaluate_every=3, label="kip")

    run(4, tmp_path / "run.ckpt")
    found, wanted = run(9, tmp_path / "run.ckpt"), run(9)
    assert (found.step, found.figures) == (wanted.step, wanted.figures)
    assert found.history == wanted.history
    assert all(torch.equal(found.learned[name], wanted.learned[name]) for name in wanted.learned)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"m": 9},
        {"kernel": "gaussian"},
        {"ridge": 1e-5},
        {"labels": "solved"},
        {"batch_size": 41},
        {"pick": BY_LOSS},
        {"rows": rows_of(n=151)},
        {"rows": rows_of(shift=1)},
        {"start": torch.ones(8, D)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_runs_are_told_apart(change):
    assert learner_of().identity == learner_of().identity
    assert learner_of(**change).identity != learner_of().identity
    json.dumps(learner_of(**change).identity)


@pytest.mark.parametrize("change", [{"holdout": 0.2}, {"dtype": torch.float64}])
def test_runs_from_one_start_are_told_apart_by_their_rows(change):
    start = torch.ones(8, D).double()
    found, other = (learner_of(rows_of(**options), start=start).identity for options in ({}, change))
    assert found["data"]["digest"] == other["data"]["digest"]
    assert found != {**other, "start": found["start"]}


def test_the_number_of_steps_is_no_part_of_a_run():
    assert learner_of(steps=7, evaluate_every=2).identity == learner_of().identity


def test_a_set_without_solution_diverges_and_nothing_crashes():
    learner = learner_of(start=torch.zeros(8, D).double(), kernel="gaussian", ridge=0.0)
    assert torch.isnan(learner.loss(0)[0])
    with pytest.raises(ValueError, match="held-out loss of the points to start from is nan"):
        run_loop(learner, Loop(), steps=2, evaluate_every=1, label="kip")


@pytest.mark.parametrize("labels", LABELS)
def test_a_run_that_diverges_ends_with_the_set_before(labels):
    learner = learner_of(labels=labels, lr=1e200)
    start = learner.learned()
    result = run_loop(learner, Loop(), steps=5, evaluate_every=1, label="kip")
    assert (result.stopped, result.step) == ("diverged", 0)
    assert all(torch.equal(result.learned[name], start[name]) for name in start)


# --- Bad inputs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": "ntks"},
        {"labels": "soft"},
        {"ridge": -1e-6},
        {"ridge": float("nan")},
        {"batch_size": 0},
        {"lr": 0},
        {"optimizer": "adamax"},
        {"augment": ("rotate",)},
        {"precision": "low"},
        {"steps": -1},
        {"learning_rate": 0.1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        KIP(**options)


def test_points_and_labels_must_fit_the_rows():
    rows, options = rows_of(), KIP(batch_size=40)
    kernel = make_kernel_function("ntk", (D,))
    x, y = torch.ones(3, D).double(), torch.from_numpy(one_hot([0, 1, 2]))
    for bad in (x[:0], x[:, :-1], x[0, 0]):
        with pytest.raises(ValueError, match="`points` must hold one or more transformed points"):
            KIPLearner(rows, kernel, bad, y, options, seed=0)
    with pytest.raises(ValueError, match=r"`labels` must have shape \(3, 4\), got \(3, 3\)"):
        KIPLearner(rows, kernel, x, y[:, :3], options, seed=0)
    with pytest.raises(ValueError, match="`points` holds NaN in row 1"):
        KIPLearner(rows, kernel, x.index_fill(0, torch.tensor([1]), torch.nan), y, options, seed=0)
    with pytest.raises(ValueError, match="augmentation needs images"):
        KIPLearner(rows, kernel, x, y, KIP(augment=("flip",)), seed=0)
    with pytest.raises(ValueError, match="balanced batches need classes"):
        learner_of(rows_of(values=True), pick=Pick(kind="balanced"))
