"""Provable-KRR's functions against their definitions, on functions of our own with its interface."""

import copy
import dataclasses
import functools
import gc
import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset

from kernel_distill.accel import _cache, patched
from kernel_distill.accel._cache import identity_key
from kernel_distill.accel._call import Settings, accelerated, forget_calls
from kernel_distill.accel._fingerprint import fingerprint_of
from kernel_distill.accel._records import record, records
from kernel_distill.accel.registry.krr import TARGETS
from kernel_distill.accel.registry.torchvision import TARGETS as ITEMS
from kernel_distill.accel.replacements import krr, krr_accuracy, krr_inverse

from .peers import peer_path

KNOWN = {target.name.partition(".")[2]: target for target in TARGETS}


class Network(nn.Module):
    """The interface of `FCNN`."""

    def __init__(self, d, outputs, width, hidden=1):
        super().__init__()
        layers = []
        for i in range(hidden):
            layers += [nn.Linear(width if i else d, width, bias=False), nn.LeakyReLU(0.1)]
        self.classifier = nn.Sequential(*layers, nn.Linear(width, outputs, bias=False))
        self.inverse_LeakyReLU = nn.LeakyReLU(10)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            parameter.requires_grad = False

    def forward(self, x):
        feature = self.classifier[:-1](x.flatten(1))
        return self.classifier[-1](feature), feature

    def inverse(self, x):
        for module in reversed(list(self.classifier[:-1])):
            is_linear = isinstance(module, nn.Linear)
            x = torch.linalg.lstsq(module.weight, x).solution if is_linear else self.inverse_LeakyReLU(x)
        return x


def network_features(model, data):
    return model(data)[1].T


def pixels(model, data):
    return data.flatten(1).T


def fourier(A_b, data):
    A, b = A_b
    phase = A @ data.flatten(1).T + b[:, None]
    return torch.cos(phase) * torch.sqrt(2 / torch.tensor(len(A)))


def ridge(num_data, dim_data, phi_data, Y_data, lambda_reg):
    if lambda_reg == 0:
        return Y_data @ torch.linalg.pinv(phi_data)
    if num_data <= dim_data:
        return Y_data @ torch.inverse(phi_data.T @ phi_data + lambda_reg * torch.eye(num_data)) @ phi_data.T
    return torch.linalg.lstsq(
        phi_data @ phi_data.T + lambda_reg * torch.eye(dim_data), phi_data @ Y_data.T
    ).solution.T


@torch.no_grad()
def accuracy(W, net, test_loader, cal_feature):
    right = torch.tensor(0.0)
    for X, Y in test_loader:
        right += ((W @ cal_feature(net, X)).argmax(dim=0) == Y).float().sum()
    return right.item() / len(test_loader.dataset)


class Digits:
    """A data set of MNIST's form that counts what is read."""

    def __init__(self, n=60):
        rng = np.random.default_rng(1)
        self.data = torch.from_numpy(rng.integers(0, 256, (n, 5, 4), dtype=np.uint8))
        self.targets = torch.from_numpy(rng.integers(0, 3, n))
        self.transform, self.target_transform, self.reads = ToTensor(), None, 0

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.reads += 1
        return self.data[index].float().div(255).unsqueeze(0), int(self.targets[index])


class ToTensor:
    def __call__(self, image):
        return torch.from_numpy(np.array(image)).float().div(255).unsqueeze(0)


ToTensor.__module__ = "torchvision.transforms.transforms"
Digits.__module__ = "torchvision.datasets.mnist"


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """Let these functions be the ones that were published."""
    torch.manual_seed(0)
    _cache.clear()
    records.clear()
    monkeypatch.setattr(krr, "FCNN", (fingerprint_of(Network),))
    names = {network_features: "cal_nngp_feature", pixels: "cal_x_feature", fourier: "cal_random_fourier"}
    monkeypatch.setattr(krr_accuracy, "FEATURES", {fingerprint_of(f): name for f, name in names.items()})
    monkeypatch.setattr(krr_accuracy, "ITEMS", items_of_digits())
    yield
    _cache.clear()
    for target in TARGETS:
        forget_calls(target.name)
    Settings.verify = 0


def items_of_digits():
    """Let `Digits` be the data set that is known."""
    return [dataclasses.replace(ITEMS[0], hashes=(fingerprint_of(Digits.__getitem__),))]


def stand_in(name, original):
    return accelerated(KNOWN[name], original)


def reasons(name):
    return list(record(f"krr.{name}").declined)


def far(result, expected):
    return float((result.double() - expected).norm() / expected.norm())


def exact_ridge(phi, Y, ridge):
    phi, Y = phi.double(), Y.double()
    return torch.linalg.solve(phi @ phi.T + float(ridge) * torch.eye(len(phi)).double(), phi @ Y.T).T


def problem(p, n, k, dtype=torch.float32, shift=1.0):
    phi = (torch.randn(n, p, dtype=dtype) + shift).T
    return phi, torch.nn.functional.one_hot(torch.randint(0, k, (n,)), k).to(dtype).T


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("p", "n", "k"), [(30, 400, 10), (1, 2, 1), (17, 18, 3), (400, 1500, 2)])
def test_ridges_are_the_exact_ones(p, n, k, dtype):
    phi, Y = problem(p, n, k, dtype)
    solve = stand_in("compute_KRR", ridge)
    for value in (torch.tensor(1.0), torch.tensor(100.0), 1000.0, 10):
        W = solve(n, p, phi, Y, value)
        assert (type(W), W.dtype, W.shape) == (torch.Tensor, dtype, (k, p))
        expected = exact_ridge(phi, Y, value)
        eps, condition = torch.finfo(dtype).eps, torch.linalg.cond(phi @ phi.T + float(value) * torch.eye(p))
        assert far(W, expected) < 10 * eps * condition
        # Some rounding is left, below which the original may be by luck.
        original = far(ridge(n, p, phi, Y, value), expected)
        assert far(W, expected) <= (1 if dtype == torch.float32 else 10) * max(original, 10 * eps)
    assert record("krr.compute_KRR").accelerated == 4


def test_products_are_made_once_and_for_these_numbers(monkeypatch):
    made, add = [], krr.statistics_add_
    monkeypatch.setattr(krr, "statistics_add_", lambda *args: made.append(1) or add(*args))
    phi, Y = problem(20, 100, 3)
    solve = stand_in("compute_KRR", ridge)
    state = torch.get_rng_state()
    for value in (10.0, 20.0, 30.0):
        solve(100, 20, phi, Y, value)
    assert len(made) == 1
    assert torch.equal(state, torch.get_rng_state())
    changes = [
        lambda: phi.mul_(2),
        lambda: phi.data[3].add_(1),
        lambda: np.copyto(phi.numpy()[0], 7),
        lambda: Y.copy_(Y.flip(0)),
    ]
    for number, change in enumerate(changes):
        change()
        W = solve(100, 20, phi, Y, 10.0)
        assert far(W, exact_ridge(phi, Y, 10.0)) < 1e-5
        assert len(made) == 2 + number
    solve(100, 20, phi.clone(), Y, 10.0)
    assert len(made) == 6


def test_directions_without_data_are_left_to_lstsq(monkeypatch):
    solved, solve = [], torch.linalg.lstsq
    phi, Y = problem(6, 200, 2)
    phi = torch.cat([phi, phi]).contiguous()
    monkeypatch.setattr(torch.linalg, "lstsq", lambda *args: solved.append(args) or solve(*args))
    for value in (1e-12, 0.5, torch.tensor(-1e9)):
        W = stand_in("compute_KRR", ridge)(200, 12, phi, Y, value)
        assert W.shape == (2, 12)
    assert len(solved) == 2
    matrix, right = solved[0]
    torch.testing.assert_close(matrix, phi @ phi.T + 1e-12 * torch.eye(12), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(right, phi @ Y.T, rtol=1e-6, atol=1e-4)
    # What memory held before decides on the answer: it is not compared.
    Settings.verify = 1
    stand_in("compute_KRR", ridge)(200, 12, phi, Y, 1e-12)
    assert ["does not agree with itself" in each for each in reasons("compute_KRR")] == [True]
    # Once the calls that verification asks for have been compared, it is solved here again.
    stand_in("compute_KRR", ridge)(200, 12, phi, Y, 10.0)
    assert record("krr.compute_KRR").verified == 1
    stand_in("compute_KRR", ridge)(200, 12, phi, Y, 1e-12)
    assert (record("krr.compute_KRR").accelerated, record("krr.compute_KRR").calls) == (5, 6)


def test_ridges_verified():
    phi, Y = problem(40, 300, 5)
    Settings.verify = 3
    for value in (1.0, 10.0, 100.0):
        stand_in("compute_KRR", ridge)(300, 40, phi, Y, torch.tensor(value))
    assert record("krr.compute_KRR").verified == 3
    assert record("krr.compute_KRR").difference < 1e-4


def test_ridges_that_are_the_originals():
    phi, Y = problem(8, 50, 2)
    solve = stand_in("compute_KRR", ridge)
    for args in [
        (50, 8, phi, Y, 0),
        (50, 8, phi, Y, torch.tensor(0.0)),
        (6, 8, phi[:, :6], Y[:, :6], 1.0),
        (50, 8, phi, Y, np.float64(3)),
        (50, 8, phi.clone().requires_grad_(), Y, 1.0),
        (50, 8, phi, Y, torch.tensor(1.0, requires_grad=True)),
    ]:
        torch.testing.assert_close(solve(*args), ridge(*args), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError):
        solve(50, 8, phi, Y[:, :-1], 1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        solve(50, 8, phi, Y, 1.0)
    assert record("krr.compute_KRR").accelerated == 0
    assert len(reasons("compute_KRR")) == 6
    with pytest.raises(RuntimeError):
        solve(50, 8, phi * torch.nan, Y, 1.0)


@pytest.mark.parametrize("n", [1, 37, 1030])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_features_are_the_originals_bits(n, dtype):
    X, frequencies = (
        torch.randn(n, 2, 3, 4, dtype=dtype),
        (torch.randn(21, 24, dtype=dtype), torch.rand(21, dtype=dtype)),
    )
    Settings.verify = 1
    expected = fourier(frequencies, X)
    result = stand_in("cal_random_fourier", fourier)(frequencies, X)
    assert torch.equal(result, expected)
    assert result.stride() == expected.stride()
    for hidden in (1, 2):
        net, images = Network(24, 3, 20, hidden).to(dtype), X.clone()
        expected = network_features(net, X)
        forget_calls("krr.cal_nngp_feature")
        result = stand_in("cal_nngp_feature", network_features)(net, X)
        assert torch.equal(result, expected)
        assert result.stride() == expected.stride()
        assert torch.equal(X, images)
    assert record("krr.cal_random_fourier").difference == record("krr.cal_nngp_feature").difference == 0
    assert (record("krr.cal_random_fourier").verified, record("krr.cal_nngp_feature").verified) == (1, 2)


def test_features_that_are_the_originals():
    X, net = torch.randn(5, 12), Network(12, 2, 12)
    features, cosines = (
        stand_in("cal_nngp_feature", network_features),
        stand_in("cal_random_fourier", fourier),
    )
    A, b = torch.randn(7, 12), torch.rand(7)
    assert features(net, X.clone().requires_grad_()).requires_grad
    assert cosines((A, b), X.clone().requires_grad_()).requires_grad
    assert cosines((A, b.clone().requires_grad_()), X).requires_grad
    assert cosines((A, b.double()), X).dtype == torch.float64
    for run in (lambda: cosines((A, b[:3]), X), lambda: features(net, X.double())):
        with pytest.raises(RuntimeError):
            run()
    seen = []
    net.classifier[0].register_forward_hook(lambda *args: seen.append(1))
    features(net, X)
    features(Other(12, 2, 12), X)
    assert seen
    assert record("krr.cal_random_fourier").accelerated == 0
    assert len(reasons("cal_nngp_feature")) == 2
    with torch.no_grad():
        cosines((A, b), X.clone().requires_grad_())
    assert record("krr.cal_random_fourier").accelerated == 1


def test_images_are_not_activated_in_place():
    net, X = Network(12, 2, 12), torch.randn(5, 12)
    hidden = list(net.classifier)
    for layers in ([nn.LeakyReLU(0.1), *hidden], hidden[1:], hidden[-1:]):
        net.classifier, images = nn.Sequential(*layers), X.clone()
        result = stand_in("cal_nngp_feature", network_features)(net, images)
        assert torch.equal(images, X)
        assert torch.equal(result, network_features(net, X))
    assert reasons("cal_nngp_feature") == ["the network is not an FCNN as it was published"]


class Other(Network):
    """A network that is not known, though it computes the same."""


@pytest.mark.parametrize(("hidden", "columns"), [(1, 1), (1, 30), (2, 4)])
def test_inverse_is_the_exact_one(hidden, columns):
    net = Network(40, 3, 40, hidden)
    for layer in net.classifier[: 2 * hidden : 2]:
        layer.weight.add_(2 * torch.eye(40))
    X = torch.randn(columns, 40)
    features = network_features(net, X)
    expected = copy.deepcopy(net).double().inverse(features.double())
    Settings.verify = 1
    result = stand_in("FCNN_inverse", Network.inverse)(net, features)
    assert (result.dtype, result.shape) == (torch.float32, (40, columns))
    assert far(result, expected) <= max(far(Network.inverse(net, features), expected), 1e-5)
    assert record("krr.FCNN_inverse").verified == 1
    assert reasons("FCNN_inverse") == []


def test_weights_are_factored_once_and_anew_when_they_change(monkeypatch):
    made, factor = [], krr_inverse._factor
    monkeypatch.setattr(krr_inverse, "_factor", lambda weight: made.append(1) or factor(weight))
    net, x = Network(30, 2, 30), torch.randn(30, 4)
    inverse = stand_in("FCNN_inverse", Network.inverse)
    for _ in range(3):
        inverse(net, x)
    assert len(made) == 1
    net.classifier[0].weight.data *= 2
    assert far(inverse(net, x), Network.inverse(net, x).double()) < 1e-4
    assert len(made) == 2


def test_condition_numbers():
    for n in (1, 5, 60):
        A = torch.randn(n, n, dtype=torch.float64)
        expected = float(torch.linalg.cond(A))
        assert 0.9 * expected < krr_inverse._factor(A)[2] <= expected * (1 + 1e-9)
    assert np.isnan(krr_inverse._factor(torch.zeros(3, 3).double())[2])
    assert np.isnan(krr_inverse._factor(torch.full((3, 3), torch.nan).double())[2])


def test_inverses_that_are_the_originals():
    x = torch.randn(20, 3)
    inverse = stand_in("FCNN_inverse", Network.inverse)
    singular, trained = Network(20, 2, 20), Network(20, 2, 20)
    singular.classifier[0].weight[0] = singular.classifier[0].weight[1]
    trained.classifier[0].weight.requires_grad = True
    near = Network(20, 2, 20)
    U, _, V = torch.linalg.svd(near.classifier[0].weight)
    near.classifier[0].weight.copy_(U * torch.logspace(0, -4.3, 20) @ V)
    assert inverse(trained, x).requires_grad
    for net in (singular, near, Network(25, 2, 20), Other(20, 2, 20)):
        assert inverse(net, x).shape == Network.inverse(net, x).shape
    with pytest.raises(RuntimeError):
        inverse(Network(20, 2, 20), x[:9])
    assert record("krr.FCNN_inverse").accelerated == 0
    assert len(reasons("FCNN_inverse")) == 5


@pytest.mark.parametrize(
    "activation",
    [nn.Tanh(), nn.Identity(), nn.LeakyReLU(0), nn.LeakyReLU(-2), nn.LeakyReLU(10, inplace=True), None],
    ids=str,
)
def test_other_inverses_of_the_activation_are_the_originals(activation):
    net, x = Network(20, 2, 20, 2), torch.randn(20, 3)
    net.inverse_LeakyReLU = activation
    if activation is None:
        with pytest.raises(TypeError):
            stand_in("FCNN_inverse", Network.inverse)(net, x)
    else:
        result = stand_in("FCNN_inverse", Network.inverse)(net, x.clone())
        torch.testing.assert_close(result, Network.inverse(net, x.clone()), rtol=1e-3, atol=1e-3)
    assert [reason.split()[0] for reason in reasons("FCNN_inverse")] == ["`inverse_LeakyReLU`"]


def loader_of(data, **options):
    return DataLoader(data, **{"batch_size": 16} | options)


CASES = {
    network_features: lambda: Network(20, 3, 20),
    fourier: lambda: (torch.randn(20, 20), torch.rand(20)),
    pixels: lambda: None,
}


@pytest.mark.parametrize("feature", CASES)
@pytest.mark.parametrize("drop_last", [True, False])
def test_accuracies_and_random_numbers_are_the_originals(feature, drop_last):
    data, net = Digits(), CASES[feature]()
    for rows in (data, Subset(data, [4, 50, 7]), Subset(Subset(data, range(0, 60, 2)), [3])):
        rows = Subset(data, list(rows.indices)) if isinstance(rows, Subset) and rows.dataset is data else rows
        loader = loader_of(rows, drop_last=drop_last)
        for _ in range(3):
            W = torch.randn(3, 20)
            torch.manual_seed(5)
            expected, state = accuracy(W, net, loader, feature), torch.get_rng_state()
            torch.manual_seed(5)
            result = stand_in("test_kernel_machine", accuracy)(W, net, loader, feature)
            assert type(result) is float
            assert result == expected
            assert torch.equal(state, torch.get_rng_state())
    assert record("krr.test_kernel_machine").accelerated >= 6


def test_features_are_kept_until_something_changes():
    data, net, W = Digits(), Network(20, 3, 20), torch.randn(3, 20)
    test = stand_in("test_kernel_machine", accuracy)

    def reads(loader, feature=network_features):
        data.reads = 0
        assert test(W, net, loader, feature) == accuracy(W, net, loader, feature)
        return data.reads - 60  # of the original's own pass

    assert reads(loader_of(data)) == 60
    assert reads(loader_of(data)) == 0
    data.data[3] += 1
    assert reads(loader_of(data)) == 60
    data.targets.numpy()[5] += 1
    assert reads(loader_of(data)) == 60
    net.classifier[0].weight.data *= -1
    assert reads(loader_of(data)) == 60
    net.classifier[1].negative_slope = 0.5
    assert reads(loader_of(data)) == 60
    assert reads(loader_of(data, batch_size=7)) == 60
    assert reads(loader_of(data), pixels) == 60
    assert reads(loader_of(data), stand_in("cal_nngp_feature", network_features)) == 0
    assert not reasons("test_kernel_machine")


def test_accuracies_that_are_the_originals(monkeypatch):
    data, net, W = Digits(), Network(20, 3, 20), torch.randn(3, 20)
    test = stand_in("test_kernel_machine", accuracy)

    @functools.wraps(network_features)
    def doubled(model, data):
        return 2 * network_features(model, data)

    random_batches = BatchSampler(RandomSampler(data), 16, False)
    flipped = Digits()
    flipped.target_transform = int
    cases = [
        (W, net, loader_of(data, shuffle=True), network_features),
        (W, net, DataLoader(data, batch_sampler=random_batches), network_features),
        (
            W,
            net,
            loader_of(data, collate_fn=lambda rows: torch.utils.data.default_collate(rows)),
            network_features,
        ),
        (W, net, loader_of(list(data)), network_features),
        (W, net, loader_of(flipped), network_features),
        (W, net, [(torch.randn(4, 20), torch.zeros(4))], network_features),
        (W, net, loader_of(data), doubled),
        (W, net, loader_of(data), lambda model, data: network_features(model, data)),
        (W, Other(20, 3, 20), loader_of(data), network_features),
    ]
    for case in cases:
        if type(case[2]) is list:
            with pytest.raises(AttributeError):
                test(*case)
        else:
            assert test(*case) == accuracy(*case)
    monkeypatch.setenv("KERNEL_DISTILL_ACCEL_CACHE", "1000")
    assert test(W, net, loader_of(data), network_features) == accuracy(
        W, net, loader_of(data), network_features
    )
    assert record("krr.test_kernel_machine").accelerated == 0
    assert len(reasons("test_kernel_machine")) == 5


def test_accuracies_verified():
    data, net = Digits(), Network(20, 3, 20)
    Settings.verify = 3
    for _ in range(3):
        stand_in("test_kernel_machine", accuracy)(torch.randn(3, 20), net, loader_of(data), network_features)
    assert (record("krr.test_kernel_machine").verified, record("krr.test_kernel_machine").difference) == (
        3,
        0,
    )


@pytest.mark.parametrize(
    "array",
    [
        torch.randn(5, 3),
        torch.randn(3, 4, 5).permute(2, 0, 1)[1:],
        torch.randn(8, 9)[::2, ::3],
        torch.tensor(2.0),
        torch.zeros(0, 2),
        torch.arange(9, dtype=torch.uint8)[1:],
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(0, 2, 1)[:, ::-1],
        np.zeros((2, 0)),
        np.array(3.0),
    ],
    ids=lambda array: f"{array.dtype}-{tuple(array.shape)}",
)
def test_identity_of_arrays(array):
    key = identity_key(array)
    assert key == identity_key(array)
    assert hash(key) == hash(identity_key(array))
    other = copy.deepcopy(array)
    assert identity_key(other) != key
    if np.prod(array.shape):
        array[(-1,) * array.ndim] += 1
        assert identity_key(array) != key
    gone = identity_key(other)
    del other
    gc.collect()
    assert gone != identity_key(array)


def test_changes_behind_the_back_of_torch_are_seen():
    x = torch.zeros(7, 5).T
    key = identity_key(x)
    x.data[2, 3] = 1e-30
    assert identity_key(x) != key
    key = identity_key(x)
    x.numpy()[4, 6] = -1
    assert identity_key(x) != key
    with torch.inference_mode():
        assert identity_key(torch.ones(3)) != key


def clone():
    return peer_path("krr")


def load(monkeypatch, path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.data
@pytest.mark.parametrize("script", ["distill", "distill_kip"])
def test_the_published_code(monkeypatch, script):
    root = clone()
    monkeypatch.undo()  # of the names above
    monkeypatch.setattr(krr_accuracy, "ITEMS", items_of_digits())
    for name in (
        "seaborn",
        "matplotlib",
        "matplotlib.pyplot",
        "functions",
        "functions.dataset",
        "functions.hparams",
        "functions.sub_functions",
        "tqdm",
    ):
        stub = types.ModuleType(name)
        stub.__getattr__ = lambda attribute: lambda *args, **kwargs: None
        monkeypatch.setitem(sys.modules, name, stub)
    monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
    model = load(monkeypatch, root / "models" / "model.py", "models.model")
    module = load(monkeypatch, root / f"{script}.py", f"krr_{script}")
    module.device = torch.device("cpu")
    net, X = model.FCNN(input_size=20, output_size=3, width=20), torch.randn(90, 1, 5, 4)
    for parameter in net.parameters():
        parameter.requires_grad = False
    loader, Y = loader_of(Digits()), torch.nn.functional.one_hot(torch.randint(0, 3, (90,)), 3).float().T
    with patched("krr", verify=3):
        features = module.cal_nngp_feature(net, X)
        module.cal_random_fourier((torch.randn(20, 20), torch.rand(20)), X)
        for scale in (1, 2):
            module.test_kernel_machine(torch.randn(3, 20) * scale, net, loader, module.cal_nngp_feature)
        net.inverse(features)
        if script == "distill":
            module.compute_KRR(90, 20, features, Y, torch.tensor(1.0))
    for name in KNOWN:
        expected = name != "compute_KRR" or script == "distill"
        assert bool(record(f"krr.{name}").verified) == expected, name
        assert not record(f"krr.{name}").unknown
