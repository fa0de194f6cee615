"""Convolutional arc-cosine kernels: the recursion over all pairs of pixels, another library, finite networks, laws."""

import math

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, jacfwd, jacrev, vmap

from kernel_distill.kernels.arc_cosine import arc_cosine_kernel
from kernel_distill.kernels.arc_cosine_conv import conv_arc_cosine_kernel

from .peak import PeakMemory

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["cpu"]
KINDS = ("nngp", "ntk")
EPS = 2.3e-16
forward_mode = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


def images(n, shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, *shape)))


def waves(n, shape, phase):
    """Numbers that any library can make again."""
    i = np.arange(n * math.prod(shape))
    return torch.from_numpy(np.sin(1.0 + phase + 1.7 * i + 0.01 * i * i).reshape(n, *shape))


def definition(x, y, counts, filter_size, kind, w2, b2, leak, padding, readout):
    """The recursion over all pairs of pixels of two images, c[h, w, h', w'], as the papers print it."""

    def box(c):
        r = filter_size // 2
        mode = {"mode": "wrap"} if padding == "circular" else {}
        wide, total = np.pad(c, r, **mode), 0
        h, w = c.shape[:2]
        for a in range(filter_size):
            for b in range(filter_size):
                total = total + wide[a : a + h, b : b + w, a : a + h, b : b + w]
        return total / filter_size**2

    def pool(c):
        h, w = c.shape[0] // 2, c.shape[1] // 2
        return c[: 2 * h, : 2 * w, : 2 * h, : 2 * w].reshape(h, 2, w, 2, h, 2, w, 2).mean((1, 3, 5, 7))

    def variances(c):
        return np.einsum("hwhw->hw", c)

    c = [np.einsum("chw,cuv->hwuv", a, b) / len(x) for a, b in ((x, y), (x, x), (y, y))]
    t = np.zeros_like(c[0])
    for count in counts:
        c = [w2 * box(each) + b2 for each in c]
        t = c[0] + w2 * box(t)
        stds = [(variances(c[a]), variances(c[b])) for a, b in ((1, 2), (1, 1), (2, 2))]
        after = []
        for k, (each, (vx, vy)) in enumerate(zip(c, stds, strict=True)):
            p = np.sqrt(vx[:, :, None, None] * vy)
            angle = np.arccos(np.clip(each / p, -1, 1))
            slope = (1 + leak**2) / 2 - (1 - leak) ** 2 / (2 * np.pi) * angle
            after.append((1 - leak) ** 2 / (2 * np.pi) * p * np.sin(angle) + slope * each)
            if k == 0:
                t = slope * t
        c = after
        for _ in range(count):
            c, t = [pool(each) for each in c], pool(t)
    read = (lambda c: variances(c).mean()) if readout == "flatten" else np.mean
    nngp = w2 * read(c[0]) + b2
    return nngp if kind == "nngp" else nngp + w2 * read(t)


NETWORKS = [
    pytest.param((2, 6, 7), {"depth": 2, "pooling": 1}, id="blocks"),
    pytest.param((1, 7, 5), {"depth": 2, "pooling": (1, 1), "leak": 0.2}, id="odd-sizes"),
    pytest.param((3, 4, 5), {"depth": 3, "pooling": 0}, id="no-pooling"),
    pytest.param((2, 5, 4), {"depth": 2, "pooling": 0, "readout": "global_average"}, id="global-average"),
    pytest.param(
        (1, 7, 6),
        {"depth": 2, "pooling": (0, 1), "readout": "global_average", "leak": -0.3},
        id="odd-average",
    ),
    pytest.param((2, 8, 4), {"depth": 3, "pooling": (0, 2, 0), "filter_size": 5}, id="stem-and-double"),
    pytest.param((2, 4, 8), {"depth": 2, "pooling": 1, "padding": "circular"}, id="circular"),
    pytest.param(
        (1, 6, 4),
        {"depth": 2, "pooling": (1, 0), "padding": "circular", "readout": "global_average", "filter_size": 5},
        id="circular-average",
    ),
    pytest.param((2, 5, 5), {"depth": 1, "pooling": 2, "filter_size": 1}, id="single-taps"),
    pytest.param((1, 3, 3), {"depth": 1, "pooling": 0, "filter_size": 7}, id="filter-beyond-the-image"),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("shape", "network"), NETWORKS)
@pytest.mark.parametrize("kind", KINDS)
def test_against_all_pairs_of_pixels(device, shape, network, kind):
    X, Y = images(3, shape), images(2, shape, seed=1)
    setting = {"weight_std": 1.3, "bias_std": 0.2, "kind": kind, **network}
    found = conv_arc_cosine_kernel(X.to(device), Y.to(device), **setting).cpu()
    itself = conv_arc_cosine_kernel(X.to(device), **setting).cpu()
    counts = network["pooling"]
    arguments = (
        (counts,) * network["depth"] if isinstance(counts, int) else counts,
        network.get("filter_size", 3),
        kind,
        1.3**2,
        0.2**2,
        network.get("leak", 0.0),
        network.get("padding", "zero"),
        network.get("readout", "flatten"),
    )
    for matrix, others, allowed in (
        (found, Y, 1e-12),
        (itself, X, 1e-7),
    ):  # the arccosine of one is that wrong
        wanted = np.array([[definition(x, y, *arguments) for y in others.numpy()] for x in X.numpy()])
        np.testing.assert_allclose(matrix.numpy(), wanted, rtol=0, atol=allowed * np.abs(wanted).max())
    assert torch.equal(itself, itself.T)


# neural-tangents 0.6.5 on jax 0.4.30 in float64, W_std=2**.5, b_std=.1: first row of NNGP and of NTK.
NEURAL_TANGENTS = [
    (
        *((2, 8, 7), {"depth": 2}),
        [0.20202656562074855, 0.2039523587136671],
        [0.3554058101779229, 0.33033764583793623],
    ),
    (
        *((2, 8, 7), {"depth": 2, "pooling": 0}),
        [0.48226560231653826, 0.3485093714728947],
        [0.9353377062838679, 0.46064773317250207],
    ),
    (
        *((2, 8, 7), {"depth": 2, "pooling": (0, 1), "readout": "global_average"}),
        [0.3672920923554737, 0.3674661199313054],
        [0.5243666875195274, 0.5101416824334745],
    ),
    (
        *((2, 6, 4), {"depth": 2, "pooling": (1, 0), "readout": "global_average", "padding": "circular"}),
        [0.3851840941080849, 0.36442510078248663],
        [0.6893094673607303, 0.6322886997081709],
    ),
    (
        *((2, 8, 7), {"depth": 2, "pooling": (0, 1), "filter_size": 5, "leak": 0.2}),
        [0.23632152985479996, 0.21378966234094302],
        [0.3870458734017791, 0.3030214546836839],
    ),
    (
        *((1, 8, 8), {"depth": 2, "pooling": (0, 2)}),
        [0.38664968384255516, 0.3725083414288319],
        [0.5890765649396756, 0.5508996906673498],
    ),
    (
        *((3, 8, 8), {}),
        [0.07606799636533856, 0.08003669788371984],
        [0.1428625610039393, 0.14415778430393228],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("shape", "network", "nngp", "ntk"), NEURAL_TANGENTS)
def test_values_of_neural_tangents(device, shape, network, nngp, ntk):
    X, Y = waves(2, shape, 0).to(device), waves(2, shape, 1).to(device)
    for kind, wanted in (("nngp", nngp), ("ntk", ntk)):
        found = conv_arc_cosine_kernel(X, Y, kind=kind, **network)[0]
        np.testing.assert_allclose(found.cpu().numpy(), wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("readout", ["flatten", "global_average"])
def test_one_pixel_makes_a_fully_connected_network(kind, readout):
    X, Y = images(4, (5, 1, 1)), images(3, (5, 1, 1), seed=1)
    setting = {"depth": 3, "kind": kind, "leak": 0.1}
    found = conv_arc_cosine_kernel(X, Y, filter_size=1, pooling=0, readout=readout, **setting)
    torch.testing.assert_close(found, arc_cosine_kernel(X.flatten(1), Y.flatten(1), **setting))


@pytest.mark.parametrize("readout", ["flatten", "global_average"])
def test_finite_networks_have_this_covariance_and_tangent_kernel(readout):
    """Means over independent random networks, within five of their standard errors."""
    shape, channels, networks = (2, 6, 4), 64, 150
    X = images(3, shape)
    generator = torch.Generator().manual_seed(0)
    layers = [
        torch.nn.Conv2d(2, channels, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AvgPool2d(2),
        torch.nn.Conv2d(channels, channels, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1) if readout == "global_average" else torch.nn.Identity(),
        torch.nn.Flatten(),
        torch.nn.Linear(channels * (1 if readout == "global_average" else 6), 1),
    ]
    net = torch.nn.Sequential(*layers).double()

    def output(parameters, x):
        scaled = {
            name: p * (1.5 / math.sqrt(p[0].numel()) if p.ndim > 1 else 0.4) for name, p in parameters.items()
        }
        return functional_call(net, scaled, (x,))[:, 0]

    samples = {"nngp": [], "ntk": []}
    for _ in range(networks):
        parameters = {
            name: torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for name, p in net.named_parameters()
        }
        f = output(parameters, X)
        jacobian = torch.cat([j.flatten(1) for j in jacrev(output)(parameters, X).values()], 1)
        samples["nngp"].append(f[:, None] * f)
        samples["ntk"].append(jacobian @ jacobian.T)
    for kind, found in samples.items():
        wanted = conv_arc_cosine_kernel(
            X, depth=2, pooling=(1, 0), kind=kind, weight_std=1.5, bias_std=0.4, readout=readout
        )
        found = torch.stack(found)
        error = found.std(0) / math.sqrt(networks)
        assert (error < 0.2 * wanted.diagonal().max()).all()  # or the test says nothing
        assert ((found.mean(0) - wanted).abs() <= 5 * error + 2 * wanted.abs() / channels).all()


@pytest.mark.parametrize("kind", KINDS)
def test_laws(kind):
    X, Y = images(6, (2, 4, 6)), images(3, (2, 4, 6), seed=1)
    setting = {"depth": 2, "pooling": (1, 0), "kind": kind}
    plain = conv_arc_cosine_kernel(X, Y, bias_std=0.0, **setting)
    scaled = conv_arc_cosine_kernel(3 * X, 0.1 * Y, bias_std=0.0, **setting)
    torch.testing.assert_close(scaled, 0.3 * plain, rtol=1e-12, atol=0)

    flipped = conv_arc_cosine_kernel(X.flip(-1), Y.flip(-1), **setting)
    torch.testing.assert_close(flipped, conv_arc_cosine_kernel(X, Y, **setting), rtol=1e-12, atol=0)
    mixed = torch.linalg.qr(images(1, (2, 2))[0])[0]  # a rotation of the channels
    turned = [torch.einsum("kc,nchw->nkhw", mixed, Z) for Z in (X, Y)]
    torch.testing.assert_close(
        conv_arc_cosine_kernel(*turned, **setting), conv_arc_cosine_kernel(X, Y, **setting)
    )

    # A circular network without pooling does not see shifts of both images, nor of one before a global average.
    circular = {**setting, "padding": "circular", "pooling": 0}
    shifted = X.roll((1, 2), (-2, -1))
    torch.testing.assert_close(
        conv_arc_cosine_kernel(shifted, Y.roll((1, 2), (-2, -1)), **circular),
        conv_arc_cosine_kernel(X, Y, **circular),
    )
    circular["readout"] = "global_average"
    torch.testing.assert_close(
        conv_arc_cosine_kernel(shifted, Y, **circular), conv_arc_cosine_kernel(X, Y, **circular)
    )

    nngp, ntk = (conv_arc_cosine_kernel(X, **{**setting, "kind": k}) for k in KINDS)
    for matrix in (nngp, ntk, ntk - nngp):
        assert torch.linalg.eigvalsh(matrix)[0] >= -100 * EPS * torch.trace(ntk)


@pytest.mark.parametrize("readout", ["flatten", "global_average"])
def test_any_budget_gives_the_same_matrix(readout):
    X, Y = images(5, (1, 5, 6)), images(3, (1, 5, 6), seed=1)
    setting = {"depth": 2, "pooling": (0, 1), "readout": readout}
    for others in (None, Y):
        whole = conv_arc_cosine_kernel(X, others, **setting, memory_budget=2**30)
        pieces = conv_arc_cosine_kernel(X, others, **setting, memory_budget=2**21)
        torch.testing.assert_close(pieces, whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("precision", "allowed"), [("high", 1e-7), ("medium", 5e-4)])
def test_accuracy_of_float32(precision, allowed):
    X = images(3, (2, 6, 6)).float()
    Y = X + 1e-4 * images(3, (2, 6, 6), seed=1).float()  # nearly parallel everywhere
    for kind in KINDS:
        exact = conv_arc_cosine_kernel(X.double(), Y.double(), depth=2, kind=kind)
        found = conv_arc_cosine_kernel(X, Y, depth=2, kind=kind, precision=precision)
        assert found.dtype == torch.float32
        assert ((found - exact).abs() <= allowed * exact.abs().max()).all()


def problem(symmetric, budget):
    X, Y = images(2, (1, 3, 2)).requires_grad_(), images(1, (1, 3, 2), seed=1).requires_grad_()
    stds = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (1.3, 0.4)]

    def kernel(X, w, b, *Y):
        return conv_arc_cosine_kernel(
            X, *Y, depth=2, pooling=(1, 0), weight_std=w, bias_std=b, memory_budget=budget
        )

    return kernel, ((X, *stds) if symmetric else (X, *stds, Y))


@forward_mode
@pytest.mark.parametrize("symmetric", [True, False], ids=["itself", "pair"])
def test_derivatives_against_finite_differences(symmetric):
    kernel, point = problem(symmetric, 64_000)  # one pair at a time
    assert torch.autograd.gradcheck(kernel, point, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(kernel, point, fast_mode=True)


@forward_mode
@pytest.mark.parametrize("symmetric", [True, False], ids=["itself", "pair"])
def test_transforms_compose(symmetric):
    kernel, point = problem(symmetric, None)
    many = [torch.stack([p.detach() * (1 + 0.1 * k) for k in range(2)]) for p in point]
    each = list(zip(*many, strict=True))
    torch.testing.assert_close(vmap(kernel)(*many), torch.stack([kernel(*one) for one in each]))

    def loss(*arguments):
        return kernel(*arguments).square().sum()

    torch.testing.assert_close(vmap(grad(loss))(*many), torch.stack([grad(loss)(*one) for one in each]))
    torch.testing.assert_close(jacfwd(kernel)(*each[0]), jacrev(kernel)(*each[0]))


@pytest.mark.parametrize("readout", ["flatten", "global_average"])
def test_derivatives_are_finite_at_equal_black_and_opposite_images(readout):
    X = images(3, (1, 4, 4))
    X[1], X[2] = 0, -X[0]
    for bias in (0.0, 0.1):

        def loss(X, Y, bias=bias):
            return conv_arc_cosine_kernel(X, Y, depth=1, bias_std=bias, readout=readout).sum()

        first = torch.stack(grad(loss, (0, 1))(X, X.clone()))
        second = torch.stack(jacrev(grad(loss, (0, 1)), (0, 1))(X, X.clone())[0])
        assert first.abs().max() < 100
        assert second.abs().max() < 100


@pytest.mark.parametrize("symmetric", [True, False], ids=["itself", "pair"])
@pytest.mark.parametrize(
    ("shape", "network"),
    [
        pytest.param((3, 16, 16), {"depth": 2}, id="blocks"),
        pytest.param((1, 6, 6), {"depth": 2, "pooling": 0, "readout": "global_average"}, id="global-average"),
        pytest.param((3, 6, 6), {"depth": 4, "pooling": 0}, id="no-pooling"),
    ],
)
def test_temporaries_stay_within_their_budget(symmetric, shape, network):
    X = images(5, shape).float().requires_grad_()
    Y = None if symmetric else images(4, shape, seed=1).float()
    budget = 8 * 2**20

    def matrix():
        return conv_arc_cosine_kernel(X, Y, memory_budget=budget, **network)

    # Beside the matrix: standard deviations of all pixels in all layers, twice while they are shaped.
    kept = 2 * 8 * 9 * shape[1] * shape[2] * network["depth"] + 8 * 25
    with torch.no_grad(), PeakMemory() as value:
        matrix()
    assert value.peak <= budget + kept
    K = matrix()
    with PeakMemory() as derivative:
        torch.autograd.grad(K.sum(), X)
    assert derivative.peak <= budget + 2 * kept + 16 * X.numel()


def test_no_images():
    X = torch.ones(0, 1, 4, 4)
    assert conv_arc_cosine_kernel(X, depth=2).shape == (0, 0)
    assert conv_arc_cosine_kernel(X, torch.ones(2, 1, 4, 4), depth=2).shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "`depth` must be 1 or more: without a convolution, flatten"),
        ({"pooling": (1, 1)}, "one for each of the 3 blocks, got"),
        ({"pooling": -1}, "`pooling` must be a count"),
        ({"filter_size": 2}, "`filter_size` must be odd and positive, got 2"),
        ({"padding": "same"}, "`padding` must be one of 'zero', 'circular'"),
        ({"readout": "max"}, "`readout` must be one of"),
        ({"kind": "rbf"}, "`kind` must be one of"),
        ({"X": torch.ones(2, 1, 4, 4)}, r"`pooling` \(1, 1, 1\) leaves nothing of images of 4 x 4 pixels"),
        (
            {"X": torch.ones(2, 1, 10, 8), "padding": "circular"},
            "needs even sizes before a pooling, got 5 x 4",
        ),
        ({"X": torch.ones(2, 64)}, r"`X` must be images \(n, channels, height, width\), got \(2, 64\)"),
        ({"Y": torch.ones(2, 1, 8, 9)}, "must hold images of one shape"),
        ({"memory_budget": 1000}, "`memory_budget` is 1000 bytes, but one entry of this matrix takes"),
        ({"bias_std": -0.1}, "`bias_std` must be finite and not negative"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        conv_arc_cosine_kernel(**{"X": torch.ones(2, 1, 8, 8), **change})
