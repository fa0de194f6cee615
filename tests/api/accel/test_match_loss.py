"""The distance of gradients against its definition: values, derivatives of two orders, and what is left alone."""

import dataclasses
import importlib.util
import sys
import types

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional

from kernel_distill import accel
from kernel_distill.accel._call import Settings, VerificationError, accelerated, forget_calls
from kernel_distill.accel._fingerprint import fingerprint_of
from kernel_distill.accel._records import record, records
from kernel_distill.accel.registry._vico_parts import PARTS
from kernel_distill.accel.replacements import match_loss as replacements
from kernel_distill.nn_baselines.network_gradient import gradient_distance

from .peers import peer_path

KNOWN = {target.qualname: target for target in PARTS if target.qualname in ("match_loss", "distance_wb")}
LAYERS = {
    "network": [(6, 3, 3, 3), (6,), (6,), (4, 24), (4,)],
    "four_kinds": [(2, 3, 4, 5), (3, 2, 7), (5, 4), (9,)],
    "one_each": [(1, 1), (1, 1, 1, 1)],
    "large": [(40, 40, 3, 3), (10, 500)],
}


def distance_wb(gwr, gws):
    """The interface and the mathematics: one minus the cosine, output by output."""
    if gwr.ndim == 1:
        return gwr.new_zeros(())
    a, b = gwr.reshape(len(gwr), -1), gws.reshape(len(gws), -1)
    return sum(1 - x.dot(y) / (x.norm() * y.norm() + 1e-6) for x, y in zip(a, b, strict=True))


def match_loss(gw_syn, gw_real, args):
    """The interface and the mathematics of the three metrics."""
    torch.tensor(0.0).to(args.device)
    if args.dis_metric == "ours":
        return sum(distance_wb(real, syn) for syn, real in zip(gw_syn, gw_real, strict=True))
    a, b = (torch.cat([part.flatten() for part in parts]) for parts in (gw_syn, gw_real))
    if args.dis_metric == "mse":
        return (a - b).pow(2).sum()
    if args.dis_metric == "cos":
        return 1 - a.dot(b) / (a.norm() * b.norm() + 1e-6)
    raise SystemExit(f"unknown distance function: {args.dis_metric}")


def arguments(metric="ours", **others):
    return types.SimpleNamespace(dis_metric=metric, device="cpu", **others)


def gradients(shapes, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def stand_in(name, original):
    return accelerated(
        dataclasses.replace(KNOWN[name], hashes=(fingerprint_of(original),), requires={}), original
    )


@pytest.fixture
def verified(monkeypatch):
    names = [target.name for target in KNOWN.values()]
    for name in names:
        forget_calls(name)
    monkeypatch.setattr(Settings, "verify", 100)
    yield
    for name in names:
        forget_calls(name)


def derivatives(function, tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    value = function(leaves)
    return value, torch.autograd.grad(value, leaves, allow_unused=True)


@pytest.mark.parametrize("metric", ["ours", "mse"])
@pytest.mark.parametrize("shapes", LAYERS.values(), ids=LAYERS)
def test_values_and_derivatives_are_those_of_the_definition(shapes, metric):
    syn, real = gradients(shapes), gradients(shapes, 1)
    args = arguments(metric)
    assert replacements.why_not(syn, real, args) is None
    exact, of_exact = derivatives(
        lambda leaves: match_loss(leaves, [g.double() for g in real], args), [g.double() for g in syn]
    )
    value, found = derivatives(lambda leaves: replacements.match_loss(leaves, real, args), syn)
    assert value.shape == ()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=2e-6, atol=1e-6)
    for ours, wanted in zip(found, of_exact, strict=True):
        if wanted is None:
            assert ours is None  # vectors are no part of it
        else:
            torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shapes", LAYERS.values(), ids=LAYERS)
def test_the_value_is_that_of_the_learner_to_the_last_bit(shapes):
    syn, real = gradients(shapes), gradients(shapes, 1)
    found = replacements.match_loss(tuple(syn), real, arguments())
    assert found.equal(gradient_distance(syn, real))
    layer = replacements.distance_wb(real[0], syn[0])
    assert layer.equal(gradient_distance(syn[:1], real[:1]))


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2), (2, 2, 1, 3)])
def test_derivatives_of_two_orders_in_both(shape):
    a, b = (g.requires_grad_() for g in gradients([shape, shape], dtype=torch.float64))
    assert replacements.why_not_distance(a, b) is None
    assert torch.autograd.gradcheck(replacements.distance_wb, (a, b))
    assert torch.autograd.gradgradcheck(replacements.distance_wb, (a, b))


def test_gradients_of_zero():
    """As torch has it for a norm: the derivative of the norm of zero is zero."""
    a, b = gradients([(4, 5), (4, 5)])
    a[0] = b[1] = a[2] = b[2] = 0
    of_rows = [
        derivatives(lambda ab, f=f: f(*ab), [a, b])[1] for f in (distance_wb, replacements.distance_wb)
    ]
    for wanted, found in zip(*of_rows, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_it_is_differentiated_through_a_network(verified):
    """Points that match gradients: what the published loop does with it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    parameters, classes = list(network.parameters()), torch.arange(3)

    def gradient(images, **options):
        return torch.autograd.grad(functional.cross_entropy(network(images), classes), parameters, **options)

    real = [g.detach().clone() for g in gradient(torch.randn(3, 3, 6, 6))]
    found = []
    start = torch.randn(3, 3, 6, 6)
    for function in (match_loss, stand_in("match_loss", match_loss)):
        points = start.clone().requires_grad_()
        function(list(gradient(points, create_graph=True)), real, arguments()).backward()
        found.append(points.grad)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5 * float(found[0].abs().max()))


@pytest.mark.parametrize("metric", ["ours", "mse"])
def test_it_verifies(metric, verified):
    before = record("vico.match_loss").verified
    for seed, shapes in enumerate(LAYERS.values()):
        # Sums of our definition are in yet another order; what it is compared with bit by bit is the published code.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Settings, "tolerance", 1e-5)
            stand_in("match_loss", match_loss)(
                gradients(shapes, seed), gradients(shapes, 9), arguments(metric)
            )
            stand_in("distance_wb", distance_wb)(gradients(shapes, seed)[0], gradients(shapes, 9)[0])
    assert record("vico.match_loss").verified == before + len(LAYERS)


def test_a_wrong_answer_does_not_verify(verified, monkeypatch):
    monkeypatch.setattr(replacements, "_LEAST", 1.0)
    with pytest.raises(VerificationError, match=r"vico\.match_loss"):
        stand_in("match_loss", match_loss)(*(gradients([(2, 3)], seed) for seed in (0, 1)), arguments())


def test_what_is_left_alone(monkeypatch):
    syn, real = gradients(LAYERS["network"]), gradients(LAYERS["network"], 1)

    def reason(syn=syn, real=real, args=None):
        return replacements.why_not(syn, real, args or arguments()) or ""

    assert reason() == reason(tuple(syn)) == reason(args=arguments("mse")) == ""
    assert reason(args=types.SimpleNamespace(dis_metric="ours", device=torch.device("cpu"))) == ""
    for args in (arguments("cos"), arguments("other"), types.SimpleNamespace(device="cpu")):
        assert "metric" in reason(args=args)
    assert "two lists" in reason(iter(syn))
    assert "two lists" in reason([*syn, syn[0]])
    assert "plain tensor" in reason([None, *syn[1:]])
    assert "sparse" in reason([syn[0].to_sparse(), *syn[1:]])
    assert "shape" in reason([syn[0][:1], *syn[1:]])
    assert "no weights" in reason([torch.ones(2, 1, 1, 1, 1)], [torch.ones(2, 1, 1, 1, 1)])
    assert "no weights" in reason([torch.ones(())], [torch.ones(())])
    assert "one device" in reason([syn[0].double(), *syn[1:]])
    assert "not float32" in reason([g.double() for g in syn], [g.double() for g in real])
    assert "args.device" in reason(args=types.SimpleNamespace(dis_metric="ours", device="meta"))
    assert "args.device" in reason(args=types.SimpleNamespace(dis_metric="ours", device=None))
    on_meta = [g.to("meta") for g in syn]
    assert "GPU" in reason(on_meta, on_meta, types.SimpleNamespace(dis_metric="mse", device="meta"))
    assert "vectors only" in reason(syn[1:2], real[1:2])
    assert "vectors only" in reason([], [])
    assert "a vector" in replacements.why_not_distance(syn[1], real[1])
    assert "plain tensor" in replacements.why_not_distance(syn[0].numpy(), real[0])
    reasons = []
    torch.func.vmap(lambda g: (reasons.append(reason([g], [g])), g.sum())[1])(syn[0][None])
    assert "function transform" in reasons[0]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(syn[0], torch.ones_like(syn[0]))
        assert "forwards" in reason([dual, *syn[1:]])
        assert "forwards" in reason(syn, [dual, *real[1:]])
        assert "forwards" in replacements.why_not_distance(real[0], dual)
        value = stand_in("distance_wb", distance_wb)(dual, real[0])
        assert forward_ad.unpack_dual(value).tangent is not None


def test_what_is_left_alone_is_the_original_itself():
    syn, real = gradients(LAYERS["network"]), gradients(LAYERS["network"], 1)
    function = stand_in("match_loss", match_loss)
    assert function(syn, real, arguments("cos")).equal(match_loss(syn, real, arguments("cos")))
    with pytest.raises(SystemExit, match="unknown distance function: far"):
        function(syn, real, arguments("far"))
    with pytest.raises(RuntimeError, match="device"):
        function(syn, real, types.SimpleNamespace(dis_metric="ours", device="nowhere"))
    assert stand_in("distance_wb", distance_wb)(syn[1], real[1]) == 0


@pytest.mark.data
def test_the_published_code(monkeypatch):
    path = peer_path("vico/utils.py")

    class Anything(types.ModuleType):
        def __getattr__(self, attribute):
            if attribute.startswith("__"):
                raise AttributeError(attribute)
            return object

    for absent in ("torchvision", "torchvision.datasets", "scipy.ndimage.interpolation", "networks"):
        monkeypatch.setitem(sys.modules, absent, Anything(absent))
    spec = importlib.util.spec_from_file_location("published_vico_utils", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    originals = module.match_loss, module.distance_wb
    for name in KNOWN:
        monkeypatch.delitem(records, f"vico.{name}", raising=False)
    with accel.patched("vico.match_loss", "vico.distance_wb", verify=100):
        for seed, shapes in enumerate(LAYERS.values()):
            for metric in ("ours", "mse"):
                module.match_loss(gradients(shapes, seed), gradients(shapes, 9), arguments(metric))
            module.distance_wb(gradients(shapes, seed)[0], gradients(shapes, 9)[0])
        assert record("vico.match_loss").difference < 1e-6
        assert record("vico.distance_wb").difference == 0
    assert (module.match_loss, module.distance_wb) == originals
    assert record("vico.match_loss").verified == 8
    assert record("vico.distance_wb").verified == 4
