"""The command `estimate`: a data set or sizes, figures of a machine, tables, JSON, refusals."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from kernel_distill._cli_estimate import estimate as command
from kernel_distill._cli_support import user_errors
from kernel_distill._estimate import duration, problem_of
from kernel_distill._tables import size
from kernel_distill.solver.cost import Machine, Problem, estimate
from kernel_distill.solver.data import load_data

APP = typer.Typer()
APP.command()(user_errors(command))
SIZES = ("--rows", 1_000_000, "--inputs", 784, "--features", 2048, "--classes", 10)


def run(*arguments):
    return CliRunner().invoke(APP, [str(word) for word in arguments], catch_exceptions=False)


def answer(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def page():
    return (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8").replace("\\\n", "")


def test_the_page_says_what_the_command_says():
    common = re.search(r"kernel-distill estimate (--inputs .*) \.\.\.", page())
    rows = re.findall(
        r"^\| .* `(--rows .*)` \| \*\*(.*?)\*\* \| (.*) \| (.*) \| (.*) \|$", page(), re.MULTILINE
    )
    assert common is not None
    assert len(rows) == 11
    for options, seconds, longest, network, memory in rows:
        found = answer(*shlex.split(f"{common[1]} {options}"))
        assert (duration(found["seconds"]), found["bottleneck"]) == (seconds, longest), options
        assert (size(int(found["network"])) if found["network"] else "–") == network
        most = max(found["machine_memory"], found["driver_memory"])
        assert size(int(most)) == memory.removesuffix(": **too much**")
        assert (most > found["machine"]["memory"]) == ("too much" in memory)


def test_the_first_command_of_the_page():
    command = re.search(r"kernel-distill estimate (--rows .*)", page())
    assert command is not None
    found = answer(*shlex.split(command[1]))
    assert f"{duration(found['seconds'])}, half of them the Gram product" in page()
    [gram] = [stage["seconds"] for stage in found["stages"] if stage["name"] == "Gram"]
    assert gram / found["seconds"] == pytest.approx(0.5, abs=0.05)


def test_json_holds_the_estimate():
    found = estimate(Problem(1_000_000, 784, 2048, 10), Machine(), 8)
    document = answer(*SIZES, "--workers", 8)
    assert document["seconds"] == found.seconds
    assert document["useful_workers"] == found.useful_workers
    assert document["bottleneck"] == found.bottleneck.name
    assert document["partial_bytes"] == found.problem.partial_bytes
    assert [stage["name"] for stage in document["stages"]] == [stage.name for stage in found.stages]
    assert document["machine"]["storage"] is None  # infinite


def test_every_option_reaches_the_model():
    words = {
        "--value-bytes": 2, "--feature-map": "fcnn", "--row-flops": 1e6, "--transform": "standardize", "--n-points": 30,
        "--test-rows": 50, "--workers": 4, "--cores": 3, "--tiles": 9, "--reduction": "all-reduce",
    }  # fmt: skip
    figures = ("--set", "network=5e9", "--set", "cores=16")
    document = answer(*SIZES, *(part for pair in words.items() for part in pair), *figures)
    problem = Problem(
        1_000_000, 784, 2048, 10, 2, "fcnn", row_flops=1e6, transform="standardize", points=30, test_rows=50
    )
    machine = Machine(network=5e9, cores=16)
    found = estimate(problem, machine, 4, cores=3, tiles=9, reduction="all-reduce")
    assert document["seconds"] == found.seconds
    assert {key: document[key] for key in ("workers", "cores", "tiles", "reduction")} == {
        "workers": 4, "cores": 3, "tiles": 9, "reduction": "all-reduce",
    }  # fmt: skip
    assert document["problem"]["points"] == 30
    assert document["machine"]["network"] == 5e9


def test_a_data_set_says_its_own_sizes():
    data = load_data("digits")
    found = answer("digits", "--features", 100)["problem"]
    assert (found["rows"], found["inputs"], found["features"], found["outputs"]) == (1438, 64, 100, 10)
    assert (found["value_bytes"], found["test_rows"]) == (8, 359)
    assert problem_of(data) == Problem(1438, 64, 64, 10, 8, test_rows=359)
    assert answer("digits", "--rows", 10**6)["problem"]["rows"] == 10**6


def test_tables():
    text = run(*SIZES, "--workers", 2, "--set", "memory=1e6").output
    for words in (
        "2 workers of 2 cores, modelled",
        "eigen-decomposition",
        "gram (shared)",
        "most useful workers",
    ):
        assert words in text
    assert "more than the 1.0 MB that it has" in text
    assert "measured" not in text


def test_a_measured_machine_says_so(monkeypatch):
    monkeypatch.setattr(
        "kernel_distill.solver.machine.Machine.measured",
        classmethod(lambda cls, **given: cls(cores=5, notes=("five cores",), **given)),
    )
    result = run(*SIZES, "--measure", "--set", "disk=7e9")
    assert "1 worker of 5 cores" in result.output
    assert "measured: five cores" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "give a data set, or --rows, --inputs, --classes"),
        (("--rows", 5, "--inputs", 3), "give a data set, or --classes"),
        ((*SIZES, "--set", "disc=4"), "unknown figure of a machine 'disc'; did you mean 'disk'?"),
        ((*SIZES, "--set", "disk=fast"), "`disk` of a machine must be a number above zero, got 'fast'"),
        ((*SIZES, "--set", "disk"), "--set takes KEY=VALUE, got 'disk'"),
        ((*SIZES, "--workers", 0), "`workers` must be an integer of at least 1, got 0"),
        ((*SIZES, "--feature-map", "conv"), "unknown feature map of a cost 'conv'"),
        (("nothing.npz",), "nothing.npz"),
    ],
)
def test_refusals_are_one_line(words, message):
    result = run(*words)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "-"), (0.0015, "1.5 ms"), (1.5, "1.5 s"), (2, "2 s"), (119, "119 s"), (150, "2.5 min"), (9000, "2.5 h"),
     (432000, "5 d")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text
