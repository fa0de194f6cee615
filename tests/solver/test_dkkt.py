"""DKKT: its loss by its formula, derivatives, duals, the balance with DM, and that a run is a function of its seed."""

import json

import numpy as np
import pytest
import torch

from kernel_distill.kernels import normal
from kernel_distill.kernels.augmentation import augment_images, draw_augmentation
from kernel_distill.solver.kkt import mean_norm, per_sample_gradients, total_variation, trained_model
from kernel_distill.solver.learners.dkkt import DKKTLearner
from kernel_distill.solver.learners.dkkt_options import DKKT, DKKTDM
from kernel_distill.solver.learners.dm import DM, DMLearner
from kernel_distill.solver.learners.pick import Pick
from kernel_distill.solver.learners.rows import TrainingRows
from kernel_distill.solver.loop import Loop, run_loop
from kernel_distill.solver.networks import build_network, network_spec
from kernel_distill.solver.source import ArraySource
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import make_transform

SHAPE, K, M = (1, 8, 8), 3, 6
CLASSES = torch.arange(M) // (M // K)
SMALL = DM(network_params={"width": 4, "depth": 1}, batch_real=5)
TERMS = {"primal": 0.3, "total_variation": 0.2, "norm": 0.1, "augment": "crop_flip_rotate"}


def rows_of(n=90, shift=0.0, dtype=torch.float32):
    """Images of K classes, each brighter in a place of its own."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % K
    X = rng.normal(size=(n, *SHAPE))
    for c in range(K):
        X[y == c, :, 2 * c : 2 * c + 2] += 1.5
    X[-1] += shift
    targets = Targets.from_labels(y, "centred")
    transform = make_transform("none", lambda: [], SHAPE)
    return TrainingRows(ArraySource(X, y), transform, targets, seed=0, holdout=0.2, dtype=dtype)


def network_of(name="convnet", seed=3, dtype=torch.float32, **options):
    options = (
        options
        or {"convnet": {"width": 4, "depth": 1, "norm": "none"}, "mlp": {"width": 8, "depth": 1}}[name]
    )
    return build_network(network_spec(name, SHAPE, K, **options), seed, dtype=dtype)


def judge(points, labels):
    """Figures that change with the points."""
    return {"loss": float(points.square().mean() + labels.square().mean()), "score": 0.0}


def learner_of(rows=None, network=None, seed=1, start=None, **options):
    rows = rows_of() if rows is None else rows
    network = network_of(dtype=rows.dtype) if network is None else network
    x = normal(0, "start", (M, *SHAPE)) if start is None else start
    labels = torch.eye(K, dtype=torch.float64)[CLASSES] - 1 / K
    made = DKKTDM(**{"dm": SMALL, **options}) if options.get("fraction") else DKKT(**options)
    return DKKTLearner(
        rows,
        x,
        labels,
        CLASSES,
        made,
        network=network,
        seed=seed,
        judge=judge,
    )


def terms(model, X, duals, kind):
    """D and L_primal by their formulas."""
    theta = np.concatenate([value.numpy().ravel() for value in model.parameters.values()])
    r = theta + duals @ per_sample_gradients(model, X, CLASSES).numpy()
    scores = model.function(model.parameters, X).numpy()
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    losses = -np.log(chances[np.arange(M), CLASSES])
    wrong = scores.argmax(1) != CLASSES.numpy()
    return (np.abs(r) if kind == "l1" else r**2).mean(), (losses * wrong).sum() / M


# --- The loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convnet", "mlp"])
@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_loss_is_that_of_its_formula(kind, name):
    network = network_of(name, dtype=torch.float64)
    options = {"distance": kind, "eta": 2.0, "noise": 0.3, "decay": 1.0, **TERMS}
    learner = learner_of(rows_of(dtype=torch.float64), network, **options)
    learner.advance(0)  # duals that differ
    model, X, duals = trained_model(network), learner.parameters["x"].detach(), learner.duals.detach().numpy()
    changes = draw_augmentation(
        TERMS["augment"], [0] * M, SHAPE, seed=1, stream="dkkt.augment.4", single=False
    )
    moved = augment_images(X, changes) + 0.3 * normal(1, "dkkt.noise.4", (M, *SHAPE))
    plain, changed = terms(model, X, duals, kind), terms(model, moved, duals, kind)
    prior = 0.2 * float(total_variation(X)) + 0.1 * float(mean_norm(X))
    wanted = plain[0] + 0.3 * plain[1] + 2 * (changed[0] + 0.3 * changed[1]) + prior
    loss, figures = learner.loss(4)
    assert loss.item() == pytest.approx(wanted, rel=1e-10)
    assert min(plain[1], changed[1]) > 0
    assert [float(figures[key]) for key in ("stationarity", "primal")] == pytest.approx(plain, rel=1e-10)
    assert np.ptp(duals) > 0.1 * duals.max()


@pytest.mark.parametrize(
    "options", [{"distance": "l1"}, {"distance": "l2"}, {"fraction": 0.5, "dm_weight": 0.7}]
)
def test_derivatives_in_points_and_duals_are_those_of_finite_differences(options):
    learner = learner_of(
        rows_of(dtype=torch.float64), network_of("mlp", dtype=torch.float64), eta=2.0, **TERMS, **options
    )

    def loss(x, dual):
        learner.parameters = {"x": x, "dual": dual}
        if options.get("fraction"):
            learner._dm.parameters["x"] = x
        return learner.loss(2)[0]

    values = [value.detach().clone().requires_grad_() for value in learner.parameters.values()]
    assert torch.autograd.gradcheck(loss, values, eps=1e-7, rtol=1e-5, atol=1e-7, fast_mode=True)
    assert all(gradient.abs().max() > 1e-4 for gradient in torch.autograd.grad(loss(*values), values))


def test_one_step_costs_two_forward_passes_and_leaves_the_network_alone():
    network = network_of().train().requires_grad_(True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    learner, passes = learner_of(network=network), []
    function = learner._model.function
    object.__setattr__(learner._model, "function", lambda p, X: passes.append(len(X)) or function(p, X))
    learner.advance(0)
    assert passes == [M, M]
    assert network.training
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_batch_norm_runs_with_its_running_statistics():
    network = network_of(width=4, depth=1, norm="batch").train()
    with torch.no_grad():
        network(normal(0, "batch", (20, *SHAPE)).float() + 1)
    learner = learner_of(network=network, eta=0.0)
    found = learner.loss(0)[1]["stationarity"].item()
    model = trained_model(network, dtype=torch.float64)
    X = learner.parameters["x"].detach().double()
    assert found == pytest.approx(terms(model, X, learner.duals.detach().double().numpy(), "l1")[0], rel=1e-5)


def test_primal_is_nothing_where_all_points_are_right():
    network = network_of("mlp")
    guess = network(normal(0, "start", (M, *SHAPE)).float()).argmax(1)
    found = [learner_of(network=network, primal=value, eta=0.0) for value in (0.0, 5.0)]
    for learner in found:
        learner.classes = guess
    values = [learner.loss(0) for learner in found]
    assert values[0][0].item() == values[1][0].item()
    assert values[1][1]["primal"].item() == 0


def test_without_data_no_row_is_read(monkeypatch):
    learner = learner_of()

    def fail(*_):
        raise AssertionError("a row was read")

    for name in ("inputs", "outputs", "raw", "chunks", "held_out"):
        monkeypatch.setattr(TrainingRows, name, fail)
    assert set(learner.advance(0)) == {"loss", "stationarity", "residual", "primal", "idle"}
    assert learner.dm_weight is None


# --- Duals ---------------------------------------------------------------------------------------------------


def test_duals_start_at_one_length_and_stay_non_negative():
    network = network_of()
    learner = learner_of(network=network, dual_lr=0.7, eta=0.0)
    model = trained_model(network)
    G = per_sample_gradients(model, learner.parameters["x"].detach(), CLASSES).sum(0)
    theta = torch.cat([value.ravel() for value in model.parameters.values()])
    assert torch.allclose(learner.duals, (theta.norm() / G.norm()).expand(M), rtol=1e-5)
    idle, before = [], learner.learned()["x"]
    for step in range(30):
        idle.append(int(learner.advance(step)["idle"]))
        assert (learner.duals >= 0).all()
    assert idle[0] == 0
    assert max(idle) > 0  # some were projected, and the points stayed
    assert learner.learned()["x"].shape == before.shape


def test_a_point_without_dual_is_moved_by_the_other_terms_alone():
    learner = learner_of(eta=0.0, primal=0.0)
    with torch.no_grad():
        learner.parameters["dual"][2] = 0
    gradient = torch.autograd.grad(learner.loss(0)[0], learner.parameters["x"])[0].flatten(1).norm(dim=1)
    assert (gradient == 0).tolist() == [False, False, True, False, False, False]


def test_the_scale_of_the_condition_changes_no_step():
    # With "l1" everything is proportional to s once duals are in units of λ₀; Adam does not see a factor.
    learned = []
    for decay in (1.0, 2.0**-5):
        learner = learner_of(rows_of(dtype=torch.float64), decay=decay, primal=0.0)
        for step in range(3):
            learner.advance(step)
        learned.append((learner.learned()["x"], learner.duals.detach()))
    assert torch.allclose(learned[0][0], learned[1][0], atol=1e-6)
    assert torch.allclose(learned[0][1], learned[1][1] * 32, rtol=1e-6)


# --- With data -----------------------------------------------------------------------------------------------


def test_gradients_are_equally_long_at_the_start():
    learner = learner_of(fraction=0.5)
    assert learner.dm_weight is None
    x = learner.parameters["x"]
    own, _ = learner.kkt_loss(0)
    alone = DMLearner(
        rows_of(),
        x.detach().clone(),
        learner._labels,
        CLASSES,
        SMALL.model_copy(update={"fraction": 0.5}),
        seed=1,
        judge=judge,
    )
    matched, _ = alone.loss(0)
    first = torch.autograd.grad(own, x)[0].norm()
    second = torch.autograd.grad(matched, alone.parameters["x"])[0].norm()
    figures = learner.advance(0)
    assert learner.dm_weight == pytest.approx(float(first / second), rel=1e-5)
    assert float(figures["dm"]) == pytest.approx(matched.item(), rel=1e-6)
    assert float(figures["loss"]) == pytest.approx((own + learner.dm_weight * matched).item(), rel=1e-5)
    weights = [learner.dm_weight]
    for step in range(1, 6):
        learner.advance(step)
        weights.append(learner.dm_weight)
    assert weights == sorted(weights, reverse=True)


def test_a_start_at_the_rows_themselves_does_not_make_the_weight_explode():
    rows = rows_of()
    share = rows.share(2 / 72, 1)
    assert share.n == K
    start = torch.cat(
        [share.inputs(torch.full((M // K,), int((share.classes == c).nonzero()))) for c in range(K)]
    )
    learner = learner_of(rows, fraction=2 / 72, start=start)
    figures = [learner.advance(step) for step in range(8)]
    assert float(figures[0]["dm"]) < 1e-10  # nothing to match but rounding
    assert all(float(each["loss"]) < 10 for each in figures)
    assert float(figures[-1]["dm"]) > 1e-6


def test_a_weight_that_is_given_is_kept():
    learner = learner_of(fraction=0.5, dm_weight=0.25)
    learner.advance(0)
    assert learner.dm_weight == 0.25


def test_only_the_share_of_the_rows_is_read():
    rows = rows_of()
    learner, share = learner_of(rows, fraction=0.1), rows.share(0.1, 1)
    assert torch.equal(learner._dm._seen._train, share._train)
    assert share.n < 0.2 * rows.n


# --- Learning ------------------------------------------------------------------------------------------------


def test_points_come_to_explain_the_network():
    learner = learner_of(eta=1.0, noise=0.0, augment="")
    start = learner.evaluate()
    first = learner.advance(0)
    for step in range(1, 80):
        last = learner.advance(step)
    assert float(first["primal"]) > 0
    assert float(last["primal"]) == 0
    assert float(last["residual"]) < 0.9 < 1 < float(first["residual"])
    assert float(last["loss"]) < 0.8 * float(first["loss"])
    assert learner.evaluate() != start
    assert torch.equal(learner.learned()["y"], learner._labels)
    assert learner.learned()["x"].dtype == torch.float64


RUNS = {
    "zero-shot": {},
    "l2-sgd": {"distance": "l2", "optimizer": "sgd", "primal": 0.1},
    "dm": {"fraction": 0.5},
    "dm-loss": {
        "fraction": 0.5,
        "dm": SMALL.model_copy(update={"pick": Pick(kind="loss", refresh=4, refresh_every=2)}),
    },
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_a_restored_run_goes_on_in_the_same_bits(options):
    first, second = (learner_of(**options) for _ in range(2))
    for step in range(3):
        first.advance(step)
    tensors, plain = first.state()
    kept = {name: value.clone() for name, value in tensors.items()}
    learned, weight = first.learned(), first.dm_weight
    wanted = [float(first.advance(step)["loss"]) for step in range(3, 6)]
    second.advance(5)  # what is restored replaces what was, the weight of DM too
    second._unit = second._unit * 2
    second.restore(kept, json.loads(json.dumps(plain)))
    assert all(torch.equal(second.learned()[name], value) for name, value in learned.items())
    assert second.dm_weight == weight
    assert [float(second.advance(step)["loss"]) for step in range(3, 6)] == wanted
    assert torch.equal(second.learned()["x"], first.learned()["x"])
    assert torch.equal(second.duals, first.duals)


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_a_prolonged_run_is_a_long_run(tmp_path, options):
    def run(steps, checkpoint=None):
        loop = Loop(checkpoint=checkpoint)
        return run_loop(learner_of(**options), loop, steps=steps, evaluate_every=2, label="dkkt")

    run(3, tmp_path / "run.ckpt")
    found, wanted = run(5, tmp_path / "run.ckpt"), run(5)
    assert (found.step, found.figures, found.history) == (wanted.step, wanted.figures, wanted.history)
    assert all(torch.equal(found.learned[name], wanted.learned[name]) for name in wanted.learned)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"network": network_of(seed=4)},
        {"rows": rows_of(shift=1.0)},
        {"start": torch.ones(M, *SHAPE)},
        {"eta": 1.0},
        {"fraction": 0.5},
        {"fraction": 0.5, "dm": DM()},
    ],
    ids=lambda change: "-".join(change),
)
def test_runs_are_told_apart(change):
    if "dm" in change:
        assert learner_of(**change).identity != learner_of(fraction=0.5).identity
    assert learner_of().identity == learner_of(steps=7).identity
    assert learner_of(**change).identity != learner_of().identity
    json.dumps(learner_of(**change).identity)


# --- Bad inputs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"network": "convnets"},
        {"distance": "l3"},
        {"decay": 0},
        {"eta": -1},
        {"primal": -1},
        {"lr": 0},
        {"dual_lr": 0},
        {"noise": -0.1},
        {"fraction": 1.5},
        {"dm_weight": 0},
        {"dm_weight": "equal"},
        {"optimizer": "adamax"},
        {"labels": "learned"},
        {"alpha": 1},
    ],
    ids=lambda options: "-".join(map(str, *options.items())),
)
def test_options_that_mean_nothing_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DKKT(**options)


@pytest.mark.parametrize("number", [-1, K])
def test_classes_that_are_none_are_refused(number):
    classes = CLASSES.clone()
    classes[0] = number
    with pytest.raises(ValueError, match="`classes` must be numbers from 0 to 2"):
        DKKTLearner(
            rows_of(),
            normal(0, "start", (M, *SHAPE)),
            torch.zeros(M, K),
            classes,
            DKKT(),
            network=network_of(),
            seed=0,
            judge=judge,
        )


def test_the_network_must_fit():
    with pytest.raises(ValueError, match=r"`network` must give 3 scores a row, got \(5,\)"):
        learner_of(network=build_network(network_spec("mlp", SHAPE, 5), 0))
    with pytest.raises(ValueError, match="takes rows of shape"):
        learner_of(network=build_network(network_spec("mlp", (1, 4, 4), K), 0))
    sure = network_of("mlp")
    with torch.no_grad():
        sure.classifier.weight.zero_()
        sure.classifier.bias.copy_(torch.tensor([torch.nan, 0.0, 0.0]))
    with pytest.raises(ValueError, match="`network\\(points\\)` holds NaN"):
        learner_of(network=sure)
    with pytest.raises(ValueError, match="unknown augmentation 'blur'"):
        learner_of(augment="blur")


def test_points_that_the_network_is_sure_of_to_the_last_digit_are_refused():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, K))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].weight[:, :K] = 1e4 * torch.eye(K)
    start = torch.zeros(M, *SHAPE)
    start[torch.arange(M), 0, 0, CLASSES] = 1
    with pytest.raises(ValueError, match="sum to a vector of norm 0"):
        learner_of(network=network, start=start)
