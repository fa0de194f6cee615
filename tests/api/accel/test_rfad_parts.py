"""RFAD's coresets, whitening and random features against their definitions, on functions with its interface."""

import ast
import dataclasses
import functools
import importlib.util
import math
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from kernel_distill.accel._call import Settings, VerificationError, accelerated, forget_calls
from kernel_distill.accel._difference import difference
from kernel_distill.accel._fingerprint import fingerprint_of
from kernel_distill.accel._records import record, records
from kernel_distill.accel.registry._rfad_parts import PARTS
from kernel_distill.accel.replacements import rfad_features
from kernel_distill.accel.replacements.rfad_coresets import get_mmd_coreset, get_var_reduc_coreset

from .peers import peer_path

KNOWN = {target.name.partition(".")[2]: target for target in PARTS}
# What is explained in full leaves a zero on the diagonal, by which the original divides too.
DIVISIONS = pytest.mark.filterwarnings("ignore:divide by zero|invalid value|overflow:RuntimeWarning")


@pytest.fixture(autouse=True)
def verified(monkeypatch):
    """Every call is verified, and the networks of this module are the known ones."""
    monkeypatch.setattr(Settings, "verify", 10**6)
    monkeypatch.setattr(rfad_features, "NETWORKS", {"Net": (fingerprint_of(Net),)})
    monkeypatch.setattr(rfad_features, "LAYERS", {"Scaled": (fingerprint_of(Scaled),)})
    for target in PARTS:
        forget_calls(target.name)
    records.clear()
    yield
    records.clear()


def stand_in(name, original):
    return accelerated(dataclasses.replace(KNOWN[name], hashes=(fingerprint_of(original),)), original)


# Coresets.


def mmd_anew(K, n_samples):
    """All sums anew for each pick."""
    picks = []
    for t in range(1, n_samples + 1):
        gain = 2 * K.sum(0) / len(K)
        own = K.diagonal() if t == 1 else (2 * K[picks].sum(0) + K.diagonal()) / t
        gain = gain - own
        gain[picks] = -np.inf
        picks.append(gain.argmax())
    return picks


def variance_anew(K, n_samples, do_update=True):
    """All of the matrix anew for each pick."""
    picks = []
    for _ in range(n_samples):
        gain = (K**2).sum(0) / K.diagonal() - K.diagonal()
        gain[picks] = -np.inf
        picks.append(gain.argmax())
        if do_update:
            r = K[:, [picks[-1]]]
            K = K - (r @ r.T) / K[picks[-1], picks[-1]]
    return picks


def gram(n, rank, dtype=np.float32, *, repeated=False):
    rng = np.random.default_rng(n + rank)
    X = rng.normal(size=(n, rank)).astype(dtype)
    return (lambda F: F @ F.T)(X[rng.integers(0, n // 3 + 1, n)] if repeated else X)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [2, 3, 17, 100, 701])
@DIVISIONS
def test_coresets_are_the_originals_even_where_scores_are_equal(dtype, n):
    picks_mmd, picks_variance = (
        stand_in("get_mmd_coreset", mmd_anew),
        stand_in("get_var_reduc_coreset", variance_anew),
    )
    for rank in (1, 300):
        for repeated in (False, True):
            K = gram(n, rank, dtype, repeated=repeated)
            kept = K.copy()
            for budget in (0, 1, min(n + 3, 12)):
                found = picks_mmd(K, budget), picks_variance(K, budget), picks_variance(K, budget, False)
                assert all(type(pick) is np.int64 for picks in found for pick in picks)
                assert [len(picks) for picks in found] == [budget] * 3
            assert np.array_equal(K, kept)
    assert records["rfad.get_mmd_coreset"].verified == records["rfad.get_mmd_coreset"].calls == 12
    assert records["rfad.get_var_reduc_coreset"].verified == 24


def test_a_pick_of_the_mean_is_the_one_of_least_discrepancy():
    K, chosen = gram(60, 7, np.float64), []
    for pick in get_mmd_coreset(K, 20):
        left = [i for i in range(60) if i not in chosen]
        sets = [[*chosen, i] for i in left]
        squared = [K[np.ix_(s, s)].mean() - 2 * K[s].mean() for s in sets]
        assert pick == left[int(np.argmin(squared))]
        chosen.append(pick)


@DIVISIONS
def test_a_pick_of_the_variance_explains_most_of_the_other_rows():
    K, chosen = gram(40, 40, np.float64), []

    def explained(picks):
        return K[:, picks] @ np.linalg.solve(K[np.ix_(picks, picks)], K[picks])

    for pick in get_var_reduc_coreset(K, 15):
        left = [i for i in range(40) if i not in chosen]
        rest = K - explained(chosen)
        gain = [np.trace(explained([*chosen, i])) - rest[i, i] for i in left]
        assert pick == left[int(np.argmax(gain))]
        chosen.append(pick)


@pytest.mark.parametrize(
    "change",
    [
        lambda K: np.asfortranarray(K),
        lambda K: K[:, :4],
        lambda K: K[:1, :1],
        lambda K: K.astype(np.float16),
        lambda K: K.astype(int),
        lambda K: K.view(np.matrix),
        lambda K: torch.from_numpy(K),
    ],
)
def test_other_matrices_are_left_to_the_original(change):
    K, calls = change(gram(6, 3)), []
    for name in ("get_mmd_coreset", "get_var_reduc_coreset"):
        accelerated(KNOWN[name], lambda K, n: calls.append(n))(K, 2)
        assert len(record(f"rfad.{name}").declined) == 1
    accelerated(KNOWN["get_mmd_coreset"], lambda K, n: calls.append(n))(gram(6, 3), 2.0)
    assert calls == [2, 2, 2.0]


# Whitening.


def whiten(X, reg_coef=0.1):
    """By singular values, on the device of X."""
    X = X.flatten(1)
    C = X.T @ X / len(X)
    u, s, _ = torch.linalg.svd(C + reg_coef * C.trace() / len(C) * torch.eye(len(C)))
    return (u / s.sqrt()) @ u.T


def correlated(n, *shape):
    X = torch.from_numpy(np.random.default_rng(n).normal(size=(n, math.prod(shape)))).float()
    return (X.cumsum(1) + 1).reshape(n, *shape)


@pytest.mark.parametrize("shape", [(50, 1), (9, 30), (300, 3, 8, 8), (9000, 2, 4, 4)])
@pytest.mark.parametrize("reg", [0.1, 1])
def test_whitening_is_the_inverse_root(shape, reg):
    X = correlated(*shape)
    whitening = stand_in("get_zca_matrix", whiten)(X, reg_coef=reg)
    assert (whitening.dtype, whitening.device.type) == (torch.float32, "cpu")
    assert torch.equal(whitening, whitening.T)
    C = X.flatten(1).double().T @ X.flatten(1).double() / len(X)
    values, vectors = torch.linalg.eigh(C + reg * C.trace() / len(C) * torch.eye(len(C)))
    wanted = (vectors * values.rsqrt()) @ vectors.T
    # As derived at the top of the module, for a share of one, and a factor of four for what LAPACK adds.
    assert difference(wanted, whitening.double()) < 4 * 0.5 * reg**-1.5 * (1 + reg) ** 0.5 * len(C) * 2**-24
    assert records["rfad.get_zca_matrix"].verified == 1


def test_a_wrong_whitening_is_noticed():
    with pytest.raises(VerificationError):
        stand_in("get_zca_matrix", lambda X, reg_coef=0.1: whiten(X, reg_coef * 1.1))(correlated(200, 12))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"X": correlated(9, 4).double()}, "float32"),
        ({"X": correlated(9, 4).numpy()}, "float32"),
        ({"X": correlated(9, 4).requires_grad_()}, "gradient"),
        ({"X": correlated(9, 4)[:0]}, "no rows"),
        ({"X": correlated(9, 4)[0]}, "no rows"),
        ({"reg_coef": 0.01}, "reg_coef"),
        ({"reg_coef": math.nan}, "reg_coef"),
        ({"reg_coef": torch.tensor(0.1)}, "reg_coef"),
    ],
)
def test_other_whitening_is_left_to_the_original(changed, words):
    calls = []
    accelerated(KNOWN["get_zca_matrix"], lambda **given: calls.append(given))(
        **{"X": correlated(9, 4)} | changed
    )
    assert len(calls) == 1
    (reason,) = record("rfad.get_zca_matrix").declined
    assert words in reason


def test_whitening_in_mixed_precision_is_left_to_the_original():
    X = correlated(30, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert rfad_features.why_not_zca(X) == "autocast is on"
    assert rfad_features.why_not_zca(X) is None


# Random features.


class Scaled(nn.Linear):
    """A head with weights of its own."""

    def reset_parameters(self):
        nn.init.normal_(self.weight, 0, (2 / self.in_features) ** 0.5)
        nn.init.normal_(self.bias, 0, 0.1)


class Net(nn.Module):
    """Blocks of layers by name, then a head or none."""

    def __init__(
        self,
        channels,
        n_random_features,
        widths=(6, 5),
        side=9,
        act="relu",
        pool="avg",
        norm=False,
        chopped_head=False,
    ):
        super().__init__()
        layers, before = [], channels
        for width in widths:
            layers.append(nn.Conv2d(before, width, 3, padding=1))
            layers += [nn.BatchNorm2d(width)] * norm
            layers.append(
                {"relu": nn.ReLU(inplace=True), "leaky": nn.LeakyReLU(0.01), "gelu": nn.SiLU()}[act]
            )
            layers += {"avg": [nn.AvgPool2d(2, 2)], "max": [nn.MaxPool2d(2, 2)], "none": []}[pool]
            before, side = width, side // 2 if pool != "none" else side
        self.features, self.chopped_head = nn.Sequential(*layers), chopped_head
        if not chopped_head:
            self.classifier = Scaled(before * side * side, n_random_features)

    def forward(self, x):
        x = self.features(x).flatten(1)
        return x if self.chopped_head else self.classifier(x)


class Other(Net):
    """Not known."""


def features_anew(
    X_train,
    model_class,
    n_models,
    n_features_per_model,
    batch_size=300,
    fixed_seed=None,
    other_datasets=(),
    featurewise_normalize=False,
    elementwise_normalize=False,
    device="cuda:0",
    return_models=False,
):
    """Network after network, batch after batch."""
    models, columns, size = [], [], n_features_per_model
    for m in range(n_models):
        if fixed_seed is not None:
            torch.manual_seed(fixed_seed[m])
        models.append(model_class(n_random_features=size).to(device).eval())
        columns.append([])
        for X in (X_train, *other_datasets):
            with torch.no_grad():
                batches = [
                    models[-1](torch.Tensor(X[i : i + batch_size]).to(device))
                    for i in range(0, len(X), batch_size)
                ]
            size = batches[0].shape[1] if batches else size
            columns[-1].append(
                torch.cat(batches).cpu().numpy() if batches else np.zeros((0, size), np.float32)
            )
    found = [
        (np.hstack(parts) / np.sqrt(n_models * size)).astype(np.float32)
        for parts in zip(*columns, strict=True)
    ]
    if featurewise_normalize:
        found = [F - found[0].mean(0, keepdims=True) for F in found[::-1]][::-1]
    if elementwise_normalize:
        found = [F - F.mean(1, keepdims=True) for F in found]
        found[0] = found[0] - found[0].mean()
    return (found[0], found[1:], models) if return_models else (found[0], found[1:])


def images(n, channels=3, side=9, seed=0):
    return np.random.default_rng(seed).normal(size=(n, channels, side, side)).astype(np.float32)


NET = functools.partial(Net, 3)
CALLS = {
    "plain": (NET, {}),
    "batches of another size": (NET, {"batch_size": 7, "other_datasets": [images(5), images(0), images(23)]}),
    "seeds": (NET, {"fixed_seed": np.array([3, 1, 2])}),
    "features themselves": (functools.partial(NET, chopped_head=True), {"other_datasets": (images(4),)}),
    "of float64": (NET, {"other_datasets": [images(4).astype(float)]}),
    "leaky": (functools.partial(functools.partial(NET, act="leaky"), widths=(4, 3, 2)), {}),
    "one block": (functools.partial(NET, widths=(4,)), {}),
    "means of features": (NET, {"featurewise_normalize": True, "other_datasets": [images(6)]}),
    "means of rows": (NET, {"elementwise_normalize": True, "other_datasets": [images(6)]}),
    "all means": (
        NET,
        {"elementwise_normalize": True, "featurewise_normalize": True, "other_datasets": [images(6)]},
    ),
    "networks": (NET, {"return_models": True}),
}
AS_THEY_ARE = {
    name: (functools.partial(NET, **options), {"batch_size": 6, "other_datasets": [images(8)]})
    for name, options in (
        ("gelu", {"act": "gelu"}),
        ("maximum", {"pool": "max"}),
        ("no pooling", {"pool": "none"}),
        ("normalised", {"norm": True}),
    )
}


@pytest.mark.parametrize(
    ("call", "threads"),
    [*((call, 1) for call in CALLS | AS_THEY_ARE), ("plain", 2)],
)
def test_random_features(call, threads):
    model_class, options = (CALLS | AS_THEY_ARE)[call]
    X = torch.from_numpy(images(40, seed=1)) if threads == 1 else images(40, seed=1)
    run = stand_in("get_random_features", features_anew)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        states, found = [], []
        for function in (run, features_anew):
            torch.manual_seed(4)
            found.append(function(X, model_class, 3, 10, device="cpu", **options))
            states.append(torch.get_rng_state())
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*states)
    assert difference(found[1][:2], found[0][:2]) <= (1e-5 if call in CALLS else 0)
    assert all(
        type(F) is np.ndarray and F.dtype == np.float32 and F.flags.c_contiguous
        for F in (found[0][0], *found[0][1])
    )
    if "return_models" in options:
        assert difference(found[1][2], found[0][2]) == 0  # the same weights, bit for bit
        assert [type(model) for model in found[0][2]] == [Net] * 3
    assert record("rfad.get_random_features").declined == {}
    assert record("rfad.get_random_features").verified == 1


def test_random_features_in_float64():
    """An oracle of its own: the sums written out."""
    X = images(3)
    found, _, models = rfad_features.get_random_features(X, NET, 2, 10, device="cpu", return_models=True)
    wanted = []
    for model in models:
        h = torch.from_numpy(X).double()
        for conv in list(model.features)[::3]:
            padded = nn.functional.pad(h, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
            h = (
                torch.einsum("ncyxhw,ochw->noyx", padded, conv.weight.double())
                + conv.bias.double()[:, None, None]
            )
            side = h.shape[-1] // 2
            h = (
                h.clamp(min=0)[:, :, : 2 * side, : 2 * side]
                .unflatten(2, (side, 2))
                .unflatten(4, (side, 2))
                .mean((3, 5))
            )
        wanted.append(h.flatten(1) @ model.classifier.weight.double().T + model.classifier.bias.double())
    wanted = torch.cat(wanted, 1).detach().numpy() / 20**0.5
    assert difference(wanted, found.astype(float)) < 1e-6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_default_device_raises_as_in_the_original():
    errors = []
    for function in (features_anew, rfad_features.get_random_features):
        torch.manual_seed(1)
        with pytest.raises((AssertionError, RuntimeError)) as error:
            function(images(4), NET, 2, 5)
        errors.append((str(error.value), torch.get_rng_state().tolist()))
    assert errors[0] == errors[1]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model_class": functools.partial(Other, 3)}, "none of RFAD"),
        ({"model_class": lambda n_random_features: Net(3, n_random_features)}, "none of RFAD"),
        ({"X_train": images(4).astype(int)}, "rows"),
        ({"X_train": torch.from_numpy(images(4)).double()}, "rows"),
        ({"X_train": [*images(4)]}, "rows"),
        ({"X_train": images(0)}, "no rows"),
        ({"other_datasets": [images(4, side=8)]}, "several shapes"),
        ({"other_datasets": [None]}, "rows"),
        ({"n_models": 0}, "positive"),
        ({"batch_size": -1}, "positive"),
        ({"batch_size": 2.5}, "positive"),
        ({"device": 0}, "device"),
        ({"device": "meta"}, "device"),
    ],
)
def test_other_features_are_left_to_the_original(changed, words):
    calls = []
    call = {
        "X_train": images(4),
        "model_class": NET,
        "n_models": 2,
        "n_features_per_model": 5,
        "device": "cpu",
    }
    assert rfad_features.why_not_random_features(**call) is None
    accelerated(KNOWN["get_random_features"], lambda **given: calls.append(given))(**call | changed)
    assert len(calls) == 1
    (reason,) = record("rfad.get_random_features").declined
    assert words in reason


def test_mixed_precision_raises_as_in_the_original():
    run = stand_in("get_random_features", features_anew)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match="BFloat16"):
        run(images(4), NET, 2, 5, device="cpu")
    assert list(record("rfad.get_random_features").declined) == ["autocast is on"]


def test_other_layers_are_not_taken_for_known_ones(monkeypatch):
    monkeypatch.setattr(rfad_features, "LAYERS", {"Scaled": ("0" * 16,)})
    assert "none of RFAD" in rfad_features.why_not_random_features(images(4), NET, 2, 5)


# The published code.


def published(monkeypatch, place, *names):
    """Functions and classes of a file, without what it imports."""
    path = peer_path(place)
    kept = [node for node in ast.parse(path.read_text()).body if getattr(node, "name", None) in names]
    assert len(kept) == len(names)
    module = types.ModuleType(f"published_{path.stem}")
    module.__dict__.update(np=np, torch=torch, nn=nn, math=math)
    exec(compile(ast.Module(kept, []), str(path), "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.data
@DIVISIONS
def test_published_coresets(monkeypatch):
    module = published(monkeypatch, "rfad/coresets.py", "get_mmd_coreset", "get_var_reduc_coreset")
    for name in ("get_mmd_coreset", "get_var_reduc_coreset"):
        original = getattr(module, name)
        assert fingerprint_of(original) in KNOWN[name].hashes
        accelerated(KNOWN[name], original)(gram(900, 400), 20)
        assert record(f"rfad.{name}").verified == 1


@pytest.mark.data
@pytest.mark.parametrize("place", ["rfad/data.py", "krr/functions/dataset.py"])
def test_published_whitening(monkeypatch, place):
    original = published(monkeypatch, place, "get_zca_matrix").get_zca_matrix
    assert fingerprint_of(original) in KNOWN["get_zca_matrix"].hashes
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    accelerated(KNOWN["get_zca_matrix"], original)(correlated(500, 3, 8, 8))
    assert record("rfad.get_zca_matrix").verified == 1


@pytest.mark.data
def test_published_random_features(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(Settings, "verify", 9)
    path = peer_path("rfad/models.py")
    original = published(monkeypatch, "rfad/random_features.py", "get_random_features").get_random_features
    spec = importlib.util.spec_from_file_location("published_models", path)
    models = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, models)
    spec.loader.exec_module(models)
    assert fingerprint_of(original) in KNOWN["get_random_features"].hashes
    run = accelerated(KNOWN["get_random_features"], original)
    for name, options in (
        ("ConvNet_wide", {"k": 0.25}),
        ("ConvNet_wide", {"k": 0.25, "chopped_head": True}),
        ("ConvNet", {"net_width": 16}),
    ):
        network = functools.partial(getattr(models, name), 3, im_size=(16, 16), **options)
        run(
            images(33, side=16),
            network,
            2,
            50,
            batch_size=20,
            other_datasets=[images(5, side=16)],
            device="cpu",
        )
    assert record("rfad.get_random_features").declined == {}
    assert record("rfad.get_random_features").verified == 3
