"""The command `evaluate`: what reaches `kd.evaluate`, names of files, and how it refuses."""

import json

import pytest
from typer.testing import CliRunner

import kernel_distill as kd
from kernel_distill.cli import app


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], catch_exceptions=False)


def refused(*arguments):
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    [line] = result.stderr.splitlines()
    return line.removeprefix("error: ")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sets") / "digits.safetensors"
    kd.distill(kd.load_data("digits"), feature_map="identity", ridge=1.0, near="data").save(path)
    return path


def test_every_option_reaches_evaluate(file, monkeypatch):
    seen = {}

    def pretend(sets, data, **options):
        seen.update(options, sets=sets)
        raise ValueError("enough")

    monkeypatch.setattr("kernel_distill._evaluate.evaluate", pretend)
    assert refused(file, "--data", "digits") == "enough"
    defaults = {
        "recipe": "ridge", "networks": None, "count": None, "baselines": None, "rates": [], "choose_epoch": False,
        "full_accuracy": None, "full_epochs": None, "confidence": 0.95, "seed": 0, "device": "auto", "workers": None,
        "executor": None,
    }  # fmt: skip
    assert list(seen.pop("sets")) == [str(file)]
    assert seen == defaults
    given = {
        "recipe": "dsa", "count": 20, "full_accuracy": 0.9, "full_epochs": 7, "confidence": 0.9, "seed": 3,
        "device": "cpu", "workers": 2, "executor": "serial", "epochs": 100,
    }  # fmt: skip
    words = [part for key, value in given.items() for part in (f"--{key.replace('_', '-')}", value)]
    words += ["--networks", "convnet, mlp", "--baselines", "full,herding", "--baselines", "k-means"]
    words += ["--rates", "1e-3,0.1", "--choose-epoch", "--set", "augment=crop", "--set", "batch_size=8"]
    words += ["--set", 'network_params={"width": 8}']
    refused(f"dm={file}", f"dm={file}", f"dkkt={file}", "--data", "digits", *words)
    sets = seen.pop("sets")
    assert {name: len(several) for name, several in sets.items()} == {"dm": 2, "dkkt": 1}
    assert seen == given | {
        "networks": ["convnet", "mlp"],
        "baselines": ["full", "herding", "k-means"],
        "rates": [1e-3, 0.1],
        "choose_epoch": True,
        "augment": "crop",
        "batch_size": 8,
        "network_params": {"width": 8},
    }
    refused(file, "--data", "digits", "--baselines", "none")
    assert seen["baselines"] == []


def test_networks_from_a_shell(file):
    words = [
        "--recipe",
        "dc-bench",
        "--networks",
        "mlp",
        "--count",
        2,
        "--epochs",
        1,
        "--set",
        "batch_size=5",
    ]
    result = run(f"a={file}", f"a={file}", "--data", "digits", *words, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(row["trained_on"], row["sets"], row["networks"]) for row in found["rows"]] == [
        ("distilled", 2, 2),
        ("random", 2, 2),
        ("k-center", 2, 2),
    ]
    assert (found["recipe"]["epochs"], found["recipe"]["batch_size"]) == (1, 5)
    printed = run(file, "--data", "digits", *words).stdout
    for part in (str(file), "sets x networks", "IOR", "intervals of one set", "seeds 0, one for each set"):
        assert part in printed


def test_a_file_with_an_equals_sign_is_a_file(file, tmp_path):
    odd = tmp_path / "a=b.safetensors"
    odd.write_bytes(file.read_bytes())
    found = json.loads(run(odd, "--data", "digits", "--json").stdout)
    assert [row["name"] for row in found["rows"]] == [str(odd)]


def test_a_file_that_is_given_twice_is_no_second_set(file):
    words = ["--recipe", "dc-bench", "--networks", "mlp", "--count", 1, "--epochs", 1, "--baselines", "none"]
    found = json.loads(run(file, file, "--data", "digits", *words, "--json").stdout)
    assert [(row["name"], row["sets"]) for row in found["rows"]] == [(str(file), 1), (f"{file} (2)", 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "das"], "unknown recipe 'das'; did you mean 'dsa'"),
        (["--recipe", "dsa", "--networks", "convnet,mpl"], "unknown network 'mpl'; did you mean 'mlp'"),
        (["--recipe", "dsa", "--baselines", "randm"], "unknown baseline 'randm'; did you mean 'random'"),
        (["--recipe", "dsa", "--rates", "0.1,fast"], "--rates takes numbers, got 'fast'"),
        (["--recipe", "dsa", "--set", "seed=3"], "unknown field of a recipe 'seed'"),
        (["--recipe", "dsa", "--set", "augment"], "--set takes KEY=VALUE"),
        (["--recipe", "dsa", "--set", "momentum=2"], "momentum: Input should be less than 1"),
        (["--epochs", "3"], "recipe 'ridge' trains no networks: leave out epochs"),
        (["--count", "3"], "leave out count"),
    ],
)
def test_wrong_arguments(file, options, message):
    assert message in refused(file, "--data", "digits", *options)


def test_a_file_that_is_not_there(tmp_path):
    assert "there is no file" in refused(tmp_path / "none.safetensors", "--data", "digits")
    assert "there is no file" in refused(f"dm={tmp_path / 'none.safetensors'}", "--data", "digits")


def test_help_names_recipes_networks_and_baselines():
    words = " ".join(run("--help").stdout.replace("│", " ").split())
    for part in (
        "dc-bench, dsa, kip-finite, frepo, soft-label or d3",
        "resnet18",
        "label-solve",
        "NAME=FILE",
    ):
        assert part in words
