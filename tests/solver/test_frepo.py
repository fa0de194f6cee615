"""FRePo: its loss by NumPy and by RFAD, derivatives by finite differences, steps, resumed runs, stored sets."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kernel_distill.solver.conv_networks import conv_features, draw_conv_networks
from kernel_distill.solver.distilled_set import DistilledSet
from kernel_distill.solver.encoder import Encoder
from kernel_distill.solver.learned_set import learned_set
from kernel_distill.solver.learners import rfad
from kernel_distill.solver.learners.frepo import FRePo, FRePoLearner, label_margin
from kernel_distill.solver.learners.network_pool import train_network
from kernel_distill.solver.learners.pick import Pick
from kernel_distill.solver.learners.rows import TrainingRows
from kernel_distill.solver.loop import Loop, run_loop
from kernel_distill.solver.source import as_source
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import make_transform

from ..cases import relative

N, K = 60, 3
SMALL = {"width": 4, "depth": 2, "networks": 3, "batch_size": 16, "kept_updates": 2}


def images(n=N, shape=(1, 4, 6), seed=0):
    """Classes that a linear model nearly tells apart."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(K), rng.integers(0, K, n - K)])
    centres = rng.normal(size=(K, *shape))
    return rng.normal(size=(n, *shape)) + centres[y], y


def make_rows(shape=(1, 4, 6), dtype=torch.float64, task="classes", **options):
    X, y = images(shape=shape)
    if task == "classes":
        targets, y = Targets.from_labels(y, "centred"), y
    else:
        targets, y = Targets.from_values(2), np.stack([X.sum((1, 2, 3)), X[:, 0, 0, 0]], axis=1)
    transform = make_transform("none", lambda: [torch.from_numpy(X)], shape)
    return TrainingRows(
        as_source(X, y, None), transform, targets, seed=0, holdout=0.2, dtype=dtype, **options
    )


def make_learner(rows=None, m=6, seed=0, **options):
    rows = rows or make_rows()
    index = torch.arange(m)
    start = rows.inputs(index).double()
    return FRePoLearner(rows, start, rows.outputs(index), FRePo(**{**SMALL, **options}), seed=seed)


def set_points(learner, x, y):
    """Put points and labels in the place of the learner's."""
    learner.parameters = {"x": x, "y": y} if learner.options.labels == "learned" else {"x": x}
    learner._y = y


def copied(state):
    tensors, plain = state
    return {name: value.clone() for name, value in tensors.items()}, plain


# --- The loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("labels", ["learned", "fixed"])
@pytest.mark.parametrize("corrected", [False, True])
def test_the_loss_is_that_of_ridge_regression_on_the_features(norm, flip, labels, corrected):
    pick = Pick(kind="balanced", corrected=corrected)
    learner = make_learner(norm=norm, flip=flip, labels=labels, pick=pick, ridge=1e-3)
    step = 5
    loss, _ = learner.loss(step)
    x, y = own_points(learner)
    y = y.numpy()
    pad = torch.nn.functional.pad
    networks = learner._pool.frozen(learner._pool.pick(step), pad(x, (2, 2, 2, 2)))
    picked = learner._picker.draw(step)
    points = torch.cat([x, torch.flip(x, (3,))]) if flip else x
    with torch.no_grad():
        S = conv_features(networks, pad(points, (2, 2, 2, 2)))[:, 0].numpy()
        T = conv_features(networks, pad(learner.rows.inputs(picked.index), (2, 2, 2, 2)))[:, 0].numpy()
    Y = np.concatenate([y, y]) if flip else y
    gram = S @ S.T
    predicted = T @ S.T @ np.linalg.solve(gram + 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram)), Y)
    wanted = picked.weights.numpy() @ (
        0.5 * (predicted - learner.rows.outputs(picked.index).numpy()) ** 2
    ).sum(1)
    if labels == "learned":
        largest = np.sort(y, axis=1)
        wanted -= np.minimum(largest[:, -1] - largest[:, -2], 1 / K).mean()
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    ("Y", "margin"),
    [
        ([[1.0, 0.0, 0.0]], 1 / 3),
        ([[2 / 3, -1 / 3, -1 / 3]], 1 / 3),
        ([[0.1, 0.3, 0.2]], 0.1),
        ([[0.5, 0.5, -4.0]], 0.0),
        ([[0.0, 0.1, 0.0], [9.0, 0.0, 0.0]], (0.1 + 1 / 3) / 2),
        ([[-1.0, -1.25]], 0.25),
        ([[-1.0, -2.0]], 0.5),
    ],
)
def test_the_margin_of_known_labels(Y, margin):
    assert float(label_margin(torch.tensor(Y, dtype=torch.float64))) == pytest.approx(margin, abs=1e-15)


def test_the_margin_draws_close_labels_apart_and_leaves_others():
    Y = torch.tensor([[0.1, 0.3, 0.2], [1.0, 0.0, 0.2]], dtype=torch.float64, requires_grad=True)
    label_margin(Y).backward()
    assert Y.grad is not None
    assert Y.grad.tolist() == [[0.0, 0.5, -0.5], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("m", [1, 5])
def test_rfad_with_one_network_is_frepo_without_updates(m, monkeypatch):
    """On the same weights and rows, but for the last layer (its bias, here taken out) and the 1/k of the mean."""
    monkeypatch.setattr(rfad, "BIAS_VARIANCE", 0.0)
    monkeypatch.setattr("kernel_distill.solver.feature_maps.random_conv.BIAS_VARIANCE", 0.0)
    rows, step, ridge = make_rows((2, 6, 8)), 3, 1e-2
    frepo = make_learner(
        rows, m=m, norm="none", labels="fixed", max_updates=0, networks=1, ridge=ridge, width=(4, 4)
    )
    other = rfad.RFADLearner(
        rows,
        frepo.learned()["x"],
        frepo.learned()["y"],
        rfad.RFAD(
            loss="mse",
            matrix="none",
            networks=1,
            kept_networks=1,
            width=4,
            depth=2,
            ridge=ridge,
            batch_size=16,
        ),
        seed=0,
    )
    drawn = draw_conv_networks(other.spec, 1, 0, f"rfad.networks.{step}", dtype=torch.float64)
    tensors, plain = copied(frepo._pool.state())
    frepo._pool.restore({**tensors, **{f"0.{name}": value for name, value in drawn.tensors.items()}}, plain)
    found, wanted = float(frepo.loss(step)[0].detach()), float(other.loss(step)[0].detach())
    assert found == pytest.approx(K * wanted, rel=1e-9)
    # And the gradient of the points.
    frepo.loss(step)[0].backward()
    other.loss(step)[0].backward()
    gradient = other.parameters["points"].grad
    assert gradient is not None
    assert relative(frepo.parameters["x"].grad.flatten(1), K * gradient) < 1e-9


def own_points(learner):
    """Points and labels without their mirror images."""
    m = len(learner.parameters["x"])
    return learner.learned()["x"][:m], learner.learned()["y"][:m]


def test_mirror_images_are_points_like_others():
    rows = make_rows()
    learner = make_learner(rows, norm="none", labels="fixed", flip=True)
    x, y = own_points(learner)
    double = FRePoLearner(
        rows,
        torch.cat([x, torch.flip(x, (3,))]),
        torch.cat([y, y]) * math.sqrt(K / 10),
        FRePo(**{**SMALL, "norm": "none", "labels": "fixed"}),
        seed=0,
    )
    assert float(learner.loss(2)[0].detach()) == pytest.approx(float(double.loss(2)[0].detach()), rel=1e-10)
    stored = learner.learned()
    assert torch.equal(stored["x"], torch.cat([x, torch.flip(x, (3,))]))
    assert torch.equal(stored["y"], torch.cat([y, y]))
    alone = make_learner(rows, norm="none", labels="fixed")
    assert float(alone.loss(2)[0].detach()) != pytest.approx(float(double.loss(2)[0].detach()), rel=1e-3)


@pytest.mark.parametrize("task", ["classes", "values"])
def test_labels_of_classes_start_smaller_for_more_classes(task):
    rows = make_rows(task=task)
    scale = math.sqrt(K / 10) if task == "classes" else 1.0
    for labels in ("learned", "fixed"):
        found = make_learner(rows, labels=labels).learned()["y"]
        assert relative(found, rows.outputs(torch.arange(6)) / scale) < 1e-15


# --- Derivatives ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
@pytest.mark.parametrize("options", [{}, {"flip": True}, {"labels": "fixed"}], ids=str)
def test_the_gradient_is_that_of_finite_differences(norm, options, monkeypatch):
    """Through features, both kernel matrices, labels and margin. Statistics of the set count as constants."""
    learner = make_learner(m=4, norm=norm, batch_size=6, ridge=1e-2, **options)
    rng = np.random.default_rng(0)
    # Points that are not rows of the batch, and labels whose margin is below its ceiling here and above it there.
    x = torch.from_numpy(rng.normal(size=(4, 1, 4, 6))).requires_grad_()
    y = torch.from_numpy(0.3 * rng.normal(size=(4, K))).requires_grad_()
    slot = learner._pool.pick(1)
    frozen = learner._pool.frozen(slot, learner._padded(x.detach()))
    monkeypatch.setattr(learner._pool, "frozen", lambda slot, X: frozen)

    def loss(x, y):
        set_points(learner, x, y)
        return learner.loss(1)[0]

    margins = y.detach().topk(2, dim=1).values
    margins = margins[:, 0] - margins[:, 1]
    assert bool((margins > 1 / K).any())
    assert bool((margins < 1 / K).any())
    assert torch.autograd.gradcheck(loss, (x, y))


def test_no_gradient_reaches_the_networks():
    learner = make_learner()
    learner.loss(0)[0].backward()
    assert all(
        value.grad is None for network in learner._pool._networks for value in network._parameters.values()
    )


# --- Steps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lr", "final_rate", "steps"), [(0.01, 0.1, 8), (0.002, 0.0, 5), (0.01, 1.0, 3)])
def test_a_step_is_as_long_as_lamb_and_the_cosine_say(lr, final_rate, steps):
    """LAMB moves a tensor by its rate times its own length, whatever the gradient."""
    learner = make_learner(lr=lr, final_rate=final_rate, steps=steps)
    for step in range(steps + 2):
        before = {name: value.detach().clone() for name, value in learner.parameters.items()}
        learner.advance(step)
        cosine = (1 + math.cos(math.pi * min(step / steps, 1))) / 2
        wanted = lr * (final_rate + (1 - final_rate) * cosine)
        for name, value in learner.parameters.items():
            moved = float((value.detach() - before[name]).norm() / before[name].norm())
            assert moved == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def test_fixed_labels_stay():
    learner = make_learner(labels="fixed", lr=0.1)
    before = learner.learned()
    for step in range(3):
        learner.advance(step)
    after = learner.learned()
    assert torch.equal(before["y"], after["y"])
    assert not torch.equal(before["x"], after["x"])


def test_the_network_that_served_is_trained_on_the_new_points(monkeypatch):
    learner = make_learner(lr=0.1)
    calls = []
    monkeypatch.setattr(
        learner._pool, "advance", lambda slot, X, Y: calls.append((slot, X.clone(), Y.clone()))
    )
    for step in range(4):
        learner.advance(step)
        learned = learner.learned()
        slot, X, Y = calls[step]
        assert slot == learner._pool.pick(step)
        assert torch.equal(X, torch.nn.functional.pad(learned["x"], (2, 2, 2, 2)))
        assert torch.equal(Y, learned["y"])
    assert len({slot for slot, _, _ in calls}) > 1


def test_the_losses_of_a_batch_are_noted(monkeypatch):
    """SMART-PICK draws by them; they are those of the step, without the margin."""
    learner = make_learner(pick=Pick(kind="loss", corrected=True))
    drawn, draw = [], learner._picker.draw
    noted, observe = [], learner._picker.observe
    monkeypatch.setattr(learner._picker, "draw", lambda step: drawn.append(draw(step)) or drawn[0])
    monkeypatch.setattr(learner._picker, "observe", lambda *found: (noted.append(found), observe(*found)))
    figures = learner.advance(0)
    (everything, _), (index, losses) = noted  # the table at first, then the batch
    assert len(everything) == learner.rows.n
    assert torch.equal(index, drawn[0].index)
    assert float(drawn[0].weights @ losses) == pytest.approx(float(figures["squared_loss"]), rel=1e-12)
    assert not losses.requires_grad


@pytest.mark.parametrize("kept_updates", [0, 3])
def test_kept_networks_are_trained_so_many_steps(kept_updates):
    learner = make_learner(kept_updates=kept_updates, kept_networks=2, network_lr=0.01)
    x, y = learner.learned()["x"], learner.learned()["y"]
    wanted = train_network(
        learner._padded(x), y, learner.options.spec((1, 4, 6)), steps=kept_updates, seed=0, count=2, rate=0.01
    )
    found = learner.learned()
    assert all(torch.equal(value, found[f"network.{name}"]) for name, value in wanted.tensors.items())


@pytest.mark.parametrize("labels", ["learned", "fixed"])
def test_it_learns(labels):
    learner = make_learner(
        make_rows(dtype=torch.float32), m=K, labels=labels, lr=0.02, steps=60, kept_updates=10
    )
    before = learner.evaluate()
    for step in range(60):
        learner.advance(step)
    after = learner.evaluate()
    assert after["loss"] < 0.8 * before["loss"]


def test_values_are_learned_without_margin():
    learner = make_learner(make_rows(task="values"), lr=0.02, steps=40)
    before = learner.evaluate()
    figures = [learner.advance(step) for step in range(40)]
    assert set(figures[0]) == {"loss"}
    assert learner.evaluate()["loss"] < before["loss"]


# --- Evaluation and state ------------------------------------------------------------------------------------


def test_an_evaluation_changes_nothing_and_gives_the_same_again():
    left, right = make_learner(), make_learner()
    for step in range(4):
        left.advance(step)
        assert right.evaluate() == right.evaluate()
        right.advance(step)
    found, wanted = left.state(), right.state()
    assert found[1] == wanted[1]
    assert all(torch.equal(value, wanted[0][name]) for name, value in found[0].items())


def test_what_was_learned_is_a_copy():
    learner = make_learner(lr=0.1)
    learned = learner.learned()
    before = {name: value.clone() for name, value in learned.items()}
    learner.advance(0)
    after = learner.learned()
    assert all(torch.equal(learned[name], value) for name, value in before.items())
    # The networks are those of the points as they are.
    assert all(not torch.equal(after[name], value) for name, value in before.items() if "weight" in name)


@pytest.mark.parametrize("kill", [1, 4, 7])
@pytest.mark.parametrize(
    "options",
    [
        {"max_updates": 2, "networks": 2},
        {"pick": Pick(kind="loss", refresh=3, refresh_every=1, corrected=True), "norm": "none"},
        {"labels": "fixed", "flip": True, "max_updates": 0},
    ],
    ids=["replaced", "loss", "fixed"],
)
def test_a_resumed_run_ends_in_the_same_bits(options, kill, tmp_path):
    rows, steps = make_rows(dtype=torch.float32), 8
    numbers = {"steps": steps, "evaluate_every": 3, "label": "frepo", "progress": False}
    whole = make_learner(rows, lr=0.05, **options)
    wanted = run_loop(whole, Loop(), **numbers)
    path = tmp_path / "run"
    run_loop(make_learner(rows, lr=0.05, **options), Loop(steps=kill, checkpoint=path), **numbers)
    resumed = make_learner(rows, lr=0.05, **options)
    found = run_loop(resumed, Loop(checkpoint=path), **numbers)
    assert found.history == wanted.history
    assert all(torch.equal(value, found.learned[name]) for name, value in wanted.learned.items())
    left, right = whole.state(), resumed.state()
    assert left[1] == right[1]
    assert left[0].keys() == right[0].keys()
    assert all(torch.equal(value, right[0][name]) for name, value in left[0].items())


def test_another_run_has_another_identity():
    rows = make_rows()
    first = make_learner(rows)
    assert first.identity == make_learner(rows).identity
    others = [
        make_learner(rows, lr=0.5),
        make_learner(rows, seed=1),
        make_learner(rows, m=7),
        make_learner(rows, steps=9),
    ]
    assert all(other.identity != first.identity for other in others)
    first.advance(0)
    assert first.identity == make_learner(rows, evaluate_every=7).identity


# --- The stored set ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"kept_networks": 2, "padding": 0}, {"norm": "instance"}, {"norm": "none"}], ids=str
)
def test_the_stored_set_predicts_as_it_was_evaluated(options, tmp_path):
    rows = make_rows(dtype=torch.float32)
    learner = make_learner(rows, m=2 * K, lr=0.02, **options)
    for step in range(3):
        learner.advance(step)
    figures, learned = learner.evaluate(), learner.learned()
    encoder = Encoder(rows.transform, learner.options.feature_map(rows.transform.input_shape, learned))
    made = learned_set(
        encoder,
        rows.targets,
        learned["x"],
        learned["y"],
        relative_ridge=learner.options.ridge,
        labels=None,
        n_rows=rows.n,
    )
    made.save(tmp_path / "set")
    again = DistilledSet.load(tmp_path / "set")
    X, Y = (torch.cat(parts) for parts in zip(*rows.held_out(), strict=True))
    for one in (made, again):
        scores = one.decision_function(X.double().numpy())
        assert 0.5 * ((scores - Y.numpy()) ** 2).sum(1).mean() == pytest.approx(figures["loss"], rel=1e-4)
        assert (scores.argmax(1) == Y.numpy().argmax(1)).mean() == figures["score"]


def test_the_default_networks_are_the_published_ones():
    options = FRePo()
    grey, colour = options.spec((1, 28, 28)), options.spec((3, 32, 32))
    assert grey.input_shape == (1, 32, 32)
    assert colour.input_shape == (3, 32, 32)
    assert colour.widths == (128, 256, 512)
    assert (colour.norm, colour.filter_size, colour.leak) == ("batch", 3, 0.0)
    assert colour.n_features == grey.n_features == 8192
    weights = sum(math.prod(shape) for name, shape in colour.shapes.items() if name[:4] in ("weig", "bias"))
    # The 5.9 MB of the docstring.
    assert weights * 4 == pytest.approx(5.9e6, rel=0.01)


# --- Refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"labels": "solved"},
        {"ridge": 0.0},
        {"ridge": math.inf},
        {"networks": 0},
        {"max_updates": -1},
        {"kept_networks": 0},
        {"kept_updates": -1},
        {"norm": "layer"},
        {"padding": -1},
        {"final_rate": 1.5},
        {"steps": 0},
        {"lr": -1.0},
        {"network_lr": 0.0},
        {"optimiser": "adam"},
    ],
    ids=str,
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValidationError, match=next(iter(options))):
        FRePo(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:0], y[:0]), "one or more"),
        (lambda x, y: (x[:, :, :2], y), "shape"),
        (lambda x, y: (x, y[:2]), r"`labels` must have shape \(6, 3\)"),
        (lambda x, y: (x * math.nan, y), "`start` holds NaN"),
        (lambda x, y: (x, y / 0), "`labels`"),
    ],
)
def test_bad_points_are_refused(change, message):
    rows, index = make_rows(), torch.arange(6)
    start, labels = change(rows.inputs(index), rows.outputs(index))
    with pytest.raises(ValueError, match=message):
        FRePoLearner(rows, start, labels, FRePo(**SMALL), seed=0)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((12,), {}, "takes images"),
        ((3, 3, 4), {}, "lower `depth`"),
        ((1, 4, 6), {"width": (4,)}, "entries"),
        ((1, 4, 6), {"width": 0}, "width"),
    ],
)
def test_inputs_that_networks_cannot_take_are_refused(shape, options, message):
    settings = FRePo(**{**SMALL, **options})
    with pytest.raises(ValueError, match=message):
        settings.spec(shape)
