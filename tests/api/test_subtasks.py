"""Subtasks through `distill`, and sets merged by hand: each block is a run of its own, whoever runs it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import kernel_distill as kd
from kernel_distill.cli import app

PLAIN = {"network_params": {"width": 4, "depth": 1}, "judge_networks": 1, "judge_epochs": 2}
EXPERTS = {"experts": 1, "expert_epochs": 2, "max_start_epoch": 1, "expert_steps": 1, "student_steps": 2}
DECODER = {"decoder_params": {"width": 8, "latent_dim": 3}, "mmd_samples": 2, "label_epoch": 1}
METHODS = {
    "dm": kd.DM(**PLAIN, batch_real=8),
    "mtt": kd.MTT(**PLAIN, **EXPERTS, lr=1.0),
    "d3": kd.D3(**PLAIN, **EXPERTS, **DECODER),
}
LOOP = kd.Loop(steps=2, evaluate_every=1)
BLOCKS = [range(0, 4), range(4, 7), range(7, 10)]


@pytest.fixture(scope="module")
def data():
    """A fifth of the digits."""
    data = kd.load_data("digits")
    return dataclasses.replace(data, x_train=data.x_train[::5], y_train=data.y_train[::5])


def learned(data, name="dm", **options):
    given = {"per_class": 2, "loop": LOOP, "subtasks": 3, "progress": False}
    return kd.distill(data, method=METHODS[name], **(given | options))


@pytest.mark.parametrize("name", METHODS)
def test_a_block_is_what_its_rows_alone_give(name, data):
    ds = learned(data, name)
    assert (len(ds), ds.targets.classes) == (20, tuple(range(10)))
    assert ds.hard_labels.tolist() == np.repeat(range(10), 2).tolist()
    assert ds.class_names == data.class_names
    transform = ds.encoder.transform
    entries = ds.provenance["subtasks"]
    assert [entry["classes"] for entry in entries] == [list(block) for block in BLOCKS]
    block, rows = BLOCKS[1], np.isin(data.y_train, BLOCKS[1])
    alone = kd.distill(
        data.x_train[rows],
        data.y_train[rows],
        method=METHODS[name],
        per_class=2,
        loop=LOOP,
        transform=transform,
        progress=False,
    )
    first, last = entries[1]["points"]
    assert torch.equal(ds.x[first:last], alone.x)
    p = np.zeros((6, 10))
    p[:, block] = alone.y + 1 / 3
    # Labels of distributions are float32.
    np.testing.assert_allclose(ds.y[first:last], p - 1 / 10, rtol=0, atol=1e-7)
    assert entries[1]["certificate"]["heldout_score"] == alone.certificate.heldout_score


def test_blocks_distilled_apart_merge_to_the_same(data):
    ds = learned(data)
    parts = []
    for block in reversed(BLOCKS):
        rows = np.isin(data.y_train, block)
        X, y = data.x_train[rows], data.y_train[rows]
        names = tuple(data.class_names[c] for c in block)
        options = {"per_class": 2, "loop": LOOP, "transform": ds.encoder.transform, "class_names": names}
        parts.append(kd.distill(X, y, method=METHODS["dm"], progress=False, **options))
    merged = kd.merge(parts)
    assert torch.equal(merged.x, ds.x)
    assert torch.equal(merged.y, ds.y)
    assert merged.class_names == ds.class_names
    assert merged.distilled_ridge == ds.distilled_ridge
    assert merged.certificate == ds.certificate


def test_without_steps_it_is_the_set_of_all_classes(data):
    near = torch.rand(20, 64, generator=torch.Generator().manual_seed(0)).double()
    whole, parts = (
        learned(data, near=near, loop=kd.Loop(steps=0), subtasks=subtasks, holdout=0) for subtasks in (1, 5)
    )
    assert torch.equal(whole.x, parts.x)
    assert whole.targets == parts.targets
    np.testing.assert_allclose(whole.y, parts.y, rtol=0, atol=1e-15)
    assert parts.distilled_ridge == pytest.approx(whole.distilled_ridge, rel=1e-12)
    assert parts.certificate.n_rows == whole.certificate.n_rows
    np.testing.assert_array_equal(whole.predict(data.x_test), parts.predict(data.x_test))


@pytest.mark.parametrize("name", ["dm", "d3"])
def test_networks_are_trained_on_a_merged_set_as_it_is(name, data, tmp_path):
    learned(data, name, per_class=1).save(tmp_path / "set.safetensors")
    options = {"networks": {"mlp": {"width": 8}}, "count": 2, "epochs": 2}
    row, random, *_ = kd.evaluate(tmp_path / "set.safetensors", data, recipe="d3", **options).rows
    assert (row.trained_on, row.points, random.trained_on) == ("distilled", 10, "random")


def test_points_are_trained_on_without_draws_by_any_recipe(data):
    ds = learned(data, per_class=1)
    options = {"networks": {"mlp": {"width": 8}}, "count": 2, "epochs": 2, "baselines": ()}
    [row], [plain] = (kd.evaluate(ds, data, recipe="d3", fresh=fresh, **options).rows for fresh in (1, 0))
    assert row.accuracies == plain.accuracies


def test_names_and_origin_go_with_the_parts(data):
    ds = learned(data, provenance={"note": "mine"})
    assert (ds.provenance["data"], ds.provenance["note"]) == ("digits", "mine")
    for block, entry in zip(BLOCKS, ds.provenance["subtasks"], strict=True):
        assert entry["class_names"] == [data.class_names[c] for c in block]
        assert entry["provenance"]["checksums"] == data.checksums
    labels = np.array(["a", "b", "c", "d"])[data.y_train % 4]
    strings = kd.distill(data.x_train, labels, method=METHODS["dm"], subtasks=2, loop=LOOP, progress=False)
    assert strings.targets.classes == ("a", "b", "c", "d")
    assert strings.hard_labels.tolist() == ["a", "b", "c", "d"]


def test_each_subtask_has_its_own_files_and_goes_on_from_them(data, tmp_path):
    mtt = METHODS["mtt"].model_copy(update={"experts_folder": str(tmp_path / "experts")})
    files = {"checkpoint": tmp_path / "run.state", "log": tmp_path / "run.jsonl"}

    def run(steps, method=mtt, **more):
        loop = kd.Loop(steps=steps, evaluate_every=1, **more)
        return kd.distill(data, method=method, subtasks=2, loop=loop, progress=False)

    run(1, **files)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"run-subtask{i}.{kind}" for i in (0, 1) for kind in ("state", "jsonl")} | {"experts"}
    assert {path.name for path in (tmp_path / "experts").iterdir()} == {"subtask-0", "subtask-1"}
    again = run(3, **files)
    straight = run(3, method=METHODS["mtt"])
    assert torch.equal(again.x, straight.x)
    lines = [json.loads(line) for line in (tmp_path / "run-subtask1.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "end"] == [3]


@pytest.mark.slow
def test_ray_gives_the_same(data):
    ray = pytest.importorskip("ray")
    serial = learned(data, per_class=1)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=150 * 2**20,
        logging_level="error",
        log_to_driver=False,
    )
    try:
        found = learned(data, per_class=1, executor="ray")
    finally:
        ray.shutdown()
    assert torch.equal(found.x, serial.x)
    assert torch.equal(found.y, serial.y)
    assert found.distilled_ridge == serial.distilled_ridge
    assert found.provenance["subtasks"][2]["certificate"] == serial.provenance["subtasks"][2]["certificate"]


def batches(data):
    yield data.x_train, data.y_train


REFUSED = {
    "too many": (lambda data: learned(data, subtasks=6), "6 subtasks of 10 classes.*at most 5"),
    "closed form": (lambda data: kd.distill(data, subtasks=2), "'closed-form' fits all classes at once"),
    "kip": (lambda data: kd.distill(data, method="kip", subtasks=2), "'kip' fits all classes at once.*'mtt'"),
    "dkkt": (lambda data: kd.distill(data, method="dkkt", subtasks=2), "explains one network of all classes"),
    "n_points": (lambda data: learned(data, n_points=15), "15 points are not as many for each of 10"),
    "near": (lambda data: learned(data, near=np.zeros((19, 1, 8, 8))), "20 points of shape"),
    "callbacks": (
        lambda data: learned(data, loop=kd.Loop(steps=1, callbacks=(print,))),
        "callbacks cannot tell subtasks apart",
    ),
    "weights": (
        lambda data: learned(data, sample_weight=np.ones(len(data.y_train))),
        "takes no `sample_weight`",
    ),
    "empty class": (
        lambda data: kd.distill(data.x_train, data.y_train, method=METHODS["dm"], n_classes=12, subtasks=2),
        "class 10 has 0 rows",
    ),
    "regression": (
        lambda data: kd.distill(
            data.x_train, data.y_train * 1.0, method=METHODS["dm"], task="regression", subtasks=2
        ),
        "a task of regression has none",
    ),
    "stream": (
        lambda data: kd.distill(
            batches(data), method=METHODS["dm"], n_classes=10, subtasks=2, transform="none"
        ),
        "a stream cannot give",
    ),
    "of a block": (lambda data: learned(data, ridge=1.0), "takes no `ridge`"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_subtasks_is_refused(case, data):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call(data)


@pytest.fixture(scope="module")
def files(data, tmp_path_factory):
    """Two sets of five classes, and statistics of both halves of the rows."""
    folder = tmp_path_factory.mktemp("files")
    transform = None
    for name, kept in (("low", data.y_train < 5), ("high", data.y_train >= 5)):
        ds = kd.distill(
            data.x_train[kept],
            data.y_train[kept],
            method=METHODS["dm"],
            loop=kd.Loop(steps=0),
            progress=False,
            **({} if transform is None else {"transform": transform}),
        )
        transform = ds.encoder.transform
        ds.save(folder / name)
    first = kd.collect_statistics(
        data.x_train[:100], data.y_train[:100], n_classes=10, feature_map="identity"
    )
    first.save(folder / "first")
    kd.collect_statistics(data.x_train[100:], data.y_train[100:], like=first).save(folder / "second")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["merge", *map(str, arguments)], catch_exceptions=False)


def test_the_command_merges_sets(files, data, tmp_path):
    out = tmp_path / "merged.safetensors"
    done = run(out, files / "high", files / "low", "--ridge", 0.5)
    assert done.exit_code == 0, done.output
    assert "10 points" in done.stdout
    merged = kd.load(out)
    assert merged.hard_labels.tolist() == list(range(10))
    assert merged.distilled_ridge == 0.5
    again = run(out, files / "high", files / "low")
    assert (again.exit_code, "exists" in again.stderr) == (2, True)
    assert run(out, files / "high", files / "low", "--force").exit_code == 0
    assert kd.load(out).distilled_ridge == kd.merge([files / "low", str(files / "high")]).distilled_ridge


def test_the_command_adds_up_statistics(files, data, tmp_path):
    done = run(tmp_path / "all", files / "first", files / "second")
    assert done.exit_code == 0, done.output
    assert f"statistics of {len(data.x_train)} rows" in done.stdout
    found = kd.Statistics.load(tmp_path / "all")
    expected = kd.Statistics.load(files / "first") + kd.Statistics.load(files / "second")
    assert torch.equal(found.gram, expected.gram)
    assert torch.equal(
        kd.merge([expected, files / "first"]).cross, (expected + kd.Statistics.load(files / "first")).cross
    )


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["low"], {}, "two or more sets, got 1"),
        (["first"], {}, "two or more: got both, or one"),
        (["low", "first"], {}, "got both"),
        (["first", "second"], {"ridge": 1.0}, "leave out `ridge`"),
        (["low", "low"], {}, "more than one set has class 0, 1, 2"),
        (["low", "none"], {}, "no file"),
    ],
)
def test_what_cannot_be_merged_is_refused(names, options, message, files):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        kd.merge([files / name for name in names], **options)


@pytest.mark.parametrize(
    ("given", "message"),
    [("a.safetensors", "give a list"), (Path("a"), "give a list"), (5, "give a list"), ([1, 2], "got int")],
)
def test_merge_takes_sets_and_paths(given, message):
    with pytest.raises(ValueError, match=message):
        kd.merge(given)


def test_a_value_named_subtasks_is_no_label_map(data):
    ds = learned(data, subtasks=1, provenance={"subtasks": 3})
    other = learned(dataclasses.replace(data, y_train=data.y_train + 10, class_names=None), subtasks=1)
    with pytest.raises(ValueError, match="no label map"):
        kd.merge([ds, other])


def test_class_gaussians_of_disjoint_classes_merge_exactly(data):
    options = {"method": "class-gaussians", "ridge": 10.0, "holdout": 0.0, "progress": False}
    whole = kd.distill(data, feature_params={"n_features": 64}, **options)
    encoder = whole.encoder
    parts = [
        kd.distill(
            data.x_train[kept],
            data.y_train[kept],
            transform=encoder.transform,
            feature_map=encoder.feature_map,
            **options,
        )
        for kept in (data.y_train >= 6, data.y_train < 3, (data.y_train >= 3) & (data.y_train < 6))
    ]
    merged = kd.merge(parts, class_names=data.class_names)
    assert torch.equal(merged.x, whole.x)
    assert merged.certificate.status is whole.certificate.status
    assert merged.certificate.rank == whole.certificate.rank
    np.testing.assert_allclose(
        merged.decision_function(data.x_test), whole.decision_function(data.x_test), rtol=0, atol=1e-9
    )
