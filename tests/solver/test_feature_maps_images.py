"""Convolutional, coupling, patch and module maps: definitions, inverses, derivatives, files, refusals."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from kernel_distill.kernels import uniform
from kernel_distill.solver.feature_maps import (
    ConvNet,
    Coupling,
    ModuleFeatures,
    RandomPatches,
    restore_feature_map,
)


def points(n, shape, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, *shape))).to(dtype)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def network(seed=0, width=6):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.Tanh(),
            nn.Dropout(0.5),
            nn.AvgPool2d(2),
        )


def patches_map(shape, seed=0, rows=60, **params):
    return RandomPatches.build(shape, seed=seed, sample=points(rows, shape, 7), **params)


MAPS = {
    "conv": lambda seed: ConvNet((1, 4, 6), seed=seed),
    "conv-odd": lambda seed: ConvNet((1, 5, 7), seed=seed),
    "conv-deep": lambda seed: ConvNet((2, 8, 4), (6, 9, 7), kernel_size=3, slope=0.3, seed=seed),
    "conv-wide": lambda seed: ConvNet((1, 4, 6), (9,), seed=seed),
    "coupling": lambda seed: Coupling((1, 3, 4), seed=seed),
    "coupling-odd": lambda seed: Coupling((7,), n_layers=3, width=5, scale=1.0, shift=0.5, seed=seed),
    "patches": lambda seed: patches_map((2, 7, 8), seed, n_filters=6, patch_size=3, grid=2),
    "patches-whole": lambda seed: patches_map(
        (1, 6, 6), seed, n_filters=4, patch_size=4, grid=1, threshold=0.2
    ),
    "module": lambda seed: ModuleFeatures(network(seed), (2, 4, 6), batch_size=5),
}
every_map = pytest.mark.parametrize("make", MAPS.values(), ids=MAPS.keys())


# --- What holds for all of them ------------------------------------------------------------------------------


@every_map
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype(make, dtype):
    feature_map = make(0)
    X = points(5, feature_map.input_shape, dtype=dtype)
    before = X.clone()
    F = feature_map.features(X)
    assert (F.shape, F.dtype) == ((5, feature_map.n_features), dtype)
    assert torch.equal(feature_map.features(X.flatten(1)), F)
    assert torch.equal(X, before)
    assert feature_map.features(X[:0]).shape == (0, feature_map.n_features)


@every_map
def test_the_seed_decides_the_map(make):
    first, again, other = make(3), make(3), make(4)
    X = points(4, first.input_shape)
    assert torch.equal(first.features(X), again.features(X))
    assert relative(other.features(X), first.features(X)) > 0.1
    np.testing.assert_allclose(first.fingerprint(), again.fingerprint(), rtol=0, atol=0)


@every_map
def test_single_precision_is_the_same_map(make):
    feature_map = make(0)
    X = points(40, feature_map.input_shape).float()
    assert relative(feature_map.features(X).double(), feature_map.features(X.double())) < 2e-6


@every_map
def test_derivatives(make):
    feature_map = make(0)
    X = points(2, feature_map.input_shape, 5).requires_grad_()
    assert torch.autograd.gradcheck(feature_map.features, (X,))
    # Twice differentiable too: refinement uses Hessian-vector products.
    (gradient,) = torch.autograd.grad(feature_map.features(X).square().sum(), X, create_graph=True)
    assert gradient.requires_grad


@every_map
def test_rows_are_mapped_one_by_one(make):
    feature_map = make(0)
    X = points(23, feature_map.input_shape)
    pieces = torch.cat([feature_map.features(rows) for rows in X.split([1, 5, 17])])
    assert relative(pieces, feature_map.features(X)) < 1e-14


@every_map
def test_restored_features_are_the_same_bits(make):
    feature_map = make(1)
    parameters = json.loads(json.dumps(feature_map.parameters()))
    tensors = {name: tensor.clone() for name, tensor in feature_map.tensors().items()}
    module = network(1) if feature_map.name == "module" else None
    again = restore_feature_map(feature_map.name, parameters, tensors, module)
    assert type(again) is type(feature_map)
    assert again.parameters() == feature_map.parameters()
    for dtype in (torch.float32, torch.float64):
        X = points(6, feature_map.input_shape, dtype=dtype)
        assert torch.equal(again.features(X), feature_map.features(X))


@every_map
def test_arrays_that_do_not_belong_are_refused(make):
    feature_map = make(0)
    tensors = {**feature_map.tensors(), "other": torch.zeros(2)}
    with pytest.raises(ValueError, match="stores"):
        restore_feature_map(feature_map.name, feature_map.parameters(), tensors, None)


# --- Preimages -----------------------------------------------------------------------------------------------

ROUND_TRIPS = {
    "conv-gray": lambda: ConvNet((1, 8, 8)),
    "conv-odd": lambda: ConvNet((1, 5, 7)),
    "conv-half-odd": lambda: ConvNet((3, 5, 6)),
    "conv-pixel": lambda: ConvNet((5, 1, 1)),
    "conv-line": lambda: ConvNet((2, 1, 9), kernel_size=5),
    "conv-stride-3": lambda: ConvNet((1, 9, 6), stride=3, kernel_size=3),
    "conv-patches": lambda: ConvNet((2, 8, 8), stride=4, kernel_size=4, slope=0.5),
    "conv-narrow": lambda: ConvNet((3, 8, 6), (5,)),
    "conv-two": lambda: ConvNet((3, 8, 12), (12, 48), kernel_size=3),
    "conv-three-narrow": lambda: ConvNet((3, 8, 8), (10, 30, 50)),
    "conv-steep": lambda: ConvNet((1, 8, 8), slope=4.0),
    "conv-few-taps": lambda: ConvNet((2, 8, 8), (2,), kernel_size=1, stride=2),
    "conv-mnist": lambda: ConvNet((1, 28, 28)),
    "conv-cifar": lambda: ConvNet((3, 32, 32)),
    "coupling": lambda: Coupling((3, 4, 4)),
    "coupling-odd": lambda: Coupling((7,), n_layers=9),
    "coupling-two": lambda: Coupling((2,)),
    "coupling-mnist": lambda: Coupling((1, 28, 28)),
}


@pytest.mark.parametrize("make", ROUND_TRIPS.values(), ids=ROUND_TRIPS.keys())
@pytest.mark.parametrize("near", [False, True], ids=["least-norm", "near"])
def test_features_of_a_preimage_are_the_features(make, near):
    feature_map = make()
    assert feature_map.surjective
    assert feature_map.has_preimage
    F = points(6, (feature_map.n_features,), 1)
    before = F.clone()
    x = feature_map.preimage(F, points(6, feature_map.input_shape, 2) if near else None)
    assert (x.shape, x.dtype) == ((6, *feature_map.input_shape), torch.float64)
    # Measured: 1e-15 … 3e-14 (and 1e-11 through three layers); the bound promised is 1e-10.
    assert relative(feature_map.features(x), F) < 1e-10
    assert torch.equal(F, before)


@pytest.mark.parametrize("make", ROUND_TRIPS.values(), ids=ROUND_TRIPS.keys())
def test_the_preimage_nearest_to_the_answer_is_the_answer(make):
    feature_map = make()
    X = points(3, feature_map.input_shape)
    assert relative(feature_map.preimage(feature_map.features(X), near=X), X) < 1e-10


@pytest.mark.parametrize(
    "make", [ROUND_TRIPS["conv-narrow"], ROUND_TRIPS["conv-few-taps"]], ids=["narrow", "few-taps"]
)
def test_near_and_least_norm_mean_what_they_say(make):
    feature_map = make()
    F, reference = points(4, (feature_map.n_features,)), points(4, feature_map.input_shape, 1)
    least = feature_map.preimage(F).flatten(1)
    near = feature_map.preimage(F, near=reference).flatten(1)
    # The layer's matrix by its action on unit vectors; a slope of one would make the map this matrix.
    linear = ConvNet(**{**feature_map.parameters(), "slope": 1.0})
    A = linear.features(torch.eye(feature_map.n_inputs, dtype=torch.float64))
    target = functional.leaky_relu(F, 1 / feature_map.slope)
    pinv = torch.linalg.pinv(A)
    assert relative(least, target @ pinv) < 1e-10
    start = reference.flatten(1)
    assert relative(near, start + (target - start @ A) @ pinv) < 1e-10
    assert ((near - start).norm(dim=1) < (least - start).norm(dim=1)).all()


def test_preimages_of_natural_size_stay_accurate_at_64():
    feature_map = ConvNet((3, 64, 64))
    assert feature_map.n_features == feature_map.n_inputs
    F = points(2, (feature_map.n_features,))
    assert relative(feature_map.features(feature_map.preimage(F)), F) < 1e-10


@pytest.mark.parametrize(
    "feature_map",
    [
        pytest.param(ConvNet((1, 4, 4), (5,)), id="channels"),
        pytest.param(ConvNet((1, 8, 8), (3, 13)), id="second layer"),
        pytest.param(ConvNet((1, 8, 8), (2,), kernel_size=1, stride=2), id="missed pixels"),
        pytest.param(patches_map((1, 6, 6), n_filters=2, patch_size=3), id="patches"),
        pytest.param(ModuleFeatures(nn.Tanh(), (3,)), id="module"),
    ],
)
def test_maps_without_a_preimage_say_so(feature_map):
    assert not feature_map.surjective
    with pytest.raises(NotImplementedError, match="no preimage"):
        feature_map.preimage(torch.zeros(1, feature_map.n_features))


# --- Convolution ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "channels", "features"),
    [
        ((3, 32, 32), 12, 3072),
        ((1, 28, 28), 4, 784),
        ((1, 8, 8), 4, 64),
        ((1, 5, 7), 1, 35),
        ((3, 7, 8), 6, 168),
    ],
)
def test_default_channels_give_as_many_features_as_inputs(shape, channels, features):
    feature_map = ConvNet(shape)
    assert feature_map.channels == (channels,)
    assert feature_map.n_features == features == feature_map.n_inputs


@pytest.mark.parametrize(
    ("kernel", "stride"), [(1, 1), (2, 1), (3, 1), (3, 2), (4, 2), (5, 2), (2, 4), (6, 4)]
)
def test_convolution_is_its_definition(kernel, stride):
    feature_map = ConvNet((2, 8, 8), (3,), kernel_size=kernel, stride=stride, seed=5)
    X = points(2, (2, 8, 8)).numpy()
    weight = feature_map._layers[0]._weight.numpy()
    before = max(0, kernel - stride) // 2
    z = np.zeros((2, 3, 8 // stride, 8 // stride))
    for i in range(8 // stride):
        for j in range(8 // stride):
            rows = (np.arange(kernel) + i * stride - before) % 8
            columns = (np.arange(kernel) + j * stride - before) % 8
            z[:, :, i, j] = np.einsum("ocpq,ncpq->no", weight, X[:, :, rows][:, :, :, columns])
    expected = np.where(z > 0, z, 0.1 * z).reshape(2, -1)
    np.testing.assert_allclose(feature_map.features(torch.from_numpy(X)), expected, rtol=0, atol=1e-14)


def test_weights_have_variance_one_over_fan_in():
    weight = ConvNet((3, 4, 4), (5000,), kernel_size=3)._layers[0]._weight
    assert math.isclose(float(weight.square().mean()) * 27, 1, rel_tol=0.02)


def test_conv_is_homogeneous():
    feature_map = MAPS["conv-deep"](0)
    X = points(3, feature_map.input_shape)
    assert feature_map.homogeneous
    assert relative(feature_map.features(7 * X), 7 * feature_map.features(X)) < 1e-14


# --- Coupling ------------------------------------------------------------------------------------------------


def test_coupling_without_networks_is_the_identity():
    X = points(3, (9,))
    assert torch.equal(Coupling((9,), scale=0, shift=0).features(X), X)


def test_coupling_changes_every_value_nonlinearly():
    feature_map = Coupling((9,))
    X = points(3, (9,))
    # A linear map would have no second difference.
    second = feature_map.features(X) + feature_map.features(-X) - 2 * feature_map.features(0 * X)
    assert (second.abs().amax(dim=0) > 1e-3).all()


def test_coupling_stays_well_conditioned():
    feature_map = Coupling((60,))
    jacobian = torch.autograd.functional.jacobian(
        lambda x: feature_map.features(x[None])[0], points(1, (60,))[0]
    )
    assert torch.linalg.cond(jacobian) < 2e3


# --- Patches -------------------------------------------------------------------------------------------------


def test_patch_filters_are_their_definition():
    shape, k, n_filters = (2, 7, 6), 3, 11
    sample = points(50, shape, 3).numpy() * 4 + 9
    feature_map = RandomPatches.build(
        shape, seed=2, sample=torch.from_numpy(sample), n_filters=n_filters, patch_size=k, grid=2
    )
    draws = list(dict.fromkeys((uniform(2, "patches", 10_000).numpy() * (50 * 5 * 4)).astype(int).tolist()))
    patches = []
    for draw in draws:
        image, place = divmod(draw, 20)
        i, j = divmod(place, 4)
        patches.append(sample[image, :, i : i + k, j : j + k].ravel())
    patches = np.array(patches) - np.mean(patches, axis=1, keepdims=True)
    epsilon = 0.1 * patches.var(axis=1).mean()
    assert math.isclose(feature_map.epsilon, epsilon, rel_tol=1e-12)
    kept = patches.var(axis=1) > epsilon
    patches /= np.sqrt(patches.var(axis=1, keepdims=True) + epsilon)
    mean = patches.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(patches.T, bias=True))
    whiten = (vectors[:, 1:] / np.sqrt(values[1:] + 0.3)) @ vectors[:, 1:].T
    filters = (patches[kept][:n_filters] - mean) @ whiten
    filters = filters / np.linalg.norm(filters, axis=1, keepdims=True) @ whiten
    np.testing.assert_allclose(feature_map.filters.flatten(1), filters, rtol=0, atol=1e-6)
    np.testing.assert_allclose(feature_map.bias, -filters @ mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", [1, 2, 3])
def test_patch_features_are_their_definition(grid):
    shape, k = (2, 8, 7), 3
    feature_map = patches_map(shape, n_filters=5, patch_size=k, grid=grid, threshold=0.3)
    X = points(3, shape).numpy()
    filters, bias = feature_map.filters.double().flatten(1).numpy(), feature_map.bias.double().numpy()
    z = np.zeros((3, 6, 5, 5))
    for i in range(6):
        for j in range(5):
            u = X[:, :, i : i + k, j : j + k].reshape(3, -1)
            u = (u - u.mean(1, keepdims=True)) / np.sqrt(u.var(1, keepdims=True) + feature_map.epsilon)
            z[:, i, j] = u @ filters.T + bias
    expected = []
    for response in (np.maximum(0, z - 0.3), np.maximum(0, -z - 0.3)):
        for rows in np.array_split(np.arange(6), grid):
            # The uneven axis, five places: cells begin at ceil(5 g / grid).
            for g in range(grid):
                columns = np.arange(-(-5 * g // grid), -(-5 * (g + 1) // grid))
                expected.append(response[:, rows][:, :, columns].mean(axis=(1, 2)))
    found = feature_map.features(torch.from_numpy(X))
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), rtol=0, atol=1e-14)


def test_tiles_do_not_show(monkeypatch):
    # 300 filters at 29 × 29 places: 33 images a tile, so 80 images take the path with buffers.
    shape = (1, 32, 32)
    feature_map = patches_map(shape, n_filters=300, patch_size=4, grid=2)
    X = points(80, shape).float()
    whole = feature_map.features(X)
    assert relative(torch.cat([feature_map.features(rows) for rows in X.split(9)]), whole) < 1e-6
    assert relative(feature_map.features(X.clone().requires_grad_()).detach(), whole) < 1e-6
    with torch.no_grad():
        assert torch.equal(feature_map.features(X.clone().requires_grad_()), whole)


def test_flat_background_makes_no_filters():
    sample = torch.zeros(200, 1, 8, 8, dtype=torch.float64)
    sample[:, :, :, :3] = points(200, (1, 8, 3))
    feature_map = RandomPatches.build((1, 8, 8), seed=0, sample=sample, n_filters=50, patch_size=3)
    filters = functional.normalize(feature_map.filters.flatten(1), dim=1)
    nearest = (filters @ filters.T - 2 * torch.eye(50)).max()
    assert nearest < 0.9999
    with pytest.raises(ValueError, match="found 0 different patches with contrast in 20 sample rows"):
        RandomPatches.build((1, 8, 8), seed=0, sample=torch.ones(20, 1, 8, 8), n_filters=1)


def test_units_and_offset_do_not_matter():
    sample, X = points(40, (1, 6, 6), 1), points(5, (1, 6, 6))
    made = [
        RandomPatches.build((1, 6, 6), seed=0, sample=scale * sample + offset, n_filters=8, patch_size=3)
        for scale, offset in ((1.0, 0.0), (50.0, 100.0))
    ]
    assert relative(made[1].features(50 * X + 100), made[0].features(X)) < 1e-5


# --- Modules -------------------------------------------------------------------------------------------------


def test_module_is_frozen_and_copied():
    net = network()
    feature_map = ModuleFeatures(net, (2, 4, 6))
    X = points(3, (2, 4, 6))
    before = feature_map.features(X)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    with torch.no_grad():
        net[0].weight.zero_()
    net.double()
    assert torch.equal(feature_map.features(X), before)
    assert torch.equal(before, network().double().eval()(X).flatten(1))
    assert feature_map.n_features == 6 * 2 * 3


def test_module_that_works_in_place_leaves_inputs_alone():
    feature_map = ModuleFeatures(nn.ReLU(inplace=True), (4,))
    X = points(3, (4,))
    before = X.clone()
    assert torch.equal(feature_map.features(X), before.clamp_min(0))
    assert torch.equal(X, before)


def test_module_with_one_number_a_row():
    assert ModuleFeatures(nn.Flatten(0), (1,)).n_features == 1


def test_the_file_needs_the_same_module():
    feature_map = ModuleFeatures(network(), (2, 4, 6))
    parameters = feature_map.parameters()
    assert parameters["n_parameters"] == 6 * 2 * 9 + 6 + 12
    assert feature_map.tensors() == {}
    with pytest.raises(ValueError, match=r"Sequential with 126 parameters.*kd\.load\(path, module=net\)"):
        ModuleFeatures.restore(parameters, {})
    with pytest.raises(ValueError, match=r"weights differ. Given .*Sequential with 126 .*, saved .* 126 "):
        ModuleFeatures.restore(parameters, {}, module=network(1))
    with pytest.raises(ValueError, match=r"Given .* with 147 parameters"):
        ModuleFeatures.restore(parameters, {}, module=network(width=7))
    with pytest.raises(ValueError, match=r"must be a torch\.nn\.Module, got function"):
        ModuleFeatures.restore(parameters, {}, module=network)


class Returns(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, X):
        return self.function(X)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        pytest.param(lambda X: (X, X), "must return a tensor, got tuple", id="tuple"),
        pytest.param(lambda X: X.sum(), r"one row for each of 2 inputs, got shape \(\)", id="scalar"),
        pytest.param(lambda X: X.flatten(), "one row for each of 2 inputs", id="flat"),
        pytest.param(lambda X: X[:, :0], "one row for each of 2 inputs", id="empty"),
        pytest.param(lambda X: X.float(), "returned torch.float32 for torch.float64", id="cast"),
        pytest.param(lambda X: X @ torch.ones(3, 2), r"does not run on torch\.float64 inputs", id="single"),
        pytest.param(lambda X: X @ torch.ones(4, 2), r"does not run on .* of shape \(2, 3\)", id="shape"),
        pytest.param(lambda X: X + torch.rand_like(X), "two outputs for one input", id="random"),
        pytest.param(lambda X: X - X.mean(dim=0), "when it was alone", id="mixes rows"),
    ],
)
def test_modules_that_are_no_feature_maps(function, message):
    with pytest.raises(ValueError, match=message):
        ModuleFeatures(Returns(function), (3,))


# --- Refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda: ConvNet((12,)), r"takes images .* \(12,\)", id="conv-vector"),
        pytest.param(lambda: ConvNet((1, 4, 4), ()), "`channels` is empty", id="conv-empty"),
        pytest.param(lambda: ConvNet((1, 4, 4), (0,)), "`channels` must be", id="conv-zero"),
        pytest.param(lambda: ConvNet((1, 4, 4), kernel_size=0), "`kernel_size` must be", id="conv-kernel"),
        pytest.param(
            lambda: ConvNet((1, 5, 7), stride=2), "stride of 2 does not divide the 5 × 7", id="stride"
        ),
        pytest.param(
            lambda: ConvNet((1, 6, 6), (1, 1), stride=2), "does not divide the 3 × 3", id="stride-2nd"
        ),
        pytest.param(lambda: ConvNet((1, 4, 4), slope=0.0), "`slope` must be", id="conv-slope-0"),
        pytest.param(lambda: ConvNet((1, 4, 4), slope=-1.0), "`slope` must be", id="conv-slope-negative"),
        pytest.param(lambda: ConvNet((1, 4, 4), seed=-1), "`seed` must be", id="conv-seed"),
        pytest.param(lambda: Coupling((1,)), "two values or more", id="coupling-one"),
        pytest.param(lambda: Coupling((4,), n_layers=0), "`n_layers` must be", id="coupling-layers"),
        pytest.param(lambda: Coupling((4,), width=0), "`width` must be", id="coupling-width"),
        pytest.param(lambda: Coupling((4,), scale=-1), "`scale` must be", id="coupling-scale"),
        pytest.param(lambda: Coupling((4,), shift=math.nan), "`shift` must be", id="coupling-shift"),
        pytest.param(
            lambda: RandomPatches.build((1, 8, 8), seed=0, sample=None), "pass `sample`", id="no sample"
        ),
        pytest.param(
            lambda: RandomPatches.build((1, 8, 8), seed=0, sample=torch.zeros(0, 1, 8, 8)),
            "pass `sample`",
            id="empty sample",
        ),
        pytest.param(
            lambda: RandomPatches.build((1, 8, 8), seed=0, sample=torch.zeros(3, 64)),
            "must have shape",
            id="flat",
        ),
        pytest.param(
            lambda: RandomPatches.build((1, 8, 8), seed=0, sample=torch.full((3, 1, 8, 8), math.nan)),
            "`sample` holds NaN in row 0",
            id="NaN",
        ),
        pytest.param(lambda: patches_map((12,)), r"takes images .* \(12,\)", id="patches-vector"),
        pytest.param(lambda: patches_map((1, 5, 5)), "do not fit images", id="patch too large"),
        pytest.param(lambda: patches_map((1, 6, 6), grid=2), "do not fit images", id="grid too fine"),
        pytest.param(
            lambda: patches_map((1, 8, 8), rows=1, n_filters=100), "lower `n_filters`", id="few patches"
        ),
        pytest.param(lambda: patches_map((1, 8, 8), threshold=-1), "`threshold` must be", id="threshold"),
        pytest.param(
            lambda: RandomPatches((1, 8, 8), torch.zeros(3, 2, 4, 4), torch.zeros(3), epsilon=0.1),
            "`filters` must have shape",
            id="filters",
        ),
        pytest.param(
            lambda: RandomPatches((1, 8, 8), torch.zeros(3, 1, 4, 4), torch.zeros(2), epsilon=0.1),
            "`bias` must have shape",
            id="bias",
        ),
        pytest.param(
            lambda: ModuleFeatures(nn.Tanh(), (3,), batch_size=0), "`batch_size` must be", id="batch"
        ),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
