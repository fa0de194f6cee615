"""Sets for networks through `distill`: what a user gives, and what comes back."""

import numpy as np
import pytest
import torch

import kernel_distill as kd
from kernel_distill.nn_baselines.trained_network import TrainedNetwork
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
    method = TINY["dkkt"].model_copy(update={"expert": str(path)})
    first = kd.distill(*few, method=method, loop=LOOP, progress=False)
    before = path.read_bytes()
    again = kd.distill(*few, method=method, loop=LOOP, progress=False)
    assert path.read_bytes() == before
    assert torch.equal(first.x, again.x)
    alone = kd.distill(*few, method=TINY["dkkt"], loop=LOOP, progress=False)
    assert torch.equal(first.x, alone.x)


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
    with pytest.raises(ValueError, match="class"):
        kd.distill(
            data.x_train[:50],
            np.linspace(0, 1, 50),
            task="regression",
            method=TINY[name],
            near="data",
            progress=False,
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kd.DKKT(fraction=0.1), "DKKTDM"),
        (lambda: kd.DKKTDM(fraction=0.0), "greater than 0"),
        (lambda: kd.DM(judge_networks=0), "judge_networks"),
        (lambda: kd.DM(network="convnett"), "network"),
    ],
)
def test_options_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


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
