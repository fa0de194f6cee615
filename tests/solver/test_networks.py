"""Networks by their names: shapes and sizes as published, definitions, variants, layouts, derivatives, refusals."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from kernel_distill.kernels import normal
from kernel_distill.solver.networks import NETWORKS, NetworkSpec, build_network, network_spec
from kernel_distill.solver.networks.network import template

# Trainable numbers with 10 classes. Those of 28 and 32 pixels, and ConvNet and ResNet-ImageNet, were counted once in
# the published modules; the others differ from them in the layer after the flattening alone.
SIZES = [
    ("convnet", 28, 2048, 317_706),
    ("convnet", 32, 2048, 320_010),
    ("convnet", 64, 2048, 467_850),
    ("convnet", 128, 2048, 615_690),
    ("convnet-bn", 32, 2048, 320_010),
    ("mlp", 28, 128, 118_282),
    ("mlp", 32, 128, 411_146),
    ("mlp", 64, 128, 411_146 + 9216 * 128),
    ("mlp", 128, 128, 411_146 + 46_080 * 128),
    ("lenet", 28, 84, 61_706),
    ("lenet", 32, 84, 62_006),
    ("lenet", 64, 84, 62_006 + 16 * (13 * 13 - 5 * 5) * 120),
    ("lenet", 128, 84, 62_006 + 16 * (29 * 29 - 5 * 5) * 120),
    ("alexnet", 28, 3072, 1_865_802),
    ("alexnet", 32, 3072, 1_872_202),
    ("alexnet", 64, 12_288, 1_872_202 + 9216 * 10),
    ("alexnet", 128, 49_152, 1_872_202 + 46_080 * 10),
    ("alexnet-bn", 28, 3072, 1_867_722),
    ("alexnet-bn", 32, 3072, 1_874_122),
    ("vgg11", 28, 512, 9_229_962),
    ("vgg11", 32, 512, 9_231_114),
    ("vgg11", 64, 2048, 9_231_114 + 1536 * 10),
    ("vgg11", 128, 8192, 9_231_114 + 7680 * 10),
    ("vgg11-bn", 32, 512, 9_231_114),
    ("resnet18", 28, 512, 11_172_810),
    ("resnet18", 32, 512, 11_173_962),
    ("resnet18", 64, 512, 11_173_962),
    ("resnet18", 128, 512, 11_173_962),
    ("resnet18-bn", 32, 512, 11_173_962),
    ("resnet18-ap", 28, 4608, 11_213_770),
    ("resnet18-ap", 32, 8192, 11_250_762),
    ("resnet18-ap", 64, 32_768, 11_250_762 + 24_576 * 10),
    ("resnet18-ap", 128, 131_072, 11_250_762 + 122_880 * 10),
    ("resnet18-ap-bn", 28, 4608, 11_213_770),
    ("resnet18-imagenet", 64, 512, 11_181_642),
    ("resnet18-imagenet", 128, 512, 11_181_642),
    ("resnet18-imagenet-bn", 128, 512, 11_181_642),
]
# One of each kind, small; the options that matter to the definition.
VARIANTS = [
    *(("convnet", (3, 9, 12), {"norm": norm}) for norm in ("none", "batch", "layer", "instance", "group")),
    *(("convnet", (1, 8, 8), {"activation": name}) for name in ("sigmoid", "leaky-relu", "swish")),
    *(("convnet", (2, 10, 7), {"pooling": name}) for name in ("max", "none")),
    ("convnet", (1, 28, 28), {"depth": 3}),
    ("mlp", (3, 8, 8), {"activation": "swish", "depth": 3}),
    ("mlp", (5,), {}),
]


def small(name, shape, **options):
    defaults = {"width": 8} | ({"depth": 2} if name.startswith("convnet") else {})
    return network_spec(name, shape, 3, **(defaults | options))


def rows(n, spec, seed=0, dtype=torch.float64):
    return normal(seed, "test.networks", (n, *spec.input_shape)).to(dtype)


def network(spec, seed=0):
    """Float64, with norms that do something."""
    made = build_network(spec, seed, dtype=torch.float64)
    with torch.no_grad():
        for i, value in enumerate(made.parameters()):
            if value.ndim != 4 and value.shape != (spec.n_outputs, made.n_features):
                value += 0.3 * normal(i, "test.scales", tuple(value.shape))
    return made


def normalised(kind, X, scale, shift):
    """Norms by their formulae: what is averaged over, then a scale and a shift."""
    n, c, h, w = X.shape
    groups = X.reshape(n, {"instance": c, "group": 4, "layer": 1, "batch": c}[kind], -1)
    over = (0, 2) if kind == "batch" else (2,)
    mean = groups.mean(over, keepdim=True)
    variance = (groups - mean).square().mean(over, keepdim=True)
    Z = ((groups - mean) / (variance + 1e-5).sqrt()).reshape(n, c, h, w)
    entries = (c, 1, 1) if scale.ndim == 1 else scale.shape
    return Z * scale.reshape(entries) + shift.reshape(entries)


class ByHand:
    """The published definitions in functions, with the tensors of a network in their order, batch norm in training."""

    def __init__(self, made):
        self.spec, self.tensors = made.spec, iter(list(made.parameters()))

    def convolution(self, X, padding, stride=1, bias=True):
        weight = next(self.tensors)
        return functional.conv2d(X, weight, next(self.tensors) if bias else None, stride, padding)

    def norm(self, X):
        if self.spec.norm in (None, "none"):
            return X
        return normalised(self.spec.norm, X, next(self.tensors), next(self.tensors))

    def dense(self, X):
        return X @ next(self.tensors).T + next(self.tensors)

    def activation(self, X):
        return {
            "sigmoid": lambda: 1 / (1 + (-X).exp()),
            "leaky-relu": lambda: torch.where(X > 0, X, 0.01 * X),
            "swish": lambda: X * torch.sigmoid(X),
        }.get(self.spec.activation, lambda: X.clamp_min(0))()

    def pool(self, X):
        h, w = X.shape[2] // 2, X.shape[3] // 2
        squares = X[:, :, : 2 * h, : 2 * w].reshape(*X.shape[:2], h, 2, w, 2)
        kind = self.spec.pooling
        return X if kind == "none" else squares.amax((3, 5)) if kind == "max" else squares.mean((3, 5))

    def block(self, X, stride, pooled):
        halve = self.pool if pooled and stride == 2 else lambda image: image
        step = 1 if pooled else stride
        Y = halve(self.norm(self.convolution(X, 1, step, bias=False)).clamp_min(0))
        Y = self.norm(self.convolution(Y, 1, bias=False))
        if Y.shape == X.shape:
            return (Y + X).clamp_min(0)
        return (Y + self.norm(halve(self.convolution(X, 0, step, bias=False)))).clamp_min(0)

    def features(self, X):
        base = self.spec.name.removesuffix("-bn")
        border = 2 if self.spec.input_shape[1:] == (28, 28) else 0
        if base == "mlp":
            X = X.flatten(1)
            for _ in range(self.spec.depth):
                X = self.activation(self.dense(X))
        elif base == "convnet":
            for i in range(self.spec.depth):
                X = self.pool(self.activation(self.norm(self.convolution(X, 1 + (border if i == 0 else 0)))))
        elif base == "lenet":
            for i in range(2):
                X = functional.max_pool2d(self.convolution(X, border if i == 0 else 0).clamp_min(0), 2)
            X = self.dense(self.dense(X.flatten(1)).clamp_min(0)).clamp_min(0)
        elif base == "alexnet":
            for i, padding in enumerate((2 + border, 2, 1, 1, 1)):
                X = self.norm(self.convolution(X, padding)).clamp_min(0)
                X = functional.max_pool2d(X, 2) if i in (0, 1, 4) else X
        elif base == "vgg11":
            for i in range(8):
                X = self.norm(self.convolution(X, 1 + (border if i == 0 else 0))).clamp_min(0)
                X = functional.max_pool2d(X, 2) if i in (0, 1, 3, 5, 7) else X
        else:
            stem = (3, 2) if base.endswith("imagenet") else (1, 1)
            X = self.norm(self.convolution(X, *stem, bias=False)).clamp_min(0)
            if base.endswith("imagenet"):
                X = functional.max_pool2d(X, 3, 2, 1)
            for i in range(8):
                X = self.block(X, 2 if i in (2, 4, 6) else 1, base == "resnet18-ap")
            X = X if base == "resnet18-ap" else X.mean((2, 3))
        return X.flatten(1)


@pytest.mark.parametrize(("name", "pixels", "n_features", "n_parameters"), SIZES)
def test_sizes_are_the_published_ones(name, pixels, n_features, n_parameters):
    channels = 1 if pixels == 28 else 3
    spec = network_spec(name, (channels, pixels, pixels), 10)
    model = template(spec)
    assert model.n_features == n_features
    assert sum(value.numel() for value in model.parameters()) == n_parameters
    X = torch.empty(2, channels, pixels, pixels, device="meta")
    assert model(X).shape == (2, 10)
    assert model.embed(X).shape == (2, n_features)


def test_every_name_has_a_known_size():
    assert {name for name, *_ in SIZES} == set(NETWORKS)


@pytest.mark.parametrize(("side", "depth"), [(8, 1), (12, 1), (16, 2), (28, 3), (48, 3), (64, 4), (128, 5)])
def test_default_depth_leaves_the_published_image(side, depth):
    spec = network_spec("convnet", (3, side, side), 10)
    assert (spec.width, spec.depth) == (128, depth)
    assert network_spec("convnet", (3, side, 130), 10).depth == (2 if side == 28 else depth)


@pytest.mark.parametrize(("name", "shape", "options"), VARIANTS)
def test_small_networks_are_their_definition(name, shape, options):
    made = network(small(name, shape, **options))
    X = rows(5, made.spec)
    hand = ByHand(made)
    features = hand.features(X)
    torch.testing.assert_close(made.embed(X), features, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(made(X), hand.dense(features), rtol=1e-9, atol=1e-10)
    assert next(hand.tensors, None) is None


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("lenet", 17),
        ("lenet", 28),
        ("alexnet", 8),
        ("alexnet", 28),
        ("alexnet-bn", 9),
        ("vgg11", 32),
        ("vgg11-bn", 28),
        ("resnet18", 12),
        ("resnet18-bn", 12),
        ("resnet18-ap", 17),
        ("resnet18-ap-bn", 16),
        ("resnet18-imagenet", 34),
    ],
)
def test_large_networks_are_their_definition(name, side):
    made = network(network_spec(name, (1 if side == 28 else 3, side, side), 4))
    X = rows(3, made.spec)
    hand = ByHand(made)
    with torch.no_grad():
        features = hand.features(X)
        # Instance norm of 2 x 2 pixels divides by small deviations, block after block.
        torch.testing.assert_close(made.embed(X), features, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(made(X), hand.dense(features), rtol=1e-7, atol=1e-7)
    assert next(hand.tensors, None) is None


@pytest.mark.parametrize(("name", "shape", "options"), VARIANTS)
def test_classifier_takes_the_features(name, shape, options):
    made = network(small(name, shape, **options))
    X = rows(4, made.spec)
    torch.testing.assert_close(made.classifier(made.embed(X)), made(X), rtol=0, atol=0)
    torch.testing.assert_close(made(X, embed=True), made.embed(X), rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("norm", "last"),
    [("none", True), ("batch", True), ("group", True), ("instance", False), ("layer", False)],
)
def test_layout_inside_is_the_fast_one(channels, norm, last):
    made = build_network(small("convnet", (channels, 8, 8), norm=norm))
    seen = []
    handles = [
        layer.register_forward_hook(lambda _, __, out: seen.append(out))
        for layer in made.features
        if not isinstance(layer, nn.Flatten)
    ]
    X = rows(3, made.spec, dtype=torch.float32)
    for inputs in (X, X.contiguous(memory_format=torch.channels_last)):
        made(inputs)
    for handle in handles:
        handle.remove()
    assert seen
    wanted = torch.channels_last if last else torch.contiguous_format
    assert all(out.is_contiguous(memory_format=wanted) for out in seen)
    assert not any(out.is_contiguous() for out in seen) or not last


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("shape", [(1, 6, 6), (2, 7, 8)])
def test_derivatives_of_first_and_second_order(norm, shape):
    """Gradient matching differentiates the gradient of the weights by the images."""
    made = network(small("convnet", shape, norm=norm, activation="swish", width=4, depth=1))
    weight = made.get_parameter("features.0.weight")

    def matched(X):
        gradient = torch.autograd.grad(made(X).square().sum(), weight, create_graph=True)[0]
        return gradient.square().sum()

    X = rows(2, made.spec).requires_grad_()
    assert torch.autograd.gradcheck(made, (X,))
    assert torch.autograd.gradcheck(matched, (X,))


def test_batch_statistics():
    has = {name for name in NETWORKS if template(network_spec(name, (3, 64, 64), 2)).has_batch_statistics}
    assert has == {name for name in NETWORKS if name.endswith("-bn")}
    made = network(small("convnet", (2, 8, 8), norm="batch"))
    X = rows(6, made.spec)
    assert not torch.allclose(made(X)[:3], made(X[:3]))
    made.eval()
    torch.testing.assert_close(made(X)[:3], made(X[:3]))


def test_a_network_may_be_copied_and_sent():
    spec = small("convnet", (1, 8, 8))
    made = build_network(spec)
    X = rows(2, spec, dtype=torch.float32)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(other(X), made(X))
        assert other.spec == spec


@pytest.mark.parametrize(("name", "shape", "options"), VARIANTS)
def test_parameters_are_plain_and_come_back(name, shape, options):
    spec = small(name, list(shape), **options)
    plain = json.loads(json.dumps(spec.parameters()))
    assert plain == spec.parameters()
    assert NetworkSpec.restore(plain) == spec
    assert hash(NetworkSpec.restore(plain)) == hash(spec)
    assert spec in {spec: None}
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_one_network_has_one_name():
    assert network_spec("resnet18", (3, 32, 32), 10, norm="batch") == network_spec(
        "resnet18-bn", (3, 32, 32), 10
    )
    assert network_spec("convnet", (3, 32, 32), 10, norm="batch").name == "convnet-bn"
    assert network_spec("lenet", (3, 32, 32), 10).parameters() == {
        "name": "lenet",
        "input_shape": [3, 32, 32],
        "n_outputs": 10,
    }


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("convnett", (3, 32, 32), {}, "unknown network 'convnett'; did you mean 'convnet'"),
        ("convnet", (3, 32), {}, r"takes images \(c, h, w\), got inputs of shape \(3, 32\): use 'mlp'"),
        ("mlp", (), {}, "takes images"),
        ("convnet", (3, 0, 8), {"depth": 1}, "`input_shape` must be an integer of at least 1"),
        ("convnet", (3, 8, 8), {"depth": 4, "norm": "none"}, "8 x 8 pixels pools until nothing is left"),
        ("convnet", (3, 8, 8), {"depth": 0}, "`depth` must be an integer of at least 1"),
        ("convnet", (3, 8, 8), {"width": 2.5}, "`width` must be an integer"),
        ("convnet", (3, 8, 8), {"norm": "group", "width": 6}, "4 groups, got 6 channels"),
        (
            "convnet",
            (3, 8, 8),
            {"norm": "instancenorm"},
            "unknown norm 'instancenorm'; did you mean 'instance'",
        ),
        ("convnet", (3, 8, 8), {"pooling": "avg"}, "unknown pooling 'avg'"),
        ("convnet", (3, 8, 8), {"activation": None}, "unknown activation None"),
        ("convnet", (3, 8, 8), {"stride": 2}, "unknown option of a network 'stride'"),
        ("convnet", (3, 1, 1), {"pooling": "none"}, "would normalise single pixels"),
        (
            "mlp",
            (3, 8, 8),
            {"norm": "batch"},
            "network 'mlp' has no option 'norm': it has width, depth, activation",
        ),
        ("lenet", (3, 32, 32), {"width": 8}, "network 'lenet' has no option 'width': it has none"),
        ("lenet", (3, 14, 14), {}, "network 'lenet' on images of 14 x 14 pixels pools until nothing is left"),
        (
            "vgg11",
            (3, 16, 16),
            {},
            "network 'vgg11' on images of 16 x 16 pixels would normalise single pixels",
        ),
        ("vgg11-bn", (3, 16, 16), {}, "pools until nothing is left"),
        ("resnet18", (3, 8, 8), {}, "would normalise single pixels"),
        ("resnet18-ap-bn", (3, 7, 7), {}, "pools until nothing is left"),
        ("resnet18-bn", (3, 32, 32), {"norm": "instance"}, "norm of network 'resnet18-bn' is 'batch'"),
    ],
)
def test_what_cannot_be_is_refused(name, shape, options, message):
    with pytest.raises(ValueError, match=message):
        network_spec(name, shape, 10, **options)


def test_wrong_outputs_rows_and_parameters_are_refused():
    with pytest.raises(ValueError, match="`n_outputs` must be an integer of at least 1, got 0"):
        network_spec("mlp", (4,), 0)
    made = build_network(small("convnet", (1, 8, 8)))
    for bad in (torch.zeros(2, 1, 8, 9), torch.zeros(1, 8, 8), torch.zeros(2, 64)):
        with pytest.raises(ValueError, match=r"takes rows of shape \(1, 8, 8\)"):
            made(bad)
    for values in ({"name": "mlp"}, {"name": "mlp", "input_shape": [3], "n_outputs": 2, "more": 1}):
        with pytest.raises(ValueError, match="not the parameters of a network"):
            NetworkSpec.restore(values)
