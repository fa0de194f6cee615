"""Fully connected arc-cosine kernels: published closed forms, another library, finite networks, laws, derivatives."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, vmap

from kernel_distill.kernels.arc_cosine import (
    arc_cosine_diagonal,
    arc_cosine_kernel,
    fully_connected_tile,
)

from .peak import PeakMemory
from .places import SIZES

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["cpu"]
KINDS = ("nngp", "ntk")
EPS = 2.3e-16
# torch warns about itself when forward mode is first used.
forward_mode = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


def rows(n, d, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)))


def waves(n, d, phase):
    """Numbers that any library can make again."""
    i = np.arange(n * d)
    return torch.from_numpy(np.sin(1.0 + phase + 1.7 * i + 0.01 * i * i).reshape(n, d))


def recursion(X, Y, depth, kind, w2, b2, leak):
    """The definition with arccosines, as the papers print it."""
    first = lambda A, B: w2 * (A[:, None] * B[None]).sum(-1) / A.shape[1] + b2  # noqa: E731
    c, t = first(X, Y), first(X, Y)
    vx, vy = (first(A, A).diagonal() for A in (X, Y))
    for _ in range(depth):
        p = np.sqrt(np.outer(vx, vy))
        angle = np.arccos(np.clip(c / p, -1, 1))
        slope = (1 + leak**2) / 2 - (1 - leak) ** 2 / (2 * np.pi) * angle
        c, t = w2 * ((1 - leak) ** 2 / (2 * np.pi) * p * np.sin(angle) + slope * c) + b2, t * w2 * slope
        t = t + c
        vx, vy = (w2 * (1 + leak**2) / 2 * v + b2 for v in (vx, vy))
    return t if kind == "ntk" else c


# neural-tangents 0.6.5 on jax 0.4.30 in float64: stax.serial of depth x [Dense(W_std=2**.5), LeakyRelu] and Dense.
NEURAL_TANGENTS = [
    (
        *(1, 0.0, 0.1),
        [0.7493305173237296, 0.0266563433392884, 0.9049782016596603],
        [1.221700991518655, -0.13167853861730583, 1.6182456884186132],
    ),
    (
        *(2, 0.0, 0.1),
        [0.814871774536315, 0.3731734513639397, 0.9319408341055662],
        [1.7242951525319121, 0.3063172071991282, 2.2728139656736337],
    ),
    (
        *(3, 0.2, 0.1),
        [0.9101196476453501, 0.252816405210945, 1.0529827701360248],
        [2.6457693912802718, -0.1412023330298554, 3.4802138230323036],
    ),
    (
        *(4, 0.0, 0.0),
        [0.8606223117551598, 0.6551610412458929, 0.9283882111926184],
        [2.517391323832639, 1.125947995786625, 3.275960835131168],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("depth", "leak", "bias", "nngp", "ntk"), NEURAL_TANGENTS)
def test_values_of_neural_tangents(device, depth, leak, bias, nngp, ntk):
    X, Y = waves(2, 5, 0).to(device), waves(3, 5, 1).to(device)
    for kind, wanted in (("nngp", nngp), ("ntk", ntk)):
        found = arc_cosine_kernel(X, Y, depth=depth, kind=kind, bias_std=bias, leak=leak)[0]
        np.testing.assert_allclose(found.cpu().numpy(), wanted, rtol=0, atol=1e-13)


def test_kernels_of_cho_and_saul():
    """Equations 4 to 6 of Cho & Saul 2009, on points at known angles: k0 = 1 - θ/π, k1 = |x||y| J1(θ)/π."""
    angle = torch.linspace(0, math.pi, 50, dtype=torch.float64)
    X, Y = torch.tensor([[3.0, 0.0]], dtype=torch.float64), 2 * torch.stack([angle.cos(), angle.sin()], 1)
    # Without bias, with weight variance 2: NNGP = 2 E[φφ] = k1 / d, and NTK = NNGP + k0 x·y / d.
    setting = {"bias_std": 0.0, "weight_std": math.sqrt(2)}
    k1 = 6 / math.pi * (angle.sin() + (math.pi - angle) * angle.cos()) * 2 / 2
    k0 = 1 - angle / math.pi
    nngp = arc_cosine_kernel(X, Y, kind="nngp", **setting)[0]
    ntk = arc_cosine_kernel(X, Y, kind="ntk", **setting)[0]
    torch.testing.assert_close(nngp, k1, rtol=0, atol=20 * EPS * 6)
    torch.testing.assert_close(ntk, k1 + k0 * 6 * angle.cos(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n", "m"), list(itertools.pairwise(SIZES)))
@pytest.mark.parametrize("budget", [None, 200_000])
def test_sizes_against_the_definition(device, n, m, budget):
    X, Y = rows(n, 33), rows(m, 33, seed=1)
    for kind, depth, leak in (("ntk", 1, 0.0), ("nngp", 3, 0.1), ("ntk", 3, -0.3)):
        found = arc_cosine_kernel(
            X.to(device), Y.to(device), depth=depth, kind=kind, leak=leak, memory_budget=budget
        )
        wanted = recursion(X.numpy(), Y.numpy(), depth, kind, 2.0, 0.01, leak)
        # Random points in 33 dimensions are far from parallel: rounding grows by small factors alone.
        np.testing.assert_allclose(found.cpu().numpy(), wanted, rtol=0, atol=200 * EPS * np.abs(wanted).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [None, 30_000])
@pytest.mark.parametrize("n", SIZES)
def test_against_itself(kind, budget, n):
    X = rows(n, 7)
    X[n // 2] = X[0]  # duplicates are parallel off the diagonal too
    K = arc_cosine_kernel(X, depth=3, kind=kind, memory_budget=budget)
    assert torch.equal(K, K.T)
    diagonal = arc_cosine_diagonal(X, depth=3, kind=kind)
    assert torch.equal(K.diagonal(), diagonal)
    wanted = recursion(X.numpy(), X.numpy(), 3, kind, 2.0, 0.01, 0.0)
    assert torch.allclose(K, torch.from_numpy(wanted), rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(diagonal.numpy(), np.diag(wanted), rtol=1e-7)
    np.testing.assert_allclose(K[0, n // 2].item(), K[0, 0].item(), rtol=20 * EPS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_activation_gives_the_linear_kernel(kind):
    X, Y = rows(6, 5), rows(4, 5, seed=1)
    linear = arc_cosine_kernel(X, Y, depth=0, kind=kind)
    np.testing.assert_allclose(linear, 2 * (X @ Y.T) / 5 + 0.01, rtol=1e-14)
    # Σ' = 2Σ + .01 twice; the NTK of a deep linear network is Σ(L) + 2 Θ(L-1).
    second = 2 * linear + 0.01
    third = 2 * second + 0.01
    wanted = third if kind == "nngp" else third + 2 * (second + 2 * linear)
    torch.testing.assert_close(arc_cosine_kernel(X, Y, depth=2, kind=kind, leak=1.0), wanted)


def test_finite_networks_have_this_covariance_and_tangent_kernel():
    """Means over independent random networks, within five of their standard errors."""
    leak = 0.3
    n, d, width, networks = 4, 3, 128, 300
    X = rows(n, d)
    generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(d, width),
        torch.nn.LeakyReLU(leak),
        torch.nn.Linear(width, width),
        torch.nn.LeakyReLU(leak),
        torch.nn.Linear(width, 1),
    ).double()
    fan_in = {name: p.shape[1] for name, p in net.named_parameters() if p.ndim == 2}

    def output(parameters, x):
        scaled = {
            name: p * (1.5 / math.sqrt(fan_in[name]) if name in fan_in else 0.4)
            for name, p in parameters.items()
        }
        return functional_call(net, scaled, (x,))[:, 0]

    values, tangents = [], []
    for _ in range(networks):
        parameters = {
            name: torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for name, p in net.named_parameters()
        }
        values.append(output(parameters, X))
        if len(tangents) < networks // 3:
            jacobian = torch.cat([j.flatten(1) for j in jacrev(output)(parameters, X).values()], 1)
            tangents.append(jacobian @ jacobian.T)
    for kind, samples in (
        ("nngp", torch.stack([f[:, None] * f for f in values])),
        ("ntk", torch.stack(tangents)),
    ):
        wanted = arc_cosine_kernel(X, depth=2, kind=kind, weight_std=1.5, bias_std=0.4, leak=leak)
        error = samples.std(0) / math.sqrt(len(samples))
        assert (error < 0.2 * wanted.diagonal().max()).all()  # or the test says nothing
        # A finite width moves the means by the order of wanted / width.
        assert ((samples.mean(0) - wanted).abs() <= 5 * error + 2 * wanted.abs() / width).all()


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    depth=st.integers(1, 5),
    leak=st.sampled_from([0.0, 0.2, -0.5]),
    a=st.floats(1e-3, 1e3),
    b=st.floats(1e-3, 1e3),
    seed=st.integers(0, 100),
)
def test_laws(kind, depth, leak, a, b, seed):
    X, Y = rows(9, 4, seed), rows(5, 4, seed + 1)
    setting = {"depth": depth, "kind": kind, "leak": leak}

    def close(found, wanted, size):
        assert ((found - wanted).abs() <= 1e-12 * depth * size).all()

    plain = arc_cosine_kernel(X, Y, bias_std=0.0, **setting)
    size = arc_cosine_diagonal(X, bias_std=0.0, **setting).max() * 4
    close(arc_cosine_kernel(a * X, b * Y, bias_std=0.0, **setting), a * b * plain, a * b * size)

    rotation = torch.linalg.qr(rows(4, 4, seed + 2))[0]
    biased = arc_cosine_kernel(X, Y, **setting)
    close(arc_cosine_kernel(X @ rotation, Y @ rotation, **setting), biased, size + 1)
    close(arc_cosine_kernel(Y, X, **setting), biased.T, size + 1)

    nngp, ntk = (arc_cosine_kernel(X, **{**setting, "kind": k}) for k in KINDS)
    for matrix in (nngp, ntk, ntk - nngp):
        assert torch.linalg.eigvalsh(matrix)[0] >= -100 * EPS * torch.trace(ntk)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leak", [0.0, 0.4])
def test_one_more_layer(kind, leak):
    """A network of depth 3 is one of depth 2 whose covariances go through the formula once more."""
    X = rows(6, 4)
    nngp, ntk, deeper = (
        arc_cosine_kernel(X, depth=depth, kind=k, leak=leak).numpy()
        for depth, k in ((2, "nngp"), (2, "ntk"), (3, kind))
    )
    p = np.sqrt(np.outer(np.diag(nngp), np.diag(nngp)))
    angle = np.arccos(np.clip(nngp / p, -1, 1))
    slope = (1 + leak**2) / 2 - (1 - leak) ** 2 / (2 * np.pi) * angle
    wanted = 2 * ((1 - leak) ** 2 / (2 * np.pi) * p * np.sin(angle) + slope * nngp) + 0.01
    if kind == "ntk":
        wanted = wanted + 2 * slope * ntk
    np.testing.assert_allclose(deeper, wanted, rtol=1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("precision", "allowed"), [("high", 1e-7), ("medium", 5e-4), ("low", 5e-4)])
def test_accuracy_of_float32_at_any_angle(device, precision, allowed):
    """The worst angles are small ones, where the NTK has its kink."""
    angle = torch.cat([torch.logspace(-9, 0.4, 400), torch.zeros(1)]).double()
    basis = torch.linalg.qr(rows(65, 2))[0].T
    X = 3 * basis[:1].float()
    Y = (angle.cos()[:, None] * basis[0] + angle.sin()[:, None] * basis[1]).float()
    for depth in (1, 4):
        for kind in KINDS:
            setting = {"depth": depth, "kind": kind}
            exact = arc_cosine_kernel(X.double(), Y.double(), **setting)
            found = arc_cosine_kernel(X.to(device), Y.to(device), precision=precision, **setting).cpu()
            assert found.dtype == torch.float32
            error = (found - exact).abs().max() / exact.abs().max()
            assert error <= (allowed if kind == "ntk" else min(allowed, 3e-6))


def test_accuracy_of_float64_at_small_angles():
    angle = torch.logspace(-12, -3, 300, dtype=torch.float64)
    X, Y = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.stack([angle.cos(), angle.sin()], 1)
    nngp = (angle.sin() + (math.pi - angle) * angle.cos()) / math.pi
    ntk = nngp + (1 - angle / math.pi) * angle.cos()
    for kind, wanted, allowed in (("nngp", nngp, 10 * EPS), ("ntk", ntk, 2e-8)):
        found = arc_cosine_kernel(X, Y, kind=kind, bias_std=0.0)[0]
        assert ((found - wanted).abs() <= allowed).all()


def problem(symmetric):
    """A function of everything differentiable, and a point to differentiate it at."""
    stds = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (1.3, 0.4)]
    X, Y = rows(3, 2).requires_grad_(), rows(2, 2, seed=1).requires_grad_()

    def function(kind, depth, budget):
        def kernel(X, w, b, *Y):
            return arc_cosine_kernel(
                X, *Y, depth=depth, kind=kind, weight_std=w, bias_std=b, leak=0.1, memory_budget=budget
            )

        return kernel

    return function, ((X, *stds) if symmetric else (X, *stds, Y))


@forward_mode
@pytest.mark.parametrize("symmetric", [True, False], ids=["itself", "pair"])
@pytest.mark.parametrize(
    ("kind", "depth", "budget"), [("nngp", 1, 1_000), ("nngp", 2, None), ("ntk", 0, 1_000), ("ntk", 1, 1_000)]
)
def test_derivatives_against_finite_differences(symmetric, kind, depth, budget):
    function, point = problem(symmetric)
    kernel = function(kind, depth, budget)
    assert torch.autograd.gradcheck(kernel, point, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(kernel, point, fast_mode=True)


def test_derivatives_of_the_diagonal():
    _, (X, w, b) = problem(True)
    for kind in KINDS:

        def diagonal(X, w, b, kind=kind):
            return arc_cosine_diagonal(X, depth=2, kind=kind, weight_std=w, bias_std=b, memory_budget=3_000)

        assert torch.autograd.gradcheck(diagonal, (X, w, b))
        assert torch.autograd.gradgradcheck(diagonal, (X, w, b))


@forward_mode
@pytest.mark.parametrize("symmetric", [True, False], ids=["itself", "pair"])
def test_transforms_compose(symmetric):
    function, point = problem(symmetric)
    kernel = function("ntk", 1, 3_000)
    many = [torch.stack([p.detach() * (1 + 0.1 * k) for k in range(3)]) for p in point]
    each = list(zip(*many, strict=True))
    torch.testing.assert_close(vmap(kernel)(*many), torch.stack([kernel(*one) for one in each]))
    only_one = vmap(kernel, in_dims=(0,) + (None,) * (len(many) - 1))(many[0], *each[0][1:])
    torch.testing.assert_close(only_one, torch.stack([kernel(x, *each[0][1:]) for x in many[0]]))

    def loss(*arguments):
        return kernel(*arguments).square().sum()

    torch.testing.assert_close(vmap(grad(loss))(*many), torch.stack([grad(loss)(*one) for one in each]))
    torch.testing.assert_close(jacfwd(kernel)(*each[0]), jacrev(kernel)(*each[0]))
    torch.testing.assert_close(hessian(loss)(*each[0]), jacrev(jacrev(loss))(*each[0]))


@forward_mode
def test_the_tile_is_plain_torch():
    """What other operations build on: derivatives of every kind without the machinery of the matrix."""
    _, (X, w, b, Y) = problem(False)

    def tile(x, y, w, b):
        return fully_connected_tile(x, y, w, b, depth=2, kind="ntk", leak=0.1)

    wanted = arc_cosine_kernel(X, Y, depth=2, weight_std=w, bias_std=b, leak=0.1)
    torch.testing.assert_close(tile(X, Y, w, b), wanted)
    assert torch.autograd.gradcheck(tile, (X, Y, w, b), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(tile, (X, Y, w, b))
    batch = torch.stack([X.detach(), 2 * X.detach()])
    torch.testing.assert_close(
        vmap(tile, (0, None, None, None))(batch, Y, w, b)[1], tile(2 * X, Y, w, b), rtol=1e-12, atol=0
    )


SPECIAL = {
    "coincident": lambda x: (x, x),
    "nearly coincident": lambda x: (x, x + 1e-12),
    "parallel": lambda x: (x, 3 * x),
    "antiparallel": lambda x: (x, -x),
    "one zero": lambda x: (0 * x, x),
    "both zero": lambda x: (0 * x, 0 * x),
}


@pytest.mark.parametrize("points", SPECIAL.values(), ids=SPECIAL.keys())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [0.0, 0.1])
@pytest.mark.parametrize("depth", [1, 3])
def test_derivatives_are_finite_everywhere(points, kind, bias, depth):
    def kernel(x, y):
        return arc_cosine_kernel(x[None], y[None], depth=depth, kind=kind, bias_std=bias)[0, 0]

    x, y = points(rows(1, 6)[0])
    first = torch.stack(grad(kernel, (0, 1))(x, y))
    second = torch.stack([torch.stack(row) for row in hessian(kernel, (0, 1))(x, y)])
    # Measured below 40 here; a quotient by a vanishing sine would be 1e8.
    assert first.abs().max() < 100
    assert second.abs().max() < 100


@pytest.mark.parametrize("depth", [1, 2])
def test_the_second_derivative_of_the_nngp_is_continuous_at_coincidence(depth):
    """Differentiating the printed formula loses 1e-16 / θ³: all digits at θ = 1e-6."""
    x = rows(1, 4)[0]
    there = x + 1e-6 * rows(1, 4, seed=1)[0]

    def kernel(x, y):
        return arc_cosine_kernel(x[None], y[None], depth=depth, kind="nngp")[0, 0]

    for first, second in zip(hessian(kernel, (0, 1))(x, x), hessian(kernel, (0, 1))(x, there), strict=True):
        for a, b in zip(first, second, strict=True):
            # The third derivative is of the order of one.
            assert (a - b).abs().max() < 1e-5


def test_gradients_at_kinks_are_means_over_directions():
    x, step = rows(1, 3)[0], 1e-4
    directions = torch.cat([rows(500, 3, seed=1), -rows(500, 3, seed=1)])
    directions = step * directions / directions.norm(dim=1, keepdim=True)
    for point, bias in ((x, 0.1), (0 * x, 0.0)):

        def kernel(p, bias=bias):
            return arc_cosine_kernel(p, x[None], bias_std=bias)[:, 0]

        gradient = grad(lambda p, kernel=kernel: kernel(p[None])[0])(point)
        central = (kernel(point + directions) - kernel(point - directions)) / 2
        assert (central - directions @ gradient).abs().max() <= 20 * step**2
        assert (kernel(point + directions) - kernel(point[None])).abs().max() > 0.1 * step


@pytest.mark.parametrize("symmetric", [True, False], ids=["itself", "pair"])
@pytest.mark.parametrize("shape", [(400, 300, 5), (300, 10, 200), (3, 2000, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_temporaries_stay_within_their_budget(symmetric, shape, dtype):
    n, m, d = shape
    X = rows(n, d).to(dtype).requires_grad_()
    Y = X if symmetric else rows(m, d, seed=1).to(dtype).requires_grad_()
    budget = 2**20
    for depth, kind in ((1, "ntk"), (3, "ntk"), (2, "nngp")):

        def matrix(depth=depth, kind=kind):
            return arc_cosine_kernel(
                X, None if symmetric else Y, depth=depth, kind=kind, memory_budget=budget
            )

        with torch.no_grad(), PeakMemory() as value:
            K = matrix()
        result = K.nbytes + 8 * n
        assert result < value.peak <= result + budget
        K = matrix()
        cotangent = torch.ones_like(K)
        with PeakMemory() as derivative:
            torch.autograd.grad(K, {X, Y}, cotangent)
        # Gradients are summed in float64 before they are rounded.
        results = 2 * 8 * d * (n + m) + X.nbytes + Y.nbytes
        assert derivative.peak <= results + budget


@pytest.mark.parametrize("symmetric", [True, False], ids=["itself", "pair"])
def test_no_rows(symmetric):
    X, Y = torch.ones(0, 3, requires_grad=True), None if symmetric else torch.ones(4, 3)
    K = arc_cosine_kernel(X, Y)
    assert K.shape == ((0, 0) if symmetric else (0, 4))
    (gradient,) = torch.autograd.grad(K.sum(), X)
    assert gradient.shape == (0, 3)


@pytest.mark.parametrize(
    ("given", "precision", "result"),
    [
        (np.float32, "high", torch.float32),
        (np.float32, "exact", torch.float64),
        (np.float64, "medium", torch.float64),
        (np.float16, "high", torch.float32),
        (np.uint8, "high", torch.float32),
    ],
)
def test_dtypes(given, precision, result):
    X = np.arange(12).reshape(4, 3).astype(given)
    found = arc_cosine_kernel(X, precision=precision)
    assert found.dtype == result
    wanted = arc_cosine_kernel(X.astype(np.float64))
    np.testing.assert_allclose(found, wanted, rtol=1.2e-7 if result == torch.float32 else 0)


def test_nan_is_passed_on():
    X = rows(3, 2)
    X[1, 0] = torch.nan
    for kind in KINDS:
        K = arc_cosine_kernel(X, kind=kind)
        assert torch.equal(K.isnan(), torch.tensor([[0, 1, 0], [1, 1, 1], [0, 1, 0]]).bool())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": -1}, "`depth` must be a whole number of layers"),
        ({"depth": 1.5}, "`depth` must be a whole number of layers"),
        ({"kind": "rbf"}, "`kind` must be one of 'nngp', 'ntk'"),
        ({"leak": math.nan}, "`leak` must be a finite number"),
        ({"weight_std": -1.0}, "`weight_std` must be finite and not negative"),
        ({"bias_std": math.inf}, "`bias_std` must be finite and not negative"),
        ({"bias_std": torch.ones(2)}, r"`bias_std` must be a number or a 0-d"),
        ({"precision": "tf32"}, "`precision` must be one of"),
        ({"memory_budget": 100}, "`memory_budget` is 100 bytes, but one entry of this matrix takes"),
        ({"Y": torch.ones(2, 4)}, r"must have as many columns, got \(3, 5\) and \(2, 4\)"),
        ({"Y": torch.ones(2, 5).double()}, "cast one of them"),
        ({"X": torch.ones(5)}, "must be a matrix with samples as rows"),
        ({"X": torch.ones(5, 0)}, "`X` has no columns"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        arc_cosine_kernel(**{"X": torch.ones(3, 5), **change})
