"""Laws of every kernel function: values against NumPy, symmetry, dtypes, derivatives, files, and what is refused."""

import json
import math

import numpy as np
import pytest
import scipy.spatial.distance
import torch

from kernel_distill.kernels import conv_arc_cosine_kernel
from kernel_distill.solver.feature_maps import make_feature_map
from kernel_distill.solver.kernel_functions import (
    KERNEL_FUNCTIONS,
    NTK,
    FeatureKernel,
    GaussianKernel,
    kernel_function_names,
    make_kernel_function,
    restore_kernel_function,
)

from ..cases import EPS

IMAGE = (3, 4, 2)
D = math.prod(IMAGE)
ROOT2 = math.sqrt(2.0)


def rows(n, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, *IMAGE))).to(dtype)


# --- Oracles -------------------------------------------------------------------------------------------------


def radial(profile, metric="sqeuclidean"):
    def kernel(x, y):
        return profile(scipy.spatial.distance.cdist(x.reshape(len(x), -1), y.reshape(len(y), -1), metric))

    return kernel


def wide(kind, depth=1, weight=ROOT2, bias=0.1):
    """The recursion of the wide network, written out (Jacot et al. 2018; Cho and Saul 2009)."""

    def kernel(x, y):
        x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
        w, b = weight**2, bias**2
        xy, xx, yy = (w * v / x.shape[1] + b for v in (x @ y.T, (x * x).sum(1), (y * y).sum(1)))
        tangent = xy
        for _ in range(depth):
            length = np.sqrt(np.outer(xx, yy))
            angle = np.arccos(np.clip(xy / length, -1, 1))
            slope = (np.pi - angle) / (2 * np.pi)
            value = length * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) / (2 * np.pi)
            xy, xx, yy = w * value + b, w * xx / 2 + b, w * yy / 2 + b
            tangent = xy + w * slope * tangent
        return tangent if kind == "ntk" else xy

    return kernel


def pixelwise(kernel):
    """Filters of one pixel without pooling: the mean over the pixels of the fully connected kernel of each."""

    def mean(x, y):
        x, y = (v.reshape(len(v), v.shape[1], -1) for v in (x, y))
        return np.mean([kernel(x[..., s], y[..., s]) for s in range(x.shape[2])], axis=0)

    return mean


ALONE = {"filter_size": 1, "pooling": 0}
CASES = {
    "gaussian": ("gaussian", {"bandwidth": 5.0}, radial(lambda s: np.exp(-s / 50))),
    "laplacian": ("laplacian", {"bandwidth": 20.0}, radial(lambda s: np.exp(-s / 20), "cityblock")),
    "cauchy": ("cauchy", {"bandwidth": 5.0}, radial(lambda s: 1 / (1 + s / 25))),
    "matern": (
        "matern",
        {"bandwidth": 5.0},
        radial(lambda s: (1 + np.sqrt(3 * s) / 5) * np.exp(-np.sqrt(3 * s) / 5)),
    ),
    "matern-1/2": ("matern", {"bandwidth": 5.0, "nu": 0.5}, radial(lambda s: np.exp(-np.sqrt(s) / 5))),
    "rational-quadratic": (
        "rational-quadratic",
        {"bandwidth": 5.0, "alpha": 0.7},
        radial(lambda s: (1 + s / (2 * 0.7 * 25)) ** -0.7),
    ),
    "ntk": ("ntk", {}, wide("ntk")),
    "ntk-3": ("ntk", {"depth": 3, "weight_std": 1.2, "bias_std": 0.3}, wide("ntk", 3, 1.2, 0.3)),
    "ntk-0": ("ntk", {"depth": 0}, wide("ntk", 0)),
    "nngp": ("nngp", {}, wide("nngp")),
    "nngp-2": ("nngp", {"depth": 2, "weight_std": 1, "bias_std": 0}, wide("nngp", 2, 1.0, 0.0)),
    "conv-ntk": ("conv-ntk", {"depth": 2, **ALONE}, pixelwise(wide("ntk", 2))),
    "conv-nngp": (
        "conv-nngp",
        {"depth": 1, "weight_std": 1.1, "bias_std": 0.4, **ALONE},
        pixelwise(wide("nngp", 1, 1.1, 0.4)),
    ),
}
EVERY = pytest.mark.parametrize("case", [pytest.param(CASES[name], id=name) for name in CASES])


def made(case):
    return make_kernel_function(case[0], IMAGE, params=case[1])


# --- Values --------------------------------------------------------------------------------------------------


@EVERY
def test_values_are_those_of_the_definition(case):
    x, y = rows(7), rows(5, seed=1)
    found = made(case).matrix(x, y)
    assert (found.shape, found.dtype) == ((7, 5), torch.float64)
    wanted = case[2](x.numpy(), y.numpy())
    # Distances and products of D values of size 1, then a few smooth functions of derivative 1.
    assert np.abs(found.numpy() - wanted).max() < 100 * D * EPS * np.abs(wanted).max()


@EVERY
def test_one_set_gives_a_symmetric_positive_matrix(case):
    kernel, x = made(case), rows(9)
    K = kernel.matrix(x)
    assert torch.equal(K, K.T)
    assert torch.allclose(K, kernel.matrix(x, x.clone()), rtol=0, atol=1e-7 * float(K.max()))
    assert float(torch.linalg.eigvalsh(K)[0]) > -1e-12 * float(K.trace())
    parts = torch.cat([kernel.matrix(piece, x[2:4]) for piece in x.split(4)])
    assert torch.allclose(parts, kernel.matrix(x, x[2:4]), rtol=1e-12, atol=0)


@EVERY
@pytest.mark.parametrize(("precision", "allowed"), [("high", 2e-6), ("medium", 2e-5), ("low", 2e-5)])
def test_float32_is_float32(case, precision, allowed):
    kernel, x, y = made(case), rows(7), rows(5, seed=1)
    found = kernel.matrix(x.float(), y.float(), precision=precision)
    assert found.dtype == torch.float32
    wanted = kernel.matrix(x, y, precision=precision)
    assert torch.equal(wanted, kernel.matrix(x, y))
    assert float((found.double() - wanted).abs().max() / wanted.abs().max()) < allowed


@pytest.mark.parametrize("name", ["ntk", "nngp-2", "conv-ntk", "conv-nngp"])
def test_medium_precision_is_another_arithmetic(name):
    kernel, x, y = made(CASES[name]), rows(7, dtype=torch.float32), rows(5, 1, torch.float32)
    assert not torch.equal(kernel.matrix(x, y, precision="medium"), kernel.matrix(x, y))


@EVERY
def test_no_rows_and_one_row(case):
    kernel, x = made(case), rows(3)
    assert kernel.matrix(x[:0], x).shape == (0, 3)
    assert kernel.matrix(x[:1]).shape == (1, 1)
    assert torch.allclose(kernel.matrix(x[:1]), kernel.matrix(x)[:1, :1], rtol=1e-12)


@EVERY
def test_derivatives_in_both_arguments(case):
    """Central differences (step 1e-6: truncation 1e-12, rounding 1e-10), along one direction for each argument."""
    kernel, y = made(case), rows(2, seed=1).requires_grad_()
    x = rows(3).requires_grad_()
    weights = rows(3, seed=2).flatten()[:6].reshape(3, 2)
    gradients = torch.autograd.grad((kernel.matrix(x, y) * weights).sum(), (x, y))
    for index, gradient in enumerate(gradients):
        move = rows(len(gradient), seed=3)
        values = []
        for step in (1e-6, -1e-6):
            pair = [x.detach(), y.detach()]
            pair[index] = pair[index] + step * move
            values.append(float((kernel.matrix(*pair) * weights).sum()))
        assert float((gradient * move).sum()) == pytest.approx(
            (values[0] - values[1]) / 2e-6, rel=1e-6, abs=1e-8
        )


def test_images_and_rows_of_their_values_have_one_kernel():
    x = rows(4)
    for name in ("gaussian", "laplacian", "ntk", "nngp"):
        params = {"bandwidth": 3.0} if name in ("gaussian", "laplacian") else {}
        image = make_kernel_function(name, IMAGE, params=params).matrix(x)
        assert torch.equal(image, make_kernel_function(name, (D,), params=params).matrix(x.flatten(1)))


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_every_option_reaches_the_convolutional_kernel(kind):
    x, y = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).split(1)
    options = {
        "depth": 2,
        "pooling": (1, 0),
        "filter_size": 5,
        "padding": "circular",
        "readout": "global_average",
        "weight_std": 1.3,
        "bias_std": 0.2,
    }
    kernel = make_kernel_function(f"conv-{kind}", (2, 8, 8), params=options)
    assert torch.equal(kernel.matrix(x, y), conv_arc_cosine_kernel(x, y, kind=kind, **options))
    again = restore_kernel_function(kernel.name, json.loads(json.dumps(kernel.parameters())))
    assert torch.equal(again.matrix(x, y), kernel.matrix(x, y))


# --- File form -----------------------------------------------------------------------------------------------


@EVERY
def test_kernels_come_back_from_plain_json(case):
    kernel = made(case)
    parameters = json.loads(json.dumps(kernel.parameters()))
    assert parameters == kernel.parameters()
    again = restore_kernel_function(kernel.name, parameters)
    assert type(again) is type(kernel)
    assert again.parameters() == kernel.parameters()
    assert again.fingerprint() == kernel.fingerprint()
    assert torch.equal(again.matrix(rows(4)), kernel.matrix(rows(4)))


CHANGES = [
    ("gaussian", {"bandwidth": 5.0}, {"bandwidth": 5.01}),
    ("laplacian", {"bandwidth": 20.0}, {"bandwidth": 20.1}),
    ("cauchy", {"bandwidth": 5.0}, {"bandwidth": 5.01}),
    ("matern", {"bandwidth": 5.0}, {"bandwidth": 5.0, "nu": 2.5}),
    ("rational-quadratic", {"bandwidth": 5.0}, {"bandwidth": 5.0, "alpha": 1.1}),
    *((name, {}, change) for name in ("ntk", "nngp") for change in ({"depth": 2}, {"weight_std": 1.4})),
    *((name, {}, {"bias_std": 0.11}) for name in ("ntk", "nngp", "conv-ntk", "conv-nngp")),
    *(
        ("conv-ntk", {"depth": 2}, {"depth": 2, **change})
        for change in (
            {"depth": 3},
            {"pooling": (1, 0)},
            {"filter_size": 5},
            {"padding": "circular"},
            {"readout": "global_average"},
            {"weight_std": 1.4},
        )
    ),
]


@pytest.mark.parametrize(("name", "first", "second"), CHANGES)
def test_fingerprints_tell_kernels_apart(name, first, second):
    one, other = (
        torch.tensor(make_kernel_function(name, (1, 16, 16), params=params).fingerprint())
        for params in (first, second)
    )
    assert one.shape == other.shape == (9,)
    assert not torch.allclose(one, other, rtol=1e-4)


def test_fingerprints_of_large_images_are_cheap():
    """They are taken on images as small as the poolings allow: those of 500 x 500 pixels would take hours."""
    kernel = make_kernel_function("conv-ntk", (1, 500, 500), params={"readout": "global_average"})
    small = make_kernel_function("conv-ntk", (1, 8, 8), params={"readout": "global_average"})
    assert kernel.fingerprint() == small.fingerprint()


# --- Made by name, from data ---------------------------------------------------------------------------------


def test_every_name_makes_a_kernel():
    for name in kernel_function_names():
        kernel = make_kernel_function(name, (3, 8, 8), sample=lambda: torch.rand(100, 3, 8, 8).double())
        assert kernel.input_shape == (3, 8, 8)
        assert kernel.n_inputs == 192
        assert kernel.name == (name if name in KERNEL_FUNCTIONS else "features")


@pytest.mark.parametrize(("name", "metric"), [("gaussian", "euclidean"), ("laplacian", "cityblock")])
@pytest.mark.parametrize("params", [{}, {"bandwidth": "median"}])
def test_a_bandwidth_is_the_median_distance_of_a_sample(name, metric, params):
    x = rows(40)
    kernel = make_kernel_function(name, IMAGE, sample=lambda: x, params=params)
    distances = np.sort(scipy.spatial.distance.pdist(x.flatten(1).numpy(), metric))
    assert kernel.bandwidth == pytest.approx(distances[(len(distances) - 1) // 2], rel=1e-12)
    assert kernel.parameters()["bandwidth"] == kernel.bandwidth


def test_only_kernels_that_need_a_sample_look_at_it():
    def sample():
        raise AssertionError("looked at")

    make_kernel_function("gaussian", IMAGE, sample=sample, params={"bandwidth": 2.0})
    make_kernel_function("ntk", IMAGE, sample=sample)
    make_kernel_function("identity", IMAGE, sample=sample)
    with pytest.raises(AssertionError, match="looked at"):
        make_kernel_function("matern", IMAGE, sample=sample)


@pytest.mark.parametrize("name", ["identity", "rff", "fcnn"])
def test_feature_maps_stand_for_their_linear_kernels(name):
    def sample():
        return rows(30)

    kernel = make_kernel_function(name, IMAGE, seed=3, sample=sample)
    feature_map = make_feature_map(name, IMAGE, seed=3, sample=sample)
    assert isinstance(kernel, FeatureKernel)
    assert kernel.feature_map.parameters() == feature_map.parameters()
    x, y = rows(4), rows(3, seed=1)
    F, G = feature_map.features(x), feature_map.features(y)
    assert torch.equal(kernel.matrix(x, y), F @ G.T)
    assert torch.equal(kernel.matrix(x), F @ F.T)
    assert kernel.matrix(x.float()).dtype == torch.float32
    assert make_kernel_function(feature_map, IMAGE).feature_map is feature_map
    assert kernel.parameters()["feature_map"]["name"] == feature_map.name
    with pytest.raises(ValueError, match="unknown kernel 'features'"):
        restore_kernel_function("features", kernel.parameters())


def test_made_kernels_pass():
    kernel = NTK((D,), depth=2)
    assert make_kernel_function(kernel, (D,)) is kernel


# --- Refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("gausian", {}, "unknown kernel 'gausian'; did you mean 'gaussian'"),
        ("gaussian", {"bandwidth": 0.0}, "`bandwidth` must be a positive number, got 0.0"),
        ("gaussian", {"bandwidth": "mean"}, "`bandwidth` must be a positive number, got 'mean'"),
        ("gaussian", {"bandwidth": math.inf}, "`bandwidth` must be a positive number"),
        ("gaussian", {}, "there is no sample to take it from"),
        ("gaussian", {"bandwidth": 1.0, "nu": 0.5}, "'gaussian' kernel cannot be made with"),
        ("matern", {"bandwidth": 1.0, "nu": 2.0}, "`nu` must be 0.5, 1.5 or 2.5"),
        ("rational-quadratic", {"bandwidth": 1.0, "alpha": -1}, "`alpha` must be a positive number"),
        ("ntk", {"depth": -1}, "`depth` must be an integer of at least 0"),
        ("ntk", {"weight_std": -1}, "`weight_std` must be finite and not negative"),
        ("ntk", {"bias_std": math.nan}, "`bias_std` must be finite"),
        ("ntk", {"pooling": 1}, "'ntk' kernel cannot be made with"),
        ("conv-ntk", {"pooling": 4}, "leaves nothing of images of 4 x 2 pixels"),
        ("conv-ntk", {"filter_size": 2, "pooling": 0}, "`filter_size` must be odd"),
        ("conv-ntk", {"depth": 0}, "`depth` must be an integer of at least 1"),
        ("conv-ntk", {"depth": 2, "pooling": (1, 0, 0)}, "one for each of the 2 blocks"),
        ("conv-ntk", {"pooling": (0, 0, -1)}, "`pooling` must be an integer of at least 0"),
        ("conv-ntk", {"pooling": 0, "padding": "same"}, "unknown padding 'same'"),
        ("conv-ntk", {"pooling": 0, "readout": "mean"}, "unknown readout 'mean'"),
        ("fourier", {"widths": 3, "length_scale": 1.0}, "map cannot be made with"),
    ],
)
def test_bad_parameters_are_refused(name, params, message):
    with pytest.raises(ValueError, match=message):
        make_kernel_function(name, IMAGE, params=params)


def test_bad_uses_are_refused():
    kernel = GaussianKernel(IMAGE, bandwidth=1.0)
    for arguments, message in [
        ((rows(3).flatten(1),), r"takes inputs of shape \(3, 4, 2\), got rows of shape \(24,\)"),
        ((rows(3), rows(2)[:, :1]), "was it made for other data"),
        ((rows(3).int(),), "must be float32 or float64"),
        ((rows(3), rows(3).float()), "all of one dtype"),
    ]:
        with pytest.raises(ValueError, match=message):
            kernel.matrix(*arguments)
    with pytest.raises(ValueError, match="unknown precision 'hihg'; did you mean 'high'"):
        kernel.matrix(rows(2), precision="hihg")
    with pytest.raises(ValueError, match="is already made: drop its parameters"):
        make_kernel_function(kernel, IMAGE, params={"bandwidth": 2.0})
    with pytest.raises(ValueError, match=r"takes \(3, 4, 2\), the data have shape \(24,\)"):
        make_kernel_function(kernel, (D,))
    with pytest.raises(ValueError, match=r"takes images \(c, h, w\), got inputs of shape \(24,\)"):
        make_kernel_function("conv-ntk", (D,))
    with pytest.raises(ValueError, match="their median distance is 0: set `bandwidth`"):
        make_kernel_function("gaussian", IMAGE, sample=lambda: torch.ones(5, *IMAGE).double())
    with pytest.raises(ValueError, match="two rows"):
        make_kernel_function("laplacian", IMAGE, sample=lambda: rows(1))
