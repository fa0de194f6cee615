"""Optimisers against their formulas in NumPy and values worked out by hand; the schedule; states through a file."""

import copy
import math

import numpy as np
import pytest
import torch

from kernel_distill.kernels import random as keyed
from kernel_distill.solver.optimizers import LAMB, AdaBelief, cosine, make_optimizer
from kernel_distill.solver.store import read_file, write_file

from .quadratic import Quadratic

NAMES = ["adam", "adamw", "sgd", "adabelief", "lamb"]


def adabelief(theta, gradients, lr, betas, eps):
    """Algorithm 2 of the paper, line by line."""
    m, s = np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        s = betas[1] * s + (1 - betas[1]) * (g - m) ** 2 + eps
        m_hat, s_hat = m / (1 - betas[0] ** t), s / (1 - betas[1] ** t)
        theta = theta - lr * m_hat / (np.sqrt(s_hat) + eps)
    return theta


def lamb(theta, gradients, lr, betas, eps, weight_decay):
    """Algorithm 2 of the paper, line by line, with the identity for the clipping of the norm."""
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        r = (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        u = r + weight_decay * theta
        length, moved = np.sqrt((theta**2).sum()), np.sqrt((u**2).sum())
        ratio = length / moved if length > 0 and moved > 0 else 1.0
        theta = theta - lr * ratio * u
    return theta


def taken(optimizer, parameters, gradients):
    """Steps along given gradients, one list for each parameter."""
    for step in zip(*gradients, strict=True):
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.as_tensor(gradient).to(parameter)
        optimizer.step()
    return [parameter.detach().numpy() for parameter in parameters]


def tensors(shape, count=1, scale=1.0):
    return [scale * keyed.normal(5, f"{shape}.{i}", shape).numpy() for i in range(count)]


SHAPES = [(), (1,), (3, 2), (2, 1, 3), (0, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.1},
        {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3},
        {"betas": (0.0, 0.0), "eps": 1e-2},
        {"lr": 0.0},
    ],
)
def test_adabelief_follows_its_formula(shape, options):
    start, gradients = tensors(shape)[0], tensors(shape, 25, scale=0.1)
    parameter = torch.tensor(start, requires_grad=True)
    (found,) = taken(AdaBelief([parameter], **options), [parameter], [gradients])
    full = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-16, **options}
    expected = adabelief(start, gradients, **full)
    # 25 updates of size lr·m/√s; their rounding is a few ulp of each, and of θ.
    assert np.allclose(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lr": 0.1},
        {"lr": 0.1, "weight_decay": 0.3},
        {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-2},
    ],
)
def test_lamb_follows_its_formula(shape, options):
    start, gradients = tensors(shape)[0], tensors(shape, 25)
    parameter = torch.tensor(start, requires_grad=True)
    (found,) = taken(LAMB([parameter], **options), [parameter], [gradients])
    full = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0, **options}
    assert np.allclose(found, lamb(start, gradients, **full), rtol=1e-13, atol=1e-13)


def test_the_first_step_of_adabelief_by_hand():
    # m = 0.1 g, s = 0.001 (0.9 g)², both corrected: g / (0.9 |g|). For Adam it would be g / |g|.
    parameter = torch.tensor([2.0, -3.0], dtype=torch.float64, requires_grad=True)
    (found,) = taken(AdaBelief([parameter], lr=0.09), [parameter], [[[0.5, -7.0]]])
    assert np.allclose(found, [1.9, -2.9], rtol=1e-12)


def test_a_gradient_that_never_changes_makes_adabelief_bold():
    # g - m shrinks by β1 a step, so that s falls and the steps grow beyond Adam's, which are lr each.
    def moved(name):
        parameter = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimizer = make_optimizer(name, [parameter], betas=(0.5, 0.5), lr=1e-3)
        return float(taken(optimizer, [parameter], [[[1.0]] * 10])[0][0])

    assert moved("adabelief") < 5 * moved("adam") < 0


def test_the_first_step_of_lamb_by_hand():
    # Every entry of the update is ±1 up to eps: its norm is 2, that of the parameter 5, so a step is lr·5/2 each.
    parameter = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (found,) = taken(LAMB([parameter], lr=0.2, eps=0.0), [parameter], [[[[1.0, -2.0], [5.0, -9.0]]]])
    assert np.allclose(found, [[2.5, 4.5], [-0.5, 0.5]], rtol=1e-14)


def test_a_step_of_lamb_is_as_long_as_lr_says():
    start, gradient = tensors((4, 3))[0], tensors((4, 3), 3)[2]
    for scale in (1e-8, 1.0, 1e8):
        parameter = torch.tensor(start, requires_grad=True)
        (found,) = taken(LAMB([parameter], lr=0.01, eps=0.0), [parameter], [[scale * gradient]])
        assert np.linalg.norm(found - start) == pytest.approx(0.01 * np.linalg.norm(start), rel=1e-12)


@pytest.mark.parametrize(
    ("start", "gradient", "expected"),
    [
        ([0.0, 0.0], [1.0, -1.0], [-0.1, 0.1]),  # a parameter of norm 0 would never move
        ([3.0, 4.0], [0.0, 0.0], [3.0, 4.0]),  # nor may 0 / 0 get into it
        ([0.0, 0.0], [0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_lamb_has_ratio_1_where_a_norm_is_0(start, gradient, expected):
    parameter = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    (found,) = taken(LAMB([parameter], lr=0.1), [parameter], [[gradient]])
    assert np.allclose(found, expected, rtol=1e-5)


def test_the_ratio_is_that_of_each_tensor():
    starts, gradients = [tensors((3, 2))[0], 100 * tensors((4,))[0]], [tensors((3, 2), 5), tensors((4,), 5)]
    together = [torch.tensor(start, requires_grad=True) for start in starts]
    found = taken(LAMB(together, lr=0.1), together, gradients)
    for start, own, result in zip(starts, gradients, found, strict=True):
        assert np.allclose(result, lamb(start, own, 0.1, (0.9, 0.999), 1e-6, 0.0), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["adabelief", "lamb"])
def test_groups_have_options_of_their_own(name):
    starts, gradients = [tensors((2,))[0], tensors((3,))[0]], [tensors((2,), 4), tensors((3,), 4)]
    parameters = [torch.tensor(start, requires_grad=True) for start in starts]
    optimizer = make_optimizer(
        name, [{"params": parameters[:1], "lr": 0.2}, {"params": parameters[1:]}], lr=0.01, betas=(0.8, 0.99)
    )
    found = taken(optimizer, parameters, gradients)
    formula = {"adabelief": lambda *a: adabelief(*a, 1e-16), "lamb": lambda *a: lamb(*a, 1e-6, 0.0)}[name]
    for lr, start, own, result in zip((0.2, 0.01), starts, gradients, found, strict=True):
        assert np.allclose(result, formula(start, own, lr, (0.8, 0.99)), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_float32_stays_float32_and_near(name):
    start, gradients = tensors((3, 2))[0], tensors((3, 2), 20)
    results = []
    for dtype in (torch.float32, torch.float64):
        parameter = torch.tensor(start, dtype=dtype, requires_grad=True)
        optimizer = make_optimizer(name, [parameter], lr=1e-2)
        (found,) = taken(optimizer, [parameter], [gradients])
        assert parameter.dtype == dtype
        assert all(
            value.dtype == dtype
            for entries in optimizer.state_dict()["state"].values()
            for key, value in entries.items()
            if value is not None and key != "step"
        )
        results.append(found)
    # 20 steps whose relative rounding is some ulp of 6e-8, on values of the order of 1.
    assert np.allclose(results[0], results[1], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ["adabelief", "lamb"])
def test_parameters_without_gradient_stay_and_closures_are_called(name):
    still, moving = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = make_optimizer(name, [still, moving], lr=0.1)

    def closure():
        loss = moving.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert torch.equal(still.detach(), torch.ones(2, dtype=torch.float64))
    assert (moving < 1).all()
    assert list(optimizer.state) == [moving]


@pytest.mark.parametrize("name", NAMES)
def test_optimisers_descend(name):
    target = torch.tensor(tensors((3,))[0])
    parameter = torch.full((3,), 2.0, dtype=torch.float64, requires_grad=True)
    optimizer = make_optimizer(name, [parameter], lr=0.1)
    for step in range(300):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * cosine(step, 300)
        optimizer.zero_grad()
        (parameter - target).square().sum().backward()
        optimizer.step()
    assert (parameter - target).norm() < 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1e-3}, "`lr` must be finite and not negative, got -0.001"),
        ({"lr": math.nan}, "`lr`"),
        ({"eps": -1.0}, "`eps`"),
        ({"betas": (1.0, 0.9)}, r"`betas` must be in \[0, 1\), got \(1.0, 0.9\)"),
        ({"betas": (0.9, -0.1)}, "`betas`"),
    ],
)
@pytest.mark.parametrize("make", [AdaBelief, LAMB])
def test_options_out_of_range_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make([torch.zeros(1, requires_grad=True)], **options)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown optimizer 'adabelieve'; did you mean 'adabelief'"):
        make_optimizer("adabelieve", [torch.zeros(1, requires_grad=True)])
    with pytest.raises(ValueError, match="weight_decay"):
        LAMB([torch.zeros(1, requires_grad=True)], weight_decay=-1.0)


# --- Schedule --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "steps", "warmup", "expected"),
    [
        (0, 100, 0, 1.0),
        (25, 100, 0, (1 + math.sqrt(0.5)) / 2),
        (50, 100, 0, 0.5),
        (100, 100, 0, 0.0),
        (1000, 100, 0, 0.0),
        (0, 100, 20, 0.0),
        (5, 100, 20, 0.25),
        (20, 100, 20, 1.0),
        (60, 100, 20, 0.5),
        (99, 100, 98, 0.5),
        (0, 1, 0, 1.0),
    ],
)
def test_cosine(step, steps, warmup, expected):
    assert cosine(step, steps, warmup) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("steps", "warmup"), [(0, 0), (10, 10), (10, -1)])
def test_a_warm_up_that_leaves_no_steps_is_refused(steps, warmup):
    with pytest.raises(ValueError, match="`warmup` must be from 0 to below `steps`"):
        cosine(0, steps, warmup)


# --- State of gradient learners ------------------------------------------------------------------------------


def through_a_file(path, state):
    """As a checkpoint takes it: tensors by safetensors, the rest by JSON."""
    write_file(path, "checkpoint", {"plain": state[1]}, state[0], force=True)
    header, found = read_file(path, "checkpoint")
    return found, header["plain"]


# Every optimiser, and options that change what is in their states.
VARIANTS = [(name, {}) for name in NAMES] + [
    ("sgd", {"momentum": 0.9, "nesterov": True}),
    ("adam", {"amsgrad": True, "betas": (0.5, 0.7), "foreach": True}),
    ("adamw", {"weight_decay": 0.1}),
    ("lamb", {"weight_decay": 0.1}),
]


def learner_of(name, options):
    learner = Quadratic()
    parameters = learner.parameters.values()
    learner.optimizer = make_optimizer(
        name, [{"params": [p], "lr": 0.05 / (1 + p.ndim)} for p in parameters], **options
    )
    return learner


def bits(learner):
    found, plain = learner.state()
    return {name: (v.dtype, v.shape, v.numpy().tobytes()) for name, v in found.items()}, plain


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("at", [0, 1, int(keyed.uniform(11, "cut", 1) * 40) + 2])
def test_states_come_back_to_the_bit(tmp_path, name, options, at):
    straight = learner_of(name, options)
    for step in range(at):
        straight.advance(step)
    state = through_a_file(tmp_path / "state", copy.deepcopy(straight.state()))
    other = learner_of(name, options)
    other.advance(0)  # a state that is not that of the start has to go, too
    other.advance(1)
    other.restore(*state)
    assert bits(other) == bits(straight)
    for step in range(at, at + 15):
        straight.advance(step)
        other.advance(step)
    assert bits(other) == bits(straight)
    before, after = straight.optimizer.param_groups, other.optimizer.param_groups
    assert [{k: type(v) for k, v in group.items()} for group in after] == [
        {k: type(v) for k, v in group.items()} for group in before
    ]


def test_a_restored_state_is_a_copy():
    learner, other = Quadratic(), Quadratic()
    for step in range(3):
        learner.advance(step)
    tensors_, plain = copy.deepcopy(learner.state())
    kept = {name: value.clone() for name, value in tensors_.items()}
    other.restore(tensors_, plain)
    for step in range(3, 6):
        other.advance(step)
    assert all(torch.equal(tensors_[name], kept[name]) for name in kept)


def test_the_rate_is_a_factor_on_the_first_rate():
    learner = learner_of("adam", {})
    for step in range(8):
        learner.advance(step)
        assert [group["lr"] for group in learner.optimizer.param_groups] == [
            rate * cosine(step, 50, 5) for rate in (0.05 / 3, 0.05)
        ]


def test_states_of_others_are_refused_and_change_nothing():
    learner = Quadratic("adam")
    state, plain = learner.state()
    before = bits(learner)
    other = {name: value for name, value in state.items() if name != "parameter.s"}
    with pytest.raises(ValueError, match=r"parameters x \(2, 3\) torch.float64, this learner has s \(\)"):
        learner.restore(other, plain)
    with pytest.raises(ValueError, match=r"s \(\) torch.float64, x \(6,\) torch.float64, this learner"):
        learner.restore({**state, "parameter.x": torch.zeros(6, dtype=torch.float64)}, plain)
    with pytest.raises(ValueError, match=r"x \(2, 3\) torch\.float32, this"):
        learner.restore({**state, "parameter.x": torch.zeros(2, 3)}, plain)
    with pytest.raises(ValueError, match="another optimiser than Adam"):
        learner.restore(*Quadratic("lamb").state())
    assert bits(learner) == before


def test_optimisers_whose_state_is_not_tensors_are_refused():
    learner = Quadratic()
    learner.optimizer = torch.optim.LBFGS(learner.parameters.values())
    learner.optimizer.state[learner.parameters["x"]]["n_iter"] = 3
    with pytest.raises(TypeError, match="LBFGS keeps n_iter as int: only tensors"):
        learner.state()
