"""DeepCore's two greedy selections against the plain definitions in float64, on a module with its interface."""

import dataclasses
import importlib.util
import itertools
import math
import sys
import types

import numpy as np
import pytest
import torch

from kernel_distill.accel._call import Settings, accelerated, forget_calls
from kernel_distill.accel._fingerprint import fingerprint_of
from kernel_distill.accel._records import record, records
from kernel_distill.accel.registry.deepcore import TARGETS
from kernel_distill.accel.replacements import deepcore as replacements

from .peers import peer_path

KNOWN = {target.name: target for target in TARGETS}


def euclidean_dist(x, y):
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist")


def k_center_greedy(
    matrix, budget, metric, device, random_seed=None, index=None, already_selected=None, print_freq=20
):
    """The definition, in float64."""
    x = torch.as_tensor(matrix)
    budget, index = min(budget, len(x)), np.arange(len(x)) if index is None else index
    np.random.seed(random_seed)
    centres = np.flatnonzero(np.isin(index, already_selected)).tolist()
    if not len(already_selected):
        centres, budget = [np.random.randint(0, len(x))], budget - 1
    nearest = metric(x, x[centres]).amin(1)
    for step in range(budget):
        if step % print_freq == 0:
            print("| Selecting [%3d/%3d]" % (step + 1, budget))  # noqa: UP031  # as the published line is written
        nearest[centres] = -1
        centres.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, metric(x, x[centres[-1:]])[:, 0])
    return index[np.isin(np.arange(len(x)), centres)]


class Herding:
    """Takes the farthest, as published."""

    def __init__(self, metric=euclidean_dist, print_freq=20):
        self.metric, self.args = metric, types.SimpleNamespace(print_freq=print_freq)

    def herding(self, matrix, budget, index=None):
        if budget < 0:
            raise ValueError("Illegal budget size.")
        return greedy_means(self, matrix, budget, index, torch.argmax)


def greedy_means(self, matrix, budget, index, best):
    left, mean = list(range(len(matrix))), matrix.double().mean(0)
    budget = min(budget, len(matrix))
    chosen = []
    for step in range(budget):
        if step % self.args.print_freq == 0:
            print("| Selecting [%3d/%3d]" % (step + 1, budget))  # noqa: UP031  # as the published line is written
        goal = (step + 1) * mean - matrix[chosen].double().sum(0)
        chosen.append(left.pop(int(best(self.metric(goal[None], matrix[left])))))
    return (np.arange(len(matrix)) if index is None else index)[sorted(chosen)]


def known(name, original):
    return dataclasses.replace(KNOWN[name], hashes=(fingerprint_of(original),))


@pytest.fixture(autouse=True)
def verified(monkeypatch):
    """Every call is verified, and the metric of this module is the known one."""
    monkeypatch.setattr(Settings, "verify", 10**6)
    monkeypatch.setattr(replacements, "_EUCLIDEAN", (fingerprint_of(euclidean_dist),))
    replacements._is_known.cache_clear()
    for name in KNOWN:
        forget_calls(name)
    records.clear()
    yield
    records.clear()
    replacements._is_known.cache_clear()


@pytest.fixture
def select():
    return accelerated(known("deepcore.k_center_greedy", k_center_greedy), k_center_greedy)


def rows(n, d, seed=0, shift=0.0):
    return torch.from_numpy((np.random.default_rng(seed).normal(size=(n, d)) + shift).astype(np.float32))


@pytest.mark.parametrize(("n", "d"), [(2, 1), (3, 7), (40, 5), (601, 33)])
@pytest.mark.parametrize("known_rows", ["none", "some", "two classes"])
def test_picks_lines_and_draws_are_those_of_the_plain_greedy(select, capsys, n, d, known_rows):
    rng = np.random.default_rng(n)
    index, given = None, []
    if known_rows == "some":
        given = [n - 1, 0]
    elif known_rows == "two classes":  # positions are not names, and some names are elsewhere
        index = rng.permutation(3 * n)[:n]
        given = np.append(index[: n // 2 + 1], 5 * n)
    budgets = (1, 2, n // 2, n, n + 9) if n < 100 else (2, n // 6)
    for budget, seed in itertools.product(budgets, (0, 3)):
        if min(budget, n) < (1 if len(given) else 2):
            continue
        X = rows(n, d, seed, shift=3 if n > 2 else 0)
        np.random.seed(77)
        found = select(X, budget, euclidean_dist, "cpu", seed, index, given, print_freq=3)
        state, lines = np.random.get_state(), capsys.readouterr().out.splitlines()
        wanted = k_center_greedy(X, budget, euclidean_dist, "cpu", seed, index, given, print_freq=3)
        assert capsys.readouterr().out.splitlines() * 2 == lines  # the original's and the replacement's
        assert found.dtype == wanted.dtype
        assert found.tolist() == wanted.tolist()
        assert all(np.array_equal(a, b) for a, b in zip(state, np.random.get_state(), strict=True))
    assert record("deepcore.k_center_greedy").declined == {}


def test_arrays_and_tensors_with_gradients(select):
    X = rows(60, 4)
    picks = [
        select(X.numpy(), 9, euclidean_dist, device="cpu", random_seed=1, already_selected=[]),
        select(X.clone().requires_grad_(), np.int64(9), euclidean_dist, torch.device("cpu"), 1, None, ()),
        select(
            X.T.contiguous().T, 9, metric=euclidean_dist, device="cpu", random_seed=1, already_selected=[]
        ),
    ]
    assert all(np.array_equal(pick, picks[0]) for pick in picks)
    assert record("deepcore.k_center_greedy").accelerated == 3


def test_without_a_seed_it_begins_anywhere(monkeypatch, select):
    X = rows(500, 3)
    call = (X, 2, euclidean_dist, "cpu", None, None, [])
    assert "cannot be verified" in replacements.why_not_k_center_greedy(*call)
    monkeypatch.setattr(Settings, "verify", 0)
    assert len({tuple(select(*call)) for _ in range(5)}) > 1
    assert record("deepcore.k_center_greedy").declined == {}


def other_metric(x, y):
    return euclidean_dist(x, y)


def wrapper(x, y):
    return -euclidean_dist(x, y)


wrapper.__wrapped__ = euclidean_dist

REFUSED = {
    "float64": ({"matrix": rows(9, 2).double()}, "float32"),
    "float64 array": ({"matrix": rows(9, 2).double().numpy()}, "float32"),
    "read-only array": ({"matrix": np.broadcast_to(np.float32(1), (9, 2))}, "read-only"),
    "backward array": ({"matrix": rows(9, 2).numpy()[::-1]}, "table"),
    "list": ({"matrix": [[1.0, 2.0]]}, "not an array"),
    "vector": ({"matrix": rows(9, 2)[0]}, "table"),
    "no columns": ({"matrix": rows(9, 2)[:, :0]}, "table"),
    "another device": ({"device": "meta"}, "device"),
    "GPU": ({"device": "cuda:0"}, "device"),
    "no rows to pick": ({"budget": 1}, "no row to pick"),
    "negative": ({"budget": -1}, "no row to pick"),
    "nothing new": ({"budget": 0, "already_selected": [1]}, "no row to pick"),
    "fraction": ({"budget": 2.5}, "whole"),
    "default": ({"already_selected": None}, "not a sequence"),
    "elsewhere": ({"already_selected": [9]}, "among these"),
    "list of names": ({"index": list(range(9))}, "index"),
    "too many names": ({"index": np.arange(10)}, "index"),
    "metric": ({"metric": other_metric}, "metric"),
    "wrapped": ({"metric": wrapper}, "metric"),
    "callable": ({"metric": torch.nn.PairwiseDistance()}, "metric"),
    "NaN": ({"matrix": rows(9, 2).index_fill(0, torch.tensor(8), math.nan)}, "finite"),
    "huge": ({"matrix": rows(9, 2) * 1e19}, "huge"),
    "tiny": ({"matrix": rows(9, 2) * 1e-5}, "tiny"),
    "whole numbers": ({"matrix": rows(9, 2).mul(9).round()}, "whole numbers"),
    "repeated rows": ({"matrix": rows(60, 20).repeat(2, 1)}, "equal norms"),
    "rows repeated often": ({"matrix": rows(60, 20).repeat(15, 1)}, "ties are decided by rounding"),
    "one row twice": ({"matrix": rows(9, 2)[[0, 1, 2, 3, 4, 5, 6, 0]]}, "equal norms"),
    "few values": ({"matrix": rows(400, 8).mul(20).round() / 4 * (4 / 255)}, "few different numbers"),
    "few values and zeros": ({"matrix": rows(400, 8).relu().mul(30).round() / 255}, "few different numbers"),
    "far from zero": ({"matrix": rows(500, 64, shift=100.0)}, "cancel"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_calls_are_left_to_the_original(case):
    changed, words = REFUSED[case]
    call = {
        "matrix": rows(9, 2),
        "budget": 3,
        "metric": euclidean_dist,
        "device": "cpu",
        "random_seed": 0,
        "already_selected": [],
    }
    assert replacements.why_not_k_center_greedy(**call) is None
    calls = []
    stand_in = accelerated(
        known("deepcore.k_center_greedy", calls.append), lambda **given: calls.append(given)
    )
    stand_in(**call | changed)
    assert len(calls) == 1
    (reason,) = record("deepcore.k_center_greedy").declined
    assert words in reason


def test_usual_features_are_taken():
    for X in (rows(5000, 64), rows(5000, 64).relu(), rows(800, 512, shift=3), rows(100, 64).softmax(1)):
        assert replacements.why_not_k_center_greedy(X, 9, euclidean_dist, "cpu", 0, None, []) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), [(1, 3), (2, 1), (50, 4), (400, 20)])
def test_herding_takes_the_nearest(capsys, dtype, n, d):
    target = known("deepcore.herding", Herding.herding)
    herding = accelerated(target, Herding.herding)
    for budget in (0, 1, n // 3, n, n + 2):
        X, index = rows(n, d, budget, shift=2).to(dtype), np.random.default_rng(0).permutation(n) + 7
        Settings.verify = 0
        found = herding(Herding(print_freq=4), X, budget, index)
        lines = capsys.readouterr().out
        wanted = greedy_means(Herding(print_freq=4), X, budget, index, torch.argmin)
        assert capsys.readouterr().out == lines
        assert found.dtype == wanted.dtype
        assert found.tolist() == wanted.tolist()
    assert record(target.name).declined == {}


def test_herding_follows_the_mean_where_the_original_leaves_it():
    X = rows(2000, 16) + 10 * (rows(2000, 1, 1) > 2)
    herding = accelerated(known("deepcore.herding", Herding.herding), Herding.herding)

    def gap(picks):
        return float((X[picks].mean(0) - X.mean(0)).norm())

    original = gap(Herding().herding(X, 40))
    mended = gap(herding(Herding(), X, 40))  # verified: any difference is allowed
    chance = np.median([gap(np.random.default_rng(i).permutation(2000)[:40]) for i in range(9)])
    assert mended < chance / 5
    assert chance < original / 5
    assert not KNOWN["deepcore.herding"].is_default


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"matrix": rows(9, 2).half()}, "float32 or float64"),
        ({"matrix": rows(9, 2).numpy()}, "tensor"),
        ({"matrix": rows(9, 2)[:0]}, "empty"),
        ({"matrix": rows(9, 2).log()}, "finite"),
        ({"budget": 2.0}, "whole"),
        ({"index": [*range(9)]}, "index"),
        ({"self": Herding(other_metric)}, "metric"),
    ],
)
def test_other_herding_is_left_to_the_original(changed, words):
    call = {"self": Herding(), "matrix": rows(9, 2), "budget": 3}
    assert replacements.why_not_herding(**call) is None
    assert words in replacements.why_not_herding(**call | changed)


def test_a_negative_budget_raises_as_in_the_original():
    herding = accelerated(known("deepcore.herding", Herding.herding), Herding.herding)
    with pytest.raises(ValueError, match="Illegal budget"):
        herding(Herding(), rows(9, 2), -1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")
def test_picks_on_a_gpu(select):
    X = rows(3000, 40)
    wanted = k_center_greedy(X, 60, euclidean_dist, "cpu", 5, None, [])
    Settings.verify = 0
    for device in ("cuda", "cuda:0", torch.device("cuda")):
        assert select(X.cuda(), 60, euclidean_dist, device, 5, None, []).tolist() == wanted.tolist()
    assert select(X.numpy(), 60, euclidean_dist, "cuda", 5, None, []).tolist() == wanted.tolist()
    assert record("deepcore.k_center_greedy").declined == {}


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:This overload of addmm_")
def test_the_published_code(monkeypatch):
    """A clone of PatrickZH/DeepCore, without its networks."""
    methods = peer_path("deepcore/deepcore/methods")
    replacements._is_known.cache_clear()
    monkeypatch.setattr(replacements, "_EUCLIDEAN", ("a4c85799fa95ffae",))
    for name in ("", ".nets", ".nets.nets_utils", ".methods", ".methods.earlytrain"):
        module = types.ModuleType(f"published{name}")
        module.__path__ = []
        module.EarlyTrain = module.MyDataParallel = object
        monkeypatch.setitem(sys.modules, f"published{name}", module)

    def load(name, place):
        spec = importlib.util.spec_from_file_location(f"published.methods.{name}", methods / place)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    distance = load("methods_utils", "methods_utils/euclidean.py").euclidean_dist
    published = load("kcentergreedy", "kcentergreedy.py").k_center_greedy
    target = KNOWN["deepcore.k_center_greedy"]
    assert fingerprint_of(published) in target.hashes
    for seed in range(5):
        features = rows(2000, 30, seed) @ rows(30, 64, seed + 1)
        accelerated(target, published)(features.relu(), 150, distance, "cpu", seed, None, [])
    assert record(target.name).verified == 5

    original = load("herding", "herding.py").Herding
    assert fingerprint_of(original.herding) in KNOWN["deepcore.herding"].hashes
    X = rows(500, 8)
    mended = accelerated(KNOWN["deepcore.herding"], original.herding)(Herding(distance), X, 30)
    wanted = greedy_means(Herding(), X, 30, None, torch.argmin)
    assert mended.tolist() == wanted.tolist()
