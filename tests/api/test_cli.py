"""The command line as a user runs it: what it writes, what it prints, and how it refuses."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from typer.testing import CliRunner

import kernel_distill as kd
from kernel_distill._methods import LEARNED
from kernel_distill.cli import app
from kernel_distill.solver.distillation import METHODS
from kernel_distill.solver.kernel_encoder import KernelEncoder
from kernel_distill.solver.kernel_functions import make_kernel_function
from kernel_distill.solver.learned_set import learned_set
from kernel_distill.solver.transforms import make_transform

DISTILL = ("distill", "digits", "--feature-map", "identity", "--ridge", "1.0")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def succeed(*arguments):
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments):
    """The message of a command that must fail with one line on standard error."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def in_a_process(*arguments, **options):
    command = [sys.executable, "-W", "error", "-m", "kernel_distill", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sets") / "digits.safetensors"
    succeed(*DISTILL, path, "--per-class", 2, "--near", "data", "--quiet")
    return path


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """An .npz file of vectors with class names, some of them no names for folders."""
    path = tmp_path_factory.mktemp("data") / "vectors.npz"
    rng = np.random.default_rng(0)
    y = np.array(["../up", "cat/x", "cat x"])[np.arange(90) % 3]
    x = rng.normal(size=(90, 6)) + 3 * np.eye(6)[np.arange(90) % 3]
    np.savez(path, x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    return path


def test_round_trip(tmp_path):
    path = tmp_path / "digits.safetensors"
    printed = succeed(*DISTILL, path, "--per-class", 2)
    assert f"wrote {path}: 20 points of 1x8x8 float64 (input space)" in printed
    for words in ("stored error", "training on the set gives the full model", "of the full model, given"):
        assert words in printed
    ds, data = kd.load(path), kd.load_data("digits")
    score = ds.score(data.x_test, data.y_test)
    assert printed.count(f"{100 * score:.2f} %") == 2  # distilled and full data

    printed = succeed("inspect", path)
    for words in ("20x1x8x8 float64", "standardize", "options.method", "checksums.digits", str(path)):
        assert words in printed

    found = json.loads(succeed("evaluate", path, "--data", "digits", "--baselines", "random", "--json"))
    assert [row["trained_on"] for row in found["rows"]] == ["distilled", "random"]
    assert found["rows"][0]["score"] == score

    arrays = tmp_path / "digits.npz"
    assert succeed("convert", path, arrays) == f"wrote {arrays}: 20 points\n"
    with np.load(arrays, allow_pickle=False) as archive:
        assert set(archive.files) == {"x", "y", "labels", "class_names", "space"}
        np.testing.assert_array_equal(archive["x"], ds.x.numpy())
        np.testing.assert_array_equal(archive["y"], ds.y.numpy())
        np.testing.assert_array_equal(archive["labels"], np.repeat(np.arange(10), 2))
        assert archive["class_names"].tolist() == [str(digit) for digit in range(10)]
        assert archive["space"] == "input"


def test_every_option_reaches_distill(tmp_path, monkeypatch):
    seen = {}

    def pretend(data, **options):
        seen.update(options)
        raise ValueError("enough")

    monkeypatch.setattr("kernel_distill._distill.distill", pretend)
    given = {
        "method": "theorem", "n_points": 30, "per_class": 4, "feature_map": "fourier", "transform": "zca-kip",
        "ridge": "gcv", "distilled_ridge": 0.5, "near": "data", "labels": "solved", "space": "features",
        "bounds": "data", "storage": "float32", "targets": "centred", "precision": "exact", "seed": 7,
    }  # fmt: skip
    options = [part for key, value in given.items() for part in (f"--{key.replace('_', '-')}", value)]
    params = ["--param", "n_features=32", "--param", "widths=[8, 4]", "--param", "kernel=laplace"]
    refused("distill", "digits", tmp_path / "a.safetensors", *options, *params, "--intercept", "--quiet")
    feature_params = {"n_features": 32, "widths": [8, 4], "kernel": "laplace"}
    expected = {
        "feature_params": feature_params,
        "intercept": True,
        "task": "classification",
        "progress": False,
        "device": "auto",
        "executor": None,
        "holdout": 0.05,
        "subtasks": 1,
    }
    assert seen == given | expected
    refused("distill", "digits", tmp_path / "a.safetensors", "--ridge", "1e-3")
    assert seen["ridge"] == 1e-3
    assert seen["progress"] is None


def test_options_of_a_learned_method_reach_distill(tmp_path, monkeypatch):
    seen = {}

    def pretend(data, **options):
        seen.clear()
        seen.update(options)
        raise ValueError("enough")

    monkeypatch.setattr("kernel_distill._distill.distill", pretend)
    out, run = tmp_path / "a.safetensors", tmp_path / "run"
    sets = ["--set", "kernel=gaussian", "--set", "pick.kind=loss", "--set", "pick.mixing=0.5"]
    legs = ["--steps", 7, "--time-limit", 2.5, "--checkpoint", run, "--log", tmp_path / "log"]
    refused("distill", "digits", out, "--method", "kip", *sets, *legs, "--near", "herding", "--holdout", 0.2)
    assert seen["method"] == kd.KIP(kernel="gaussian", pick=kd.Pick(kind="loss", mixing=0.5))
    assert seen["loop"] == kd.Loop(steps=7, time_limit=2.5, checkpoint=run, log=tmp_path / "log")
    assert (seen["near"], seen["holdout"]) == ("herding", 0.2)

    # A recipe's own values, and what is given in their place; where it runs is no change of the recipe.
    recipe = ["--recipe", "kip-fc1-cifar10-100", "--any-data"]
    refused(
        "distill",
        "digits",
        out,
        *recipe,
        "--steps",
        9,
        "--per-class",
        2,
        "--checkpoint",
        run,
        "--device",
        "cpu",
    )
    assert (seen["per_class"], seen["near"], seen["device"]) == (2, "random", "cpu")
    assert seen["method"].batch_size == 5000
    assert seen["loop"] == kd.Loop(steps=9, evaluate_every=20, checkpoint=run)
    changed = seen["provenance"]["recipe"]["changed"]
    assert sorted(changed) == ["loop.steps", "per_class"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "batch_size=3"], "--set is for learned methods"),
        (["--set", "steps=3"], "--steps: for learned methods"),
        (["--method", "kip", "--set", "batchsize=3"], "batchsize: no such option; there are method, kernel,"),
        (["--method", "kip", "--set", "steps"], "--set takes KEY=VALUE"),
        (["--steps", "3"], "--steps: for learned methods"),
        (["--method", "dkkt-dm", "--steps", "3"], "unknown method 'dkkt-dm'; did you mean 'dkkt+dm'"),
        (["--recipe", "kip-fc1-cifar"], "did you mean 'kip-fc1-cifar10-100'"),
        (["--recipe", "kip-fc1-cifar10-100"], "is for CIFAR-10"),
        (["--recipe", "kip-fc1-cifar10-100", "--method", "kip"], "leave out --method"),
        (["--recipe", "kip-fc1-cifar10-100", "--ridge", "1"], "no value 'ridge'"),
    ],
)
def test_learned_options_that_do_not_fit(options, message, tmp_path):
    assert message in refused("distill", "digits", tmp_path / "a.safetensors", *options)


def test_recipes_are_listed():
    assert "kip-fc1-cifar10-100" in succeed("recipes", "--markdown")
    assert json.loads(succeed("recipes", "kip-fc1-cifar10-100"))["method"]["method"] == "kip"
    assert "did you mean" in refused("recipes", "kip-fc1-cifar10")


def test_ablation(tmp_path):
    arms = ["--init", "random", "--init", "k-means", "--pick", "uniform", "--pick", "loss"]
    words = [
        "ablate",
        "digits",
        *arms,
        "--seeds",
        2,
        "--steps",
        2,
        "--set",
        "batch_size=100",
        "--out",
        tmp_path,
    ]
    found = json.loads(succeed(*words, "--json"))
    assert [(arm["init"], arm["pick"]) for arm in found["arms"]] == [
        ("random", "uniform"), ("random", "loss"), ("k-means", "uniform"), ("k-means", "loss"),
    ]  # fmt: skip
    assert json.loads(succeed(*words, "--json")) == found


def test_regression_files_and_sets_without_test_split(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 4))
    y = X @ rng.normal(size=4)
    np.savez(tmp_path / "line.npz", x_train=X, y_train=y)
    out = tmp_path / "line.safetensors"
    printed = succeed("distill", tmp_path / "line.npz", out, "--feature-map", "identity")
    assert "1 points of 4 float64" in printed
    assert "test rows" not in printed
    assert "'line' has no test split" in refused("evaluate", out, "--data", tmp_path / "line.npz")
    succeed("convert", out, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert set(archive.files) == {"x", "y", "space"}


def test_quiet_prints_nothing(tmp_path):
    result = run(*DISTILL, tmp_path / "a.safetensors", "-q")
    assert result.output == ""
    assert (tmp_path / "a.safetensors").is_file()


def test_existing_output_is_refused_before_the_work(tmp_path, monkeypatch):
    out = tmp_path / "a.safetensors"
    out.write_bytes(b"precious")
    monkeypatch.setattr("kernel_distill.solver.data.load_data", lambda source: pytest.fail("data were read"))
    assert "exists: choose another name, or force (--force)" in refused(*DISTILL, out)
    assert out.read_bytes() == b"precious"
    assert "does not exist: create it first" in refused(*DISTILL, tmp_path / "none" / "a.safetensors")
    assert "must end in .safetensors" in refused(*DISTILL, tmp_path / "a.npz")
    (tmp_path / "b.safetensors").mkdir()
    assert "is a folder" in refused(*DISTILL, tmp_path / "b.safetensors", "--force")
    assert "--param takes KEY=VALUE, got 'slope'" in refused(
        *DISTILL, tmp_path / "c.safetensors", "--param", "slope"
    )
    monkeypatch.undo()
    succeed(*DISTILL, out, "--force", "-q")
    assert len(kd.load(out)) == 10
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "closedform"), "unknown method 'closedform'; did you mean 'closed-form'"),
        (("--feature-map", "furier"), "unknown feature map 'furier'; did you mean 'fourier'"),
        (("--transform", "standardise"), "unknown transform 'standardise'; did you mean 'standardize'"),
        (("--ridge", "holdot"), "unknown ridge rule 'holdot'; did you mean 'holdout'"),
        (("--ridge", "-1"), "`ridge` must be finite and not negative"),
        (("--near", "nose"), "did you mean 'noise'"),
        (("--storage", "float8"), "unknown storage type 'float8'"),
        (("--per-class", "0"), "`per_class` must be an integer of at least 1"),
        (("--feature-map", "fcnn", "--param", "slop=2"), "the 'fcnn' map cannot be made with {'slop': 2}"),
    ],
)
def test_wrong_values_name_the_nearest(tmp_path, options, message):
    assert message in refused(*DISTILL, tmp_path / "a.safetensors", *options)
    assert not list(tmp_path.iterdir())


def test_wrong_sources(tmp_path, file):
    out = tmp_path / "a.safetensors"
    assert "did you mean 'digits'" in refused("distill", "digts", out)
    assert "does not exist" in refused("distill", tmp_path / "none.npz", out)
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 no archive")
    assert "is not a readable .npz file" in refused("distill", tmp_path / "bad.npz", out)
    assert "cannot read" in refused("evaluate", file, "--data", file)


def test_wrong_names_on_evaluate(file):
    assert "did you mean 'ridge'" in refused("evaluate", file, "--data", "digits", "--recipe", "rigde")
    assert "did you mean 'random'" in refused(
        "evaluate", file, "--data", "digits", "--baselines", "rnd", "--json"
    )


@pytest.mark.parametrize("command", ["inspect", "evaluate", "convert"])
def test_files_that_are_no_distilled_sets(tmp_path, file, command):
    rest = {"inspect": (), "evaluate": ("--data", "digits"), "convert": (tmp_path / "out.npz",)}[command]
    whole = file.read_bytes()
    cases = {
        "truncated": (
            whole[: len(whole) // 2],
            "cannot be read as a safetensors file (truncated or another format)",
        ),
        "text": (b"no safetensors file at all", "cannot be read as a safetensors file"),
        "empty": (b"", "cannot be read as a safetensors file"),
        "other": (safetensors.torch.save({"x": torch.zeros(2)}), "but not one of kernel-distill"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        assert message in refused(command, tmp_path / name, *rest)
    statistics = kd.collect_statistics(np.eye(4), [0, 1, 0, 1], feature_map="identity")
    statistics.save(tmp_path / "statistics")
    assert "holds 'statistics'" in refused(command, tmp_path / "statistics", *rest)
    assert "there is no file" in refused(command, tmp_path / "none", *rest)
    assert not (tmp_path / "out.npz").exists()


def test_inspect_as_json(file):
    found = json.loads(succeed("inspect", file, "--json"))
    ds = kd.load(file)
    assert found["file_bytes"] == os.path.getsize(file)
    assert found["points"] == 20
    assert found["points_per_class"] == [2] * 10
    x = ds.x.numpy()
    described = {
        "shape": [20, 1, 8, 8],
        "dtype": "float64",
        "bytes": x.nbytes,
        "min": x.min(),
        "max": x.max(),
    }
    assert found["x"] == described
    assert found["feature_map"]["name"] == "identity"
    assert found["transform"]["name"] == "standardize"
    assert found["certificate"]["stored_error"] == ds.certificate.stored_error
    assert found["certificate"]["explanation"] == ds.certificate.status.explanation
    assert found["provenance"] == ds.provenance


def test_inspect_of_a_set_in_feature_space(tmp_path):
    """Features have no range of raw values to be compared with."""
    path = tmp_path / "wide.safetensors"
    wide = (
        "distill",
        "digits",
        path,
        "--feature-map",
        "fourier",
        "--param",
        "n_features=128",
        "--ridge",
        "1.0",
    )
    assert "not known" in succeed(*wide)
    assert "not known" in succeed("inspect", path)
    assert json.loads(succeed("inspect", path, "--json"))["certificate"]["out_of_range"] is None


def test_inspect_shows_sets_that_need_their_network(tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 5)), np.arange(40) % 2
    made = kd.distill(X, y, feature_map=torch.nn.Linear(5, 3), ridge=1.0)
    made.save(tmp_path / "a.safetensors")
    assert (
        json.loads(succeed("inspect", tmp_path / "a.safetensors", "--json"))["feature_map"]["name"]
        == "module"
    )
    refused("convert", tmp_path / "a.safetensors", tmp_path / "a.npz")


@pytest.fixture(scope="module")
def with_kernel(tmp_path_factory, file):
    """A learned set of images with a kernel, kept after its transform."""
    data, ds = kd.load_data("digits"), kd.load(file)
    X = torch.from_numpy(data.x_train)
    transform = make_transform("zca-kip", lambda: [X], (1, 8, 8))
    kernel = make_kernel_function("gaussian", (1, 8, 8), sample=lambda: transform.forward(X[:200]))
    rows = np.concatenate([np.flatnonzero(data.y_train == label)[:2] for label in range(10)])
    made = learned_set(
        KernelEncoder(transform, kernel),
        ds.targets,
        transform.forward(X[rows]),
        ds.targets.encode(data.y_train[rows]),
        relative_ridge=1e-6,
        labels=torch.from_numpy(data.y_train[rows]),
        n_rows=len(X),
        heldout_score=0.75,
        heldout_rows=0,
        selected_step=7,
        class_names=ds.class_names,
    )
    path = tmp_path_factory.mktemp("sets") / "kernel.safetensors"
    made.save(path)
    return path


def test_sets_with_a_kernel_on_every_command(tmp_path, with_kernel):
    ds = kd.load(with_kernel)
    found = json.loads(succeed("inspect", with_kernel, "--json"))
    assert found["kernel"] == {"name": "gaussian", "parameters": ds.encoder.kernel.parameters()}
    assert not {"feature_map", "precision", "fingerprint"} & set(found)
    assert found["space"] == "transformed"
    assert found["certificate"]["status"] == "learned"
    assert found["certificate"]["heldout_score"] == 0.75
    assert "weight_error" not in found["certificate"]
    text = succeed("inspect", with_kernel)
    for shown in (
        "kernel.parameters.bandwidth",
        "nothing is guaranteed beyond the held-out figures",
        "held-out score",
        "training rows stood in for them",
        "of training data learned from",
    ):
        assert shown in text
    for hidden in (
        "weight error",
        "prediction error",
        "the model has rank",
        "held-out loss",
        "of the run",
        "None",
    ):
        assert hidden not in text
    rows = json.loads(
        succeed("evaluate", with_kernel, "--data", "digits", "--baselines", "random", "--json")
    )["rows"]
    assert [row["trained_on"] for row in rows] == ["distilled", "random"]
    assert rows[0]["score"] > 0.5
    succeed("convert", with_kernel, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.array_equal(arrays["x"], ds.x.numpy())
        assert arrays["labels"].tolist() == ds.hard_labels.tolist()
    succeed("convert", with_kernel, tmp_path / "a.png")
    succeed("convert", with_kernel, tmp_path / "folder")
    assert len(list((tmp_path / "folder").rglob("*.png"))) == 20


def test_convert_to_a_folder_of_images(tmp_path, file):
    out = tmp_path / "images"
    assert "20 images, 8 bits a value" in succeed("convert", file, out)
    assert sorted(entry.name for entry in out.iterdir()) == [*"0123456789", "labels.npz"]
    ds = kd.load(file)
    with np.load(out / "labels.npz", allow_pickle=False) as archive:
        np.testing.assert_array_equal(archive["y"], ds.y.numpy())
        assert archive["files"].tolist() == [
            f"{digit}/{index}.png" for digit in range(10) for index in range(2)
        ]
        for index, name in enumerate(archive["files"]):
            with Image.open(out / str(name)) as picture:
                assert picture.size == (8, 8)
                pixels = np.asarray(picture) / 255.0
            low, high = archive["low"][index], archive["high"][index]
            np.testing.assert_allclose(low + pixels * (high - low), ds.x[index, 0], atol=(high - low) / 509)
    assert "exists: choose another name" in refused("convert", file, out)
    (out / "3" / "0.png").unlink()
    succeed("convert", file, out, "--force")
    assert (out / "3" / "0.png").is_file()
    (out / "notes.txt").write_text("mine")
    assert "holds other files, --force will not remove them" in refused("convert", file, out, "--force")
    assert (out / "notes.txt").read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["images"]


def test_class_names_stay_inside_the_folder(tmp_path):
    rng = np.random.default_rng(0)
    y = np.array(["../up", "cat/x", "cat x"])[np.arange(60) % 3]
    x = rng.integers(0, 256, size=(60, 3, 4, 5)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y)
    out = tmp_path / "a.safetensors"
    options = ("--feature-map", "identity", "--near", "data", "--storage", "uint8", "-q")
    succeed("distill", tmp_path / "data.npz", out, *options)
    succeed("convert", out, tmp_path / "images")
    names = sorted(entry.name for entry in (tmp_path / "images").iterdir())
    assert names == ["0__up", "1_cat_x", "2_cat_x", "labels.npz"]
    assert sorted(e.name for e in tmp_path.iterdir()) == ["a.safetensors", "data.npz", "images"]
    # Stored bytes are the pixels.
    with Image.open(tmp_path / "images" / "0__up" / "0.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), kd.load(out).x[0].permute(1, 2, 0))


def test_convert_to_one_picture_and_what_is_no_picture(tmp_path, file, vectors):
    succeed("convert", file, tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width == 10 * 70 + 6
    assert "exists" in refused("convert", file, tmp_path / "grid.png")
    assert "cannot write '.csv' files" in refused("convert", file, tmp_path / "a.csv")
    out = tmp_path / "vectors.safetensors"
    succeed("distill", vectors, out, "--feature-map", "identity", "-q")
    for name in ("vectors.png", "vectors"):
        assert "points of shape (6,) are not images" in refused("convert", out, tmp_path / name)
    succeed("distill", "digits", out, "--feature-map", "identity", "--space", "features", "-q", "--force")
    assert "lives in feature space" in refused("convert", out, tmp_path / "features.png")
    (tmp_path / "file").write_text("mine")
    assert "is a file, where a folder is to be written" in refused(
        "convert", file, tmp_path / "file", "--force"
    )
    assert sorted(e.name for e in tmp_path.iterdir()) == ["file", "grid.png", "vectors.safetensors"]


def test_demo_writes_its_files_and_replaces_them(tmp_path, monkeypatch):
    out = tmp_path / "demo"
    printed = succeed("demo", "--out", out)
    maps = ("identity", "fcnn", "fourier")
    expected = [f"digits_{name}_{count}.safetensors" for name in maps for count in (1, 10)]
    expected += ["digits.png", *(f"digits_{name}.png" for name in maps)]
    assert sorted(entry.name for entry in out.iterdir()) == sorted(expected)
    data = kd.load_data("digits")
    for name in maps:
        assert printed.count(f" {name} ") == 2
        for count in (1, 10):
            ds = kd.load(out / f"digits_{name}_{count}.safetensors")
            assert len(ds) == 10 * count
            assert ds.certificate.stored_error < 1e-9
            assert f"{100 * ds.score(data.x_test, data.y_test):.2f} %" in printed
        with Image.open(out / f"digits_{name}.png") as picture:
            assert picture.width == 10 * 70 + 6
    with Image.open(out / "digits.png") as picture:
        assert picture.width > 700
        assert picture.height > 6 * 64
    (out / "notes.txt").write_text("mine")
    (out / "digits.png").write_bytes(b"old")
    monkeypatch.setattr("kernel_distill._demo.MAPS", ("identity",))
    succeed("demo", "--out", out)
    with Image.open(out / "digits.png") as picture:
        picture.verify()
    assert (out / "notes.txt").read_text() == "mine"
    assert "is a file" in refused("demo", "--out", out / "notes.txt")


def test_doctor():
    found = json.loads(succeed("doctor", "--json"))
    assert found["versions"]["kernel-distill"] == kd.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert str(torch.get_num_threads()) in found["compute"]["threads"]
    assert set(found["optional packages"]) == {"pyarrow", "torchvision", "datasets"}
    printed = succeed("doctor")
    assert "optional packages" in printed
    assert torch.__version__ in printed


def test_missing_library_and_interruption(tmp_path, monkeypatch):
    def stop(source):
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "torchvision", None)
    message = refused("distill", "torchvision:MNIST", tmp_path / "a.safetensors")
    assert "pip install 'kernel-distill[torchvision]'" in message
    monkeypatch.setattr("kernel_distill.solver.data.load_data", stop)
    result = run(*DISTILL, tmp_path / "a.safetensors")
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"
    assert not list(tmp_path.iterdir())


def test_bugs_keep_their_traceback(monkeypatch, file):
    def fail(path):
        raise AssertionError("a bug")

    monkeypatch.setattr("kernel_distill._describe.describe_file", fail)
    with pytest.raises(AssertionError, match="a bug"):
        run("inspect", file)


def test_help_is_light():
    code = (
        "import sys; from typer.testing import CliRunner; from kernel_distill.cli import app\n"
        "for command in ('distill', 'evaluate', 'inspect', 'convert', 'demo', 'doctor', 'bench'):\n"
        "    assert CliRunner().invoke(app, [command, '--help']).exit_code == 0\n"
        "print(sorted({'torch', 'numpy', 'scipy', 'sklearn', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_in_a_process_of_its_own(tmp_path):
    assert in_a_process("--version").stdout == f"kernel-distill {kd.__version__}\n"
    done = in_a_process("distill", "digits", "a.safetensors", "--feature-map", "identity", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "wrote a.safetensors: 10 points" in done.stdout
    done = in_a_process("inspect", "b.safetensors", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no file b.safetensors\n"
    # An encoding without lines and letters is no reason to fail.
    done = in_a_process(
        "inspect", "a.safetensors", cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["distill", "ablate"])
def test_help_names_every_method(command):
    words = set(run(command, "--help").stdout.replace(",", " ").replace(".", " ").replace(";", " ").split())
    assert words >= set(LEARNED)
    assert command == "ablate" or words >= set(METHODS)


def test_usage_errors():
    assert run("--help").exit_code == 0
    for arguments in (
        ("bogus",),
        ("distill",),
        ("distill", "digits", "a.safetensors", "--per-class", "many"),
    ):
        assert run(*arguments).exit_code == 2
