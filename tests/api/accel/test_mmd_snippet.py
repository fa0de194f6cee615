"""The copied MMD loss against its definition in float64: values, derivatives, memory, and what is left alone."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kernel_distill.accel import VerificationError
from kernel_distill.accel._call import Settings, accelerated, forget_calls
from kernel_distill.accel._fingerprint import fingerprint_of
from kernel_distill.accel._records import record
from kernel_distill.accel.registry.mmd import TARGETS
from kernel_distill.accel.replacements import mmd as replacements

from .peers import peer_path

KNOWN = {target.name: target for target in TARGETS}


def kernel_of(source, target, kernel_mul=2.0, kernel_num=5, fix_sigma=None):
    """The interface and the mathematics of `guassian_kernel`."""
    rows = torch.cat((source, target))
    squared = (rows[:, None] - rows[None]).square().sum(-1)
    count = len(rows)
    middle = fix_sigma if fix_sigma else squared.detach().sum() / (count * (count - 1))
    narrowest = middle / kernel_mul ** (kernel_num // 2)
    return sum(torch.exp(-squared / (narrowest * kernel_mul**p)) for p in range(kernel_num))


def loss_of(source, target, kernel_mul=2.0, kernel_num=5, fix_sigma=None):
    """The interface and the mathematics of `mmd_rbf_noaccelerate`: of one size, or an error."""
    K, n = kernel_of(source, target, kernel_mul, kernel_num, fix_sigma), len(source)
    return (K[:n, :n] + K[n:, n:] - K[:n, n:] - K[n:, :n]).mean()


def linear_time_loss_of(source, target, kernel_mul=2.0, kernel_num=5, fix_sigma=None):
    """The interface and the mathematics of `mmd_rbf_accelerate`."""
    K, n = kernel_of(source, target, kernel_mul, kernel_num, fix_sigma), len(source)
    total = 0
    for i in range(n):
        j = (i + 1) % n
        total = total + K[i, j] + K[n + i, n + j] - K[i, n + j] - K[j, n + i]
    return total / n


class Loss(nn.Module):
    """The interface of `MMD_loss`, with the branch that some copies have."""

    def __init__(self, kernel_mul=2.0, kernel_num=5, kernel_type="rbf"):
        super().__init__()
        self.kernel_mul, self.kernel_num, self.fix_sigma = kernel_mul, kernel_num, None
        self.kernel_type = kernel_type

    def guassian_kernel(self, source, target, kernel_mul=2.0, kernel_num=5, fix_sigma=None):
        return kernel_of(source, target, kernel_mul, kernel_num, fix_sigma)

    def forward(self, source, target):
        if self.kernel_type == "linear":
            return (source.mean(0) - target.mean(0)).square().sum()
        K = self.guassian_kernel(source, target, self.kernel_mul, self.kernel_num, self.fix_sigma)
        n = len(source)
        return (K[:n, :n] + K[n:, n:] - K[:n, n:] - K[n:, :n]).mean()


ORIGINALS = {
    "mmd.guassian_kernel": kernel_of,
    "mmd.MMD_loss_kernel": Loss.guassian_kernel,
    "mmd.MMDLoss_kernel": Loss.guassian_kernel,
    "mmd.LMMD_loss_kernel": Loss.guassian_kernel,
    "mmd.MMD_loss": Loss.forward,
    "mmd.MMDLoss": Loss.forward,
    "mmd.mmd_rbf_noaccelerate": loss_of,
    "mmd.mmd_rbf": loss_of,
    "mmd.mmd": loss_of,
    "mmd.mmd_rbf_accelerate": linear_time_loss_of,
}
OPTIONS = {
    "usual": {},
    "wide": {"kernel_mul": 4.0, "kernel_num": 3},
    "no_squares": {"kernel_mul": 1.7, "kernel_num": 4},
    "one": {"kernel_mul": 1, "kernel_num": 1},
    "fixed": {"fix_sigma": 300.0},
    "fixed_number": {"fix_sigma": 128, "kernel_num": 2},
    "zero_is_none": {"fix_sigma": 0.0},
}
PATHS = {"direct": {}, "by_mmd2": {"_MEDIUM": 0}, "many_rows": {"_MOST_ROWS": 4}}


def stand_in(name):
    """What takes the place of our originals, whose source the registry does not know."""
    original = ORIGINALS[name]
    target = dataclasses.replace(KNOWN[name], hashes=(fingerprint_of(original),), requires={})
    return accelerated(target, original)


def samples(n=24, m=24, d=128, dtype=torch.float32, shift=0.5, offset=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(rows, d, generator=generator, dtype=torch.float64) for rows in (n, m))
    return (x + offset).to(dtype), (1.5 * y + shift + offset).to(dtype)


def value_and_gradients(function, *tensors, **options):
    leaves = [t.clone().requires_grad_() for t in tensors]
    value = function(*leaves, **options)
    weights = (
        torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape) if value.ndim else 1.0
    )
    gradients = torch.autograd.grad((weights * value).sum(), leaves)
    return value.detach(), gradients


@pytest.fixture
def small_allowed(monkeypatch):
    monkeypatch.setattr(replacements, "_SMALL", 0)


@pytest.fixture
def path(request, monkeypatch):
    for name, value in PATHS[request.param].items():
        monkeypatch.setattr(replacements, name, value)


@pytest.fixture
def verified(monkeypatch):
    forget_all()
    monkeypatch.setattr(Settings, "verify", 100)
    yield
    forget_all()


def forget_all():
    for name in KNOWN:
        forget_calls(name)


@pytest.mark.parametrize("path", PATHS, indirect=True)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    "name", ["mmd.guassian_kernel", "mmd.mmd_rbf_noaccelerate", "mmd.mmd_rbf_accelerate"]
)
def test_value_and_gradient_are_those_of_the_definition(name, options, path, small_allowed):
    x, y = samples()
    exact, of_exact = value_and_gradients(ORIGINALS[name], x.double(), y.double(), **options)
    single, of_single = value_and_gradients(ORIGINALS[name], x, y, **options)
    value, gradients = value_and_gradients(KNOWN[name].load("replacement"), x, y, **options)
    assert KNOWN[name].load("guard")(x, y, **options) is None
    assert value.dtype == single.dtype == torch.float32
    assert value.shape == single.shape
    kernels = options.get("kernel_num", 5)
    assert (value - exact).abs().max() < 1e-6 * kernels
    for ours, theirs, wanted in zip(gradients, of_single, of_exact, strict=True):
        scale = wanted.abs().max()
        assert ours.dtype == torch.float32
        assert (ours - wanted).abs().max() < 2e-5 * scale
        assert (theirs - wanted).abs().max() < 2e-5 * scale  # the original itself is no nearer


@pytest.mark.parametrize("path", PATHS, indirect=True)
@pytest.mark.parametrize(
    "name", ["mmd.guassian_kernel", "mmd.mmd_rbf_noaccelerate", "mmd.mmd_rbf_accelerate"]
)
def test_float64_is_exact_to_its_own_rounding(name, path, small_allowed):
    x, y = samples(9, 9, 5, dtype=torch.float64, offset=100.0)
    wanted, of_wanted = value_and_gradients(ORIGINALS[name], x, y)
    value, gradients = value_and_gradients(KNOWN[name].load("replacement"), x, y)
    torch.testing.assert_close(value, wanted, rtol=0, atol=1e-11)
    for ours, expected in zip(gradients, of_wanted, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("path", PATHS, indirect=True)
@pytest.mark.parametrize("name", ["mmd.guassian_kernel", "mmd.mmd", "mmd.mmd_rbf_accelerate"])
def test_second_derivatives(name, path, small_allowed):
    x, y = samples(4, 4, 3, dtype=torch.float64)

    def curvature(function):
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        (first,) = torch.autograd.grad(function(a, b).square().sum(), a, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [a, b])

    for ours, wanted in zip(
        curvature(KNOWN[name].load("replacement")), curvature(ORIGINALS[name]), strict=True
    ):
        torch.testing.assert_close(ours, wanted, rtol=1e-8, atol=1e-10)


def near_duplicates(n=48, d=128, apart=0.0, by=1e-3, seed=3):
    """Two samples of n rows: in each, half of the rows far from the others by `apart`, all in pairs `by` apart."""
    x, y = samples(n // 2, n // 2, d, shift=0.0, seed=seed)
    x[::2] += apart / d**0.5
    y[::2] += apart / d**0.5
    return tuple(torch.cat([t, t + by * t.roll(1, 0)]) for t in (x, y))


def clusters(n=50, d=64, apart=100.0, by=1e-3):
    """Two samples in the same two places."""
    middle = torch.zeros(2 * n, d)
    middle[::2] = apart / d**0.5
    noise = by * samples(2 * n, 2 * n, d)[0], by * samples(2 * n, 2 * n, d)[1]
    return middle + noise[0], middle + noise[1]


def two_far_rows(n=200, d=32):
    x, y = samples(n, n, d, shift=0.0)
    x[0] = x[1] = 60.0
    x[1] += 1e-2
    return x, y


AWKWARD = {
    "one_column": samples(300, 300, 1),
    "one_row_each": samples(1, 1, 70_000),
    "far_apart": samples(shift=1000.0),
    "far_from_zero": samples(offset=1000.0),
    "very_far_from_zero": samples(48, 48, offset=3e6),
    "alike": samples(shift=0.0),
    "tiny": tuple(1e-8 * t for t in samples()),
    "equal": (samples()[0], samples()[0]),
    "pairs_of_equal_rows": tuple(torch.cat([t, t]) for t in samples()),
    "an_outlier": (torch.cat([samples()[0], torch.full((1, 128), 300.0)]), samples(m=25)[1]),
    "near_duplicates": near_duplicates(),
    "clusters_of_near_duplicates": clusters(),
    "two_far_rows": two_far_rows(),
    "columns_of_a_larger_matrix": (samples(d=256)[0][:, ::2], samples(d=256)[1][:, ::2]),
}


# By the kernels, of which each entry counts: some row is much farther than others.
LEFT_ALONE = {"an_outlier", "two_far_rows", "one_column"}


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("case", AWKWARD)
def test_awkward_samples_verify(name, case, small_allowed, verified):
    x, y = AWKWARD[case]
    before = record(name).accelerated
    function = stand_in(name)
    arguments = (Loss(),) if "self" in function.__wrapped__.__code__.co_varnames[:1] else ()
    result = function(*arguments, x, y)  # raises where the original is further away than the tolerance
    is_kernel = ORIGINALS[name] in (kernel_of, Loss.guassian_kernel)
    assert record(name).accelerated == before + (not (is_kernel and case in LEFT_ALONE))
    assert result.dtype == torch.float32
    assert not result.requires_grad


NARROW = {
    "fixed_small": (clusters(), {"fix_sigma": 1e-2}),
    "fixed_one": (clusters(), {"fix_sigma": 1}),
    "ten_to_the_fifth": (near_duplicates(by=1e-4), {"kernel_mul": 10.0, "kernel_num": 11}),
    "two_to_the_eighth": (near_duplicates(by=1e-4), {"kernel_mul": 4.0, "kernel_num": 9}),
    "far_rows": (two_far_rows(), {"fix_sigma": 10.0}),
}


@pytest.mark.parametrize("case", NARROW)
@pytest.mark.parametrize("name", ["mmd.guassian_kernel", "mmd.mmd", "mmd.mmd_rbf_accelerate"])
def test_narrow_bandwidths_lose_nothing(name, case, small_allowed, verified):
    (x, y), options = NARROW[case]
    result = stand_in(name)(x, y, **options)
    wanted = ORIGINALS[name](x.double(), y.double(), **options)
    assert (result - wanted).abs().max() < 1e-5 * options.get("kernel_num", 5)
    declined = KNOWN[name].load("guard")(x, y, **options)
    assert (declined is None) == (name == "mmd.mmd_rbf_accelerate")  # which forms distances from differences


@pytest.mark.parametrize("options", [{}, {"fix_sigma": 300.0}])
@pytest.mark.parametrize("name", ["mmd.guassian_kernel", "mmd.mmd", "mmd.mmd_rbf_accelerate"])
def test_rows_that_are_not_finite_are_left_alone(name, options):
    for number in (float("nan"), float("inf"), 1e30):
        x, y = samples(60, 60)
        x[3, 5] = number
        assert "not finite" in KNOWN[name].load("guard")(x, y, **options)
    x, y = samples(60, 60)
    x[3, 5] = float("nan")
    K = stand_in("mmd.guassian_kernel")(x, y, fix_sigma=300.0)
    assert int(K.isnan().sum()) == 2 * 120 - 1


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_usual_rows_are_accelerated(scale):
    """Normal rows, positive features of two classes, and rows of unit length with a fixed bandwidth."""
    for shape in ((400, 64), (400, 2048)):
        x, y = samples(shape[0], shape[0], shape[1])
        unit = x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)
        for guard in (replacements.unfit, replacements.unfit_loss):
            assert guard(scale * x, scale * y) is None
            assert guard(scale * x.relu(), scale * y.relu()) is None
            assert guard(*unit, fix_sigma=1.0) is None


def test_a_kernel_of_two_sizes(small_allowed, verified):
    x, y = samples(30, 11)
    K = stand_in("mmd.guassian_kernel")(x, y)
    assert K.shape == (41, 41)
    assert torch.equal(K, K.T)
    assert torch.equal(K.diagonal(), torch.full((41,), 5.0))


def test_a_wrong_answer_does_not_verify(small_allowed, verified, monkeypatch):
    monkeypatch.setattr(replacements, "_mean_distance", lambda x, y: torch.tensor(400.0))
    with pytest.raises(VerificationError, match=r"mmd\.mmd: "):
        stand_in("mmd.mmd")(*samples())


def test_the_bandwidth_is_a_constant_and_the_numbers_are_those_of_the_object(small_allowed):
    x, y = samples()
    loss, forward = Loss(kernel_mul=3.0, kernel_num=2), stand_in("mmd.MMD_loss")
    loss.fix_sigma = 500
    torch.testing.assert_close(forward(loss, x, y), loss(x, y), rtol=0, atol=1e-5)
    y.requires_grad_()
    assert torch.autograd.grad(forward(loss, x, y), y)[0].abs().max() > 0  # one of the two will do


def left_alone(x, y, *, loss=False, **options):
    return (replacements.unfit_loss if loss else replacements.unfit)(x, y, **options)


def test_guards_name_their_reasons():
    x, y = samples(60, 60)
    assert left_alone(x, y) is None
    assert "plain tensor" in left_alone(x.numpy(), y)
    assert "matrices" in left_alone(x[None], y[None])
    assert "matrices" in left_alone(x, y[:, 1:])
    assert "neither" in left_alone(x.half(), y.half())
    assert "differ in dtype" in left_alone(x, y.double())
    assert "no rows" in left_alone(x, y[:0])
    assert "plain number" in left_alone(x, y, kernel_num=5.0)
    assert "plain number" in left_alone(x, y, kernel_mul=torch.tensor(2.0))
    assert "plain number" in left_alone(x, y, fix_sigma=torch.tensor(2.0))
    assert "too small or large" in left_alone(x, y, fix_sigma=-1.0)
    assert "bandwidths" in left_alone(x, y, kernel_mul=0.5)
    assert "bandwidths" in left_alone(x, y, kernel_num=100)
    assert "no longer" in left_alone(x[:8], y[:8])
    assert "equal" in left_alone(torch.ones_like(x), torch.ones_like(y))
    assert "not finite" in left_alone(x / 0, y)
    assert "numbers of rows" in left_alone(x, y[:50], loss=True)
    assert left_alone(x, y[:50]) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "autocast" in left_alone(x, y)
    torch.set_float32_matmul_precision("medium")
    try:
        assert "precision of float32" in left_alone(x, y)
    finally:
        torch.set_float32_matmul_precision("highest")
    reasons = []
    torch.func.vmap(lambda a: (reasons.append(left_alone(a, y)), a.sum())[1])(x[None])
    assert reasons == ["source or target is no plain tensor"]


def test_what_is_left_alone_is_the_original_itself():
    x, y = samples(60, 50)
    before = dict(record("mmd.mmd").declined)
    with pytest.raises(RuntimeError, match="must match the size"):
        stand_in("mmd.mmd")(x, y)
    reason = "source and target have different numbers of rows"
    assert record("mmd.mmd").declined[reason] == before.get(reason, 0) + 1
    assert stand_in("mmd.guassian_kernel")(x[:2, :3], y[:2, :3]).equal(kernel_of(x[:2, :3], y[:2, :3]))


def test_other_losses_of_the_class_are_left_alone(small_allowed):
    class OtherKernel(Loss):
        def guassian_kernel(self, source, target, kernel_mul=2.0, kernel_num=5, fix_sigma=None):
            return 2 * super().guassian_kernel(source, target, kernel_mul, kernel_num, fix_sigma)

    class OtherName(Loss):
        pass

    x, y = samples()
    forward, guard = stand_in("mmd.MMD_loss"), replacements.unfit_loss_method
    assert guard(Loss(), x, y) is guard(OtherName(), x, y) is None
    assert "subclass" in guard(OtherKernel(), x, y)
    assert forward(OtherKernel(), x, y).equal(OtherKernel()(x, y))
    assert "type rbf" in guard(Loss(kernel_type="linear"), x, y)
    assert forward(Loss(kernel_type="linear"), x, y).equal(Loss(kernel_type="linear")(x, y))


def test_no_random_numbers_are_drawn(small_allowed):
    state = torch.get_rng_state()
    for name in ("mmd.guassian_kernel", "mmd.mmd", "mmd.mmd_rbf_accelerate"):
        stand_in(name)(*samples())
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_is_not_that_of_the_differences():
    """Of 400 + 400 rows of 2,048 numbers: 5 GB for each array of differences, and two are kept."""
    code = """
import json, re, torch
from kernel_distill.accel.replacements import mmd
def peak():  # of this program; ru_maxrss would begin with that of the process that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**10
def run(n, d):
    x, y = (torch.randn(n, d, requires_grad=True) for _ in range(2))
    assert mmd.unfit(x, y) is None
    for function in (mmd.mmd, mmd.guassian_kernel):
        function(x, y).sum().backward()
run(40, 256)  # loads what it needs
before = peak()
run(400, 2048)
print(json.dumps(peak() - before))
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc, which this system has not")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    used, rows, differences = json.loads(done.stdout), 2 * 400 * 2048 / 2**18, 800**2 * 2048 / 2**18
    assert rows < used < 2 * differences / 50
    assert used < 150  # it is some 100, of which the matrices of the kernel and its graph are half


COPIES = {
    "deep-transfer-learning/UDA/pytorch1.0/DAN/mmd.py": (
        "mmd.guassian_kernel",
        "mmd.mmd_rbf_noaccelerate",
        "mmd.mmd_rbf_accelerate",
    ),
    "deep-transfer-learning/UDA/pytorch1.0/DSAN/lmmd.py": ("mmd.LMMD_loss_kernel",),
    "transferlearning/code/DeepDA/loss_funcs/mmd.py": ("mmd.MMDLoss", "mmd.MMDLoss_kernel"),
}


@pytest.mark.data
@pytest.mark.parametrize("place", COPIES)
def test_published_copies_are_known_and_verify(place, verified):
    path = peer_path(place)
    spec = importlib.util.spec_from_file_location("copied_mmd", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x, y = samples(64, 64, 256)
    for name in COPIES[place]:
        target = KNOWN[name]
        holder, _, attribute = target.qualname.rpartition(".")
        original = getattr(getattr(module, holder) if holder else module, attribute)
        assert fingerprint_of(original) in target.hashes
        for needed, hashes in target.requires.items():
            holder, _, attribute = needed.rpartition(".")
            assert fingerprint_of(getattr(getattr(module, holder) if holder else module, attribute)) in hashes
        loss = module.MMDLoss() if name.startswith("mmd.MMDLoss") else None
        options = () if target.replacement in ("mmd:mmd_method", "mmd:mmd") else (2.0, 5, None)
        arguments = (loss, x, y) if "method" in target.replacement else (x, y)
        accelerated(target, original)(*arguments, *options)
        assert record(name).accelerated
