"""`evaluate` with networks: what is trained on what, the rows beside a set, what is chosen and what is looked at."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import kernel_distill as kd
from kernel_distill import _evaluate_networks, _evaluation_plan
from kernel_distill.nn_baselines import evaluator
from kernel_distill.nn_baselines.accuracy import network_accuracies
from kernel_distill.nn_baselines.bootstrap import bootstrap_interval
from kernel_distill.nn_baselines.scores import label_robust_score
from kernel_distill.nn_baselines.training import train_networks
from kernel_distill.nn_baselines.training_recipes import training_recipe
from kernel_distill.solver.coresets import select
from kernel_distill.solver.data.split import hold_out
from kernel_distill.solver.networks import network_spec

from .few_digits import few_digits
from .travelling import Travelling

TINY = {"mlp": {"width": 8, "depth": 1}}
CONVNET = {"convnet": {"width": 4, "depth": 1}}
QUICK = {"networks": TINY, "count": 2, "epochs": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def data():
    return few_digits(2)


@pytest.fixture(scope="module")
def sets(data):
    """Three sets of one point a class and one of two, near different rows; one transform."""
    options = {"feature_map": "identity", "ridge": 1.0, "targets": "centred"}
    made = [kd.distill(data, near="data", seed=seed, **options) for seed in (0, 1, 2)]
    return [*made, kd.distill(data, near="data", per_class=2, **options)]


@pytest.fixture
def trainings(monkeypatch):
    """What networks are trained on, in order: (X, Y, recipe, seed)."""
    seen = []
    original = evaluator.train_networks

    def train(spec, X, Y, recipe, **options):
        seen.append((X, Y, recipe, options["seed"]))
        return original(spec, X, Y, recipe, **options)

    monkeypatch.setattr(evaluator, "train_networks", train)
    return seen


def shown(result):
    return [(row.name, row.trained_on) for row in result.rows]


def test_a_set_stands_beside_random_and_k_center_rows(data, sets):
    result = kd.evaluate({"mine": sets[0]}, data, recipe="dc-bench", confidence=0.9, seed=5, **QUICK)
    assert shown(result) == [("mine", "distilled"), ("mine", "random"), ("mine", "k-center")]
    transform, recipe = sets[0].encoder.transform, training_recipe("dc-bench", epochs=2, batch_size=8)
    train, test = (transform.forward(torch.from_numpy(x)).float() for x in (data.x_train, data.x_test))
    groups = torch.from_numpy(data.y_train)
    points = {"distilled": sets[0].transformed().float()}
    for name in ("random", "k-center"):
        chosen = select(train.flatten(1), groups, [1, 1, 1], name, seed=5).indices
        assert groups[chosen].tolist() == [0, 1, 2]
        points[name] = train[chosen]
    spec = network_spec("mlp", (1, 8, 8), 3, width=8, depth=1)
    for row in result.rows:
        stack = train_networks(
            spec, points[row.trained_on], torch.eye(3), recipe, count=2, seed=5, stream="evaluate"
        )
        expected = network_accuracies(stack, [(test, torch.from_numpy(data.y_test))]).numpy()
        np.testing.assert_allclose(row.accuracies, [expected], rtol=0, atol=1e-15)
        assert row.score == pytest.approx(expected.mean(), abs=1e-15)
        assert row.std == pytest.approx(expected.std(), abs=1e-15)
        assert row.interval == bootstrap_interval([expected], confidence=0.9, seed=5)
        assert (row.sets, row.networks, row.points, row.seeds) == (1, 2, 3, (5,))
        assert (row.network, row.recipe, row.rates) == ("mlp (depth=1, width=8)", "dc-bench", (0.01,))
        assert (row.epochs, row.held_out, row.diverged) == ((None,), (None,), 0)
    assert (result.data, result.n_test, result.n_held_out) == ("digits", len(data.x_test), 0)
    assert result.rows[0].nbytes == sets[0].nbytes
    assert result.rows[1].nbytes == 3 * (64 * data.x_train.itemsize + 8)


def test_several_sets_of_one_name_are_one_row(data, sets):
    together = kd.evaluate({"mine": sets[:3]}, data, recipe="dc-bench", seed=7, confidence=0.5, **QUICK)
    assert shown(together) == [("mine", "distilled"), ("mine", "random"), ("mine", "k-center")]
    for index in range(3):
        alone = kd.evaluate(sets[index], data, recipe="dc-bench", seed=7 + index, **QUICK)
        for row, own in zip(together.rows, alone.rows, strict=True):
            assert row.accuracies[index] == own.accuracies[0]
            assert row.seeds == (7, 8, 9)
    for row in together.rows:
        assert row.score == pytest.approx(np.mean(row.accuracies))
        assert row.interval == bootstrap_interval(row.accuracies, confidence=0.5, seed=7)
        assert row.interval != bootstrap_interval(row.accuracies, seed=7)
        assert (row.sets, row.networks) == (3, 2)
    assert len(set(together.rows[1].accuracies)) > 1  # other rows, and other networks, for each set
    assert not any("one set" in remark for remark in together.remarks())
    assert "seeds 7, 8, 9, one for each set of a row" in together.remarks()
    alone = kd.evaluate(sets[0], data, recipe="dc-bench", baselines=(), **QUICK)
    assert any("another run of its method may differ" in remark for remark in alone.remarks())


def test_baselines_are_shared_between_sets_of_equal_size(data, sets, trainings):
    named = {"a": sets[0], "b": sets[1], "two": sets[3]}
    result = kd.evaluate(named, data, recipe="dc-bench", baselines="herding", **QUICK)
    real = ["random", "k-center", "herding"]
    expected = [("a", "distilled"), ("b", "distilled"), *(("a, b", name) for name in real)]
    assert shown(result) == [*expected, ("two", "distilled"), *(("two", name) for name in real)]
    assert [row.points for row in result.rows] == [3] * 5 + [6] * 4
    assert len(trainings) == 9
    # A row of one and a row of two sets share what stands in place of their first ones.
    trainings.clear()
    mixed = kd.evaluate({"a": sets[0], "b": sets[:2]}, data, recipe="dc-bench", **QUICK)
    assert len(trainings) == 3 + 2 * 2
    by = {(row.name, row.trained_on): row for row in mixed.rows}
    assert by["b", "random"].accuracies[0] == by["a", "random"].accuracies[0]


def test_nothing_is_trained_that_no_row_shows(data, sets, trainings):
    """Sets of equal transform whose classes are numbers, and names: all rows are trained on for each."""
    named = dataclasses.replace(data, class_names=("cat", "dog", "owl"))
    words = np.array(named.class_names)[data.y_train]
    other = kd.distill(data.x_train, words, near="data", feature_map="identity", ridge=1.0, targets="centred")
    pair = {"numbers": sets[0], "more": sets[1], "names": other}
    result = kd.evaluate(pair, named, recipe="dc-bench", baselines="full", full_epochs=1, **QUICK)
    assert len(trainings) == len(result.rows) == 3 + 2 * 2 + 2
    assert [row.name for row in result.rows if row.trained_on == "full"] == ["numbers, more", "names"]


def test_transfer_has_a_row_for_each_set_and_network(data, sets):
    networks = {"mlp": {"width": 8}, **CONVNET, "convnet-bn": {"width": 4, "depth": 2}}
    result = kd.evaluate(
        {"a": sets[0], "b": sets[1]}, data, recipe="dc-bench", networks=networks, count=1, epochs=1
    )
    names = ["mlp (width=8)", "convnet (depth=1, width=4)", "convnet-bn (depth=2, width=4)"]
    assert [row.network for row in result.rows] == [name for name in names for _ in range(4)]
    assert all((row.std, row.interval) == (None, None) for row in result.rows)
    # The network of a recipe is its convnet: others keep their own defaults.
    kip = kd.evaluate(
        sets[0],
        data,
        recipe="kip-finite",
        networks=["mlp", "convnet"],
        count=1,
        epochs=1,
        baselines=(),
        network_params={"width": 4, "depth": 1, "norm": "none"},
    )
    assert [row.network for row in kip.rows] == ["mlp", "convnet"]


class UnreadRows(np.ndarray):
    """Rows that say which of them were read."""

    reads = ()

    def __getitem__(self, index):
        if isinstance(index, slice):
            type(self).reads += tuple(range(*index.indices(len(self))))
        return np.asarray(self)[index]


@pytest.mark.parametrize("choice", [{}, {"rates": (0.01, 0.1), "choose_epoch": True}])
def test_test_rows_are_read_once_when_all_is_trained(data, sets, monkeypatch, choice):
    UnreadRows.reads = ()
    watched = dataclasses.replace(data, x_test=data.x_test.view(UnreadRows))
    trained = []

    def train(*arguments, **options):
        done = evaluator.train_on(*arguments, **options)
        assert UnreadRows.reads == ()
        trained.append(done)
        return done

    monkeypatch.setattr(_evaluate_networks, "train_on", train)
    named = {"a": sets[:2], "two": sets[3]}
    result = kd.evaluate(
        named, watched, recipe="dc-bench", baselines="full", full_epochs=1, **choice, **QUICK
    )
    assert len(trained) == 2 * 3 + 3 + 1
    assert UnreadRows.reads == tuple(range(len(data.x_test)))
    monkeypatch.undo()
    assert kd.evaluate(
        named, data, recipe="dc-bench", baselines="full", full_epochs=1, **choice, **QUICK
    ).rows == (result.rows)


def test_rates_and_epochs_are_chosen_on_a_tenth_that_baselines_do_not_have(data, sets, trainings):
    choice = {"rates": (1e-7, 0.05), "choose_epoch": True}
    result = kd.evaluate(
        sets[0], data, recipe="dc-bench", baselines="full", full_epochs=2, seed=2, **choice, **QUICK
    )
    split = hold_out(dataclasses.replace(data, x_test=None, y_test=None), 0.1, 2)
    assert result.n_held_out == len(split.x_test) == pytest.approx(len(data.x_train) / 10, abs=2)
    assert result.rows[-1].trained_on == "full"
    assert result.rows[-1].points == len(split.x_train)
    transform = sets[0].encoder.transform
    allowed = transform.forward(torch.from_numpy(split.x_train)).float().flatten(1)
    own = sets[0].transformed().float()
    real = [X.flatten(1) for X, *_ in trainings if not torch.equal(X, own)]
    assert [len(X) for X in real] == [len(allowed)] * 2 + [3] * 4
    for row in torch.cat(real):
        assert (row == allowed).all(dim=1).any()
    spec = network_spec("mlp", (1, 8, 8), 3, width=8, depth=1)
    held = transform.forward(torch.from_numpy(split.x_test)).float(), torch.from_numpy(split.y_test)
    done = evaluator.train_on(
        spec,
        sets[0].transformed().float(),
        torch.eye(3),
        training_recipe("dc-bench", epochs=2, batch_size=8),
        count=2,
        seed=2,
        choice=evaluator.Choice((1e-7, 0.05), True, lambda: [held]),
    )
    row = result.rows[0]
    assert (row.rates, row.epochs) == ((done.rate,), (done.epoch,))
    assert row.held_out == pytest.approx((done.held_out,))
    text = str(result)
    assert f"chosen on {result.n_held_out} held-out training rows, never on test rows" in text
    assert "full: trained for 2 epochs over all training rows" in text


def test_rows_are_held_out_of_every_class_without_names_too(data, sets):
    """Six rows of each class: of each, one is held out."""
    few = np.concatenate([np.flatnonzero(data.y_train == c)[:6] for c in range(3)])
    small = dataclasses.replace(data, x_train=data.x_train[few], y_train=data.y_train[few])
    unnamed = dataclasses.replace(small, class_names=())
    found, named = (
        kd.evaluate(sets[0], each, recipe="dc-bench", rates=(0.1, 0.01), **QUICK) for each in (unnamed, small)
    )
    assert found.n_held_out == 3
    assert found.rows == named.rows


@pytest.mark.parametrize(
    ("rates", "found"), [((), "1 training rows of it to"), ((0.1,), "besides the 2 held out")]
)
def test_more_points_than_rows_are_refused_before_anything_is_trained(data, sets, trainings, rates, found):
    kept = np.concatenate([np.flatnonzero(data.y_train == c)[:n] for c, n in enumerate((12, 9, 1))])
    small = dataclasses.replace(data, x_train=data.x_train[kept], y_train=data.y_train[kept])
    with pytest.raises(ValueError, match=f"^mine has 2 points of class 2, but there are .*{found}"):
        kd.evaluate({"mine": sets[3]}, small, recipe="dc-bench", rates=rates, **QUICK)
    assert not trainings


def test_soft_labels_and_the_scores_that_need_hard_ones(data, sets, trainings):
    result = kd.evaluate(
        {"mine": sets[0]},
        data,
        recipe="soft-label",
        augment="",
        rate=0.3,
        baselines=("full", "label-solve"),
        full_epochs=1,
        **{**QUICK, "epochs": 10},
    )
    kinds = ["distilled", "distilled, hard labels", "random", "k-center", "label-solve", "full"]
    assert [row.trained_on for row in result.rows] == kinds
    by = {row.trained_on: row for row in result.rows}
    assert len({row.score for row in result.rows}) == len(kinds)  # or no row could be taken for another
    labels = {recipe.labels: [Y for _, Y, other, _ in trainings if other.labels == recipe.labels]
              for _, _, recipe, _ in trainings}  # fmt: skip
    assert torch.equal(labels["scores"][0], sets[0].y.float())
    assert len(labels["scores"]) == 2
    assert all(set(Y.flatten().tolist()) == {0.0, 1.0} for Y in labels["hard"])
    full, random = by["full"].score, by["random"].score
    hard = {
        "distilled": "distilled, hard labels",
        "distilled, hard labels": "distilled, hard labels",
        "random": "random",
        "k-center": "k-center",
        "label-solve": "random",
    }
    for kind, own in hard.items():
        row = by[kind]
        assert row.hlr == pytest.approx(full - by[own].score)
        if kind == "random":
            assert (row.ior, row.lrs) == (None, None)
        else:
            assert row.ior == pytest.approx(row.score - random)
            assert row.lrs == pytest.approx(label_robust_score(row.ior, row.hlr))
    assert (by["full"].ior, by["full"].hlr, by["full"].lrs) == (None, None, None)
    assert by["label-solve"].nbytes == by["random"].nbytes + 3 * (8 * 3 - 8)


def test_full_accuracy_that_is_known_gives_the_scores(data, sets):
    networks = {**TINY, **CONVNET}
    options = {**QUICK, "networks": networks}
    for given, other in ((0.9, 0.9), ({"mlp": 0.9}, None)):
        rows = kd.evaluate(sets[0], data, recipe="dc-bench", full_accuracy=given, **options).rows
        assert len(rows) == 6
        assert rows[0].hlr == pytest.approx(0.9 - rows[0].score)
        assert rows[3].hlr == (None if other is None else pytest.approx(other - rows[3].score))
    rows = kd.evaluate(sets[0], data, recipe="dc-bench", baselines=(), **QUICK).rows
    assert [(row.ior, row.hlr, row.lrs) for row in rows] == [(None, None, None)]


def test_workers_change_nothing(data, sets):
    one, two = (
        kd.evaluate(sets[:2], data, recipe="dsa", workers=workers, **{**QUICK, "networks": CONVNET})
        for workers in (1, 2)
    )
    assert one == two


@pytest.mark.parametrize("choice", [{}, {"rates": (0.01, 0.1)}, {"choose_epoch": True}])
def test_trainings_are_tasks(data, sets, choice):
    """Points that are made on demand, held-out rows and networks travel, and nothing changes by it."""
    executor = Travelling(lost=1)
    options = {
        **QUICK,
        **choice,
        "baselines": ("full", "label-solve"),
        "full_epochs": 1,
    }
    named = {"a": sets[:2], "two": sets[3:]}
    plain = kd.evaluate(named, data, recipe="soft-label", augment="", **options)
    found = kd.evaluate(named, data, recipe="soft-label", augment="", executor=executor, **options)
    assert found == dataclasses.replace(plain, retried=("training 1 (full, mlp) (its worker died)",))
    assert found.remarks()[-1] == f"1 task was run again: {found.retried[0]}"
    assert json.loads(found.to_json())["retried"] == list(found.retried)
    assert len(executor.tasks) == 3 * 2 + 3 * 3 + 1
    assert {task.gpus for task in executor.tasks} == {1}
    kd.evaluate(sets[0], data, recipe="dc-bench", executor=executor, device="cpu", **QUICK)
    assert executor.tasks[-1].gpus == 0


def test_only_what_tasks_need_is_made_and_each_thing_once(data, sets, monkeypatch):
    """Here, when it is a training's turn; elsewhere, once for all networks that are trained on it."""
    made = []
    original = _evaluation_plan.real_rows

    def rows(*arguments, **options):
        made.append(arguments[2])
        return original(*arguments, **options)

    monkeypatch.setattr(_evaluation_plan, "real_rows", rows)
    options = {**QUICK, "networks": {**TINY, **CONVNET}}
    kd.evaluate(sets[0], data, recipe="dc-bench", **options)
    assert made == ["random", "k-center"] * 2
    made.clear()
    kd.evaluate(sets[0], data, recipe="dc-bench", executor=Travelling(), **options)
    assert made == ["random", "k-center"]


def test_a_device_that_only_workers_have_is_theirs_to_refuse(data, sets):
    with pytest.raises(ValueError, match="device 'cuda:77' cannot be used here"):
        kd.evaluate(sets[0], data, recipe="dc-bench", device="cuda:77", executor=Travelling(), **QUICK)


def test_test_rows_alone_will_do_without_baselines(data, sets):
    pair = data.x_test, data.y_test
    [row] = kd.evaluate(sets[0], pair, recipe="dc-bench", baselines=(), **QUICK).rows
    assert row.accuracies == kd.evaluate(sets[0], data, recipe="dc-bench", **QUICK).rows[0].accuracies
    # Without the channel axis, too.
    [flat] = kd.evaluate(sets[0], (pair[0][:, 0], pair[1]), recipe="dc-bench", baselines=(), **QUICK).rows
    assert flat == row


def test_string_labels_and_vectors():
    rng = np.random.default_rng(0)
    y = np.array(["cat", "dog", "owl"])[np.arange(60) % 3]
    X = rng.normal(size=(60, 4)) + 4 * np.eye(4)[np.arange(60) % 3]
    arrays = kd.Data(X[:45], np.arange(45) % 3, X[45:], np.arange(15) % 3, ("cat", "dog", "owl"), "made")
    ds = kd.distill(X[:45], y[:45], feature_map="identity", ridge=1.0)
    options = {"networks": "mlp", "count": 1, "epochs": 60, "rate": 0.1, "recipe": "dc-bench"}
    rows = kd.evaluate(ds, arrays, **options).rows
    assert min(row.score for row in rows[1:]) > 0.8
    with pytest.raises(ValueError, match=r"'convnet' takes images \(c, h, w\), got inputs of shape \(4,\)"):
        kd.evaluate(ds, arrays, recipe="dc-bench")
    with pytest.raises(ValueError, match=r"augments images \(c, h, w\)"):
        kd.evaluate(ds, arrays, recipe="dsa", networks="mlp")


def test_output_forms(data, sets):
    result = kd.evaluate(
        {"a": sets[0]}, data, recipe=training_recipe("dc-bench", name="mine"), rates=(1e25, 1e26), **QUICK
    )
    found = json.loads(result.to_json())
    assert found == json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert found["recipe"]["name"] == "mine"
    first = found["rows"][0]
    assert (first["sets"], first["networks"]) == (1, 2)
    assert first["accuracies"] == [list(each) for each in result.rows[0].accuracies]
    assert first["diverged"] == 2
    text = str(result)
    lines = text.splitlines()
    assert text.isascii()
    assert lines[0] == f"digits, {len(data.x_test)} test rows, recipe mine"
    for heading in ("trained on", "network", "95 % interval", "sets x networks", "deviation", "rate", "IOR"):
        assert heading in lines[2]
    assert "LRS" not in lines[2]
    assert "1 x 2" in lines[4]
    assert "a, distilled, mlp (depth=1, width=8): 2 of 2 networks diverged: use a lower rate" in lines
    # A published recipe that was changed is not the published one.
    changed = kd.evaluate(sets[0], data, recipe="dc-bench", baselines=(), **QUICK).remarks()
    assert "recipe dc-bench, but epochs=2, batch_size=8" in changed
    same = dataclasses.replace(result, recipe=training_recipe("frepo").model_dump(mode="json"))
    assert not any("but" in line for line in (*same.remarks(), *result.remarks()))


def test_ridge_shows_every_set_of_a_name(data, sets):
    rows = kd.evaluate({"mine": sets[:2], "other": sets[3]}, data).rows
    assert [row.name for row in rows] == ["mine", "mine (2)", "other"]
    assert rows[1].score == sets[1].score(data.x_test, data.y_test)


def test_refusals(data, sets):
    one = sets[0]
    features = kd.distill(data, feature_map="fcnn", ridge=1.0, space="features", near="noise")
    rng = np.random.default_rng(0)
    X, values = rng.normal(size=(30, 4)), rng.normal(size=30)
    regression = kd.distill(X, values, task="regression", feature_map="identity", ridge=1.0)
    pair = data.x_test, data.y_test
    soft = {"recipe": "soft-label", "baselines": (), "full_accuracy": 0.9}
    refused = [
        ((one, data), {"recipe": "dcbench"}, "unknown recipe 'dcbench'; did you mean 'dc-bench'"),
        ((one, data), {"networks": "convnett"}, "unknown network 'convnett'; did you mean 'convnet'"),
        ((one, data), {"networks": ()}, "`networks` is empty"),
        ((one, data), {"networks": {"mlp": {"norm": "batch"}}}, "network 'mlp' has no option 'norm'"),
        ((one, data), {"baselines": "kcenter"}, "unknown baseline 'kcenter'; did you mean 'k-center'"),
        (
            (one, data),
            {"baselines": "label-solve"},
            "'label-solve' has soft labels, of which recipe 'dc-bench'",
        ),
        ((one, data), {"count": 0}, "`count` must be an integer of at least 1, got 0"),
        ((one, data), {"rates": (0.1, -1)}, "greater than 0"),
        ((one, data), {"epoch": 3}, "unknown argument of evaluate, .* 'epoch'; did you mean 'epochs'"),
        ((one, data), {"full_accuracy": 84.8}, r"fraction in \[0, 1\], not a percentage, got 84.8"),
        ((one, data), {"full_accuracy": {"lenet": 0.9}}, "unknown network of `full_accuracy` 'lenet'"),
        ((one, data), {"full_accuracy": 0.8, "baselines": "full"}, "not both"),
        ((one, data), {"full_epochs": 3}, "`full_epochs` is for the baseline 'full'"),
        ((one, data), {"confidence": 95}, "`confidence` must lie between 0 and 1"),
        ((one, data), {"seed": -1}, "`seed` must be an integer of at least 0, got -1"),
        ((one, data), {"device": "cuda:77"}, "device 'cuda:77' cannot be used here"),
        ((one, data), {"recipe": "ridge", "networks": "mlp", "count": 3}, "leave out networks, count"),
        ((one, data), {"recipe": "ridge", "executor": "serial"}, "trains no networks: leave out executor"),
        ((one, data), {"executor": "rya"}, "unknown executor 'rya'; did you mean 'ray'"),
        ((one, data), {"recipe": "ridge", "epochs": 3}, "trains no networks: leave out epochs"),
        ((one, data), {"recipe": "ridge", "device": "cpu", "workers": 1}, "leave out workers, device"),
        (
            ({"a": [one, dataclasses.replace(one, labels=None)]}, data),
            soft,
            "under the name 'a' have classes for",
        ),
        (
            (one, pair),
            {},
            r"baselines \(random, k-center; none with `baselines=\(\)`\) are drawn from training",
        ),
        ((one, pair), {"baselines": (), "rates": 0.1}, "rates and epochs are chosen on training rows"),
        (({"a": [one, sets[3]]}, data), {}, "sets under the name 'a' differ in size"),
        (({"a": []}, data), {}, "there is no set under the name 'a'"),
        ((features, data), {}, "lives in feature space: networks need points"),
        ((regression, (X, values)), {"baselines": ()}, "is a set for regression"),
        ((dataclasses.replace(one, labels=None), data), {}, "have no classes"),
        ((one, (data.x_test, data.y_test + 1)), {"baselines": ()}, "outside the 3 known classes"),
    ]
    for arguments, options, message in refused:
        with pytest.raises(ValueError, match=message):
            kd.evaluate(*arguments, **{"recipe": "dc-bench", **options})


@pytest.fixture
def draws(monkeypatch):
    """What joins the points of each training, in order."""
    seen = []
    original = evaluator.train_networks

    def train(*arguments, draw, **options):
        seen.append(draw)
        return original(*arguments, draw=draw, **options)

    monkeypatch.setattr(evaluator, "train_networks", train)
    return seen


def test_distributions_are_drawn_from_at_every_epoch(data, sets, draws):
    gaussians = [
        kd.distill(data, method="class-gaussians", feature_map="identity", ridge=1.0, seed=seed)
        for seed in (0, 1)
    ]
    named = {"gaussians": gaussians, "points": sets[0]}
    kd.evaluate(
        named, data, recipe="d3", fresh=2, full_accuracy=0.9, baselines="label-solve", seed=5, **QUICK
    )
    own, others = [each for each in draws if each is not None], [each for each in draws if each is None]
    # Both sets with soft labels, and with hard ones; no rows and no set of points.
    assert [(each.count, each.seed) for each in own] == [(2, 5), (2, 6)] * 2
    assert [each.distribution for each in own] == [ds.distribution for ds in gaussians] * 2
    assert len(others) >= 4
    draws.clear()
    kd.evaluate(gaussians[0], data, recipe="dsa", augment="", **QUICK)
    assert draws == [None] * 3


def test_points_and_distributions_are_not_sets_of_one_method(data, sets):
    gaussians = kd.distill(
        data, method="class-gaussians", feature_map="identity", ridge=1.0, targets="centred"
    )
    with pytest.raises(ValueError, match="hold distributions and some points"):
        kd.evaluate({"mine": [gaussians, sets[0]]}, data, recipe="d3", **QUICK)
