"""DC and DSA: the distance, its derivative, the loops, and that a run is a function of its seed."""

import json

import numpy as np
import pytest
import torch

from kernel_distill.nn_baselines import gradient_matching
from kernel_distill.nn_baselines.gradient_matching import DC, DSA, GradientMatchingLearner, loops
from kernel_distill.nn_baselines.network_gradient import gradient_distance, loss_gradient
from kernel_distill.nn_baselines.schedule import row_orders
from kernel_distill.solver.learners.pick import Pick
from kernel_distill.solver.networks import build_network

from .image_rows import CLASSES, SHAPE, bits, image_rows, no_judge, start_of

OPTIONS = {"network_params": {"width": 4, "depth": 1}, "batch_real": 8, "outer_loops": 2, "inner_loops": 2}
BY_LOSS = Pick(kind="loss", refresh=4, refresh_every=2)


def learner_of(rows=None, options=DC, per_class=2, seed=1, start=None, **changes):
    rows = image_rows() if rows is None else rows
    start = start_of(rows, per_class) if start is None else start
    return GradientMatchingLearner(rows, *start, options(**{**OPTIONS, **changes}), seed=seed, judge=no_judge)


def oracle(learned, real):
    """The published distance by NumPy, one output after the other."""
    total = 0.0
    for a, b in zip(learned, real, strict=True):
        if a.ndim > 1:
            for u, v in zip(a.reshape(len(a), -1), b.reshape(len(b), -1), strict=True):
                total += 1 - u @ v / (np.linalg.norm(u) * np.linalg.norm(v) + 1e-6)
    return total


def plain_gradient(network, X, classes):
    """By autograd through the module, differentiable."""
    loss = torch.nn.functional.cross_entropy(network(X), classes)
    return torch.autograd.grad(loss, list(network.parameters()), create_graph=True)


# --- The distance --------------------------------------------------------------------------------------------


def test_the_distance_is_the_published_one():
    rng = np.random.default_rng(0)
    shapes = [(4, 2, 3, 3), (4,), (5, 7), (5,), (3, 2, 2)]
    learned, real = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))
    learned[2][1] = 0.0  # a dead output
    found = gradient_distance(map(torch.from_numpy, learned), map(torch.from_numpy, real))
    assert float(found) == pytest.approx(oracle(learned, real), rel=1e-13)


@pytest.mark.parametrize(("factor", "each"), [(1.0, 0.0), (3.0, 0.0), (-2.0, 2.0)])
def test_the_distance_is_of_directions(factor, each):
    a = [torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.ones(4)]
    # What 1e-6 beside the norms, all above one, changes.
    assert float(gradient_distance([factor * t for t in a], a)) == pytest.approx(4 * each, abs=4e-6)


def test_vectors_alone_have_no_distance():
    with pytest.raises(ValueError, match="vectors only"):
        gradient_distance([torch.ones(3)], [torch.ones(3)])


def test_the_gradient_of_rows_is_weighted_and_in_pieces(monkeypatch):
    rows = image_rows()
    network = build_network(DC(**OPTIONS).spec(rows), 0, dtype=torch.float64)
    X, classes = rows.inputs(torch.arange(11)), rows.classes[:11]
    weights = torch.linspace(0.1, 1, 11, dtype=torch.float64)
    losses = torch.nn.functional.cross_entropy(network(X), classes, reduction="none")
    wanted = torch.autograd.grad(weights @ losses, list(network.parameters()))
    for size in (3, 100):
        monkeypatch.setattr("kernel_distill.nn_baselines.pieces.PIECE_ROWS", size)
        found, gradient = loss_gradient(network, dict(network.named_parameters()), X, classes, weights)
        torch.testing.assert_close(found, losses.detach(), rtol=1e-12, atol=1e-14)
        for a, b in zip(gradient.values(), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


# --- The loss of a step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [DC, DSA])
@pytest.mark.parametrize("pick", [Pick(kind="balanced"), Pick(), BY_LOSS])
def test_the_loss_is_that_of_the_gradients_of_the_batch(options, pick):
    learner = learner_of(options=options, pick=pick)
    found = float(learner.loss(0)[0].detach())
    network = build_network(learner._spec, 1, f"{options().method}.network.0", dtype=torch.float64)
    rows, x = learner._rows, learner.parameters["x"].detach()
    if pick.kind == "loss":
        # The table: losses of all rows under this network, before those of the batch were seen again.
        index = torch.arange(rows.n)
        losses = torch.nn.functional.cross_entropy(
            network(rows.inputs(index)), rows.classes, reduction="none"
        )
        again = learner_of(options=options, pick=pick)
        again._picker.refresh(0, lambda index: losses.detach()[index])
        index = again._picker.draw(0).index
    else:
        index = learner._picker.draw(0).index
    wanted = 0.0
    for c in range(CLASSES):
        chosen = index[rows.classes[index] == c]
        images = learner._changed(rows.inputs(chosen), c, 0)
        points = learner._changed(x[learner.classes == c], c, 0)
        gradients = [
            [g.detach().numpy() for g in plain_gradient(network, X, torch.full((len(X),), c))]
            for X in (points, images)
        ]
        wanted += oracle(*gradients)
    assert found == pytest.approx(wanted, rel=1e-10)


def test_losses_of_a_batch_are_noted(monkeypatch):
    learner = learner_of(pick=BY_LOSS, outer_loops=1)
    learner.loss(0)
    noted = []
    monkeypatch.setattr(learner._picker, "observe", lambda index, losses: noted.append((index, losses)))
    learner.loss(1)  # no part of the table is due
    index, losses = (torch.cat(part) for part in zip(*noted, strict=True))
    assert index.sort().values.tolist() == learner._picker.draw(1).index.sort().values.tolist()
    outputs = learner._network(1)(learner._rows.inputs(index))
    wanted = torch.nn.functional.cross_entropy(outputs, learner._row_classes[index], reduction="none")
    torch.testing.assert_close(losses, wanted.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [DC, DSA])
def test_points_that_are_all_rows_of_their_class_have_no_loss(options):
    # Also with augmentation: rows and points of a class are changed alike.
    rows = image_rows(30)
    index = rows.classes.argsort(stable=True)
    start = rows.inputs(index), rows.outputs(index), rows.classes[index]
    learner = learner_of(rows, options, start=start, batch_real=100)
    moved = learner_of(rows, options, start=(start[0] + 0.3, *start[1:]), batch_real=100)
    for step in range(3):
        nothing, something = (float(one.loss(step)[0].detach()) for one in (learner, moved))
        assert abs(nothing) < 1e-3
        assert something > 0.1


@pytest.mark.parametrize("options", [DC, DSA])
def test_the_derivative_agrees_with_differences(options):
    smooth = {"width": 4, "depth": 1, "activation": "swish"}
    learner = learner_of(options=options, network_params=smooth, per_class=1)
    x = learner.parameters["x"].detach().clone()
    entries = x[:, :, ::4, ::4].clone().requires_grad_()

    def loss(entries):
        points = x.clone()
        points[:, :, ::4, ::4] = entries
        learner.parameters["x"] = points
        return learner.loss(0)[0]

    assert torch.autograd.gradcheck(loss, (entries,), eps=1e-6, atol=1e-6, rtol=1e-4)


def test_classes_that_are_not_drawn_are_left_out():
    learner = learner_of(pick=Pick(), batch_real=1)
    drawn = learner._row_classes[learner._picker.draw(0).index].unique()
    assert 0 < len(drawn) < CLASSES
    x = learner.parameters["x"]
    (gradient,) = torch.autograd.grad(learner.loss(0)[0], x)
    moved = gradient.flatten(1).norm(dim=1) > 0
    assert moved.tolist() == [int(c) in drawn.tolist() for c in learner.classes]


def test_rows_and_points_are_changed_alike_and_classes_unlike():
    learner = learner_of(options=DSA)
    X = torch.ones(3, *SHAPE, dtype=torch.float64).cumsum(-1)
    ways = [learner._changed(X, c, turn) for c in range(CLASSES) for turn in range(4)]
    for images in ways:
        assert torch.equal(images, images[:1].expand_as(images))
        assert images.shape == X.shape
    assert torch.equal(learner._changed(X[:1], 1, 2), ways[4 + 2][:1])
    assert len({images.numpy().tobytes() for images in ways}) > 6


# --- A step --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ipc", "wanted"),
    [(1, (1, 1)), (10, (10, 50)), (20, (20, 25)), (30, (30, 20)), (40, (40, 15)), (50, (50, 10))],
)
def test_loops_are_published(ipc, wanted):
    assert loops(ipc) == wanted
    assert DC().loops_of(ipc) == wanted
    assert DC(outer_loops=3, inner_loops=7).loops_of(ipc) == (3, 7)


@pytest.mark.parametrize("ipc", [2, 3, 5, 7, 33, 60, 200])
def test_other_loops_make_500_epochs(ipc):
    outer, inner = loops(ipc)
    assert outer == min(ipc, 50)
    assert abs(outer * inner - 500) <= outer / 2


def test_the_defaults_are_published():
    for options in (DC(), DSA()):
        assert (options.lr, options.momentum, options.network_lr) == (0.1, 0.5, 0.01)
        assert (options.batch_real, options.train_batch_size, options.steps) == (256, 256, 1000)
        assert options.pick == Pick(kind="balanced")
    assert DC().augment == ""
    assert DSA().augment == "color_crop_cutout_flip_scale_rotate"
    assert (DC().method, DSA().method) == ("dc", "dsa")


@pytest.mark.parametrize("options", [DC, DSA])
def test_a_step_has_its_loops(options, monkeypatch):
    trained, real = [], []

    def counted(network, parameters, X, classes, weights=None):
        (trained if weights is None else real).append(len(X))
        return loss_gradient(network, parameters, X, classes, weights)

    monkeypatch.setattr(gradient_matching, "loss_gradient", counted)
    learner = learner_of(options=options, outer_loops=3, inner_loops=2, train_batch_size=4)
    learner.advance(0)
    assert real == [8] * 3 * CLASSES
    assert trained == [4, 2] * 2 * 2


def test_a_step_is_the_published_loop():
    """Updates with momentum, and the plain training of one network between them."""
    learner = learner_of(train_batch_size=4)
    x, velocity = learner.parameters["x"].detach().clone(), 0.0
    rows, classes = learner._rows, learner.classes
    for step in range(2):
        network = build_network(learner._spec, 1, f"dc.network.{step}", dtype=torch.float64)
        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        losses = []
        for loop in range(2):
            turn = 2 * step + loop
            for epoch in range(2 * loop):
                order = row_orders(len(x), epoch, range(1), seed=1, stream=f"dc.train.{turn}")[0]
                for batch in order.split(4):
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(network(x[batch]), classes[batch]).backward()
                    optimizer.step()
            index = learner._picker.draw(turn).index
            x = x.requires_grad_()
            total = 0.0
            for c in range(CLASSES):
                chosen = index[rows.classes[index] == c]
                real = plain_gradient(network, rows.inputs(chosen), rows.classes[chosen])
                learned = plain_gradient(network, x[classes == c], classes[classes == c])
                total += gradient_distance(learned, [g.detach() for g in real])
            losses.append(float(total.detach()))
            velocity = 0.5 * velocity + torch.autograd.grad(total, x)[0]
            x = (x - 0.1 * velocity).detach()
        assert float(learner.advance(step)["loss"]) == pytest.approx(np.mean(losses) / CLASSES, rel=1e-9)
    torch.testing.assert_close(learner.learned()["x"], x, rtol=1e-8, atol=1e-10)


def test_loops_are_those_of_the_largest_class():
    rows = image_rows()
    start = [part[:-2] for part in start_of(rows, 3)]
    learner = learner_of(rows, start=start, outer_loops=None, inner_loops=1)
    assert learner.outer_loops == 3
    learner.advance(0)
    assert ((learner.learned()["x"] - start[0]).flatten(1).norm(dim=1) > 0).all()


def test_the_loss_falls():
    learner = learner_of(image_rows(150, dtype=torch.float32), batch_real=40, outer_loops=1, lr=1.0)
    losses = [float(learner.advance(step)["loss"]) for step in range(40)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


@pytest.mark.parametrize("pick", [Pick(kind="balanced"), BY_LOSS])
@pytest.mark.parametrize("options", [DC, DSA])
def test_a_resumed_run_ends_in_the_same_bits(options, pick):
    def advanced(learner, steps):
        for step in steps:
            learner.advance(step)
        return learner

    def fresh(**changes):
        return learner_of(options=options, pick=pick, **changes)

    whole = advanced(fresh(), range(4))
    tensors, plain = advanced(fresh(), range(2)).state()
    resumed = fresh()
    resumed.restore({name: value.clone() for name, value in tensors.items()}, json.loads(json.dumps(plain)))
    advanced(resumed, range(2, 4))
    assert bits(resumed.state()[0]) == bits(whole.state()[0])
    assert bits(advanced(fresh(seed=2), range(4)).learned()) != bits(whole.learned())
    assert whole.identity == json.loads(json.dumps(resumed.identity))


def test_misfits_are_refused():
    with pytest.raises(ValueError, match="statistics to speak of"):
        learner_of(network="convnet-bn")
    with pytest.raises(ValueError, match="unknown network"):
        DC(network="convnot")
    with pytest.raises(ValueError, match="augment"):
        DSA(augment="")
    with pytest.raises(ValueError, match="method"):
        DC(method="dsa")
    values = image_rows(values=True)
    with pytest.raises(ValueError, match="needs classes"):
        learner_of(values, start=(torch.zeros(2, *SHAPE), torch.zeros(2, 2), None))
