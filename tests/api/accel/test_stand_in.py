"""A module of ours where the genuine one cannot be imported, and the kernels that it computes."""

import functools
import importlib
import importlib.util
import math
import sys
import types

import numpy as np
import pytest
import torch

from kernel_distill.accel import all_targets
from kernel_distill.accel._finder import Finder
from kernel_distill.accel._records import records
from kernel_distill.accel._stand_in import ModuleTarget, StandIn
from kernel_distill.accel.replacements import conv_kernel as stax
from kernel_distill.kernels import conv_arc_cosine_kernel

from .peers import peer_path

NAME = "invented_library"


def make_modules():
    made = {name: types.ModuleType(name) for name in (NAME, f"{NAME}.part")}
    made[NAME].part, made[NAME].ours, made[f"{NAME}.part"].value = made[f"{NAME}.part"], True, 3
    return made


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A finder that stands in for a library of which there is none, and the folder where there might be one."""
    monkeypatch.syspath_prepend(tmp_path)
    found = StandIn(NAME, make_modules)
    monkeypatch.setattr(sys, "meta_path", [found, *sys.meta_path])
    found.folder = tmp_path
    records.clear()
    yield found
    found.forget()
    records.clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


def genuine(folder, text, **files):
    (folder / NAME).mkdir()
    for name, content in {"__init__": text, **files}.items():
        (folder / NAME / f"{name}.py").write_text(content)
    importlib.invalidate_caches()


def test_an_absent_module_is_stood_in_for(stand_in, caplog):
    import invented_library as library
    from invented_library import part

    assert library.ours
    assert part.value == 3
    assert importlib.import_module(f"{NAME}.part") is part
    assert [line.getMessage() for line in caplog.records] == [
        f"{NAME}: ours stands in for {NAME}: there is none"
    ]
    assert records[NAME].places == [NAME]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{NAME}.other")


def test_the_genuine_module_is_preferred(stand_in, caplog):
    genuine(stand_in.folder, "from . import part\nours = False", part="value = 4")
    library = importlib.import_module(NAME)
    assert (library.ours, library.part.value) == (False, 4)
    assert type(library.__loader__).__module__ == type(library.__spec__.loader).__module__
    assert "stand_in" not in type(library.__loader__).__module__
    assert not caplog.records
    assert NAME not in records


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "raise AttributeError('gone from the other library')",
            "AttributeError: gone from the other library",
        ),
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("from . import part, missing", "ImportError: cannot import name 'missing'"),
    ],
)
def test_one_that_raises_gives_way(stand_in, caplog, text, said):
    genuine(stand_in.folder, text, part="value = 4")
    library = importlib.import_module(NAME)
    assert library is sys.modules[NAME]
    assert library.ours
    assert importlib.import_module(f"{NAME}.part").value == 3
    assert said in caplog.text
    assert len(caplog.records) == 1


def test_an_interrupt_is_not_held_back(stand_in):
    genuine(stand_in.folder, "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module(NAME)
    assert NAME not in sys.modules


def test_forgetting_lets_the_genuine_one_come_back(stand_in):
    assert importlib.import_module(NAME).ours
    stand_in.forget()
    assert not [name for name in sys.modules if name.startswith(NAME)]
    genuine(stand_in.folder, "ours = False")
    assert not importlib.import_module(NAME).ours
    stand_in.forget()
    assert NAME in sys.modules


@pytest.mark.parametrize("front", [True, False])
def test_beside_the_finder_of_other_targets(stand_in, front):
    met = []
    others = Finder(met.append)
    sys.meta_path.insert(0 if front else 1, others)
    genuine(stand_in.folder, "from . import part\nraise ValueError('broken')", part="value = 4")
    assert importlib.import_module(NAME).ours
    assert NAME in {module.__name__ for module in met} or not front


# Networks: layers before the last one, what they are in the words of our kernel, and its images.
STDS = {"W_std": 1.3, "b_std": 0.2}
NETWORKS = {
    "rfad": ((1, 1, 1), "SAME", "Flatten", (8, 8, 3)),
    "myrtle": ((0, 1, 1), "SAME", "GlobalAvgPool", (4, 4, 2)),
    "circular": ((0, 2), "CIRCULAR", "Flatten", (8, 4, 1)),
    "odd": ((1, 1), "SAME", "Flatten", (7, 6, 2)),
}


def layers(pooling, padding, readout, more=STDS):
    ends = {"Flatten": stax.flatten, "GlobalAvgPool": stax.global_avg_pool}
    found = []
    for count in pooling:
        found += [stax.conv(64, (3, 3), padding=padding, **more), stax.relu()]
        found += [stax.avg_pool((2, 2), strides=(2, 2))] * count
    return [*found, ends[readout](), stax.dense(10, **more)]


def images(n, shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(dtype)


@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_are_those_of_our_network(name):
    pooling, padding, readout, shape = NETWORKS[name]
    X, Y = images(3, shape), images(2, shape, 1)
    init, apply, kernel = stax.serial(*layers(pooling, padding, readout))
    both = kernel(X, Y, get=("ntk", "nngp"))
    assert both._fields == ("ntk", "nngp")
    for kind in ("nngp", "ntk"):
        expected = conv_arc_cosine_kernel(
            X.transpose(0, 3, 1, 2),
            Y.transpose(0, 3, 1, 2),
            depth=len(pooling),
            pooling=pooling,
            kind=kind,
            weight_std=1.3,
            bias_std=0.2,
            padding="zero" if padding == "SAME" else "circular",
            readout="flatten" if readout == "Flatten" else "global_average",
        ).numpy()
        assert isinstance(getattr(both, kind), np.ndarray)
        np.testing.assert_array_equal(getattr(both, kind), expected)
        np.testing.assert_array_equal(kernel(X, Y, kind), expected)
    for each in (kernel(X, Y), kernel(X, Y, None), kernel(X, Y, get=None)):
        assert each._fields == ("nngp", "ntk")
        for kind in each._fields:
            np.testing.assert_array_equal(getattr(each, kind), getattr(both, kind))
    square = kernel(X, get="ntk")
    np.testing.assert_array_equal(square, square.T)
    np.testing.assert_array_equal(square, kernel(X, X, get="ntk"))
    assert np.linalg.eigvalsh(square).min() > 0
    assert kernel(X.astype(np.float32), get="nngp").dtype == np.float32
    assert kernel((10 * X).astype(np.uint8), get="nngp").dtype == np.float32
    for function in (init, apply):
        with pytest.raises(NotImplementedError, match="kernels alone"):
            function(0, (1, 8, 8, 3))


def test_one_layer_in_closed_form():
    """One convolution, ReLU, an average, flattened: the two duals on paper, pixel by pixel."""
    w2, b2 = STDS["W_std"] ** 2, STDS["b_std"] ** 2
    X, Y = images(2, (4, 4, 2)), images(3, (4, 4, 2), 1)
    kernel = stax.serial(*layers((1,), "SAME", "Flatten"))[2]

    def patches(image):
        wide = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        return np.array([[wide[i : i + 3, j : j + 3].ravel() for j in range(4)] for i in range(4)])

    def pair(x, y):
        p, q = patches(x), patches(y)
        scale = p.shape[-1]
        nngp = ntk = 0.0
        for block in np.ndindex(2, 2):
            window = [(2 * block[0] + a, 2 * block[1] + b) for a in (0, 1) for b in (0, 1)]
            for s in window:
                for t in window:
                    c = w2 * p[s] @ q[t] / scale + b2
                    u, v = (math.sqrt(w2 * r @ r / scale + b2) for r in (p[s], q[t]))
                    angle = math.acos(max(-1.0, min(1.0, c / (u * v))))
                    first = u * v * (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (2 * math.pi)
                    slope = (math.pi - angle) / (2 * math.pi)
                    nngp += first / 16 / 4
                    ntk += slope * c / 16 / 4
        return w2 * nngp + b2, w2 * nngp + b2 + w2 * ntk

    expected = np.array([[pair(x, y) for y in Y] for x in X])
    found = kernel(X, Y, get=("nngp", "ntk"))
    np.testing.assert_allclose(found.nngp, expected[..., 0], rtol=1e-12)
    np.testing.assert_allclose(found.ntk, expected[..., 1], rtol=1e-12)


def test_wide_networks_at_random():
    """Outputs of finite networks have the covariance NNGP, their gradients the inner product NTK."""
    generator = torch.Generator().manual_seed(0)
    width, draws, (w, b) = 256, 16, STDS.values()
    X = images(2, (4, 4, 2))
    inputs = torch.from_numpy(X.transpose(0, 3, 1, 2)).float()
    nngp, ntk = np.zeros((2, 2)), np.zeros((2, 2))
    for _ in range(draws):
        shapes = [(width, 2, 3, 3), (width,), (width, width, 3, 3), (width,), (1, 4 * width), (1,)]
        weights = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
        h = inputs
        for at, poolings in ((0, 0), (2, 1)):
            scale = w / math.sqrt(weights[at][0].numel())
            h = torch.conv2d(h, scale * weights[at], b * weights[at + 1], padding=1).relu()
            h = torch.nn.functional.avg_pool2d(h, 2) if poolings else h
        # The last layer is integrated out of the NNGP; its weights are drawn for the NTK.
        flat = h.flatten(1)
        nngp += (w**2 * flat @ flat.T / flat.shape[1] + b**2).detach().numpy() / draws
        outputs = flat @ weights[4].T * (w / math.sqrt(flat.shape[1])) + b * weights[5]
        rows = [torch.autograd.grad(out, weights, retain_graph=True) for out in outputs[:, 0]]
        rows = [torch.cat([part.flatten() for part in row]) for row in rows]
        ntk += np.array([[float(p @ q) for q in rows] for p in rows]) / draws
    kernel = stax.serial(*layers((0, 1), "SAME", "Flatten"))[2](X, get=("nngp", "ntk"))
    # A network of width m is off by some 1 / sqrt(m), their mean by a quarter of that.
    np.testing.assert_allclose(nngp, kernel.nngp, rtol=0.05)
    np.testing.assert_allclose(ntk, kernel.ntk, rtol=0.05)


def test_serial_nests_and_batch_is_the_function_itself():
    kernel = stax.serial(*layers((1, 1), "SAME", "Flatten"))[2]
    first, rest = layers((1, 1), "SAME", "Flatten")[:3], layers((1, 1), "SAME", "Flatten")[3:]
    nested = stax.serial(stax.serial(*first), stax.serial(stax.serial(*rest)))[2]
    X = images(3, (8, 8, 1))
    np.testing.assert_array_equal(kernel(X, get="ntk"), nested(X, get="ntk"))
    get_both = functools.partial(kernel, get=("nngp", "ntk"))
    batched = stax.batch(get_both, batch_size=2)
    np.testing.assert_array_equal(batched(X, X).ntk, kernel(X, get="ntk"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: stax.conv(8, (3, 3)), "padding 'VALID'"),
        (lambda: stax.conv(8, (2, 2), padding="SAME"), "a filter of shape (2, 2)"),
        (lambda: stax.conv(8, (3, 3), (2, 2), "SAME"), "strides"),
        (lambda: stax.conv(8, (3, 3), padding="SAME", parameterization="standard"), "'standard'"),
        (lambda: stax.avg_pool((2, 2)), "strides None"),
        (lambda: stax.avg_pool((3, 3), (3, 3)), "pooling of (3, 3)"),
        (lambda: stax.dense(3, channel_axis=1), "channel_axis 1"),
        (lambda: stax.serial((1, 2, 3)), "(1, 2, 3) as a layer"),
        (lambda: network(layers((1,), "SAME", "Flatten")[:-1]), "ends in AvgPool and Flatten"),
        (lambda: network([]), "ends in nothing"),
        (lambda: network([stax.flatten(), stax.dense(3)]), "the sequence Flatten, Dense"),
        (lambda: network([stax.relu(), *layers((1,), "SAME", "Flatten")]), "the sequence Relu, Conv"),
        (lambda: network([*layers((1,), "SAME", "Flatten")[:-1], stax.dense(3)]), "different"),
        (lambda: network(layers((1,), "SAME", "Flatten"), get=()), "get=()"),
        (lambda: network(layers((1,), "SAME", "Flatten"), get=("ntk", "cov1")), "get=('ntk', 'cov1')"),
        (lambda: network(layers((1,), "SAME", "Flatten"), diagonal_batch=True), "diagonal_batch of a kernel"),
    ],
)
def test_what_is_not_supported_is_named(make, said):
    with pytest.raises(ValueError, match="kernel_distill stands in for neural_tangents") as error:
        make()
    assert said in str(error.value)


def network(parts, **more):
    return stax.serial(*parts)[2](images(2, (4, 4, 1)), **{"get": "ntk", **more})


def test_images_that_are_none():
    with pytest.raises(
        ValueError, match=r"images must have shape \(n, height, width, channels\), got \(2, 9\)"
    ):
        stax.serial(*layers((1,), "SAME", "Flatten"))[2](np.ones((2, 9)))


@pytest.fixture
def target(monkeypatch):
    found = next(each for each in all_targets() if each.name == "rfad.neural_tangents")
    assert isinstance(found, ModuleTarget)
    finder = found.finder()
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    records.clear()
    yield found
    finder.forget()
    records.clear()


@pytest.mark.skipif(
    importlib.util.find_spec("neural_tangents") is not None, reason="neural_tangents is there"
)
def test_a_script_that_imports_neural_tangents(target):
    script = """
import functools
import neural_tangents as nt
from neural_tangents import stax
import neural_tangents.utils.batch

layer = functools.partial(stax.Conv, W_std=2**0.5, b_std=0.1, padding="SAME", parameterization="ntk")
parts = [layer(16, (3, 3)), stax.LeakyRelu(0.1), stax.AvgPool((2, 2), strides=(2, 2)), stax.GlobalAvgPool()]
init, apply, kernel = stax.serial(*parts, stax.Dense(10, W_std=2**0.5, b_std=0.1, parameterization="ntk"))
result = nt.batch(functools.partial(kernel, get=("nngp", "ntk")), batch_size=5)(X, X)
again = nt.utils.batch.batch(kernel, batch_size=5)(X, None, "nngp")
"""
    names = {"X": images(3, (4, 4, 1))}
    exec(script, names)
    assert names["result"].ntk.shape == (3, 3)
    np.testing.assert_array_equal(names["result"].nngp, names["again"])
    assert records["rfad.neural_tangents"].calls == 2


# neural-tangents 0.6.5 on jax 0.4.30 in float64: entries (0, 0), (0, 1) and (1, 1) for RFAD's ConvNet.
GENUINE = {
    "nngp": (0.07983829830221406, 0.07945075807576477, 0.08278445685789057),
    "ntk": (0.15820872574644892, 0.1446619323201496, 0.16456877810006768),
}


def test_numbers_of_the_genuine_library():
    i = np.arange(2 * 8 * 8 * 3)
    X = np.sin(1 + 1.7 * i + 0.01 * i * i).reshape(2, 8, 8, 3)
    kernel = stax.serial(*layers((1, 1, 1), "SAME", "Flatten", {"W_std": np.sqrt(2), "b_std": 0.1}))[2]
    found = kernel(X, get=("nngp", "ntk"))
    for name, values in GENUINE.items():
        np.testing.assert_allclose(getattr(found, name)[[0, 0, 1], [0, 1, 1]], values, rtol=1e-12)


@pytest.mark.data
def test_the_published_kernels(target, monkeypatch):
    folder = peer_path("rfad")
    spec = importlib.util.spec_from_file_location("published_kernels", folder / "kernels.py")
    published = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(published)
    kernel = published.DCConvNetKernel(depth=3, width=1024)[2]
    stored = np.load(folder / "distilled_images_final" / "cifar10" / "10" / "best.npz")
    points = stored["images"].transpose(0, 2, 3, 1)[::30]
    K = kernel(points, points, get=("nngp", "ntk"))
    rows = points + 0.1
    for name in ("nngp", "ntk"):
        square = getattr(K, name)
        np.testing.assert_array_equal(square, square.T)
        ridge = 5e-3 * np.trace(square) / len(square)
        solved = np.linalg.solve(square + ridge * np.eye(len(square)), stored["labels"][::30])
        predicted = kernel(rows[:2], points, get=name) @ solved
        assert np.isfinite(predicted).all()
        assert predicted.argmax(1).tolist() == stored["labels"][::30][:2].argmax(1).tolist()
