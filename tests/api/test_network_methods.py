"""Sets for networks through `distill`: what a user gives, and what comes back."""

import numpy as np
import pytest
import torch

import kernel_distill as kd
from kernel_distill.nn_baselines.judge import NetworkJudge
from kernel_distill.nn_baselines.trained_network import TrainedNetwork
from kernel_distill.nn_baselines.training_recipes import TrainingRecipe
from kernel_distill.solver.learners.rows import TrainingRows
from kernel_distill.solver.source import row_keys

PLAIN = {"network_params": {"width": 4, "depth": 1}, "judge_networks": 1, "judge_epochs": 3}
NO_NORM = {**PLAIN, "network_params": {"width": 4, "depth": 1, "norm": "none"}}
TINY = {
    "dm": kd.DM(**PLAIN, batch_real=8),
    "dc": kd.DC(**PLAIN, batch_real=8),
    "dsa": kd.DSA(**PLAIN, batch_real=8),
    "mtt": kd.MTT(
        **PLAIN, experts=1, expert_epochs=2, max_start_epoch=1, expert_steps=1, student_steps=2, lr=1.0
    ),
    "dkkt": kd.DKKT(**NO_NORM, expert_epochs=1),
    "dkkt+dm": kd.DKKTDM(**NO_NORM, expert_epochs=1, fraction=0.5),
}
LOOP = kd.Loop(steps=2, evaluate_every=1)


@pytest.fixture(scope="module")
def data():
    return kd.load_data("digits")


@pytest.fixture(scope="module")
def few(data):
    """A tenth of the rows, for what trains on all of them."""
    return data.x_train[::10], data.y_train[::10]


@pytest.mark.parametrize("name", TINY)
def test_a_set_comes_back_from_its_file_and_says_who_judged_it(name, few, data, tmp_path):
    ds = kd.distill(*few, method=TINY[name], per_class=2, loop=LOOP, progress=False)
    assert (len(ds), ds.certificate.status) == (20, kd.Status.LEARNED)
    assert ds.hard_labels.tolist() == np.repeat(range(10), 2).tolist()
    assert ds.provenance["options"]["method"] == name
    assert any("1 networks" in note and "ridge regression" in note for note in ds.certificate.notes)
    ds.save(tmp_path / "set.safetensors")
    again = kd.load(tmp_path / "set.safetensors")
    np.testing.assert_array_equal(
        ds.decision_function(data.x_test), again.decision_function(data.x_test), strict=True
    )


@pytest.mark.parametrize("name", TINY)
def test_a_name_takes_the_defaults_of_its_method(name):
    from kernel_distill._methods import method_options, options_class

    assert method_options(name) == options_class(name)()
    assert method_options(name).method == name
    assert method_options(TINY[name]) is TINY[name]


@pytest.mark.parametrize("name", ["dm", "dkkt+dm"])
def test_points_start_from_rows_that_may_be_seen(name, data):
    method = TINY[name].model_copy(update={"fraction": 0.02})
    rows = kd.distill(data, method=method, per_class=1, loop=kd.Loop(steps=0), progress=False).x
    # With `fraction` of a class of about 140 rows, three may be seen: other seeds of the start choose among these.
    keys = row_keys(0, "share", 0, len(data.x_train))
    assert len(rows.unique(dim=0)) == 10
    held = row_keys(0, "holdout", 0, len(data.x_train)).argsort()[: round(0.05 * len(data.x_train))]
    for row in rows.numpy():
        [index] = np.flatnonzero((np.abs(data.x_train - row) < 1e-3).all(axis=(1, 2, 3)))[:1]
        of_class = np.flatnonzero(data.y_train == data.y_train[index])
        of_class = of_class[~np.isin(of_class, held.numpy())]
        first = of_class[keys[of_class].argsort().numpy()][: max(1, round(0.02 * len(of_class)))]
        assert index in first


@pytest.mark.parametrize("name", ["dm", "dkkt+dm"])
def test_without_rows_held_out_nothing_but_the_share_judges(name, few, monkeypatch):
    X, y = few
    seen = np.zeros(len(X), dtype=bool)
    rows, inputs = [], TrainingRows._inputs

    def noted(self, index):
        rows.append(index)
        return inputs(self, index)

    # A trained network sees all rows: what is read by the judge is noted alone.
    call = NetworkJudge.__call__

    def judged(self, x, y):
        rows.clear()
        figures = call(self, x, y)
        seen[torch.cat(rows).numpy()] = True
        return figures

    monkeypatch.setattr(TrainingRows, "_inputs", noted)
    monkeypatch.setattr(NetworkJudge, "__call__", judged)
    method = TINY[name].model_copy(update={"fraction": 0.3})
    ds = kd.distill(X, y, method=method, holdout=0, loop=kd.Loop(steps=0), progress=False)
    wanted = [max(1, round(0.3 * int((y == c).sum()))) for c in range(10)]
    assert np.bincount(y[seen], minlength=10).tolist() == wanted
    assert ds.certificate.n_rows == sum(wanted)


def test_the_judges_look_at_rows_held_out_of_the_set_as_it_is_stored(data):
    method = kd.DM(**PLAIN, batch_real=8)
    ds = kd.distill(data, method=method, storage="uint8", loop=LOOP, progress=False)
    same = kd.distill(data, method=method, near=ds.x, loop=kd.Loop(steps=0), progress=False)
    assert same.certificate.heldout_score == ds.certificate.heldout_score


def test_killed_and_gone_on_with(data, tmp_path):
    def run(steps, checkpoint):
        loop = kd.Loop(steps=steps, evaluate_every=1, checkpoint=checkpoint, checkpoint_every=0)
        return kd.distill(data, method=TINY["dm"], loop=loop, progress=False)

    run(1, tmp_path / "legs")
    assert torch.equal(run(3, tmp_path / "legs").x, run(3, None).x)


def test_a_network_is_trained_once_and_kept(few, tmp_path):
    path = tmp_path / "net.safetensors"

    def losses(method):
        """Of every step: the set itself may be the one to start from."""
        records = []
        loop = LOOP.model_copy(update={"callbacks": (records.append,)})
        kd.distill(*few, method=method, class_names=tuple("abcdefghij"), loop=loop, progress=False)
        return [record["figures"]["loss"] for record in records if record["kind"] == "step"]

    method = TINY["dkkt"].model_copy(update={"expert": str(path)})
    first = losses(method)
    before = path.read_bytes()
    assert len(set(first)) > 1
    assert losses(method) == first
    assert path.read_bytes() == before
    assert losses(TINY["dkkt"]) == first
    assert losses(TINY["dkkt"].model_copy(update={"expert_epochs": 2})) != first
    assert TrainedNetwork.load(path).class_names == tuple("abcdefghij")


def test_a_folder_that_is_missing_is_found_before_training(few, tmp_path, monkeypatch):
    monkeypatch.setattr("kernel_distill._network_plan.fit_network", None)
    method = TINY["dkkt"].model_copy(update={"expert": str(tmp_path / "no" / "net.safetensors")})
    with pytest.raises(FileNotFoundError, match="of `expert` does not exist: create it first"):
        kd.distill(*few, method=method, loop=LOOP, progress=False)


def test_somebody_with_a_few_rows_distils_from_a_file(data, tmp_path):
    net = kd.train_network(
        data, network_params={"width": 4, "depth": 1, "norm": "none"}, epochs=1, progress=False
    )
    net.save(tmp_path / "net.safetensors")
    method = TINY["dkkt+dm"].model_copy(update={"expert": str(tmp_path / "net.safetensors"), "fraction": 1.0})
    few = data.x_train[:100], data.y_train[:100]
    ds = kd.distill(*few, n_classes=10, method=method, loop=LOOP, progress=False)
    # The transform is that of the network, not of the few rows.
    raw = torch.from_numpy(data.x_test[:5])
    assert torch.equal(ds.encoder.transform.forward(raw), net.encoder.transform.forward(raw))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network_params": {"width": 5, "depth": 1, "norm": "none"}}, "wanted is NetworkSpec"),
        ({}, "sees inputs through another transform"),
    ],
)
def test_a_network_of_something_else_is_refused(changes, message, data, tmp_path):
    path = tmp_path / "net.safetensors"
    kd.train_network(
        data, network_params={"width": 4, "depth": 1, "norm": "none"}, epochs=1, progress=False
    ).save(path)
    method = TINY["dkkt"].model_copy(update={"expert": str(path), **changes})
    transform = "auto" if changes else "none"
    with pytest.raises(ValueError, match=message):
        kd.distill(data, method=method, transform=transform, loop=LOOP, progress=False)


@pytest.mark.parametrize("name", TINY)
def test_what_is_no_image_or_has_no_classes_is_refused(name, data):
    with pytest.raises(ValueError, match="learns images"):
        kd.distill(
            data.x_train.reshape(len(data.x_train), -1), data.y_train, method=TINY[name], progress=False
        )
    with pytest.raises(ValueError, match="of 2 x 2 pixels or more"):
        kd.distill(data.x_train[:, :, :1], data.y_train, method=TINY[name], progress=False)
    with pytest.raises(ValueError, match=f"method '{name}' needs classes: use 'kip'".replace("+", r"\+")):
        kd.distill(
            data.x_train[:50], np.linspace(0, 1, 50), task="regression", method=TINY[name], progress=False
        )


def test_a_device_that_holds_no_values_is_refused(few):
    with pytest.raises(ValueError, match="device 'meta' cannot be used here"):
        kd.distill(*few, method=TINY["dm"], device="meta", progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kd.DKKT(fraction=0.1), "DKKTDM"),
        (lambda: kd.DKKT(dm=kd.DM(lr=2.0)), "no part of DM"),
        (lambda: kd.DKKT(dm_weight=0.5), "no part of DM"),
        (lambda: kd.DKKTDM(fraction=0.0), "greater than 0"),
        (lambda: kd.DM(judge_networks=0), "judge_networks"),
        (lambda: kd.DM(network="convnett"), "network"),
    ],
)
def test_options_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_trained_network_knows_its_accuracy_on_rows_held_out(data):
    options = {"network": "mlp", "network_params": {"width": 16, "depth": 1}, "epochs": 15, "progress": False}
    net = kd.train_network(data, **options, seed=2)
    n = len(data.x_train)
    held = row_keys(2, "holdout", 0, n).argsort()[: round(0.05 * n)].numpy()
    # Single-row ties aside, predictions from float64 and from float32 inputs agree.
    found = net.score(data.x_train[held], data.y_train[held])
    assert net.provenance["heldout_score"] == pytest.approx(found, abs=1.5 / len(held))
    assert 0.2 < found < 1
    assert "heldout_score" not in kd.train_network(data, **options, holdout=0).provenance


def test_a_recipe_brings_its_network_unless_that_is_given(few):
    recipe = TrainingRecipe(epochs=1, network_params={"norm": "none", "width": 4, "depth": 1})

    def spec(**options):
        return kd.train_network(*few, recipe=recipe, progress=False, **options).network.spec

    assert (spec().norm, spec().width, spec(network_params={"width": 5}).width) == ("none", 4, 5)
    assert spec(network="mlp", network_params={"width": 6, "depth": 1}).width == 6


def test_a_trained_network_predicts_the_same_from_its_file(data, tmp_path):
    net = kd.train_network(data, network="mlp", epochs=20, progress=False)
    assert net.score(data.x_test, data.y_test) > 0.5
    net.save(tmp_path / "net.safetensors")
    again = TrainedNetwork.load(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(
        net.decision_function(data.x_test), again.decision_function(data.x_test), strict=True
    )
    assert (again.class_names, again.provenance) == (net.class_names, net.provenance)
    kd.distill(data, feature_map="identity").save(tmp_path / "set.safetensors")
    with pytest.raises(ValueError, match="expected 'trained-network'"):
        TrainedNetwork.load(tmp_path / "set.safetensors")


def test_support_vectors_are_rows_of_their_class(few):
    X, y = few
    names = np.array(list("abcdefghij"))[y]
    net = kd.train_network(X, names, network="mlp", epochs=5, progress=False)
    found = kd.support_vectors(net, X, names, per_class=2, max_iterations=30)
    assert names[found.indices.numpy()].tolist() == sorted("abcdefghij" * 2)
    duals = found.fitted.duals
    assert float(duals.min()) >= 0
    for group, letter in zip(found.indices.split(2), "abcdefghij", strict=True):
        of_class = torch.from_numpy(names == letter)
        assert torch.equal(duals[group], duals[of_class].topk(2).values)
    with pytest.raises(ValueError, match="labels"):
        kd.support_vectors(net, X)
    broken = X.copy()
    broken[3, 0, 1, 1] = np.nan
    with pytest.raises(ValueError, match="`X` holds NaN in row 3"):
        kd.support_vectors(net, broken, names)


def test_rows_have_hard_labels_whatever_the_recipe_says_of_sets(few):
    params = {"width": 4, "depth": 1}
    soft, hard = (
        kd.train_network(
            *few, network_params=params, recipe=kd.TrainingRecipe(labels=labels, epochs=2), progress=False
        )
        for labels in ("scores", "hard")
    )
    np.testing.assert_array_equal(soft.decision_function(few[0]), hard.decision_function(few[0]))
