"""Sweeps: the sets and figures of separate calls, wherever they run; folders; refusals. Ray runs all kinds of tasks."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import kernel_distill as kd
from kernel_distill import _sweep
from kernel_distill._recipe import Recipe
from kernel_distill._sweep import sweep
from kernel_distill.solver.executors import SerialExecutor

from ..solver import ray_cluster as fixtures
from .few_digits import few_digits
from .travelling import Travelling

ray_cluster, ray_executor = fixtures.ray_cluster, fixtures.ray_executor

CHANGES = {"loop.steps": 2, "loop.evaluate_every": 1}
NETWORKS = {"recipe": "dc-bench", "networks": {"mlp": {"width": 8, "depth": 1}}, "count": 2, "epochs": 2}


@pytest.fixture(scope="module")
def data():
    return few_digits(4)


def recipe(name, data, **values):
    """KIP with one point a class, for data of that shape."""
    document = {
        "name": name,
        "title": "A test",
        "data": "digits",
        "shape": data.x_train.shape[1:],
        "classes": len(data.class_names),
        "per_class": 1,
        "method": {"method": "kip", "batch_size": 40},
        "published": [{"value": 90.5, "deviation": 0.3, "source": "a paper"}],
    }
    return Recipe.model_validate({**document, **values})


@pytest.fixture(scope="module")
def recipes(data):
    dm = {"method": "dm", "network_params": {"width": 4, "depth": 1}, "judge_networks": 1, "judge_epochs": 2}
    return [recipe("plain", data), recipe("matched", data, method=dm, per_class=2)]


@pytest.fixture(scope="module")
def serial(data, recipes):
    """What every other way to run the sweep is compared with."""
    return sweep(recipes, data, seeds=2, changes=CHANGES, device="cpu")


def same_sets(one, other):
    assert list(one.sets) == list(other.sets)
    for name, several in one.sets.items():
        for ds, its in zip(several, other.sets[name], strict=True):
            assert torch.equal(ds.x, its.x), name
            assert torch.equal(ds.y, its.y), name
            assert ds.certificate == its.certificate
            assert ds.provenance["seed"] == its.provenance["seed"]
    return True


def same_rows(one, other):
    """All but the clock."""
    timeless = [[dataclasses.replace(row, seconds=0.0) for row in each.rows] for each in (one, other)]
    return timeless[0] == timeless[1]


def test_sets_and_scores_are_those_of_separate_calls(data, recipes, serial):
    assert [(row.recipe, row.seeds, row.points) for row in serial.rows] == [
        ("plain", (0, 1), 3),
        ("matched", (0, 1), 6),
    ]
    for row, each in zip(serial.rows, recipes, strict=True):
        scores = []
        for seed, ds in zip(row.seeds, serial.sets[row.recipe], strict=True):
            alone = kd.distill(data, seed=seed, device="cpu", **each.replaced(CHANGES).arguments())
            assert torch.equal(alone.x, ds.x)
            assert ds.provenance["recipe"] == {
                "name": each.name,
                "changed": ["loop.steps", "loop.evaluate_every"],
            }
            assert ds.full_model is None
            scores.append(alone.score(data.x_test, data.y_test))
        assert row.scores == tuple(scores)
        assert row.score == pytest.approx(np.mean(scores))
        assert row.deviation == pytest.approx(np.std(scores, ddof=1))
        assert (row.nbytes, row.steps, row.metric) == (ds.nbytes, 2, "accuracy")
        assert row.seconds == pytest.approx(
            np.mean([ds.provenance["run"]["seconds"] for ds in serial.sets[row.recipe]])
        )


def test_output_forms(serial):
    found = json.loads(serial.to_json())
    assert found == json.loads(json.dumps(serial.to_dict(), allow_nan=False))
    assert found["evaluated"] == "ridge"
    assert found["rows"][0]["published"][0]["value"] == 90.5
    assert found["rows"][1]["scores"] == list(serial.rows[1].scores)
    lines = str(serial).splitlines()
    cells = [cell.strip() for cell in next(line for line in lines if "| plain" in line).strip("|").split("|")]
    row = serial.rows[0]
    assert cells[:3] == ["plain", row.data, "2"]
    assert f"{100 * row.score:.2f} ± {100 * row.deviation:.2f} %" in cells
    assert cells[-1] == "90.5 ± 0.3"
    assert lines[-2:] == [
        f"{name}: not as published, loop.steps, loop.evaluate_every replaced" for name in serial.sets
    ]


def test_tasks_travel_and_those_run_again_are_named(data, recipes, serial):
    executor = Travelling(lost=2)
    found = sweep(recipes, data, seeds=2, changes=CHANGES, device="cpu", executor=executor)
    assert same_sets(found, serial)
    assert same_rows(found, serial)
    assert [task.name for task in executor.tasks] == [
        "plain-seed0",
        "plain-seed1",
        "matched-seed0",
        "matched-seed1",
    ]
    assert {task.gpus for task in executor.tasks} == {0}
    assert found.retried == ("plain-seed0 (its worker died)", "plain-seed1 (its worker died)")
    assert found.remarks()[-1] == f"2 tasks were run again: {'; '.join(found.retried)}"
    # An executor's retries before the call are not the sweep's.
    executor.lost = 0
    again = sweep(recipes[0], data, changes=CHANGES, executor=executor)
    assert again.retried == ()
    assert executor.tasks[-1].gpus == 1


def test_a_killed_sweep_goes_on(data, recipes, serial, tmp_path, monkeypatch):
    made = []
    working = _sweep.distill

    def noted(source, **arguments):
        made.append((arguments["provenance"]["recipe"]["name"], arguments["seed"]))
        if made == killed:
            raise KeyboardInterrupt
        return working(source, **arguments)

    monkeypatch.setattr(_sweep, "distill", noted)
    arguments = dict(seeds=2, changes=CHANGES, device="cpu", out=tmp_path / "sets")
    killed = [("plain", 0), ("plain", 1), ("matched", 0)]
    with pytest.raises(KeyboardInterrupt):
        sweep(recipes, data, **arguments)
    files = sorted(path.name for path in (tmp_path / "sets").glob("*.safetensors"))
    assert files == ["plain-seed0.safetensors", "plain-seed1.safetensors"]
    # They are sets.
    first = kd.load(tmp_path / "sets" / files[0])
    assert first.score(data.x_test, data.y_test) == serial.rows[0].scores[0]
    made.clear()
    found = sweep(recipes, data, **arguments)
    assert made == [("matched", 0), ("matched", 1)]
    assert same_sets(found, serial)
    assert same_rows(found, serial)
    # A set that was taken away, another seed and another recipe are made; nothing else is.
    made.clear()
    (tmp_path / "sets" / files[1]).unlink()
    more = [*recipes, recipe("third", data, per_class=2)]
    sweep(more, data, **{**arguments, "seeds": 3})
    assert made == [("plain", 1), ("plain", 2), ("matched", 2), *(("third", seed) for seed in range(3))]
    # What is written about a recipe decides nothing.
    made.clear()
    sweep([each.model_copy(update={"note": "other words"}) for each in recipes], data, **arguments)
    assert not made
    # Other arguments, other versions, and another recipe or other data under the same names, are other work.
    made.clear()
    with pytest.raises(ValueError, match=r"other work \(arguments.batch_bytes was null, is 1000000"):
        sweep(recipes, data, batch_bytes=10**6, **arguments)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "1.0")
        with pytest.raises(ValueError, match=r"other work \(versions.torch was"):
            sweep(recipes, data, **arguments)
    with pytest.raises(ValueError, match=r"cannot be read: .* other data"):
        sweep(recipes, dataclasses.replace(data, class_names=("0", "1", "zwei")), **arguments)
    with pytest.raises(ValueError, match=r"plain-seed0.safetensors, cannot be read: .* another recipe"):
        sweep(recipes, data, **{**arguments, "changes": {**CHANGES, "storage": "float32"}})
    with pytest.raises(ValueError, match=r"plain-seed0.safetensors, cannot be read: .* other data"):
        sweep(recipes, dataclasses.replace(data, x_test=data.x_test + 1), **arguments)
    assert not made


def test_networks_score_every_set(data, recipes, serial):
    executor = Travelling()
    found = sweep(
        recipes,
        data,
        seeds=2,
        changes=CHANGES,
        evaluate=NETWORKS,
        executor=executor,
        device="cpu",
    )
    # A table of two epochs is not one of the recipe.
    assert found.evaluated.startswith("dc-bench (networks={'mlp': {")
    assert found.evaluated.endswith("count=2, epochs=2)")
    assert same_sets(found, serial)
    sets = {name: list(several) for name, several in serial.sets.items()}
    rows = kd.evaluate(sets, data, baselines=(), device="cpu", **NETWORKS).rows
    for row, own in zip(found.rows, rows, strict=True):
        assert row.scores == pytest.approx([np.mean(each) for each in own.accuracies])
        assert row.score == pytest.approx(own.score)
    # Four sets, for each of them networks, and nothing else.
    assert [task.name.partition("(")[2] for task in executor.tasks[4:]] == ["distilled, mlp)"] * 4


def test_sets_are_those_of_their_files(data, tmp_path):
    """The full model of a set that has one stays behind."""
    full = recipe("full", data, method={"method": "full-kip"}, feature_map="identity")
    first, again = (sweep(full, data, changes=CHANGES, evaluate=None, out=tmp_path) for _ in range(2))
    assert first.sets["full"][0].full_model is None
    assert same_sets(first, again)


def test_what_diverged_is_said(data, recipes, monkeypatch):
    """A mean over sets or networks of which some diverged is not passed over in silence."""
    working = _sweep.distill

    def distill(source, **arguments):
        ds = working(source, **arguments)
        stopped = ("diverged", "steps")[arguments["seed"]]
        run = {**ds.provenance["run"], "stopped": stopped}
        return dataclasses.replace(ds, provenance={**ds.provenance, "run": run})

    monkeypatch.setattr(_sweep, "distill", distill)
    wild = {**NETWORKS, "networks": {"mlp": {"width": 8}}, "rate": 1e30, "count": 3}
    found = sweep(recipes[0], data, seeds=2, changes=CHANGES, device="cpu", evaluate=wild)
    [row] = found.rows
    assert (row.diverged, row.networks_diverged) == (1, 6)
    assert found.remarks()[-2:] == [
        "plain: the loop of 1 of 2 sets diverged",
        "plain: 6 networks diverged: use a lower rate",
    ]


def test_arguments_make_a_run_another_than_the_published_one(data, recipes):
    found = sweep(recipes[0], data, transform="none", device="cpu", changes=CHANGES, evaluate=None)
    [row] = found.rows
    assert row.changed == (*CHANGES, "transform")
    assert found.sets["plain"][0].provenance["recipe"]["changed"] == list(row.changed)
    assert found.remarks() == [
        "plain: 90.5 ± 0.3 for digits, a paper",
        "plain: not as published, loop.steps, loop.evaluate_every, transform replaced",
    ]


def test_every_recipe_may_have_its_data(data, recipes, serial):
    other = dataclasses.replace(data, x_test=data.x_test[::2], y_test=data.y_test[::2], name="half")
    found = sweep(
        recipes, {"plain": data, "matched": other, "unused": None}, seeds=2, changes=CHANGES, device="cpu"
    )
    assert [row.data for row in found.rows] == [data.name, "half"]
    assert same_sets(found, serial)
    assert found.rows[0].scores == serial.rows[0].scores
    assert found.rows[1].scores == tuple(ds.score(other.x_test, other.y_test) for ds in found.sets["matched"])


def test_figures_of_other_data_are_not_shown(data, recipes):
    flat = dataclasses.replace(data, x_train=data.x_train[:, :, :6, :6], x_test=None, y_test=None)
    found = sweep(recipes[0], flat, changes=CHANGES, any_data=True, evaluate=None)
    [row] = found.rows
    assert (row.scores, row.score, row.deviation, row.published) == ((), None, None, ())
    assert "test score" not in str(found)
    assert "published, %" not in str(found)


def test_refusals_come_before_anything_is_distilled(data, recipes, tmp_path, monkeypatch):
    monkeypatch.setattr(_sweep, "distill", lambda *_, **__: pytest.fail("a set was made"))
    untested = dataclasses.replace(data, x_test=None, y_test=None)
    unlabelled = dataclasses.replace(data, y_test=None)
    small = dataclasses.replace(data, x_train=data.x_train[:, :, :6])
    refused = [
        (([], data), {}, "`recipes` is empty"),
        (("kip-fc1-cifar10", data), {}, "did you mean 'kip-fc1-cifar10-100'"),
        (([recipes[0], recipes[0]], data), {}, "two recipes are called 'plain'"),
        ((recipes, small), {}, "recipe 'plain' is for digits .*--any-data"),
        ((recipes, {"plain": data}), {}, "unknown recipe among the keys of `data`: 'matched'"),
        ((recipes, (data.x_train, data.y_train)), {}, "must be what load_data returns"),
        ((recipes, untested), {}, "no test split to score on"),
        ((recipes, unlabelled), {}, "no test split to score on"),
        ((recipes, data), {"evaluate": {**NETWORKS, "baselines": "random"}}, "leave out `baselines`"),
        ((recipes, data), {"seeds": 0}, "`seeds` must be an integer of at least 1"),
        ((recipes, data), {"seeds": [2, 2]}, "`seeds` must be distinct"),
        ((recipes, data), {"changes": {"lop.steps": 1}}, "a recipe has no value 'lop.steps'"),
        ((recipes, data), {"evaluate": "dc-bensh"}, "unknown recipe 'dc-bensh'; did you mean 'dc-bench'"),
        ((recipes, data), {"evaluate": {**NETWORKS, "epoch": 1}}, "did you mean 'epochs'"),
        ((recipes, data), {"evaluate": {"networks": "mlp"}}, "trains no networks: leave out networks"),
        ((recipes, data), {"executor": "rya"}, "unknown executor 'rya'; did you mean 'ray'"),
        ((recipes, data), {"storag": "uint8"}, "unknown argument of sweep, or of distill, 'storag'"),
        (
            (recipes, data),
            {"per_class": 3},
            "recipe 'plain' has a `per_class` of its own: replace it by `changes`",
        ),
        ((recipes, data), {"near": np.zeros((3, 1, 8, 8)), "out": tmp_path}, "must be plain values"),
    ]
    for arguments, options, message in refused:
        with pytest.raises(ValueError, match=message):
            sweep(*arguments, **options)


def test_an_error_names_the_recipe_and_the_seed(data, recipes):
    with pytest.raises(ValueError, match=r"^recipe 'matched', seed 3: .*1000"):
        sweep(recipes[1], data, seeds=[3], changes={**CHANGES, "per_class": 1000})


def test_the_command(data, tmp_path):
    from kernel_distill.cli import app

    np.savez(
        tmp_path / "small.npz",
        x_train=data.x_train,
        y_train=data.y_train,
        x_test=data.x_test,
        y_test=data.y_test,
    )
    words = [
        "sweep",
        str(tmp_path / "small.npz"),
        "kip-fc1-cifar10-100",
        "--any-data",
        "--out",
        str(tmp_path / "sets"),
    ]
    words += ["--set", "loop.steps=2", "--set", "per_class=1", "--set", "method.batch_size=40"]
    result = CliRunner().invoke(app, [*words, "--seeds", "2", "--json"])
    assert result.exit_code == 0, result.output
    [row] = json.loads(result.stdout)["rows"]
    assert (row["seeds"], row["points"], len(row["scores"])) == ([0, 1], 3, 2)
    assert len(list((tmp_path / "sets").glob("*.safetensors"))) == 2
    shown = CliRunner().invoke(app, words)
    assert "kip-fc1-cifar10-100: not as published, loop.steps" in shown.stdout
    wrong = CliRunner().invoke(app, [*words, "--evaluate", "rigde"])
    assert wrong.exit_code == 2
    assert "did you mean 'ridge'" in wrong.stderr


def test_ray_gives_what_the_default_gives(data, recipes, serial, ray_executor, tmp_path):
    """Sets, networks trained on them, and an ablation."""
    found = sweep(recipes, data, seeds=2, changes=CHANGES, device="cpu", executor=ray_executor, out=tmp_path)
    assert same_sets(found, serial)
    assert same_rows(found, serial)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    sets = {"plain": list(serial.sets["plain"])}
    options = {**NETWORKS, "baselines": "full", "full_epochs": 1, "rates": (0.01, 0.1), "choose_epoch": True}
    assert kd.evaluate(sets, data, executor=ray_executor, **options) == kd.evaluate(sets, data, **options)
    arms = {"vary": {"per_class": [1, 2]}, "seeds": 2, "steps": 2, "device": "cpu", "holdout": 0.2}
    ours, theirs = (
        kd.ablate(data, "kip", executor=executor, **arms) for executor in (SerialExecutor(), ray_executor)
    )
    timeless = [
        [dataclasses.replace(run, seconds=0.0, init_seconds=0.0) for run in each.runs]
        for each in (ours, theirs)
    ]
    assert timeless[0] == timeless[1]
