"""Convolutional networks at once: draws, definition, derivatives, memory, and the kernel they converge to."""

import itertools
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch

from kernel_distill.kernels import conv_arc_cosine_kernel, random_bits
from kernel_distill.solver.conv_networks import (
    STRATEGIES,
    ConvNetworks,
    ConvSpec,
    conv_features,
    draw_conv_networks,
)
from kernel_distill.solver.feature_maps import RandomConv, make_feature_map, restore_feature_map

from ..kernels.peak import PeakMemory

SPECS = {
    "three blocks": ConvSpec((3, 8, 8), 5),
    "one block": ConvSpec((1, 2, 2), 4, depth=1),
    "odd sides": ConvSpec((2, 5, 7), (3, 4), depth=2),
    "large filter": ConvSpec((1, 6, 4), 3, depth=2, filter_size=5, leak=0.1),
    "filter of one": ConvSpec((2, 4, 4), 3, depth=2, filter_size=1),
    "batch": ConvSpec((2, 5, 6), (3, 4), depth=2, norm="batch"),
    "instance": ConvSpec((2, 6, 4), 3, depth=2, norm="instance", leak=0.2),
}
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def images(n, shape, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, *shape))).to(dtype)


def networks(spec, count=3, seed=0):
    """Networks in float64, with scales and shifts that do something."""
    drawn = draw_conv_networks(spec, count, seed, "test", dtype=torch.float64)
    for i, name in enumerate(drawn.tensors):
        if name.startswith(("scale", "shift")):
            drawn.tensors[name] += 0.3 * images(count, drawn.tensors[name].shape[1:], i)
    return drawn


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def by_hand(drawn, i, X):
    """Features of network i by sums over shifts, in NumPy."""
    spec, h = drawn.spec, X.numpy()
    for block in range(spec.depth):
        weight, bias = (drawn.tensors[f"{name}.{block}"][i].numpy() for name in ("weight", "bias"))
        reach, (rows, columns) = spec.filter_size // 2, h.shape[2:]
        padded = np.pad(h, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
        z = sum(
            np.einsum("oc,ncij->noij", weight[:, :, a, b], padded[:, :, a : a + rows, b : b + columns])
            for a, b in itertools.product(range(spec.filter_size), repeat=2)
        )
        z = z + bias[:, None, None]
        if spec.norm:
            axes = (0, 2, 3) if spec.norm == "batch" else (2, 3)
            z = (z - z.mean(axes, keepdims=True)) / np.sqrt(z.var(axes, keepdims=True) + 1e-5)
            scale, shift = (drawn.tensors[f"{name}.{block}"][i].numpy() for name in ("scale", "shift"))
            z = z * scale[:, None, None] + shift[:, None, None]
        z = np.where(z > 0, z, spec.leak * z)[:, :, : rows // 2 * 2, : columns // 2 * 2]
        h = z.reshape(len(z), z.shape[1], rows // 2, 2, columns // 2, 2).mean((3, 5))
    return torch.from_numpy(h.reshape(len(h), -1))


# --- Values --------------------------------------------------------------------------------------------------


@every_strategy
@every_spec
def test_features_are_those_of_the_definition(spec, strategy):
    drawn, X = networks(spec), images(4, spec.input_shape)
    F = conv_features(drawn, X, strategy=strategy)
    assert F.shape == (4, 3, spec.n_features)
    for i in range(3):
        assert relative(F[:, i], by_hand(drawn, i, X)) < 1e-14


@every_strategy
@every_spec
def test_no_budget_changes_features_or_derivatives(spec, strategy):
    drawn, X = networks(spec), images(7, spec.input_shape).requires_grad_()
    leaves = [X, *(value.requires_grad_() for value in drawn.tensors.values())]
    cotangent = images(7, (3, spec.n_features), 1)
    found = []
    for budget in (None, 1, 40_000):
        F = conv_features(drawn, X, strategy=strategy, memory_budget=budget)
        with torch.no_grad():
            plain = conv_features(drawn, X, strategy=strategy, memory_budget=budget)
        found.append((F.detach(), plain, *torch.autograd.grad((F * cotangent).sum(), leaves)))
    for others in found[1:]:
        for value, first in zip(others, found[0], strict=True):
            # Where a normalisation follows, biases move nothing: their derivative is rounding.
            assert float((value - first).norm()) < 1e-12 * max(1.0, float(first.norm()))


@every_strategy
@pytest.mark.parametrize("budget", [None, 1])
@every_spec
def test_derivatives_are_finite_differences(spec, budget, strategy):
    drawn, X = networks(spec, 2), images(2, spec.input_shape).requires_grad_()
    names = list(drawn.tensors)

    def features(X, *values):
        changed = ConvNetworks(spec, dict(zip(names, values, strict=True)))
        return conv_features(changed, X, strategy=strategy, memory_budget=budget)

    leaves = [value.requires_grad_() for value in drawn.tensors.values()]
    # A direction at random: all entries at once.
    assert torch.autograd.gradcheck(features, (X, *leaves), fast_mode=True, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types_give_the_same_features_up_to_their_rounding(dtype):
    spec = ConvSpec((3, 8, 8), 16)
    drawn, X = draw_conv_networks(spec, 2, 0, "test", dtype=torch.float64), images(5, spec.input_shape)
    F = conv_features(drawn.to(dtype), X.to(dtype))
    assert F.dtype == dtype
    assert relative(F.double(), conv_features(drawn, X)) < 2 * torch.finfo(dtype).eps


def test_no_rows_give_no_features():
    spec = SPECS["odd sides"]
    assert conv_features(networks(spec), images(0, spec.input_shape)).shape == (0, 3, spec.n_features)


# --- Draws ---------------------------------------------------------------------------------------------------


def test_a_network_is_a_function_of_seed_stream_and_number():
    spec = ConvSpec((3, 8, 8), (4, 5, 6), norm="batch")
    few, many = (draw_conv_networks(spec, count, 7, "a") for count in (2, 5))
    for name, shape in spec.shapes.items():
        assert many.tensors[name].shape == (5, *shape)
        assert torch.equal(few.tensors[name], many.tensors[name][:2])
    weights = [many.tensors["weight.1"][i] for i in range(2)]
    weights += [draw_conv_networks(spec, 1, *key).tensors["weight.1"][0] for key in ((8, "a"), (7, "b"))]
    for one, other in itertools.combinations(weights, 2):
        assert abs(float((one * other).mean() / one.square().mean())) < 5 / math.sqrt(one.numel())


def test_draws_never_change():
    # Stored sets are predicted with networks that are drawn again: sixteen bits a number, tensor after tensor.
    spec = ConvSpec((1, 4, 4), 2, depth=2)
    tensors = draw_conv_networks(spec, 2, 3, "test", dtype=torch.float64).tensors
    middles = scipy.stats.norm.ppf((np.arange(2**16) + 0.5) / 2**16)
    middles /= np.sqrt(np.mean(middles**2))
    for i in range(2):
        words = [int(word) for word in random_bits(3, f"test.{i}", 15)]
        signed = [(word >> shift & 0xFFFF ^ 0x8000) for word in words for shift in (0, 16, 32, 48)]
        numbers = np.float32(middles[signed])
        for name, shape in spec.shapes.items():
            std = math.sqrt(2 / (9 * shape[1])) if name.startswith("weight") else 0.1
            wanted, numbers = numbers[: math.prod(shape)].reshape(shape), numbers[math.prod(shape) :]
            np.testing.assert_allclose(tensors[name][i], std * wanted, rtol=2e-7)
    found = [tensors["weight.0"][0, 0, 0, 0, 0], tensors["weight.1"][1, 1, 1, 2, 2], tensors["bias.1"][1, 1]]
    np.testing.assert_allclose(found, [0.351166904, -0.0305586793, -0.154331997], rtol=1e-7)


def test_weights_are_normal_with_the_variances_of_the_kernel():
    spec = ConvSpec((3, 8, 8), 64)
    tensors = draw_conv_networks(spec, 4, 0, "test", dtype=torch.float64).tensors
    for name, value in tensors.items():
        variance = 2 / math.prod(value.shape[2:]) if name.startswith("weight") else 0.01
        standard = value.flatten() / math.sqrt(variance)
        assert scipy.stats.kstest(standard[:100_000].numpy(), "norm").pvalue > 1e-3
        assert abs(float(standard.square().mean()) - 1) < 5 * math.sqrt(2 / len(standard))


def test_sixteen_bits_hit_every_level_of_a_distribution_of_variance_one():
    from kernel_distill.solver.conv_networks import _table

    table = _table(torch.device("cpu")).double()
    assert table.shape == (2**16,)
    assert bool((table.diff() > 0).all())
    assert float((table + table.flip(0)).abs().max()) < 1e-6
    assert float(table.square().mean()) == pytest.approx(1, abs=1e-7)
    assert float(table.pow(4).mean()) == pytest.approx(3, abs=2e-3)
    assert float(table[-1]) == pytest.approx(4.325, abs=1e-3)


# --- Memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [None, "instance"])
@every_strategy
def test_memory_stays_within_the_budget(strategy, norm):
    spec, n = ConvSpec((3, 16, 16), 16, norm=norm), 64
    drawn, X = draw_conv_networks(spec, 4, 0, "test"), images(n, spec.input_shape, dtype=torch.float32)
    leaves = [X.requires_grad_(), *(value.requires_grad_() for value in drawn.tensors.values())]
    held = X.nbytes + 2 * sum(
        value.nbytes for value in drawn.tensors.values()
    )  # gradients, a part of them twice
    result = 4 * n * 4 * spec.n_features
    budget = 2**20

    def peak(memory_budget):
        with PeakMemory() as memory:
            F = conv_features(drawn, X, strategy=strategy, memory_budget=memory_budget)
            torch.autograd.grad(F.sum(), leaves)
        return memory.peak

    with torch.no_grad(), PeakMemory() as value:
        conv_features(drawn, X, strategy=strategy, memory_budget=budget)
    # The result, its parts before they are put together, and its gradient.
    assert value.peak < budget + result + held
    assert peak(budget) < budget + 4 * result + 2 * held
    assert peak(None) > 4 * (budget + 4 * result + 2 * held)  # else this would show nothing


# --- The feature map -----------------------------------------------------------------------------------------


def test_inner_products_approach_the_kernel():
    shape, counts = (2, 8, 8), (2, 8, 32, 128)
    X = images(5, shape)
    K = conv_arc_cosine_kernel(X, depth=3, kind="nngp")
    errors = []
    for count in counts:
        squared = []
        for seed in range(6):
            F = RandomConv(shape, width=32, n_networks=count, seed=seed).features(X)
            squared.append(relative(F @ F.T, K) ** 2)
        errors.append(math.sqrt(np.mean(squared)))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    # A root mean square of six errors has a relative deviation of some 0.3, a slope over a factor of 64 then 0.1.
    assert slope == pytest.approx(-0.5, abs=0.2)
    assert errors[-1] < 0.05


def test_depth_is_that_of_the_kernel():
    X = images(4, (1, 6, 6))
    F = RandomConv((1, 6, 6), width=64, depth=2, n_networks=64).features(X)
    errors = [relative(F @ F.T, conv_arc_cosine_kernel(X, depth=depth, kind="nngp")) for depth in (1, 2)]
    assert errors[1] < 0.05 < errors[0]


def test_the_feature_map_is_known_by_name_and_restored_from_its_seed():
    feature_map = make_feature_map(
        "random-conv", (1, 9, 8), seed=5, params={"width": 6, "n_networks": 3, "depth": 2}
    )
    assert isinstance(feature_map, RandomConv)
    X = images(4, (1, 9, 8))
    F = feature_map.features(X)
    assert F.shape == (4, feature_map.n_features) == (4, 3 * 6 * 2 * 2 + 1)
    assert float((F[:, -1] - 0.1).abs().max()) < 1e-15
    again = restore_feature_map("random-conv", json.loads(json.dumps(feature_map.parameters())), {})
    assert torch.equal(again.features(X), F)
    assert not torch.equal(RandomConv((1, 9, 8), width=6, n_networks=3, depth=2, seed=6).features(X), F)
    assert relative(feature_map.features(X.float()).double(), F) < 1e-6
    assert feature_map.features(X[:0]).shape == (0, feature_map.n_features)
    assert torch.autograd.gradcheck(feature_map.features, (X.requires_grad_(),), fast_mode=True)
    assert not feature_map.has_preimage


# --- Refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"input_shape": (8,)}, "images", id="vectors"),
        pytest.param({"width": 0}, "width", id="no channels"),
        pytest.param({"width": (4, 4)}, "entries for 3 blocks", id="widths"),
        pytest.param({"depth": 0}, "depth", id="no blocks"),
        pytest.param({"depth": 4}, "leave nothing", id="small images"),
        pytest.param({"filter_size": 2}, "odd", id="even filter"),
        pytest.param({"leak": -0.1}, "leak", id="negative leak"),
        pytest.param({"norm": "layer"}, "normalisation", id="unknown norm"),
    ],
)
def test_a_network_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ConvSpec(**{"input_shape": (3, 8, 8), **arguments})


def test_rows_that_do_not_fit_are_refused():
    drawn = draw_conv_networks(ConvSpec((3, 8, 8), 4), 2, 0, "test")
    with pytest.raises(ValueError, match=r"rows of shape \(3, 8, 8\)"):
        conv_features(drawn, torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="float64 on cpu"):
        conv_features(drawn, torch.zeros(2, 3, 8, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match="did you mean 'loop'"):
        conv_features(drawn, torch.zeros(2, 3, 8, 8), strategy="lop")
    with pytest.raises(ValueError, match="count"):
        draw_conv_networks(drawn.spec, 0, 0, "test")
    with pytest.raises(ValueError, match="takes images"):
        make_feature_map("random-conv", (12,))
