"""MTT: the exact derivative of a student's steps in the memory of one, and what a step of the learner is."""

import json

import numpy as np
import pytest
import torch

from kernel_distill.kernels.augmentation import draw_augmentation
from kernel_distill.nn_baselines.network_gradient import flat_parameters, named_parameters
from kernel_distill.nn_baselines.student import StudentBatch, matching_loss
from kernel_distill.nn_baselines.trajectory_matching import LEAST_RATE, MTT, MTTLearner
from kernel_distill.solver.networks import build_network, network_spec

from ..kernels.peak import PeakMemory
from .image_rows import CLASSES, SHAPE, bits, image_rows, no_judge, start_of

DSA = "color_crop_cutout_flip_scale_rotate"
NETWORKS = {
    "convnet": {"name": "convnet", "width": 4, "depth": 2},
    "smooth": {
        "name": "convnet",
        "width": 4,
        "depth": 1,
        "activation": "swish",
        "norm": "group",
        "pooling": "max",
    },
    "batch-norm": {"name": "convnet-bn", "width": 4, "depth": 1},
    "mlp": {"name": "mlp", "width": 6, "depth": 2},
}


def network_of(name):
    options = dict(NETWORKS[name])
    spec = network_spec(options.pop("name"), SHAPE, CLASSES, **options)
    return build_network(spec, 1, dtype=torch.float64).train()


def problem(network, steps=4, m=7, size=3, augment=DSA, seed=0):
    """Points, batches of a student, and where it starts and should arrive."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, *SHAPE, dtype=torch.float64, generator=generator)
    start = flat_parameters(network)
    target = start + 0.05 * torch.randn(len(start), dtype=torch.float64, generator=generator)
    batches = []
    for step in range(steps):
        index = torch.randperm(m, generator=generator)[:size]
        drawn = draw_augmentation(augment, torch.full((size,), step), SHAPE, seed=seed, stream="test")
        batches.append(StudentBatch(index, index % CLASSES, drawn))
    return x, batches, start, target


def unrolled(network, x, rate, batches, start, target):
    """The loss by autograd through all steps."""
    theta = start.clone().requires_grad_()
    for batch in batches:
        buffers = {name: value.clone() for name, value in network.named_buffers()}
        images = batch.augmented(x[batch.index])
        scores = torch.func.functional_call(
            network, {**named_parameters(network, theta), **buffers}, (images,)
        )
        loss = torch.nn.functional.cross_entropy(scores, batch.classes)
        theta = theta - rate * torch.autograd.grad(loss, theta, create_graph=True)[0]
    return (theta - target).square().sum() / (start - target).square().sum()


def with_gradients(loss, *leaves):
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


# --- The derivative ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["", DSA])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_derivative_is_that_of_the_unrolled_steps(name, augment):
    network = network_of(name)
    x, batches, start, target = problem(network, augment=augment)
    # Steps so long that the path through the parameters counts.
    x, rate = x.requires_grad_(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    found = with_gradients(matching_loss(network, x, rate, batches, start, target), x, rate)
    wanted = with_gradients(unrolled(network, x, rate, batches, start, target), x, rate)
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).norm()) <= 1e-12 * float(b.norm())


def test_points_that_are_in_no_batch_have_no_derivative():
    network = network_of("mlp")
    x, batches, start, target = problem(network, steps=1)
    x, rate = x.requires_grad_(), torch.tensor(0.1, dtype=torch.float64)
    matching_loss(network, x, rate, batches, start, target).backward()
    moved = x.grad.flatten(1).norm(dim=1) > 0
    assert moved.nonzero().flatten().tolist() == sorted(batches[0].index.tolist())


def test_the_derivative_agrees_with_differences():
    network = network_of("smooth")
    x, batches, start, target = problem(network, steps=3, m=3, size=2)
    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    entries = x[:, :, ::4, ::4].clone().requires_grad_()

    def loss(entries, rate):
        points = x.clone()
        points[:, :, ::4, ::4] = entries
        return matching_loss(network, points, rate, batches, start, target)

    assert torch.autograd.gradcheck(loss, (entries, rate), eps=1e-6, atol=1e-7, rtol=1e-5)


def test_pieces_of_a_batch_do_not_matter(monkeypatch):
    network = network_of("convnet")
    x, batches, start, target = problem(network, size=7)
    x, rate = x.requires_grad_(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    wanted = with_gradients(matching_loss(network, x, rate, batches, start, target), x, rate)
    monkeypatch.setattr("kernel_distill.nn_baselines.pieces.PIECE_ROWS", 2)
    found = with_gradients(matching_loss(network, x, rate, batches, start, target), x, rate)
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).norm()) <= 1e-12 * float(b.norm())


def test_a_student_that_stays_has_loss_one_and_one_that_arrives_none():
    network = network_of("convnet")
    x, batches, start, target = problem(network)
    still = torch.tensor(0.0, dtype=torch.float64)
    assert float(matching_loss(network, x, still, batches, start, target)) == 1.0
    rate = torch.tensor(0.5, dtype=torch.float64)
    far = matching_loss(network, x, rate, batches, start, target)
    assert float(far) != 1.0
    # One step on a batch leads to start - rate g, whatever the target: ask for that one.
    zero = torch.zeros_like(start)
    moved = float(matching_loss(network, x, rate, batches[:1], start, zero) * start.square().sum()) ** 0.5
    assert moved > 0
    probe = start.clone().requires_grad_()
    images = batches[0].augmented(x[batches[0].index])
    scores = torch.func.functional_call(network, named_parameters(network, probe), (images,))
    torch.nn.functional.cross_entropy(scores, batches[0].classes).backward()
    arrived = start - rate * probe.grad
    assert float(matching_loss(network, x, rate, batches[:1], start, arrived)) < 1e-28


def test_memory_of_steps_is_that_of_their_parameters():
    spec = network_spec("convnet", SHAPE, CLASSES, width=8, depth=1)
    network = build_network(spec, 1, dtype=torch.float64).train()
    size = 8 * len(flat_parameters(network))

    def peak(loss_of, steps):
        x, batches, start, target = problem(network, steps=steps, m=16, size=16, augment="")
        x, rate = x.requires_grad_(), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        with PeakMemory() as memory:
            loss_of(network, x, rate, batches, start, target).backward()
        return memory.peak

    ours = (peak(matching_loss, 10) - peak(matching_loss, 4)) / 6
    plain = (peak(unrolled, 4) - peak(unrolled, 2)) / 2
    assert 0.9 * size <= ours <= 1.1 * size
    assert plain > 10 * ours


# --- The learner ---------------------------------------------------------------------------------------------

OPTIONS = {
    "network_params": {"width": 4, "depth": 1},
    "experts": 3,
    "expert_epochs": 4,
    "expert_batch_size": 32,
    "max_start_epoch": 2,
    "expert_steps": 2,
    "student_steps": 3,
    "lr": 10.0,
    "rate_lr": 1e-6,
}


def learner_of(rows=None, per_class=2, seed=2, trajectories=None, **options):
    rows = image_rows() if rows is None else rows
    options = MTT(**{**OPTIONS, **options})
    made = options.trajectories(rows, seed=0, progress=False) if trajectories is None else trajectories
    return MTTLearner(rows, *start_of(rows, per_class), options, trajectories=made, seed=seed, judge=no_judge)


@pytest.fixture(scope="module")
def trajectories():
    return MTT(**OPTIONS).trajectories(image_rows(), seed=0, progress=False)


def test_the_defaults_are_published():
    options = MTT()
    assert (options.experts, options.expert_epochs, options.expert_batch_size) == (100, 50, 256)
    assert (options.max_start_epoch, options.expert_steps, options.student_steps) == (25, 3, 20)
    assert (options.lr, options.rate, options.rate_lr, options.momentum) == (1000, 0.01, 1e-5, 0.5)
    recipe = options.expert_recipe()
    assert (recipe.rate, recipe.momentum, recipe.weight_decay, recipe.schedule) == (0.01, 0, 0, "constant")
    assert options.augment == recipe.augment == DSA
    assert options.network == "convnet"


def test_a_step_is_gradient_descent_with_momentum(trajectories):
    learner = learner_of(trajectories=trajectories)
    x, rate = (learner.parameters[name].detach().clone() for name in ("x", "rate"))
    velocity = [torch.zeros_like(x), torch.zeros_like(rate)]
    for step in range(3):
        x, rate = x.requires_grad_(), rate.requires_grad_()
        loss = unrolled(learner._network, x, rate, learner._batches(step), *learner._stretch(step))
        gradients = torch.autograd.grad(loss, (x, rate))
        assert float(learner.advance(step)["loss"]) == pytest.approx(float(loss.detach()), rel=1e-12)
        velocity = [0.5 * v + g for v, g in zip(velocity, gradients, strict=True)]
        x, rate = (x - 10.0 * velocity[0]).detach(), (rate - 1e-6 * velocity[1]).detach()
    torch.testing.assert_close(learner.learned()["x"], x, rtol=1e-10, atol=1e-12)
    assert float(learner.learned()["rate"]) == pytest.approx(float(rate), rel=1e-10)
    assert float(rate) != 0.01


def test_all_experts_serve_before_one_serves_again(trajectories):
    learner = learner_of(trajectories=trajectories)
    every = torch.stack([torch.stack([trajectories.snapshot(i, t) for t in range(5)]) for i in range(3)])
    order, starts = [], []
    for step in range(60):
        start, target = learner._stretch(step)
        (expert,), (epoch,) = (part.tolist() for part in (every == start).all(-1).nonzero(as_tuple=True))
        assert torch.equal(target, every[expert, epoch + 2])
        order.append(expert)
        starts.append(epoch)
    rounds = np.array(order).reshape(20, 3)
    assert (np.sort(rounds) == np.arange(3)).all()
    assert len(np.unique(rounds, axis=0)) > 1
    # Fair coins: the mean of 60 has a standard deviation of 0.065.
    assert abs(np.mean(starts) - 0.5) < 0.3


@pytest.mark.parametrize(("size", "lengths"), [(None, [6, 6, 6]), (4, [4, 2, 4]), (100, [6, 6, 6])])
def test_all_points_serve_before_one_serves_again(trajectories, size, lengths):
    learner = learner_of(trajectories=trajectories, batch_syn=size)
    batches = learner._batches(0)
    assert [len(batch.index) for batch in batches] == lengths
    together = torch.cat([batch.index for batch in batches])[:6]
    assert together.sort().values.tolist() == list(range(6))
    for batch in batches:
        assert torch.equal(batch.classes, learner.classes[batch.index])
    assert not torch.equal(batches[0].index, batches[-1].index)
    other = torch.cat([batch.index for batch in learner._batches(1)])[:6]
    assert not torch.equal(together, other)


def test_batches_are_augmented_independently(trajectories):
    learner = learner_of(trajectories=trajectories, student_steps=12)
    images = torch.ones(6, *SHAPE, dtype=torch.float64).cumsum(-1)
    changed = [batch.augmented(images) for batch in learner._batches(0)]
    # Each batch in its own way, and in most ways each image in its own.
    assert len({result.numpy().tobytes() for result in changed}) > 8
    assert sum(not torch.equal(result, result[:1].expand_as(result)) for result in changed) > 8
    plain = learner_of(trajectories=trajectories, augment="")
    for batch in plain._batches(0):
        assert torch.equal(batch.augmented(images), images)


def test_the_rate_stays_positive(trajectories):
    learner = learner_of(trajectories=trajectories, rate_lr=1e6)
    rates = []
    for step in range(4):
        learner.advance(step)
        rates.append(float(learner.learned()["rate"]))
    assert min(rates) == LEAST_RATE


def test_the_loss_falls():
    rows = image_rows(150, dtype=torch.float32)
    learner = learner_of(rows, per_class=3, augment="", max_start_epoch=1, student_steps=5, rate=0.05)

    def mean_loss():
        return np.mean([float(learner.loss(step)[0].detach()) for step in range(3)])

    before = mean_loss()
    for step in range(30):
        learner.advance(step)
    assert mean_loss() < 0.9 * before


def test_a_resumed_run_ends_in_the_same_bits(trajectories):
    def advanced(learner, steps):
        for step in steps:
            learner.advance(step)
        return learner

    whole = advanced(learner_of(trajectories=trajectories, batch_syn=4), range(4))
    tensors, plain = advanced(learner_of(trajectories=trajectories, batch_syn=4), range(2)).state()
    resumed = learner_of(trajectories=trajectories, batch_syn=4)
    resumed.restore({name: value.clone() for name, value in tensors.items()}, json.loads(json.dumps(plain)))
    advanced(resumed, range(2, 4))
    assert bits(resumed.state()[0]) == bits(whole.state()[0])
    assert bits(whole.learned()) == bits(resumed.learned())
    other = advanced(learner_of(trajectories=trajectories, batch_syn=4, seed=3), range(4))
    assert bits(other.learned()) != bits(whole.learned())


def test_what_is_learned_holds_the_rate(trajectories):
    learned = learner_of(trajectories=trajectories, rate=0.03).learned()
    assert {name: tuple(value.shape) for name, value in learned.items()} == {
        "x": (6, *SHAPE),
        "y": (6, CLASSES),
        "rate": (),
    }
    assert all(value.dtype == torch.float64 for value in learned.values())
    assert float(learned["rate"]) == pytest.approx(0.03, rel=1e-7)


def test_the_identity_is_that_of_the_experts_wherever_they_are(trajectories, tmp_path):
    here = learner_of(trajectories=trajectories).identity
    there = learner_of(experts_folder=str(tmp_path)).identity
    assert here == there == json.loads(json.dumps(here))
    others = MTT(**OPTIONS).trajectories(image_rows(), seed=1, progress=False)
    assert learner_of(trajectories=others).identity != here


def test_misfits_are_refused(trajectories):
    with pytest.raises(ValueError, match="the options ask for"):
        learner_of(trajectories=trajectories, network_params={"width": 5, "depth": 1})
    with pytest.raises(ValueError, match="of other rows"):
        learner_of(image_rows(seed=1), trajectories=trajectories)
    with pytest.raises(ValueError, match="reach epoch 5, the experts are trained for 4"):
        MTT(**{**OPTIONS, "max_start_epoch": 4})
    with pytest.raises(ValueError, match="reach epoch 5, the experts are trained for 4"):
        learner_of(trajectories=trajectories, max_start_epoch=4, expert_epochs=5)
    learner_of(trajectories=trajectories, max_start_epoch=3)
    with pytest.raises(ValueError, match="unknown network"):
        MTT(network="convnot")
    with pytest.raises(ValueError, match="rate"):
        MTT(rate=0.0)
    values = image_rows(values=True)
    points = torch.zeros(2, *SHAPE), torch.zeros(2, 2), None
    with pytest.raises(ValueError, match="needs classes"):
        MTTLearner(values, *points, MTT(**OPTIONS), trajectories=trajectories, seed=0, judge=no_judge)
