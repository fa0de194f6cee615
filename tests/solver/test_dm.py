"""DM: its loss as a distance of means, derivatives, memory, picks, few rows, and that a run can be resumed."""

import json

import numpy as np
import pytest
import torch

from kernel_distill.kernels import random_bits
from kernel_distill.kernels.augmentation import augment_images, draw_augmentation
from kernel_distill.solver.feature_maps import make_feature_map
from kernel_distill.solver.learners.class_means import (
    class_means,
    class_sums,
    distances_from_means,
    mean_gaps,
)
from kernel_distill.solver.learners.class_pieces import class_pieces, kept_bytes, sum_over_pieces
from kernel_distill.solver.learners.dm import DM, DMLearner
from kernel_distill.solver.learners.pick import Pick, Picker
from kernel_distill.solver.learners.rows import TrainingRows
from kernel_distill.solver.loop import Loop, run_loop
from kernel_distill.solver.networks import build_network, network_spec
from kernel_distill.solver.source import ArraySource
from kernel_distill.solver.targets import Targets
from kernel_distill.solver.transforms import make_transform

SHAPE, K, SEED = (3, 8, 8), 3, 5
SMALL = {"network_params": {"width": 4, "depth": 1}, "batch_real": 7}
PIXELS = {"embedding": "identity", "augment": ""}
BY_LOSS = Pick(kind="loss", refresh=4, refresh_every=2, corrected=True)


def data(n=40, seed=0):
    """Images of K classes, the last of which has few."""
    rng = np.random.default_rng(seed)
    y = np.where(np.arange(n) % 8 == 7, K - 1, np.arange(n) % 2)
    return rng.normal(size=(n, *SHAPE)) + y[:, None, None, None], y


def rows_of(dtype=torch.float64, holdout=0.0, X=None):
    default, y = data()
    X = default if X is None else X
    transform = make_transform("none", lambda: [], SHAPE)
    targets = Targets.from_labels(y, "centred")
    return TrainingRows(ArraySource(X, y), transform, targets, seed=SEED, holdout=holdout, dtype=dtype)


def judge(x, y):
    value = float((x**2).mean() + (y**2).mean())
    return {"loss": value, "score": 1 - value}


def learner_of(rows=None, index=(3, 0, 23, 1, 7, 2, 6), seed=SEED, small=SMALL, **options):
    """A learner whose points, in no order, start near rows."""
    rows = rows_of() if rows is None else rows
    index = torch.as_tensor(index)
    points = rows.inputs(index).double()
    points = points + 0.1 * torch.randn(points.shape, generator=torch.Generator().manual_seed(1)).double()
    options = DM(**{**small, **options})
    return DMLearner(rows, points, rows.outputs(index), rows.classes[index], options, seed=seed, judge=judge)


def embedding_of(learner, step):
    """The features of a step, made from the options anew."""
    options, shape = learner._options, SHAPE
    if options.embedding != "network":
        number = int(random_bits(SEED, f"dm.embedding.{step}", 1)[0])
        return make_feature_map(
            options.embedding, shape, seed=number, params=options.embedding_params
        ).features
    spec = network_spec(options.network, shape, K, **options.network_params)
    return build_network(spec, SEED, f"dm.network.{step}", dtype=torch.float64).embed


def augmented(learner, X, classes, step):
    changes = draw_augmentation(
        learner._options.augment, classes, SHAPE, seed=SEED, stream=f"dm.augment.{step}", siamese=True
    )
    return augment_images(X, changes)


def drawn(learner, monkeypatch):
    """Where the batches of later steps are noted."""
    draw, found = learner._picker.draw, []
    monkeypatch.setattr(learner._picker, "draw", lambda step: found.append(draw(step)) or found[-1])
    return found


def loss_by_hand(learner, picked, step):
    """L in NumPy, class by class: the biased estimate of the squared MMD of the features' linear kernel."""
    rows, f = learner._seen, embedding_of(learner, step)
    x, y = learner.parameters["x"].detach(), learner.classes.numpy()
    index, weights = picked
    classes = rows.classes[index]
    F = f(augmented(learner, rows.inputs(index), classes, step)).detach().numpy()
    G = f(augmented(learner, x, learner.classes, step)).detach().numpy()
    total = 0.0
    for c in range(K):
        real, points = classes.numpy() == c, y == c
        if real.any() and points.any():
            w, v = weights.numpy()[real], np.full(points.sum(), 1 / points.sum())
            w, A, B = w / w.sum(), F[real], G[points]
            total += w @ (A @ A.T) @ w + v @ (B @ B.T) @ v - 2 * w @ (A @ B.T) @ v
    return total


CASES = {
    "as published": {},
    "network with batch norm": {"network": "convnet-bn"},
    "mlp": {"network": "mlp", "network_params": {"width": 5, "depth": 1}, "augment": "flip_crop"},
    "pixels": PIXELS,
    "fourier features": {
        "embedding": "fourier",
        "embedding_params": {"n_features": 20, "length_scale": 9.0},
        "augment": "color_cutout",
    },
    "few of every class": {"fraction": 0.3},
    "uniform picks": {"pick": Pick(), "batch_real": 1},
    "corrected picks": {"pick": Pick(kind="balanced", corrected=True)},
    "picks by loss": {"pick": BY_LOSS, "batch_real": 3},
    "pieces": {"memory_budget": 1},
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


# --- The loss ------------------------------------------------------------------------------------------------


@every_case
def test_the_loss_is_the_squared_mmd_of_features_class_by_class(case, monkeypatch):
    learner = learner_of(**case)
    found = drawn(learner, monkeypatch)
    for step in (0, 1, 2):
        value = float(learner.loss(step)[0].detach())
        assert value == pytest.approx(loss_by_hand(learner, found[-1], step), rel=1e-10)


@pytest.mark.parametrize("name", ["as published", "network with batch norm", "pixels", "pieces"])
def test_the_loss_of_the_rows_themselves_is_zero(name):
    rows = rows_of()
    same = DMLearner(
        rows,
        rows.inputs(torch.arange(rows.n)),
        rows.outputs(torch.arange(rows.n)),
        rows.classes,
        DM(**{**SMALL, **CASES[name], "batch_real": rows.n}),
        seed=SEED,
        judge=judge,
    )
    others = learner_of(rows, **CASES[name])
    for step in range(6):
        loss = same.loss(step)[0]
        # Means of 40 rows differ by some roundings of features of order one, and enter squared.
        assert float(loss.detach()) < 1e-26 < 1e-3 < float(others.loss(step)[0].detach())


@every_case
def test_the_gradient_is_that_of_finite_differences(case):
    # A smooth activation: the kinks of ReLUs would have to be stepped around.
    params = {**SMALL["network_params"], **case.get("network_params", {}), "activation": "swish"}
    learner = learner_of(**{**case, "network_params": params})
    if learner._options.pick.kind == "loss":
        learner.loss(0)  # the table is there, and step 1 adds nothing to it
    state = learner.state()
    learner.loss(1)[0].backward()
    x = learner.parameters["x"]
    gradient, generator = x.grad.clone(), torch.Generator().manual_seed(2)
    for _ in range(3):
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        values = []
        for h in (1e-5, -1e-5):
            learner.restore(*state)
            with torch.no_grad():
                x += h * direction
                values.append(float(learner.loss(1)[0]))
                x -= h * direction
        slope = (values[0] - values[1]) / 2e-5
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-7, abs=1e-8)


def test_networks_augmentation_and_batches_are_fresh_at_every_step_and_follow_the_seed():
    for options in ({}, {**PIXELS, "augment": "flip_scale"}, {"augment": "", "batch_real": 40}, PIXELS):
        losses = [float(learner_of(**options).loss(step)[0].detach()) for step in (0, 1, 2, 0)]
        assert losses[0] == losses[3] != losses[1] != losses[2]
        assert float(learner_of(seed=SEED + 1, **options).loss(0)[0].detach()) != losses[0]


def test_pixels_reach_the_means_of_the_rows_in_closed_form():
    rows = rows_of()
    counts = [2, 2, 2]
    index = [int(i) for c in range(K) for i in (rows.classes == c).nonzero()[: counts[c], 0]]
    learner = learner_of(rows, index=index, **PIXELS, batch_real=rows.n, lr=1.0, momentum=0)
    before = learner.learned()["x"]
    # With m points of a class, the gradient in each is 2/m of the gap of the means: at lr = m/2 one step is all.
    assert float(learner.advance(0)["loss"]) > 1
    after = learner.learned()["x"]
    assert float(learner.advance(1)["loss"]) < 1e-26
    for c in range(K):
        mine = learner.classes == c
        wanted = rows.inputs((rows.classes == c).nonzero()[:, 0]).mean(0)
        assert torch.allclose(after[mine].mean(0), wanted, rtol=0, atol=1e-13)
        moved = after[mine] - before[mine]
        assert torch.allclose(moved[0], moved[1], rtol=0, atol=1e-13)


def test_a_run_brings_the_loss_down_under_networks_it_has_not_seen():
    learner = learner_of(rows_of(torch.float32), batch_real=40)

    def loss():
        return np.mean([float(learner.loss(step)[0].detach()) for step in range(1000, 1010)])

    before = loss()
    for step in range(30):
        learner.advance(step)
    assert loss() < 0.6 * before


# --- Memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"pick": BY_LOSS, "batch_real": 3}, PIXELS], ids=str)
def test_class_by_class_the_gradient_is_that_of_all_at_once(options):
    found = []
    for budget, pieces, chunk in ((None, 1, 40), (1, K, 1)):
        learner = learner_of(memory_budget=budget, **options)
        assert len(learner._pieces) == pieces
        assert min(learner._chunk, 40) == chunk
        loss = learner.loss(0)[0]
        loss.backward()
        found.append((loss.detach(), learner.parameters["x"].grad))
    (loss, gradient), (other, parts) = found
    assert float(other) == pytest.approx(float(loss), rel=1e-12)
    assert float((parts - gradient).norm()) < 1e-13 * float(gradient.norm())
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_a_network_with_batch_norm_is_not_taken_apart():
    learner = learner_of(network="convnet-bn", memory_budget=1)
    assert (len(learner._pieces), learner._chunk) == (1, learner._rows.n)


def test_pieces_are_whole_classes_within_the_budget():
    classes = torch.tensor([2, 0, 5, 0, 2, 2, 3, 0, 3])
    for most, wanted in (
        (None, [[1, 3, 7, 0, 4, 5, 6, 8, 2]]),
        (4, [[1, 3, 7], [0, 4, 5], [6, 8, 2]]),
        (6, [[1, 3, 7, 0, 4, 5], [6, 8, 2]]),
        (1, [[1, 3, 7], [0, 4, 5], [6, 8], [2]]),
    ):
        pieces = class_pieces(classes, most)
        assert [piece.at.tolist() for piece in pieces] == wanted
        for piece in pieces:
            assert torch.equal(piece.classes, classes[piece.at])
            assert torch.equal(piece.host_classes, piece.classes)


def test_bytes_are_counted_once_for_each_image_and_not_for_weights():
    image = torch.randn(2, 3, 3, dtype=torch.float64)
    weight = torch.randn(18, 500, dtype=torch.float64)
    # exp keeps its result, which is also what the square keeps; the product keeps its weight.
    assert kept_bytes(lambda X: X.exp().square().flatten(1) @ weight, image) == 18 * 8
    assert kept_bytes(lambda X: X + 1, image) == 1


def test_no_more_activations_are_kept_than_the_budget_allows():
    # 21 points of 3 classes, whose network keeps more than 8 times the bytes of the image for each.
    index = list(range(21))
    peaks = []
    for budget in (None, 1):
        learner = learner_of(index=index, network_params={"width": 16, "depth": 1}, memory_budget=budget)
        largest = max(len(piece.at) for piece in learner._pieces)
        features, sizes = learner._features, []

        def spied(step, features=features, sizes=sizes):
            found = features(step)

            def embed(X, classes):
                if X.requires_grad:
                    sizes.append(len(X))
                return found(X, classes)

            return embed

        learner._features = spied
        learner.loss(0)
        assert max(sizes) == largest
        peaks.append(largest)
    assert peaks[0] == 21 > peaks[1] == int(learner.classes.bincount().max())


def test_sums_over_pieces_are_differentiable_once_and_scale():
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    pieces = class_pieces(torch.tensor([1, 0, 1, 4, 0]), 2)
    assert len(pieces) == 3

    def total(x):
        return sum_over_pieces(
            lambda part, piece: (part.exp() * (1 + piece.classes)[:, None]).sum(), x, pieces
        )

    assert torch.autograd.gradcheck(total, x)
    (gradient,) = torch.autograd.grad(3 * total(x), x)
    wanted = 3 * x.exp() * torch.tensor([2, 1, 2, 5, 1])[:, None]
    assert torch.allclose(gradient, wanted, rtol=1e-14)


# --- Classes and picks ---------------------------------------------------------------------------------------


def test_means_are_weighted_and_add_up_over_pieces():
    rng = np.random.default_rng(3)
    F, w = rng.normal(size=(9, 4)), rng.uniform(size=9)
    y = np.array([2, 0, 0, 2, 4, 2, 0, 4, 2])
    parts = [slice(0, 2), slice(2, 9)]
    sums = sum(
        class_sums(*(torch.from_numpy(v[at]) for v in (F, y)), 5, torch.from_numpy(w[at])) for at in parts
    )
    means, counted = class_means(sums)
    assert counted.tolist() == [True, False, True, False, True]
    for c in (0, 2, 4):
        np.testing.assert_allclose(means[c], np.average(F[y == c], axis=0, weights=w[y == c]), rtol=1e-13)
    assert (means[[1, 3]] == 0).all()
    others = class_sums(torch.from_numpy(F[:2]), torch.from_numpy(y[:2]), 5)
    # Rows of class 4 have no mean to be far from.
    found = distances_from_means(torch.from_numpy(F), torch.from_numpy(y), others)
    near = {0: F[1], 2: F[0]}
    wanted = [((row - near[c]) ** 2).sum() if c in near else 0.0 for row, c in zip(F, y, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-13)
    gaps = mean_gaps(sums, others).numpy()
    assert np.flatnonzero(gaps).tolist() == [0, 2]
    np.testing.assert_allclose(gaps[2], ((means[2].numpy() - F[0]) ** 2).sum(), rtol=1e-13)


def test_a_class_without_rows_in_the_batch_or_without_points_counts_nothing(monkeypatch):
    learner = learner_of(index=(3, 0, 1, 4, 8), pick=Pick(), batch_real=1)  # no point of the last class
    found, counted = drawn(learner, monkeypatch), set()
    for step in range(12):
        learner.optimizer.zero_grad()
        learner.loss(step)[0].backward()
        seen = set(learner._rows.classes[found[-1].index].tolist())
        counted |= {frozenset(seen)}
        moved = learner.parameters["x"].grad.flatten(1).norm(dim=1) > 0
        assert moved.tolist() == [int(c) in seen for c in learner.classes]
    assert len(counted) > 2


def test_every_class_gives_as_many_rows_as_published_and_small_ones_all(monkeypatch):
    rows = rows_of()
    sizes = rows.classes.bincount().tolist()
    learner = learner_of(rows)
    found = drawn(learner, monkeypatch)
    learner.loss(0)
    assert rows.classes[found[0].index].bincount().tolist() == [min(7, size) for size in sizes]
    assert min(sizes) < 7 < max(sizes)


def test_rows_are_picked_by_their_distance_from_the_mean_of_the_points(monkeypatch):
    learner = learner_of(pick=BY_LOSS, batch_real=3)
    told = []
    monkeypatch.setattr(learner._picker, "observe", lambda *each: told.append(each))
    monkeypatch.setattr(
        learner._picker, "draw", lambda step: Picker(learner._seen, Pick(kind="balanced"), 9, 1).draw(step)
    )
    for step in (0, 2):
        told.clear()
        learner.loss(step)
        assert len(told) == 2  # the table, and the batch
        f, x = embedding_of(learner, step), learner.parameters["x"].detach()
        G = f(augmented(learner, x, learner.classes, step)).detach()
        for index, losses in told:
            assert not losses.requires_grad
            classes = learner._rows.classes[index]
            F = f(augmented(learner, learner._rows.inputs(index), classes, step)).detach()
            means = torch.stack([G[learner.classes == c].mean(0) for c in classes])
            np.testing.assert_allclose(losses, ((F - means) ** 2).sum(1), rtol=1e-10)


def test_rows_beyond_the_fraction_are_not_looked_at():
    rows = rows_of()
    share = rows.share(0.4, SEED)
    inside = rows.inputs(torch.arange(rows.n))[:, None] == share.inputs(torch.arange(share.n))[None]
    inside = inside.flatten(2).all(2).any(1).numpy()
    assert 0 < inside.sum() == share.n < rows.n
    X = data()[0]
    X[~inside] = 1e6
    for pick in (Pick(kind="balanced"), BY_LOSS):
        losses = []
        for each in (rows, rows_of(X=X)):
            learner = learner_of(each, index=np.flatnonzero(inside)[:7], fraction=0.4, pick=pick)
            losses.append([float(learner.advance(step)["loss"]) for step in range(3)])
        assert losses[0] == losses[1]
    assert learner_of(rows, fraction=1)._seen is rows


# --- Runs ----------------------------------------------------------------------------------------------------

RUNS = {
    "as published": {},
    "picks by loss": {"pick": BY_LOSS, "batch_real": 3},
    "few, in pieces": {"fraction": 0.4, "memory_budget": 1},
    "fourier features": CASES["fourier features"],
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS.keys())
def test_a_restored_run_goes_on_in_the_same_bits(options):
    rows = rows_of(torch.float32, holdout=0.1)
    index = range(7)
    first, second = (learner_of(rows, index=index, **options) for _ in range(2))
    for step in range(3):
        first.advance(step)
    tensors, plain = first.state()
    kept = {name: value.clone() for name, value in tensors.items()}
    wanted = [float(first.advance(step)["loss"]) for step in range(3, 6)]
    second.advance(0)  # what is restored replaces what was
    second.evaluate()
    second.restore(kept, json.loads(json.dumps(plain)))
    assert [float(second.advance(step)["loss"]) for step in range(3, 6)] == wanted
    assert torch.equal(second.learned()["x"], first.learned()["x"])


def test_a_prolonged_run_is_a_long_run(tmp_path):
    rows = rows_of(torch.float32, holdout=0.1)

    def run(steps, checkpoint=None):
        loop = Loop(checkpoint=checkpoint, evaluate_every=2)
        return run_loop(learner_of(rows, index=range(7)), loop, steps=steps, evaluate_every=2, label="dm")

    run(3, tmp_path / "run.ckpt")
    found, wanted = run(6, tmp_path / "run.ckpt"), run(6)
    assert torch.equal(found.learned["x"], wanted.learned["x"])
    assert found.figures == wanted.figures


def test_what_is_learned_are_the_points_and_their_labels_stay():
    learner = learner_of(rows_of(torch.float32, holdout=0.1), index=range(7))
    before = learner.learned()
    learner.advance(0)
    after = learner.learned()
    assert (after["x"].dtype, tuple(after["x"].shape)) == (torch.float64, (7, *SHAPE))
    assert not torch.equal(after["x"], before["x"])
    assert torch.equal(after["y"], before["y"])
    assert learner.evaluate() == judge(after["x"], after["y"])


def test_the_identity_tells_runs_apart():
    rows = rows_of()
    first = learner_of(rows).identity
    assert learner_of(rows, steps=3, evaluate_every=9).identity == first
    changes = (
        {"seed": 6},
        {"lr": 2.0},
        {"fraction": 0.5},
        {"augment": "flip"},
        {"index": (0, 1, 2, 3, 4, 5, 6)},
    )
    for change in changes:
        assert learner_of(rows, **change).identity != first
    points, labels = rows.inputs(torch.arange(3)), rows.outputs(torch.arange(3))
    same, other = (
        DMLearner(rows, points, labels, torch.tensor(classes), DM(**SMALL), seed=0, judge=judge).identity
        for classes in ([0, 1, 1], [1, 0, 1])
    )
    assert same != other


def test_the_defaults_are_those_of_the_published_code():
    options = DM()
    assert (options.network, options.embedding, options.batch_real) == ("convnet", "network", 256)
    assert (options.lr, options.momentum, options.steps) == (1.0, 0.5, 20_000)
    assert options.augment == "color_crop_cutout_flip_scale_rotate"
    assert options.pick == Pick(kind="balanced")
    group = learner_of().optimizer.param_groups[0]
    assert (group["lr"], group["momentum"]) == (1.0, 0.5)


# --- Bad inputs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "convnett"}, "unknown network 'convnett'; did you mean 'convnet'"),
        ({"embedding": "fourrier"}, "unknown embedding 'fourrier'; did you mean 'fourier'"),
        ({"augment": "flip_mirror"}, "unknown augmentation 'mirror'"),
        ({"network_params": {"widht": 3}}, "unknown option of a network 'widht'"),
        ({"embedding": "identity", "embedding_params": {"width": 3}}, "cannot be made with"),
        ({"embedding_params": {"n_features": 3}}, "`embedding_params` are for feature maps"),
        ({"fraction": 0.0}, "greater than 0"),
        ({"fraction": 1.5}, "less than or equal to 1"),
        ({"batch_real": 0}, "greater than or equal to 1"),
        ({"lr": 0.0}, "greater than 0"),
        ({"momentum": 1.0}, "less than 1"),
        ({"memory_budget": 0}, "greater than or equal to 1"),
        ({"labels": "learned"}, "'fixed'"),
        ({"rate": 1.0}, "Extra inputs are not permitted"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        learner_of(**options)


def test_classes_that_are_none_are_refused():
    rows = rows_of()
    points, labels = rows.inputs(torch.arange(2)), rows.outputs(torch.arange(2))
    for classes in (torch.tensor([0, K]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match="`classes` must be numbers from 0 to 2"):
            DMLearner(rows, points, labels, classes, DM(**SMALL), seed=0, judge=judge)
