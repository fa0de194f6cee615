"""The loss of a step of distribution matching: value and gradient of the plain loop, class after class."""

import argparse
import ast
import dataclasses
import importlib
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from kernel_distill import accel
from kernel_distill.accel import _cache, _report, registry
from kernel_distill.accel._call import VerificationError
from kernel_distill.accel._fingerprint import definition_of, find_run, fingerprint
from kernel_distill.accel._records import records
from kernel_distill.accel.registry.vico import DM_STEP
from kernel_distill.accel.replacements import dm_step
from kernel_distill.accel.replacements.published_networks import known_embedding

from .peers import peer_path

# A script with the published names, in words of our own.
SCRIPT = """
import time
import numpy as np
import torch

def DiffAugment(x, strategy="", seed=-1, param=None):
    torch.manual_seed(seed)
    calls.append((seed, len(x)))
    return x.flip(3) * torch.rand(1) + torch.rand(1) if strategy == "color_flip" else x

def main(args, num_classes, channel, im_size, images, rows_of, image_syn, net):
    embed = net.embed

    def get_images(c, n):
        return images[np.random.permutation(rows_of[c])[:n]]

    if True:
        loss = torch.zeros(())
        for c in range(num_classes):
            real = get_images(c, args.batch_real)
            synthetic = image_syn.unflatten(0, (num_classes, -1))[c]
            if args.dsa:
                seed = int(time.time() * 1000) % 100000
                real = DiffAugment(real, args.dsa_strategy, seed=seed, param=args.dsa_param)
                synthetic = DiffAugment(synthetic, args.dsa_strategy, seed=seed, param=args.dsa_param)
            gap = embed(real).detach().mean(0) - embed(synthetic).mean(0)
            loss = loss + gap.square().sum()
    return loss

calls = []
"""


def frozen(net):
    return net.requires_grad_(False)


class ConvNet(nn.Module):
    """The published layout, small."""

    def __init__(self, channels=2, norm="instance", layer=nn.ReLU):
        super().__init__()
        layers = []
        for c in (channels, 4):
            layers += [
                nn.Conv2d(c, 4, 3, padding=1),
                nn.GroupNorm(4, 4) if norm == "instance" else nn.BatchNorm2d(4),
            ]
            layers += [layer(), nn.AvgPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(16, 3)

    def embed(self, x):
        return self.features(x).flatten(1)

    def forward(self, x):
        return self.classifier(self.embed(x))


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The script as a module, with the target that knows it."""
    (tmp_path / "invented_step.py").write_text(SCRIPT)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("invented_step")
    statement = definition_of(module.main).body[2]
    known = (dataclasses.replace(DM_STEP, hashes=(fingerprint(statement),), hints=("DiffAugment", "calls")),)
    for holder in (registry, _report):
        monkeypatch.setattr(holder, "all_targets", lambda: known)
    records.clear()
    yield module
    accel.uninstall()
    records.clear()
    sys.modules.pop("invented_step")


def problem(k=3, ipc=2, rows=(70, 33, 20), **given):
    """Arguments of `main`: classes of these numbers of rows."""
    options = {"ipc": ipc, "batch_real": 40, "dsa": True, "dsa_strategy": "color_flip", "dsa_param": None}
    args = argparse.Namespace(**{**options, "model": "ConvNet", **given})
    generator = torch.Generator().manual_seed(k)
    images = torch.randn(sum(rows), 2, 8, 8, generator=generator)
    ends = np.cumsum((0, *rows))
    rows_of = [list(range(ends[c % len(rows)], ends[c % len(rows) + 1])) for c in range(k)]
    image_syn = torch.randn(k * ipc, 2, 8, 8, generator=generator, requires_grad=True)
    torch.manual_seed(0)
    return args, k, 2, (8, 8), images, rows_of, image_syn, frozen(ConvNet())


def gradient_of(loss, image_syn):
    image_syn.grad = None
    loss.backward()
    return image_syn.grad


def passed(script, given):
    """Loss, gradient, and the next number of NumPy's generator."""
    np.random.seed(3)
    loss = script.main(*given)
    assert loss.shape == ()
    assert loss.requires_grad
    return loss, gradient_of(loss, given[6]), np.random.rand()


CASES = {
    "augmented": {},
    "plain": {"dsa": False},
    "one image a class": {"ipc": 1},
    "more images than a piece": {"ipc": 40},
    "many classes": {"k": 7, "rows": (5, 9)},
    "one class": {"k": 1},
    "one row": {"batch_real": 1},
}


@pytest.mark.parametrize("name", CASES)
def test_is_the_loop_over_classes(script, name, monkeypatch):
    # One reading of the clock, and the same seed for all classes: then both draw the same.
    monkeypatch.setattr(time, "time", lambda: 1234.567)
    monkeypatch.setattr(dm_step, "_SEED_STEP", 0)
    given = problem(**CASES[name])
    expected, gradient, after = passed(script, given)
    seeds = list(script.calls)
    script.calls.clear()
    with accel.patched("vico.dm_step"):
        found, other, then = passed(script, given)
    assert records["vico.dm_step"].accelerated == 1
    # Float32 sums of some hundred features in another order.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(other, gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()))
    assert (then, script.calls) == (after, seeds)
    assert found.dtype == expected.dtype


@pytest.mark.parametrize("name", CASES)
def test_all_classes_at_once_are_the_same(name, monkeypatch):
    args, k, _, _, images, rows_of, image_syn, net = problem(**{**CASES[name], "dsa": False})
    monkeypatch.setattr(dm_step, "_GPU_ROWS", 7)

    def images_of(c):
        return images[rows_of[c][: args.batch_real]], image_syn.unflatten(0, (k, -1))[c]

    losses = dm_step._on_gpu(net.embed, images_of, k), dm_step._on_cpu(net.embed, images_of, k, image_syn)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-7)
    one, other = (gradient_of(loss, image_syn).clone() for loss in losses)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * float(one.abs().max()))


def test_no_two_classes_have_the_same_seed(script):
    with accel.patched("vico.dm_step"):
        passed(script, problem(k=7))
    seeds = [seed for seed, _ in script.calls]
    assert seeds[::2] == seeds[1::2]  # rows and images of a class are augmented alike
    assert len(set(seeds)) == 7
    assert all(0 <= seed < 100_000 for seed in seeds)


def test_networks_stay_as_they_are_and_another_one_is_looked_at_anew(script):
    given = problem()
    before = {name: value.clone() for name, value in given[-1].state_dict().items()}
    with accel.patched("vico.dm_step"):
        passed(script, given)
        assert all(torch.equal(value, before[name]) for name, value in given[-1].state_dict().items())
        passed(script, (*given[:-1], frozen(ConvNet(layer=nn.Tanh))))
    assert records["vico.dm_step"].declined == {"the network is none that we know": 1}


def test_other_steps_are_left_to_the_original(script):
    given = problem()
    args, *_, image_syn, net = given
    named = dict(zip(("args", "num_classes", "channel", "im_size"), given[:4], strict=True))

    def reason(image_syn=image_syn, embed=net.embed, **changes):
        others = {**vars(args), **changes}
        given = {**named, "args": argparse.Namespace(**others)}
        return dm_step.dm_loss_guard(
            **given, image_syn=image_syn, embed=embed, get_images=None, DiffAugment=script.DiffAugment
        )

    assert reason() is None
    assert "batch norm" in reason(model="ConvNetBN")
    assert "no leaf" in reason(image_syn=image_syn.detach())
    assert "no leaf" in reason(image_syn=image_syn.detach().double().requires_grad_())
    assert "as many images" in reason(ipc=3)
    assert reason(embed=ConvNet(norm="batch").embed) == "the network is none that we know"
    assert reason(embed=lambda x: x) == "the network is none that we know"
    assert reason(embed=net.forward) == "the network is none that we know"
    assert reason(embed=ConvNet().embed) == "gradients in the network's parameters are wanted"
    with torch.no_grad():
        assert reason() == "no gradients are wanted"


def test_a_step_without_gradients_or_with_those_of_parameters_is_the_originals(script):
    given = problem()
    net = ConvNet()
    with accel.patched("vico.dm_step"):
        with torch.no_grad():
            assert not script.main(*given).requires_grad
        script.main(*given[:-1], net).backward()
    assert net.features[0].weight.grad is not None
    assert records["vico.dm_step"].accelerated == 0


def test_derivatives_of_second_order_are_an_error_and_not_zero(script):
    given = problem()
    with accel.patched("vico.dm_step"):
        (gradient,) = torch.autograd.grad(script.main(*given), given[6], create_graph=True)
    assert records["vico.dm_step"].accelerated == 1
    # Beside a term that has them: in a sum, a missing one would go unseen.
    with pytest.raises(RuntimeError, match="differentiable once"):
        (gradient + given[6] ** 2).sum().backward()


def test_a_network_that_agrees_later_is_known_later():
    images, net = problem()[6].detach(), frozen(ConvNet(channels=2))
    _cache.clear()
    assert known_embedding(net, images / 0) is None
    assert known_embedding(net, images) is not None


def test_no_loss_at_all_does_not_verify(script, monkeypatch):
    monkeypatch.setattr(dm_step, "_on_cpu", lambda *given: given[-1].sum() * 0)
    with accel.patched("vico.dm_step", verify=1), pytest.raises(VerificationError):
        passed(script, problem())


def test_a_verified_step_goes_on_with_the_original(script, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1234.567)
    monkeypatch.setattr(dm_step, "_SEED_STEP", 0)
    given = problem()
    expected, gradient, after = passed(script, given)
    with accel.patched("vico.dm_step", verify=1, tolerance=1e-5):
        found, other, then = passed(script, given)
    assert records["vico.dm_step"].verified == 1
    assert torch.equal(found, expected)
    assert torch.equal(other, gradient)
    assert then == after


@pytest.mark.data
def test_the_published_source_is_known():
    folder = peer_path("vico")
    tree = ast.parse((folder / "main_DM.py").read_text())
    assert find_run(tree, DM_STEP.length, DM_STEP.hashes) is not None
