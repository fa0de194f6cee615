"""RFAD's step: against its plain definition in float64, in place of such statements, and what it leaves to them."""

import ast
import copy
import dataclasses
import importlib
import importlib.util
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

from kernel_distill.accel import (
    VerificationError,
    _report,
    all_targets,
    install,
    patched,
    registry,
    uninstall,
)
from kernel_distill.accel._fingerprint import definitions, find_run, fingerprint, fingerprint_of
from kernel_distill.accel._records import records
from kernel_distill.accel.replacements import rfad_step
from kernel_distill.accel.replacements.rfad_step import step, why_not_step
from kernel_distill.solver.conv_networks import conv_features

from .peers import peer_path

NAME = "rfad.distill_dataset"
TARGET = next(target for target in all_targets() if target.name == NAME)
ROWS = 1300

# Statements that compute the same from the same names, in a function of our own.
PEER = """
import numpy as np
import torch

def learn(X_train, y_train, make, points, y_coreset, n_models, n_batches, jit, steps, from_loader=False):
    coreset_size, n_classes = y_coreset.shape
    matrix = torch.eye(points[0].numel(), requires_grad=True)
    points = points.clone().requires_grad_()
    losses = []
    for _ in range(steps):
        models_list = [make() for _ in range(n_models)]
        transformed_data = (points.flatten(1) @ matrix).reshape(points.shape)
        parts = [models_list[m](transformed_data) for m in range(n_models)]
        own = torch.cat(parts, 1) / np.sqrt(n_models * parts[0].shape[1])
        K = 2 * (own @ own.T) + 0.01
        K = K + jit * torch.eye(coreset_size) * K.diagonal().sum() / coreset_size
        drawn = [np.random.choice(X_train.shape[0], 1280, replace=False) for _ in range(n_batches)]
        y_values = torch.cat([torch.nn.functional.one_hot(y_train[i], n_classes) - 1 / n_classes for i in drawn])
        with torch.no_grad():
            rows = [torch.cat([models_list[m](X_train[i].float()) for m in range(n_models)], 1) for i in drawn]
        rows = torch.cat(rows) / np.sqrt(n_models * parts[0].shape[1])
        preds = (2 * rows @ own.T + 0.01).double() @ torch.linalg.solve(K.double(), y_coreset.double())
        loss = (y_values - preds).square().mean()
        gradients = torch.autograd.grad(loss, (points, matrix))
        with torch.no_grad():
            points -= 0.1 * gradients[0]
            matrix -= 0.01 * gradients[1]
        losses.append(float(loss.detach()))
    return points.detach(), matrix.detach(), losses
"""
STATEMENTS = slice(2, 11)


class Convolution(nn.Conv2d):
    """Initialised in its own way, as RFAD's is."""

    def reset_parameters(self):
        nn.init.normal_(self.weight, 0, (2 / self.weight[0].numel()) ** 0.5)
        nn.init.normal_(self.bias, 0, 0.1)


class Net(nn.Module):
    """Blocks of convolution, ReLU and average, flattened."""

    def __init__(self, channels=2, width=6, depth=2, size=3, **options):
        super().__init__()
        blocks = []
        for block in range(depth):
            before = channels if block == 0 else width
            blocks += [Convolution(before, width, size, padding=size // 2, **options), nn.ReLU(inplace=True)]
            blocks.append(nn.AvgPool2d(2, 2))
        self.features, self.chopped_head = nn.Sequential(*blocks), True

    def forward(self, images):
        return self.features(images).flatten(1)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Our network counts as RFAD's."""
    monkeypatch.setattr(rfad_step, "FORWARDS", (fingerprint_of(Net.forward),))


def arguments(
    n=10, models=2, shape=(2, 8, 8), classes=3, batches=1, jit=5e-3, seed=0, dtype=torch.float32, **network
):
    torch.manual_seed(seed)
    X = torch.randn(ROWS, *shape)
    X = (50 * X.abs()).clamp(0, 255).to(dtype) if dtype == torch.uint8 else X.to(dtype)
    y = torch.randint(classes, (ROWS,))
    y[:classes] = torch.arange(classes)
    nets = [Net(shape[0], **network).eval() for _ in range(models)]
    return {
        "n_models": models,
        "models_list": nets,
        "transformed_data": (X[:n].float() + 0.1).requires_grad_(),
        "jit": jit,
        "coreset_size": n,
        "from_loader": False,
        "n_batches": batches,
        "X_train": X,
        "y_train": y,
        "n_classes": classes,
        "y_coreset": (torch.eye(classes)[y[:n]] - 1 / classes).requires_grad_(),
    }


def definition(given, dtype, convolve=nn.functional.conv2d):
    """The published formulas, K formed, in a dtype; leaves of the derivative are made anew."""

    def features(images):
        found = []
        for net in given["models_list"][: given["n_models"]]:
            h = images
            for layer in net.features:
                if isinstance(layer, nn.Conv2d):
                    weight, bias = (tensor.detach().to(dtype) for tensor in (layer.weight, layer.bias))
                    h = convolve(h, weight, bias, padding=layer.padding)
                else:
                    h = torch.relu(h) if isinstance(layer, nn.ReLU) else layer(h)
            found.append(h.flatten(1))
        return torch.cat(found, 1) / np.sqrt(given["n_models"] * found[0].shape[1])

    points, labels = (
        given[name].detach().to(dtype).requires_grad_() for name in ("transformed_data", "y_coreset")
    )
    drawn = [np.random.choice(ROWS, 1280, replace=False) for _ in range(given["n_batches"])]
    own, n = features(points), given["coreset_size"]
    K = 2 * own @ own.T + 0.01
    K = K + given["jit"] * torch.eye(n, dtype=dtype) * torch.trace(K) / n
    rows = torch.cat([features(given["X_train"][i].float().to(dtype)) for i in drawn]).detach()
    preds = (2 * rows @ own.T + 0.01).double() @ torch.linalg.solve(K.double(), labels.double())
    y = (
        torch.cat([torch.eye(given["n_classes"])[given["y_train"][i]] for i in drawn])
        - 1 / given["n_classes"]
    )
    return y, preds, (points, labels)


def gap(found, truth):
    return float((found.double() - truth.double()).abs().max() / truth.double().abs().max())


CASES = {
    "plain": {},
    "one point and one network": {"n": 1, "models": 1, "classes": 2},
    "grey and odd": {"shape": (1, 7, 9), "depth": 1, "size": 5},
    "deep and single taps": {"shape": (3, 8, 8), "depth": 3, "size": 1, "models": 3, "batches": 2},
    "many points": {"n": 120, "width": 8},
    "little ridge": {"n": 40, "jit": 1e-6},
    "bytes": {"dtype": torch.uint8},
    "doubles": {"dtype": torch.float64, "batches": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_against_the_definition_in_float64(name):
    given = arguments(**CASES[name])
    assert why_not_step(**given) is None
    np.random.seed(1)
    y, preds = step(**given)
    drawn = np.random.rand()
    (y - preds).square().mean().backward()
    leaves = given["transformed_data"], given["y_coreset"]
    results = {}
    for dtype in (torch.float32, torch.float64):
        np.random.seed(1)
        expected_y, expected, wanted = definition(given, dtype)
        assert np.random.rand() == drawn
        (expected_y - expected).square().mean().backward()
        results[dtype] = [expected.detach(), *(leaf.grad for leaf in wanted)]
    torch.testing.assert_close(y, expected_y, rtol=0, atol=6e-8)
    assert y.dtype == torch.float32
    assert preds.dtype == torch.float64
    for found, rounded, truth in zip(
        [preds.detach(), *(leaf.grad for leaf in leaves)], *results.values(), strict=True
    ):
        # As near as the published formulas in float32, which these cases condition from 1e-6 to 1e-3.
        assert gap(found, truth) <= 3 * gap(rounded, truth) + 2e-6
        assert gap(found, truth) < 2e-3
    assert all(p.grad is None and p.requires_grad for net in given["models_list"] for p in net.parameters())


def test_of_several_networks_the_first_are_used():
    given = arguments(models=3)
    np.random.seed(1)
    _, two = step(**{**given, "n_models": 2})
    np.random.seed(1)
    _, same = step(**{**given, "n_models": 2, "models_list": given["models_list"][:2]})
    assert torch.equal(two, same)


def rounded_to_11_bits(values):
    """As TF32 rounds an operand."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + ((bits >> 13) & 1) + 0xFFF) & ~0x1FFF).view(torch.float32)


def test_half_precision_is_no_worse_than_what_a_gpu_would_do(monkeypatch):
    given = arguments(n=20, width=16)
    monkeypatch.setattr(rfad_step, "tf32_convolutions", lambda device: True)

    def convolve(images, weight, bias, padding):
        return nn.functional.conv2d(
            rounded_to_11_bits(images), rounded_to_11_bits(weight), bias, padding=padding
        )

    def preds(function):
        np.random.seed(1)
        return function()[1].detach()

    truth = preds(lambda: definition(given, torch.float64))
    on_gpu = gap(preds(lambda: definition(given, torch.float32, convolve)), truth)
    found = gap(preds(lambda: step(**given)), truth)
    assert 1e-5 < found < min(2 * on_gpu, TARGET.tolerance / 2)


def test_rows_beyond_half_precision_pass_again(monkeypatch):
    given = arguments()
    given["X_train"] = given["X_train"] * 1e6
    np.random.seed(1)
    _, expected = step(**given)
    monkeypatch.setattr(rfad_step, "tf32_convolutions", lambda device: True)
    seen = []

    def watched(networks, X, **options):
        seen.append(X.dtype)
        return conv_features(networks, X, **options)

    monkeypatch.setattr(rfad_step, "conv_features", watched)
    np.random.seed(1)
    _, found = step(**given)
    assert {torch.float16, torch.float32} == set(seen)
    assert torch.equal(found, expected)


def with_layer(position, layer):
    net = Net().eval()
    net.features[position] = layer
    return {"models_list": [net, Net().eval()]}


class Other(Net):
    def forward(self, images):
        return 2 * super().forward(images)


REFUSED = {
    "a loader": ({"from_loader": True}, "rows come from a loader"),
    "arrays": ({"X_train": np.zeros((ROWS, 2, 8, 8))}, "data are no tensors of torch"),
    "double points": (
        {"transformed_data": torch.zeros(10, 2, 8, 8).double()},
        "points are no float32 images",
    ),
    "other rows": (
        {"X_train": torch.zeros(ROWS, 2, 8, 9)},
        "rows are of another shape or kind than the points",
    ),
    "whole labels": (
        {"y_coreset": torch.ones(10, 3).long()},
        "labels of the points are of another shape or kind",
    ),
    "no batches": ({"n_batches": 0}, "there are no networks, no batches"),
    "too few networks": ({"n_models": 3}, "there are no networks, no batches"),
    "another forward": ({"models_list": [Other().eval(), Other().eval()]}, "a network is not RFAD's"),
    "training": ({"models_list": [Net(), Net()]}, "a network is not RFAD's"),
    "another activation": (with_layer(1, nn.LeakyReLU()), "a network is not RFAD's"),
    "other pooling": (with_layer(2, nn.AvgPool2d(2, 2, ceil_mode=True)), "a network is not RFAD's"),
    "strides": (with_layer(0, nn.Conv2d(2, 6, 3, padding=1, stride=2)), "a network is not RFAD's"),
    "other padding": (
        with_layer(0, nn.Conv2d(2, 6, 3, padding=1, padding_mode="circular")),
        "a network is not",
    ),
    "no bias": (with_layer(0, nn.Conv2d(2, 6, 3, padding=1, bias=False)), "a network is not RFAD's"),
    "two kinds": (
        {"models_list": [Net().eval(), Net(width=7).eval()]},
        "the networks differ from one another",
    ),
    "double": ({"models_list": [Net().double().eval()] * 2}, "the networks are not float32"),
    "deep": ({"models_list": [Net(depth=4).eval()] * 2}, "the images are too small"),
    "channels": ({"models_list": [Net(3).eval()] * 2}, "the networks differ from one another, or do not fit"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_left_to_the_original(name):
    changed, reason = REFUSED[name]
    assert str(why_not_step(**{**arguments(), **changed})).startswith(reason)


def test_hooks_and_autocast_are_left_to_the_original():
    given = arguments()
    with torch.autocast("cpu"):
        assert why_not_step(**given) == "autocast is on"
    given["models_list"][0].features[0].register_forward_hook(lambda *seen: None)
    assert "not RFAD's" in str(why_not_step(**given))


@pytest.fixture
def peer(monkeypatch, tmp_path):
    """A module with such a loop, and the target that knows it."""
    (tmp_path / "invented_rfad.py").write_text(PEER)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    loop = dict(definitions(ast.parse(PEER)))["learn"].body[4]
    body = loop.body[STATEMENTS]
    target = dataclasses.replace(TARGET, qualname="learn", hashes=(fingerprint(*body),), length=len(body))
    for module in (registry, _report):
        monkeypatch.setattr(module, "all_targets", lambda: (target,))
    records.clear()
    yield importlib.import_module("invented_rfad")
    uninstall()
    records.clear()
    del sys.modules["invented_rfad"]


def learn(peer, **more):
    given = arguments(n=6)
    torch.manual_seed(3)
    np.random.seed(3)
    result = peer.learn(
        given["X_train"],
        given["y_train"],
        lambda: Net().eval(),
        given["transformed_data"].detach(),
        given["y_coreset"].detach(),
        **{"n_models": 2, "n_batches": 2, "jit": 5e-3, "steps": 3, **more},
    )
    return *result, np.random.rand(), torch.rand(1), random.getstate()


def test_a_loop_goes_on_as_it_would(peer):
    before = peer.learn.__code__
    expected = learn(peer)
    with patched(NAME):
        found = learn(peer)
        assert records[NAME].accelerated == 3
    assert peer.learn.__code__ is before
    for a, b in zip(found[:3], expected[:3], strict=True):
        assert gap(torch.as_tensor(a), torch.as_tensor(b)) < 1e-4
    assert found[3:] == expected[3:]


def test_verification(peer, monkeypatch):
    install(NAME, verify=2, tolerance=1e-4)
    learn(peer)
    assert (records[NAME].verified, records[NAME].accelerated) == (2, 3)
    assert 0 < records[NAME].difference < 1e-4
    uninstall()
    monkeypatch.setattr(rfad_step, "_BIAS_VARIANCE", 0.02)
    install(NAME, verify=1)
    with pytest.raises(VerificationError, match="difference"):
        learn(peer)


def test_a_loader_is_declined_once_a_step(peer):
    install(NAME)
    learn(peer, from_loader=True)
    assert records[NAME].declined == {"rows come from a loader": 3}
    assert records[NAME].accelerated == 0


@pytest.mark.data
def test_the_published_statements(monkeypatch):
    folder = peer_path("rfad")
    monkeypatch.undo()
    spec = importlib.util.spec_from_file_location("published_models", folder / "models.py")
    models = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "published_models", models)
    spec.loader.exec_module(models)
    function = dict(definitions(ast.parse((folder / "distillation.py").read_text())))["distill_dataset"]
    block, start = find_run(function, TARGET.length, TARGET.hashes)
    statements = copy.deepcopy(block[start : start + TARGET.length])
    for node in (node for statement in statements for node in ast.walk(statement)):
        if isinstance(node, ast.Constant) and node.value == "cuda:0":
            node.value = "cpu"
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)

    given = arguments(n=20, models=2, shape=(3, 16, 16))
    given["models_list"] = [
        models.ConvNet_wide(3, 64, k=0.25, im_size=(16, 16), chopped_head=True).eval() for _ in range(2)
    ]
    assert why_not_step(**given) is None
    names = {"np": np, "torch": torch, "X_coreset_features": [], **given}
    np.random.seed(1)
    exec(compile(ast.Module(statements, []), "published", "exec"), names)
    drawn = np.random.rand()
    np.random.seed(1)
    y, preds = step(**given)
    assert np.random.rand() == drawn
    assert torch.equal(y, names["y_values"])
    assert gap(preds.detach(), names["preds"].detach()) < 1e-4
    assert {"y_values", "preds"} == set(TARGET.outputs)
