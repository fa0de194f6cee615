"""The benchmark as a program: what it measures, what it refuses to measure, and what it writes."""

import dataclasses
import importlib
import importlib.util
import inspect
import json
import pkgutil
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import kernel_distill
import kernel_distill.kernels as kernels
from kernel_distill._bench import run as _bench
from kernel_distill._bench.case import CASES, Bench, Case, Problem, Work, some_rows
from kernel_distill._bench.clock import Timing, paired
from kernel_distill._bench.machine import Ceilings
from kernel_distill.cli import app
from kernel_distill.kernels._dispatch import _REGISTRY

CPU = torch.device("cpu")
QUICK = Bench(CPU, quick=True)
CEILINGS = Ceilings(copy=1e10, products={"float32": 1e11, "float64": 5e10}, exps=1e9)
ROOT = Path(__file__).parents[2]
# Functions that only tell others about a kernel, and cost nothing.
NOT_TIMED = {"explain", "use_backend", "uniform", "random_bits", "arc_cosine_diagonal", "row_losses"}


def run(*arguments):
    return CliRunner().invoke(app, ["bench", *map(str, arguments)], catch_exceptions=False)


def one_case(monkeypatch, **changes):
    """A registry of one case, right unless changed."""
    problem = Problem(
        ours=lambda: torch.ones(3),
        error=lambda found: float((found - 1).abs().max()),
        tolerance=1e-6,
        rivals={"theirs": lambda: torch.ones(3), "absent": "is not installed"},
        work=Work(bytes=24.0),
    )
    case = Case(
        "only",
        ("ones",),
        "three ones",
        lambda bench: dataclasses.replace(problem, **changes),
        [{}],
        [{}],
        [{}],
    )
    monkeypatch.setattr(_bench, "CASES", {"only": case})
    return case


def test_every_operation_of_the_kernels_has_a_case():
    for module in pkgutil.iter_modules(kernels.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"kernel_distill.kernels.{module.name}")
    covered = {operation for case in CASES.values() for operation in case.operations}
    public = {
        name
        for name in kernels.__all__
        if inspect.isfunction(getattr(kernels, name)) and name not in NOT_TIMED
    }
    assert set(_REGISTRY) - covered == set()
    assert public - covered == set()


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_results_and_rivals_of_every_case_are_right(case):
    """At small sizes: the check passes, every rival that runs here computes the same, and no time is needed for it."""
    assert case.name == case.name.lower()
    assert case.cpu
    assert case.cuda
    for numbers in case.quick:
        problem = case.build(QUICK, **numbers)
        assert problem.error(problem.ours()) <= problem.tolerance
        for name, rival in problem.rivals.items():
            if isinstance(rival, str):
                continue
            error = (problem.rival_error or problem.error)(rival())
            assert error <= problem.tolerance, name
    for numbers in [*case.quick, *case.cpu, *case.cuda]:
        inspect.signature(case.build).bind(QUICK, **numbers)
        assert numbers.get("precision", "high") in ("exact", "high", "medium", "low")


def test_checks_see_small_errors():
    """Every check of numbers fails for a result that is off in one checked row, or that is not a number."""
    for name, least in {
        "gram": 1e-4,
        "row-sums": 1e-3,
        "matmul": 1e-2,
        "logsumexp": 1e-3,
        "mmd": 1e-3,
    }.items():
        case = CASES[name]
        problem = case.build(QUICK, **case.quick[0])
        found = problem.ours()
        found.view(-1)[0] += least
        assert problem.error(found) > problem.tolerance, name
        found.view(-1)[0] = torch.nan
        assert problem.error(found) == float("inf"), name


def test_samples_that_are_wrong_are_seen():
    case = CASES["sample-without"]
    problem = case.build(QUICK, **case.quick[0])
    sample = problem.ours()
    twice, empty = sample.indices.clone(), sample.indices.clone()
    twice[1], empty[1] = twice[0], 0  # weight 0
    for indices in (twice, empty, sample.indices[1:]):
        assert problem.rival_error(indices) == float("inf")
    assert problem.error(dataclasses.replace(sample, weights=2 * sample.weights)) > problem.tolerance
    assert problem.error(dataclasses.replace(sample, indices=twice)) == float("inf")
    picks = CASES["k-center"]
    problem = picks.build(QUICK, **picks.quick[0])
    chosen = problem.rivals["torch, running minimum"]()
    assert problem.rival_error(torch.cat([chosen[:1], chosen[1:].flip(0)])) > problem.tolerance


def test_a_wrong_result_has_no_speed(monkeypatch):
    wrong = one_case(monkeypatch, ours=lambda: torch.ones(3) + 1e-3)
    row = _bench.measure(QUICK, wrong, {}, CEILINGS)
    assert row["status"] == "wrong"
    assert row["error"] == pytest.approx(1e-3, rel=1e-3)
    assert not {"seconds", "rivals", "times_floor"} & set(row)
    result = run("--quick", "--device", "cpu")
    assert result.exit_code == 1
    assert "wrong" in result.stdout
    assert "theirs" not in result.stdout
    assert "a result is wrong" in result.stderr
    not_a_number = one_case(monkeypatch, ours=lambda: torch.full((3,), torch.nan))
    row = _bench.measure(QUICK, not_a_number, {}, CEILINGS)
    assert (row["status"], "seconds" in row) == ("wrong", False)
    json.dumps(row, allow_nan=False)


def test_rows(monkeypatch):
    def slow():
        time.sleep(0.02)
        return torch.ones(3)

    def broken():
        raise RuntimeError("no kernel image")

    rivals = {
        "slow": slow,
        "coarse": lambda: torch.full((3,), 1.1),
        "broken": broken,
        "absent": "not installed",
    }
    case = one_case(monkeypatch, rivals=rivals)
    row = _bench.measure(QUICK, case, {}, CEILINGS)
    assert row["status"] == "ok"
    assert row["floor"] == 24 / 1e10
    assert row["bound"] == "memory"
    assert row["times_floor"] == pytest.approx(row["seconds"] / row["floor"])
    assert row["rivals"]["slow"]["ratio"] > 2
    assert row["rivals"]["slow"]["accurate"]
    assert not row["rivals"]["coarse"]["accurate"]
    assert row["rivals"]["broken"] == {"reason": "failed: RuntimeError: no kernel image"}
    assert row["rivals"]["absent"] == {"reason": "not installed"}
    failing = one_case(monkeypatch, ours=broken)
    row = _bench.measure(QUICK, failing, {}, CEILINGS)
    assert (row["status"], row["reason"]) == ("failed", "RuntimeError: no kernel image")


def test_rounds_run_in_turn():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    timings = paired(calls, CPU, seconds=0.0, least=3)
    assert order == list("ababab")
    assert len(timings["a"].seconds) == 3
    assert Timing((2.0, 9.0, 4.0), None).ratio(Timing((1.0, 3.0, 4.0), None)) == 2.0


def test_memory_of_a_call():
    timings = paired({"large": lambda: torch.ones(2**23), "small": lambda: None}, CPU, seconds=0.0, least=1)
    if timings["large"].memory is None:
        pytest.skip("this system does not tell the peak of resident memory")
    assert timings["large"].memory > 2**24
    assert timings["small"].memory < 2**22


def test_floors():
    work = Work({"float32": 2e11, "float64": 5e10}, exps=5e8, bytes=1e10)
    assert CEILINGS.floor(work) == (2.0, "float32")
    assert CEILINGS.floor(Work(exps=3e9, bytes=1e10)) == (3.0, "exponentials")
    assert dataclasses.replace(CEILINGS, exps=None).floor(Work(exps=3e9, bytes=1e10)) == (1.0, "memory")
    assert some_rows(1000, 3) == [0, 500, 999]
    assert some_rows(1) == [0]


def test_command_prints_tables_and_writes_json(tmp_path):
    path = tmp_path / "bench.json"
    result = run("--quick", "--device", "cpu", "--only", "gram", "--only", "dispatch", "--json", path)
    assert result.exit_code == 0, result.output
    for words in ("ceilings of", "gram: ", "scikit-learn", "x floor", f"wrote {path}", "left out of --quick"):
        assert words in result.stdout
    found = json.loads(path.read_text())
    assert [row["case"] for row in found["rows"]] == ["dispatch", "gram"]
    assert all(row["status"] == "ok" for row in found["rows"])
    assert found["machine"]["versions"]["kernel-distill"] == kernel_distill.__version__
    assert found["ceilings"]["copy"] > 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["bench.json"]
    before = path.read_bytes()
    again = run("--quick", "--only", "dispatch", "--json", path)
    assert (again.exit_code, again.stdout) == (2, "")
    assert "exists" in again.stderr
    assert path.read_bytes() == before


def test_names_that_are_wrong():
    for arguments, words in (
        (("--only", "grm"), "did you mean 'gram'"),
        (("--device", "gpu"), "unknown device 'gpu'"),
        (("--json", "no/such/folder.json"), "create it first"),
    ):
        result = run("--quick", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert words in result.stderr
    if not torch.cuda.is_available():
        result = run("--device", "cuda")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "no CUDA device" in result.stderr


@pytest.fixture
def gpu_script(monkeypatch):
    """bench/gpu.py, with limits of seconds."""
    path = ROOT / "bench" / "gpu.py"
    if not path.exists():
        pytest.skip("the bench folder is not here")
    specification = importlib.util.spec_from_file_location("bench_gpu", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.syspath_prepend(path.parent)  # as for a script
    monkeypatch.setattr(module, "SILENCE", 1)
    monkeypatch.setattr(module, "LEAST", 1)
    monkeypatch.delenv("OUT", raising=False)
    return module


def test_goals_come_first_on_a_gpu(gpu_script):
    assert set(gpu_script.FIRST) <= set(CASES)


def test_no_benchmark_takes_the_others_with_it(gpu_script, monkeypatch, tmp_path):
    """One hangs, one ends its process, one breaks the device after its end: the rest is measured all the same."""
    worker = """
import json, os, sys, time
out, *names = sys.argv[1:]
file = open(out, "a", buffering=1)
for name in names:
    print(json.dumps({"begin": name}), file=file)
    if name == "hangs": time.sleep(60)
    if name == "crashes": os._exit(7)
    print(json.dumps({"row": {"case": name, "status": "ok", "seconds": 1.0, "rivals": {}}}), file=file)
    print(json.dumps({"end": name}), file=file)
    if name == "breaks": os._exit(8)
"""
    visit = gpu_script.Visit(CPU, True, tmp_path / "found.json")
    monkeypatch.setattr(visit, "_this", lambda step, name, *rest: [sys.executable, "-c", worker, *rest])
    visit.timings(["fine", "hangs", "crashes", "breaks", "last"])
    found = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [(row["case"], row["status"]) for row in found] == [
        ("fine", "ok"),
        ("hangs", "failed"),
        ("crashes", "failed"),
        ("breaks", "ok"),
        ("last", "ok"),
    ]
    assert "no result for 1 s" in found[1]["reason"]
    assert "status 7" in found[2]["reason"]
    visit.found["tests"] = {"passed": 1, "failed": []}
    assert visit.status() == 1


def test_a_process_that_never_begins_loses_everything_once(gpu_script, monkeypatch, tmp_path):
    visit = gpu_script.Visit(CPU, True, tmp_path / "found.json")
    monkeypatch.setattr(visit, "_this", lambda *rest: [sys.executable, "-c", "raise SystemExit(3)"])
    visit.timings(["a", "b"])
    assert [row["status"] for row in visit.found["rows"]] == ["failed", "failed"]
    monkeypatch.setattr(gpu_script, "SECONDS", 0)
    visit.timings(["c"])
    assert visit.found["rows"][-1]["status"] == "late"


def test_a_step_that_stops_early_keeps_what_it_found(gpu_script, monkeypatch, tmp_path):
    visit = gpu_script.Visit(CPU, True, tmp_path / "found.json")
    ends = {
        "time.sleep(60)": "stopped after 1 s",
        "sys.exit(5)": "ended with status 5",
        "1/0": "ZeroDivision",
    }
    for code, words in ends.items():
        script = """import sys, time; print('{"a": 1}', flush=True); """ + code
        monkeypatch.setattr(visit, "_this", lambda *rest, script=script: [sys.executable, "-c", script])
        monkeypatch.setitem(gpu_script.LIMITS, "points", 1)
        found = visit.in_its_own_process("points")
        assert found["a"] == 1
        assert words in found["unknown"]


def test_gpu_script_says_that_there_is_no_gpu(gpu_script, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert gpu_script.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert "no GPU" in said.err
