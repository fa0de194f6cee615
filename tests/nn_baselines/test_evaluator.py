"""Networks on one set, what is chosen on held-out rows, and the one look at the test rows."""

import functools
import math

import numpy as np
import pytest
import torch

from kernel_distill.nn_baselines import evaluator, training
from kernel_distill.nn_baselines.accuracy import network_accuracies
from kernel_distill.nn_baselines.baseline_points import network_labels, real_rows, solved_labels
from kernel_distill.nn_baselines.evaluator import Choice, Examinee, examine, train_on
from kernel_distill.nn_baselines.training import train_networks
from kernel_distill.nn_baselines.training_recipes import training_recipe
from kernel_distill.solver.encoder import Encoder
from kernel_distill.solver.feature_maps import make_feature_map
from kernel_distill.solver.kernel_encoder import KernelEncoder
from kernel_distill.solver.kernel_functions import FeatureKernel, make_kernel_function
from kernel_distill.solver.learned_set import learned_set
from kernel_distill.solver.learners.rows import TrainingRows
from kernel_distill.solver.networks import network_spec
from kernel_distill.solver.source import ArraySource
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import make_transform

MLP = network_spec("mlp", (5,), 3, width=8, depth=1)
CONVNET = network_spec("convnet", (1, 8, 8), 3, width=4, depth=1)
FEW = training_recipe("dc-bench", epochs=12, batch_size=6, rate=0.05)

NONE = make_transform("none", lambda: [], (5,))


def problem(n, spec=MLP, seed=0):
    """Rows of three classes that can be told apart: inputs float32, classes."""
    rng = np.random.default_rng(seed)
    classes = np.arange(n) % 3
    X = rng.normal(size=(n, *spec.input_shape))
    X.reshape(n, -1)[np.arange(n), classes] += 2.0
    return torch.from_numpy(X).float(), torch.from_numpy(classes)


def one_hot(classes):
    return torch.nn.functional.one_hot(classes, 3).float()


def equal(one, other):
    return all(torch.equal(one.parameters[key], other.parameters[key]) for key in one.parameters)


@pytest.fixture(scope="module")
def small():
    X, classes = problem(12)
    return X, one_hot(classes)


@pytest.fixture(scope="module")
def held():
    X, classes = problem(60, seed=1)
    return [(X[:20], classes[:20]), (X[20:], classes[20:])]


def test_without_a_choice_it_is_the_recipe(small):
    done = train_on(MLP, *small, FEW, count=2, seed=3)
    assert equal(done.stack, train_networks(MLP, *small, FEW, count=2, seed=3, stream="evaluate"))
    assert (done.rate, done.epoch, done.held_out, done.diverged) == (0.05, None, None, 0)


@pytest.mark.parametrize("epoch", [False, True])
@pytest.mark.parametrize("spec", [MLP, CONVNET])
def test_any_number_of_workers_gives_the_same(spec, epoch):
    X, classes = problem(12, spec)
    choice = Choice((0.01, 0.1), epoch, lambda: [problem(30, spec, seed=1)])
    one, two = (
        train_on(spec, X, one_hot(classes), FEW, count=3, seed=0, choice=choice, workers=workers)
        for workers in (1, 2)
    )
    assert equal(one.stack, two.stack)
    assert (one.rate, one.epoch, one.held_out) == (two.rate, two.epoch, two.held_out)


def test_rate_is_the_best_on_held_out_rows(small, held):
    rates = (1e-6, 0.1, 0.03)
    done = train_on(MLP, *small, FEW, count=3, seed=0, choice=Choice(rates, False, lambda: held))
    means = {}
    for rate in rates:
        recipe = training_recipe(FEW, rate=rate)
        stack = train_networks(MLP, *small, recipe, count=3, seed=0, stream="evaluate")
        means[rate] = float(network_accuracies(stack, held).mean())
    assert done.rate == max(means, key=means.get) != rates[0]
    assert done.held_out == means[done.rate]
    assert max(means.values()) > min(means.values())
    # Equal figures: the first given.
    same = Choice((0.03, 0.03000001), False, lambda: held)
    assert train_on(MLP, *small, FEW, count=1, seed=0, choice=same).rate == 0.03


@pytest.mark.parametrize("strategy", ["serial", "stacked"])
def test_epoch_is_the_best_of_ten_for_all_networks(small, held, monkeypatch, strategy):
    """Networks come one by one, or together and go on changing."""
    train_networks = functools.partial(training.train_networks, strategy=strategy)
    monkeypatch.setattr(evaluator, "train_networks", train_networks)
    recipe = training_recipe(FEW, rate=0.3)
    kept = {}

    def keep(epoch, networks, stack):
        for i, number in enumerate(networks):
            kept[epoch + 1, number] = {key: value[i].clone() for key, value in stack.parameters.items()}

    train_networks(MLP, *small, recipe, count=3, seed=0, stream="evaluate", on_epoch=keep)
    done = train_on(MLP, *small, recipe, count=3, seed=0, choice=Choice((), True, lambda: held))
    total = 13  # of this schedule, one more than it has
    looks = [math.ceil(total * share / 10) for share in range(1, 11)]
    means = {}
    for epoch in looks:
        stacked = {key: torch.stack([kept[epoch, i][key] for i in range(3)]) for key in kept[1, 0]}
        stack = type(done.stack)(MLP, stacked, {})
        means[epoch] = float(network_accuracies(stack, held).mean())
    assert done.epoch == max(means, key=means.get)
    assert done.epoch != total
    assert done.held_out == means[done.epoch]
    for i in range(3):
        assert all(torch.equal(kept[done.epoch, i][key], done.stack.parameters[key][i]) for key in kept[1, 0])


def test_networks_that_diverge_are_counted(small):
    done = train_on(MLP, small[0] * 1e18, small[1], training_recipe(FEW, rate=1e18), count=2, seed=0)
    assert done.diverged == 2


class CountedRows(np.ndarray):
    """Rows that say which of them were read."""

    reads = ()

    def __getitem__(self, index):
        if isinstance(index, slice):
            type(self).reads += tuple(range(*index.indices(len(self))))
        return np.asarray(self)[index]


def test_every_test_row_is_read_and_transformed_once(monkeypatch):
    X, classes = problem(50)
    raw = X.double().numpy() * 3 + 1
    fitted = make_transform("standardize", lambda: [torch.from_numpy(raw)], (5,))
    stacks = [train_networks(MLP, X[:6], one_hot(classes[:6]), FEW, count=2, seed=s) for s in range(3)]
    examinees = [Examinee(stacks[0], fitted, classes), Examinee(stacks[1], NONE, classes)]
    examinees += [Examinee(stacks[2], fitted, (classes + 1) % 3)]
    whole = examine(examinees, raw)
    for each, found in zip(examinees, whole, strict=True):
        seen = each.transform.forward(torch.from_numpy(raw), torch.float32)
        assert torch.equal(found, network_accuracies(each.stack, [(seen, each.classes)]))
    CountedRows.reads, calls = (), []
    forward = type(fitted).forward
    monkeypatch.setattr(type(fitted), "forward", lambda self, *rest: calls.append(1) or forward(self, *rest))
    # Seven rows a piece: the last one is short.
    pieces = examine(examinees, raw.view(CountedRows), piece_bytes=7 * 5 * 4)
    assert CountedRows.reads == tuple(range(50))
    assert len(calls) == 8
    for one, other_one in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other_one, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("hard", [[0, 1, 0], [1, 0, 0]]),
        ("scores", [[0.7, 0.6, -0.1], [-0.2, 0.1, 0.1]]),
        ("probabilities", [[0.55, 0.45, 0.0], [2 / 15, 13 / 30, 13 / 30]]),
    ],
)
def test_labels_as_recipes_take_them(labels, expected):
    recipe = training_recipe("soft-label", labels=labels)
    y, classes = torch.tensor([[0.7, 0.6, -0.1], [-0.2, 0.1, 0.1]]), torch.tensor([1, 0])
    torch.testing.assert_close(network_labels(recipe, y, classes, 3), torch.tensor(expected).float())
    assert torch.equal(network_labels(recipe, None, classes, 3), one_hot(classes))


def test_probabilities_are_the_nearest_and_do_not_feel_centring():
    rng = np.random.default_rng(0)
    y = torch.from_numpy(rng.normal(size=(40, 4)))
    recipe = training_recipe("soft-label", labels="probabilities")
    p = network_labels(recipe, y, None, 4).double()
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(dim=1), torch.ones(40, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(network_labels(recipe, y - 0.25, None, 4).double(), p, rtol=0, atol=1e-6)
    # Projection on a convex set: (y - p).(q - p) <= 0 for every q in it, hence for its corners.
    inner = (y - p) @ torch.eye(4, dtype=torch.float64) - ((y - p) * p).sum(dim=1, keepdim=True)
    assert inner.max() < 1e-5
    # Vectors of probabilities stay what they are.
    torch.testing.assert_close(network_labels(recipe, p, None, 4).double(), p, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def rows():
    X, classes = problem(60)
    targets = Targets("centred", 3, (0, 1, 2))
    source = ArraySource(X.double().numpy(), classes.numpy())
    return TrainingRows(source, NONE, targets, seed=0, holdout=0.0)


@pytest.mark.parametrize("method", ["random", "k-center", "herding", "k-means", "label-solve"])
def test_real_rows_have_the_classes_that_are_asked_for(rows, method):
    X, classes = real_rows(rows, [2, 0, 3], method, seed=4)
    assert classes.tolist() == [0, 0, 2, 2, 2]
    every, _ = problem(60)
    for point, label in zip(X, classes, strict=True):
        assert label in (torch.arange(60) % 3)[(every == point).all(dim=1)]
    again, _ = real_rows(rows, [2, 0, 3], "random" if method == "label-solve" else method, seed=4)
    assert torch.equal(X, again)
    with pytest.raises(ValueError, match="21 rows are asked for, but there are 20"):
        real_rows(rows, [21, 0, 0], method, seed=0)


@pytest.mark.parametrize("kernel", [None, "gaussian"])
def test_solved_labels_are_the_least_squares_ones(rows, kernel):
    """Labels from which the set's ridge model predicts all rows best: brute force with its kernel."""
    X, classes = problem(60)
    y = rows.targets.encode(classes[:6].numpy())
    if kernel is None:
        encoder = Encoder(NONE, make_feature_map("identity", (5,)))
        function = FeatureKernel(encoder.feature_map)
    else:
        function = make_kernel_function(kernel, (5,), params={"bandwidth": 3.0})
        encoder = KernelEncoder(NONE, function)
    ds = learned_set(
        encoder, rows.targets, X[:6].double(), y, relative_ridge=0.3, labels=classes[:6], n_rows=60
    )
    points, _ = real_rows(rows, [1, 1, 1], "random", seed=0)
    found = solved_labels(ds, rows, points)
    points = points.double()
    K, across = function.matrix(points).numpy(), function.matrix(X.double(), points).numpy()
    alpha = np.linalg.lstsq(across, rows.targets.encode(classes.numpy()).numpy(), rcond=None)[0]
    ridge = 0.3 * np.trace(K) / 3
    np.testing.assert_allclose(found.numpy(), (K + ridge * np.eye(3)) @ alpha, rtol=1e-8, atol=1e-10)


def test_refusals(small, held):
    with pytest.raises(ValueError, match="chosen on held-out rows: give `pieces`"):
        Choice((0.1,))
    with pytest.raises(ValueError, match="learning rates must be positive, got 0"):
        Choice((0.1, 0.0), False, lambda: held)
    with pytest.raises(ValueError, match="`count` must be an integer of at least 1"):
        train_on(MLP, *small, FEW, count=0)
    stack = train_networks(MLP, *small, FEW, count=1, seed=0)
    with pytest.raises(ValueError, match=r"one class for each of 12 rows, got \(3,\)"):
        examine([Examinee(stack, NONE, torch.arange(3))], small[0].numpy())
    bad = small[0].clone()
    bad[4, 0] = math.nan
    with pytest.raises(ValueError, match="`X` holds NaN in row 4"):
        examine([Examinee(stack, NONE, torch.zeros(12, dtype=torch.int64))], bad.numpy())
    with pytest.raises(ValueError, match="need the class of each point"):
        network_labels(training_recipe("dsa"), torch.ones(2, 3), None, 3)
