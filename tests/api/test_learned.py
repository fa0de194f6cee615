"""Learned methods through `distill`: what a user gives, and what comes back."""

import json

import numpy as np
import pytest
import torch

import kernel_distill as kd
from kernel_distill.solver.source import row_keys

TINY = {
    "kip": kd.KIP(batch_size=200),
    "kip-features": kd.KIP(
        kernel="fourier", kernel_params={"n_features": 64}, batch_size=200, labels="learned"
    ),
    "kip-solved": kd.KIP(kernel="gaussian", labels="solved", batch_size=200),
    "rfad": kd.RFAD(networks=2, width=4, kept_networks=4, batch_size=100),
    "frepo": kd.FRePo(networks=2, width=4, kept_updates=3, batch_size=100, norm="none"),
    "full-kip": kd.FullKIP(inner=5),
}


@pytest.fixture(scope="module")
def data():
    return kd.load_data("digits")


@pytest.mark.parametrize("name", TINY)
def test_a_learned_set_predicts_says_what_it_is_and_comes_back(name, data, tmp_path):
    ds = kd.distill(
        data,
        method=TINY[name],
        loop=kd.Loop(steps=3, evaluate_every=1),
        feature_map=features(name),
        progress=False,
    )
    assert len(ds) == 10
    assert ds.hard_labels.tolist() == list(range(10))
    assert ds.certificate.status in (kd.Status.LEARNED, kd.Status.REFINED)
    run = ds.provenance["run"]
    assert run["steps"] == 3
    assert run["selected_step"] == ds.certificate.selected_step
    assert run["stopped"] == "steps"
    assert ds.provenance["options"]["method"] == TINY[name].method
    ds.save(tmp_path / "set.safetensors")
    again = kd.load(tmp_path / "set.safetensors")
    np.testing.assert_array_equal(
        ds.decision_function(data.x_test), again.decision_function(data.x_test), strict=True
    )
    assert kd.evaluate(again, data).rows[0].score == ds.score(data.x_test, data.y_test)


def features(name):
    return "identity" if name == "full-kip" else "fcnn"


def held_out(data):
    """Rows that seed 0 holds out."""
    n = len(data.x_train)
    return row_keys(0, "holdout", 0, n).argsort()[: round(0.05 * n)].numpy()


@pytest.mark.parametrize("name", ["kip", "rfad", "frepo"])
def test_the_held_out_figures_are_those_of_the_set_on_rows_it_did_not_learn_from(name, data):
    ds = kd.distill(data, method=TINY[name], loop=kd.Loop(steps=2), progress=False)
    aside = held_out(data)
    assert ds.certificate.heldout_rows == len(aside)
    accuracy = ds.score(data.x_train[aside], data.y_train[aside])
    assert accuracy == pytest.approx(ds.certificate.heldout_score, abs=1e-9)


@pytest.mark.parametrize("labels", ["fixed", "solved"])
@pytest.mark.parametrize("storage", ["uint8", "float16"])
def test_held_out_figures_are_those_of_the_set_as_it_is_stored(labels, storage, data):
    method = kd.KIP(labels=labels, batch_size=200, lr=1.0)
    ds = kd.distill(data, method=method, storage=storage, loop=kd.Loop(steps=5), progress=False)
    aside = held_out(data)
    assert ds.score(data.x_train[aside], data.y_train[aside]) == ds.certificate.heldout_score


def test_solved_labels_are_those_of_the_points_as_they_are_stored(data):
    method = kd.KIP(labels="solved", batch_size=200, lr=2.0)
    ds = kd.distill(data, method=method, storage="uint8", loop=kd.Loop(steps=5), progress=False)
    again = kd.distill(data, method=method, near=ds.x, loop=kd.Loop(steps=0), progress=False)
    np.testing.assert_allclose(ds.y.double(), again.y, atol=1e-6)


def test_mirror_images_are_stored_with_the_points(data):
    method = kd.FRePo(networks=1, width=4, kept_updates=2, batch_size=50, norm="none", flip=True)
    ds = kd.distill(data, method=method, loop=kd.Loop(steps=1), progress=False)
    assert len(ds) == 20
    assert torch.equal(ds.x[10:], ds.x[:10].flip(-1))
    assert ds.hard_labels.tolist() == [*range(10), *range(10)]


def test_what_a_file_says_of_its_run_is_what_ran(data):
    loop = kd.Loop(steps=3, evaluate_every=2, patience=9)
    ds = kd.distill(data, method=TINY["kip"], loop=loop, progress=False)
    options, run = ds.provenance["options"], ds.provenance["run"]
    assert (options["steps"], options["evaluate_every"], run["patience"]) == (3, 2, 9)


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_noise_has_the_mean_and_spread_of_all_rows(order):
    X = np.concatenate([np.zeros((3000, 4)), np.full((3000, 4), 50.0)]) + np.random.default_rng(0).normal(
        size=(6000, 4)
    )
    y = np.repeat([0, 1], 3000)
    shuffled = np.random.default_rng(1).permutation(6000) if order == "shuffled" else slice(None)
    ds = kd.distill(
        X[shuffled],
        y[shuffled],
        method="kip",
        near="noise",
        per_class=200,
        loop=kd.Loop(steps=0),
        progress=False,
    )
    # Means of 400 points of spread 25 are known to 25/sqrt(400) = 1.25: four deviations.
    assert np.abs(ds.x.numpy().mean(axis=0) - 25).max() < 5
    assert np.abs(ds.x.numpy().std(axis=0) - 25).max() < 5


def test_learning_helps(data):
    method = kd.KIP(batch_size=300)
    start, end = (
        kd.distill(data, method=method, loop=kd.Loop(steps=steps), near="random", progress=False)
        for steps in (0, 40)
    )
    assert end.score(data.x_test, data.y_test) > start.score(data.x_test, data.y_test) + 0.1


@pytest.mark.parametrize("near", ["noise", "data", "k-center", "lightweight", "given"])
def test_a_learned_set_of_no_steps_is_the_points_it_started_from(near, data):
    given = data.x_train[:10] if near == "given" else near
    ds = kd.distill(data, method="kip", near=given, loop=kd.Loop(steps=0), progress=False)
    if near == "given":
        np.testing.assert_allclose(ds.x.numpy(), given, atol=1e-5)
    elif near != "noise":
        rows = data.x_train.reshape(len(data.x_train), -1)
        distance = np.abs(rows[None] - ds.x.numpy().reshape(10, 1, -1)).max(axis=2)
        nearest = distance.argmin(axis=1)
        assert distance.min(axis=1).max() < 1e-4
        assert data.y_train[nearest].tolist() == list(range(10))


@pytest.mark.parametrize("near", ["k-means", "herding", "kernel-density"])
def test_closed_forms_take_coresets_too(near, data):
    ds = kd.distill(data, near=near, progress=False)
    assert ds.certificate.stored_error < 1e-9
    assert ds.provenance["options"]["near"] == near


def test_a_run_goes_on_from_its_checkpoint(data, tmp_path):
    whole = kd.distill(data, method=TINY["kip"], loop=kd.Loop(steps=6, evaluate_every=2), progress=False)
    for steps in (2, 6):
        loop = kd.Loop(steps=steps, evaluate_every=2, checkpoint=tmp_path / "run", log=tmp_path / "log.jsonl")
        legs = kd.distill(data, method=TINY["kip"], loop=loop, progress=False)
    assert torch.equal(whole.x, legs.x)
    assert torch.equal(whole.y, legs.y)
    steps = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in steps if record["kind"] == "step"] == list(range(6))


@pytest.mark.parametrize("name", ["kip", "rfad", "frepo", "full-kip"])
def test_a_checkpoint_of_other_data_is_refused(name, data, tmp_path):
    loop = kd.Loop(steps=1, checkpoint=tmp_path / "run")
    start = dict(near=data.x_train[:10], loop=loop, feature_map=features(name), progress=False)
    kd.distill(data.x_train, data.y_train, method=TINY[name], **start)
    with pytest.raises(ValueError, match="another run"):
        kd.distill(data.x_train, (data.y_train + 1) % 10, method=TINY[name], **start)


def test_what_happened_is_noted(data, tmp_path):
    run = tmp_path / "run"
    kd.distill(data, method=TINY["kip"], loop=kd.Loop(steps=3, checkpoint=run), progress=False)
    less = kd.distill(data, method=TINY["kip"], loop=kd.Loop(steps=1, checkpoint=run), progress=False)
    assert any("had 3 steps already, of 1" in note for note in less.certificate.notes)
    worse = kd.distill(data, method=kd.KIP(batch_size=200, lr=1e4), loop=kd.Loop(steps=2), progress=False)
    assert worse.certificate.selected_step == 0
    assert any("the set is those" in note for note in worse.certificate.notes)
    few = kd.distill(
        data.x_train[:200], data.y_train[:200], method="kip", loop=kd.Loop(steps=0), progress=False
    )
    assert any("only 10 rows were held out" in note for note in few.certificate.notes)


def test_a_set_shows_itself_in_a_line(data):
    ds = kd.distill(data, method=TINY["rfad"], loop=kd.Loop(steps=1), progress=False)
    assert repr(ds) == "DistilledSet(10 points of 1x8x8 float64, learned)"
    assert set(ds.provenance["run"]["learned"]) == {"log_scale"}


def test_points_without_targets_need_labels_that_move():
    X = np.random.default_rng(0).normal(size=(60, 3))
    with pytest.raises(ValueError, match="no targets to keep"):
        kd.distill(X, X[:, 0], method="kip", near="noise", n_points=5, task="regression")


@pytest.mark.parametrize("labels", ["fixed", "learned", "solved"])
def test_full_data_kip_of_values(labels):
    X = np.random.default_rng(0).normal(size=(200, 3))
    ds = kd.distill(
        X,
        X @ [1.0, -2.0, 0.5],
        method=kd.FullKIP(labels=labels, inner=20),
        feature_map="fourier",
        feature_params={"n_features": 40},
        n_points=8,
        task="regression",
        loop=kd.Loop(steps=3),
        progress=False,
    )
    assert ds.score(X, X @ [1.0, -2.0, 0.5]) > 0.9


def test_regression():
    generator = np.random.default_rng(0)
    X = generator.normal(size=(400, 3))
    y = np.sin(X[:, 0]) + X[:, 1]
    ds = kd.distill(
        X,
        y,
        method=kd.KIP(kernel="gaussian", labels="learned", batch_size=200, lr=0.1),
        n_points=20,
        task="regression",
        loop=kd.Loop(steps=60),
        progress=False,
    )
    assert ds.score(X, y) > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(method="kip", ridge=0.1), "method 'kip' takes no `ridge`"),
        (dict(method="rfad", feature_map="identity"), "takes no `feature_map`"),
        (dict(method="kip", intercept=True), "takes no `intercept`"),
        (dict(method="closed-form", loop=kd.Loop(steps=1)), "takes no `loop`"),
        (dict(method="full-kip", holdout=0.2), "takes no `holdout`"),
        (dict(method="kip", device="cuda:99"), "'cuda:99' cannot be used here"),
        (dict(method="kipp"), "did you mean 'kip'"),
        (dict(method="kip", sample_weight=np.ones(1438)), "takes no `sample_weight`"),
        (dict(method="kip", transform="zca-kip", storage="uint8"), "cannot be undone"),
        (dict(method="kip", near=np.zeros((10, 8, 1, 8))), "`near` must hold 10 points"),
        (dict(near="k-center", sample_weight=np.ones(1438)), "near='k-center' chooses among rows"),
        (dict(method="kip", loop={"steps": 3}), "`loop` must be a Loop"),
        (dict(method=3), "must be a name or the options of a method"),
        (dict(method="kip", near="k-centre"), "did you mean 'k-center'"),
    ],
)
def test_what_does_not_fit_is_refused_early(options, message, data):
    with pytest.raises(ValueError, match=message):
        kd.distill(data, **options)


def test_streams_are_refused_with_a_reason(data):
    stream = iter([(data.x_train[:50], data.y_train[:50])])
    with pytest.raises(ValueError, match="a stream cannot give"):
        kd.distill(stream, method="kip", n_classes=10, transform="none")
