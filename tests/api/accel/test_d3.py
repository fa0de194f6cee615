"""D3's discrepancy against its definition, and the loop over classes in a `main` with the same names."""

import dataclasses
import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest
import torch

from kernel_distill import accel
from kernel_distill.accel import registry
from kernel_distill.accel._call import Settings, accelerated, forget_calls
from kernel_distill.accel._fingerprint import definition_of, find_run, fingerprint, fingerprint_of
from kernel_distill.accel._records import record, records
from kernel_distill.accel.registry.d3 import TARGETS
from kernel_distill.accel.replacements import d3 as replacements

from .peers import peer_path

KNOWN = {target.name: target for target in TARGETS}
MAIN = '''
import types

import numpy as np
import torch
from torch import nn


class Embedding(nn.Module):
    """Features of images, with the parameters that the call brings."""

    def __init__(self, width, dropout, norm):
        super().__init__()
        self.shape = (width, 3, 3, 3)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()

    def forward(self, x, flat_param=None, feature_only=False):
        assert feature_only == 2
        x = nn.functional.conv2d(x, flat_param.reshape(self.shape), padding=1)
        return self.dropout(self.norm(x).relu()).mean((2, 3))


class Decoder(nn.Module):
    def __init__(self, z):
        super().__init__()
        self.project, self.norm = nn.Linear(z, 3 * 64), nn.BatchNorm1d(3 * 64)

    def forward(self, latents):
        mean, log_variance = latents[:, :, 0], latents[:, :, 1]
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return self.norm(self.project(z)).reshape(-1, 3, 8, 8)


def mix_rbf_mmd2_fixed(X, Y):
    def k(a, b):
        squared = (a[:, None] - b[None]).square().sum(-1)
        return sum(torch.exp(-squared / (2 * s * s)) for s in (1.0, 2.0, 4.0, 8.0, 16.0))

    def off_diagonal(K):
        return (K.sum() - K.diagonal().sum()) / (len(K) * (len(K) - 1))

    return off_diagonal(k(X, X)) + off_diagonal(k(Y, Y)) - 2 * k(X, Y).mean()


def main(args):
    num_classes, feature_only = 4, 2
    labels = np.arange(80) % num_classes
    images_all = torch.from_numpy(np.random.randn(80, 3, 8, 8).astype(np.float32))

    def get_images(c, n):
        return images_all[np.random.permutation(np.flatnonzero(labels == c))[:n]]

    decoder = Decoder(6)
    syn_latents = torch.randn(num_classes * args.lpc, 6, 2, requires_grad=True)
    optimizer = torch.optim.SGD([syn_latents, *decoder.parameters()], lr=0.1)
    losses = []
    for it in range(args.steps):
        student_net = Embedding(args.width, args.dropout, args.norm)
        final_params = torch.randn(args.width * 27)
        num_samples = args.mmd_samples // args.lpc
        synthetic_samples = torch.stack([decoder(syn_latents) for _ in range(num_samples)], dim=1)
        mmd_loss = 0
        for c in range(num_classes):
            real_images = get_images(c, num_samples * args.lpc).to(syn_latents.device)
            real = student_net(real_images, flat_param=final_params, feature_only=feature_only).detach()
            of_class = synthetic_samples[c * args.lpc : (c + 1) * args.lpc].flatten(0, 1)
            synthetic = student_net(of_class, flat_param=final_params, feature_only=feature_only)
            mmd_loss += mix_rbf_mmd2_fixed(synthetic, real)
        mmd_loss = args.mmd_weight * mmd_loss
        optimizer.zero_grad()
        mmd_loss.backward()
        optimizer.step()
        losses.append(mmd_loss.item())
    return losses, [syn_latents, *decoder.state_dict().values()]
'''
LOOP_AT = 5  # among the statements of the step


def options(**given):
    usual = {
        "lpc": 2,
        "steps": 3,
        "width": 5,
        "dropout": 0.0,
        "norm": False,
        "mmd_samples": 10,
        "mmd_weight": 1.5,
    }
    return types.SimpleNamespace(**(usual | given))


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A module with the names of the published one, whose loop the registry knows."""
    (tmp_path / "invented_d3.py").write_text(MAIN)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("KERNEL_DISTILL_ACCEL", "KERNEL_DISTILL_ACCEL_VERIFY"):
        monkeypatch.delenv(name, raising=False)
    importlib.invalidate_caches()
    module = importlib.import_module("invented_d3")
    step = next(node for node in definition_of(module.main).body if type(node).__name__ == "For")
    known = dataclasses.replace(KNOWN["d3.mmd_loop"], hashes=(fingerprint(step.body[LOOP_AT]),))
    monkeypatch.setattr(registry, "all_targets", lambda: (known,))
    records.clear()
    yield module
    accel.uninstall()
    records.clear()
    del sys.modules["invented_d3"]


def run(module, args):
    """What `main` returns, the next random numbers, and the most bytes kept for its backward passes."""
    now, most = 0, 0

    class Kept:
        def __init__(self, tensor):
            nonlocal now, most
            self.tensor, now = tensor, now + tensor.nbytes
            most = max(most, now)

        def __del__(self):
            nonlocal now
            now -= self.tensor.nbytes

    torch.manual_seed(0)
    np.random.seed(0)
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        losses, state = module.main(args)
    return losses, state, (float(torch.rand(())), np.random.rand()), most


@pytest.mark.parametrize(
    "given", [{}, {"dropout": 0.5}, {"lpc": 1}, {"lpc": 3}, {"mmd_weight": 1.0, "steps": 1}]
)
def test_the_loop_goes_on_identically(published, given):
    args = options(**given)
    losses, state, drawn, _ = run(published, args)
    with accel.patched("d3.mmd_loop"):
        ours = run(published, args)
    assert record("d3.mmd_loop").accelerated == args.steps
    assert ours[0][0] == losses[0]  # bit for bit; later ones have the rounding of the gradient in them
    np.testing.assert_allclose(ours[0], losses, rtol=1e-5)
    assert ours[2] == drawn
    for mine, theirs in zip(ours[1], state, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    assert run(published, args)[0] == losses  # uninstalled


def test_the_loop_keeps_the_activations_of_one_class(published):
    args = options(width=64, steps=1)
    most = run(published, args)[3]
    with accel.patched("d3.mmd_loop"):
        ours = run(published, args)[3]
    of_class = 10 * 64 * 8 * 8 * 4  # bytes of one layer of activations of a class
    assert most > 4 * of_class
    assert ours < most / 3


def test_the_loop_verifies(published):
    with accel.patched("d3.mmd_loop", verify=2):
        losses, _, drawn, _ = run(published, options(dropout=0.2))
    entry = record("d3.mmd_loop")
    assert entry.accelerated == 3
    assert (losses[:2], drawn) == (run(published, options(dropout=0.2))[0][:2], drawn)


def test_loops_that_change_more_are_left_alone(published):
    refused = {
        "the network has buffers": options(norm=True),
        "a plain number": options(lpc=np.int64(2)),
    }
    for reason, args in refused.items():
        records.clear()
        plain = run(published, args)
        with accel.patched("d3.mmd_loop"):
            assert run(published, args)[0] == plain[0]
        (found,) = record("d3.mmd_loop").declined
        assert reason in found
        assert record("d3.mmd_loop").accelerated == 0


def loop_inputs(**given):
    usual = {name: None for name in KNOWN["d3.mmd_loop"].inputs} | {
        "mmd_loss": 0,
        "num_classes": 2,
        "args": types.SimpleNamespace(lpc=1, distributed=False),
        "student_net": torch.nn.Identity(),
        "final_params": torch.ones(3),
        "syn_latents": torch.ones(2),
        "synthetic_samples": torch.ones(2, 3, 3, 4, 4, requires_grad=True),
    }
    return usual | given


def test_the_guard_of_the_loop_names_its_reasons():
    guard = replacements.loop_unfit
    assert guard(**loop_inputs()) is None
    refused = {
        "several GPUs": {"args": types.SimpleNamespace(lpc=1, distributed=True)},
        "plain number": {"mmd_loss": torch.zeros(())},
        "is differentiated": {"final_params": torch.ones(3, requires_grad=True)},
        "not as many": {"num_classes": 3},
        "another device": {"syn_latents": torch.ones(2, device="meta")},
        "buffers": {"student_net": torch.nn.BatchNorm1d(2)},
    }
    for reason, given in refused.items():
        assert reason in guard(**loop_inputs(**given))
    with torch.no_grad():
        assert "is differentiated" in guard(**loop_inputs())
    assert "is differentiated" in guard(**loop_inputs(synthetic_samples=torch.ones(2, 3, 3, 4, 4)))


class Scaled(torch.nn.Module):
    """A network with a weight of its own, beside those that the call brings."""

    def __init__(self, name):
        super().__init__()
        self.register_parameter(name, torch.nn.Parameter(torch.ones(3)))

    def forward(self, x, flat_param=None, feature_only=False):
        return x * (flat_param.sum() if hasattr(self, "flat_param") else self.w.sum())


def test_networks_with_weights_of_their_own_are_left_alone():
    guard, network = replacements.loop_unfit, Scaled("w")
    assert "parameters of its own" in guard(**loop_inputs(student_net=network))
    assert guard(**loop_inputs(student_net=network.requires_grad_(False))) is None
    assert guard(**loop_inputs(student_net=Scaled("flat_param"))) is None  # what ReparamModule leaves


def test_the_loop_adds_to_what_is_there():
    inputs = loop_inputs(
        mmd_loss=2.5,
        num_samples=3,
        get_images=lambda c, n: torch.full((n, 3, 4, 4), float(c)),
        student_net=lambda x, flat_param, feature_only: x * flat_param.sum(),
        mix_rbf_mmd2_fixed=lambda X, Y: X.sum() - Y.sum(),
    )
    (loss,) = replacements.mmd_loop(**inputs)
    assert float(loss.detach()) == 2.5 + 3 * 48 * 3  # of two classes of ones, less those of zeros and ones
    (gradient,) = torch.autograd.grad(loss, inputs["synthetic_samples"])
    assert torch.equal(gradient, torch.full((2, 3, 3, 4, 4), 3.0))


def discrepancy(X, Y, sigma_list, biased=False):
    """The interface and the mathematics of `mix_rbf_mmd2`, its biased division included."""
    Z, m, n = torch.cat((X, Y)), len(X), len(Y)
    squared = (Z[:, None] - Z[None]).square().sum(-1)
    K = sum(torch.exp(-squared / (2 * sigma * sigma)) for sigma in sigma_list)
    inner, outer, cross = K[:m, :m], K[m:, m:], K[:m, m:].sum()
    if biased:
        return (inner.sum() + outer.sum() - 2 * cross) / m**2
    of_x = (inner.sum() - inner.diagonal().sum()) / (m * (m - 1))
    return of_x + (outer.sum() - outer.diagonal().sum()) / (n * (n - 1)) - 2 * cross / (m * n)


def fixed(X, Y):
    """The interface of `mix_rbf_mmd2_fixed`."""
    return discrepancy(X, Y, [1.0, 2.0, 4.0, 8.0, 16.0])


def rows(m, n, d=6, dtype=torch.float32, offset=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X, Y = (torch.randn(k, d, generator=generator, dtype=torch.float64) for k in (m, n))
    return (X + offset).to(dtype), (1.3 * Y + 0.5 + offset).to(dtype)


@pytest.fixture
def few_allowed(monkeypatch):
    monkeypatch.setattr(replacements, "_FEW", 0)
    for name in KNOWN:
        forget_calls(name)
    monkeypatch.setattr(Settings, "verify", 100)
    yield
    for name in KNOWN:
        forget_calls(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("m", "n", "sigma_list", "biased"),
    [
        (20, 33, (1.0, 2.0, 4.0, 8.0, 16.0), False),
        (2, 2, (1.0, 2.0), False),
        (21, 21, [1, 3.0, 7], True),
        (1, 1, [2.0], True),
        (150, 70, [0.5, 8.0], False),
    ],
)
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_the_discrepancy_and_its_gradient(m, n, sigma_list, biased, dtype, offset, few_allowed):
    X, Y = rows(m, n, dtype=dtype, offset=offset)
    target = dataclasses.replace(KNOWN["d3.mix_rbf_mmd2"], hashes=(fingerprint_of(discrepancy),), requires={})
    stand_in = accelerated(target, discrepancy)
    before = record(target.name).accelerated
    found = []
    for function, cast in ((stand_in, dtype), (discrepancy, torch.float64)):
        leaves = [t.to(cast).clone().requires_grad_() for t in (X, Y)]
        value = function(*leaves, sigma_list, biased)
        found.append((value, *torch.autograd.grad(value, leaves)))
    assert record(target.name).accelerated == before + 1
    assert found[0][0].dtype == dtype
    assert found[0][0].shape == ()
    allowed = 1e-5 if dtype == torch.float32 else 1e-11
    for ours, wanted in zip(*found, strict=True):
        assert (ours - wanted).abs().max() < allowed


def test_the_fixed_bandwidths(few_allowed):
    target = dataclasses.replace(KNOWN["d3.mix_rbf_mmd2_fixed"], hashes=(fingerprint_of(fixed),), requires={})
    value = accelerated(target, fixed)(*rows(30, 20))
    assert value.dtype == torch.float32
    assert record(target.name).accelerated


def test_guards_name_their_reasons():
    X, Y = rows(300, 300)
    guard = replacements.unfit
    assert replacements.unfit_fixed(X, Y) is guard(X, Y, [1.0]) is guard(X, Y, [1.0], True) is None
    assert "first" in guard(X, Y[:290], [1.0], True)
    assert "so few" in guard(X[:30], Y[:30], [1.0])
    assert "no pair" in guard(X, rows(1, 600)[0], [1.0]) or "so few" in guard(X, rows(1, 600)[0], [1.0])
    assert "no pair" in guard(rows(600, 1)[0], rows(600, 1)[1], [1.0])
    assert "plain tensor" in guard(X.numpy(), Y, [1.0])
    assert "matrices" in guard(X[None], Y, [1.0])
    assert "float32 or float64" in guard(X.half(), Y.half(), [1.0])
    assert "float32 or float64" in guard(X, Y.double(), [1.0])
    assert "no list" in guard(X, Y, [])
    assert "bandwidth" in guard(X, Y, [1.0, -1.0])
    assert "bandwidth" in guard(X, Y, [torch.tensor(1.0)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "autocast" in guard(X, Y, [1.0])


@pytest.fixture
def clone():
    return peer_path("d3")


@pytest.mark.data
def test_the_published_functions_are_known_and_verify(clone, few_allowed):
    spec = importlib.util.spec_from_file_location("published_mmd", clone / "mmd.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, more in (("mix_rbf_mmd2_fixed", ()), ("mix_rbf_mmd2", ([1.0, 3.0], True))):
        target, original = KNOWN[f"d3.{name}"], getattr(module, name)
        assert fingerprint_of(original) in target.hashes
        for needed, hashes in target.requires.items():
            assert fingerprint_of(getattr(module, needed)) in hashes
        accelerated(target, original)(*rows(100, 100, 64), *more)
        assert record(target.name).accelerated


@pytest.mark.data
def test_the_published_loop_is_known(clone):
    import ast

    target = KNOWN["d3.mmd_loop"]
    tree = ast.parse((clone / "distill_distribution.py").read_text())
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    block, start = find_run(main, target.length, target.hashes)
    read = {node.id for node in ast.walk(block[start]) if isinstance(node, ast.Name)}
    assert set(target.inputs) <= read


@pytest.mark.data
def test_the_published_wrapper_is_taken(clone):
    spec = importlib.util.spec_from_file_location("published_reparam", clone / "reparam_module.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.ReparamModule(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.InstanceNorm2d(4)))
    assert [name for name, _ in network.named_parameters()] == ["flat_param"]
    assert replacements.loop_unfit(**loop_inputs(student_net=network)) is None
