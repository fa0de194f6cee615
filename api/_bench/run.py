"""The benchmark of the kernels on the machine at hand: check, then time in turn with every rival there is.

A result that is wrong has no speed: each case compares what it computes with float64 first, and a case that fails
this is reported as wrong, without a time.
"""

import gc
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from rich.table import Table

from .._tables import jsonable, size as bytes_in_words, table
from ..kernels._dispatch import _REGISTRY, BACKENDS, use_backend
from ..solver._check import check_name
from .case import Bench, Call, Case, Problem, Rival, Size
from .cases import CASES
from .clock import paired
from .machine import Ceilings, describe_machine, measure_ceilings

Row = dict[str, Any]
DEVICES = ("auto", "cpu", "cuda")
_SECONDS = {"quick": 0.2, "cpu": 10.0, "cuda": 0.5}  # of timing, for one row


def choose_device(name: str) -> torch.device:
    """The device that a name stands for; "auto" is a GPU where there is one."""
    check_name(name, DEVICES, "device")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch finds no CUDA device here: use --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def choose_cases(names: Sequence[str]) -> list[Case]:
    """Cases by name, in the order of the registry; all of them for no names."""
    wanted = {check_name(name, CASES, "benchmark") for name in names}
    return [case for case in CASES.values() if not wanted or case.name in wanted]


def run_cases(bench: Bench, cases: Sequence[Case], ceilings: Ceilings) -> Iterator[tuple[Case, list[Row]]]:
    """Measure cases one after the other; yields the rows of each, one for a size."""
    for case in cases:
        yield case, [measure(bench, case, numbers, ceilings) for numbers in case.sizes(bench)]


def measure(bench: Bench, case: Case, numbers: Size, ceilings: Ceilings) -> Row:
    """Check and time one case at one size.

    Returns
    -------
    dict
        Plain JSON. "status" is "ok", "wrong" (then there is no time) or "failed" (then "reason" says why); "seconds",
        "floor", "bound", "times_floor", "memory", "rounds" are ours; "rivals" maps names to the same and "ratio",
        their time by ours, or to the "reason" why there is none.
    """
    row: Row = {"case": case.name, "operations": list(case.operations), "size": dict(numbers)}
    try:
        problem = case.build(bench, **numbers)
        error = problem.error(problem.ours())
    except (
        Exception
    ) as failure:  # compilers and drivers raise what they like; the other rows shall still come
        _clean_up(bench)
        return row | {"status": "failed", "reason": _in_words(failure)}
    row |= {"status": "ok" if error <= problem.tolerance else "wrong", "error": error}
    row["tolerance"] = problem.tolerance
    if row["status"] == "ok":
        row |= _times(bench, case.operations, problem, ceilings)
    del problem
    _clean_up(bench)
    return jsonable(row)


def _times(bench: Bench, operations: Sequence[str], problem: Problem, ceilings: Ceilings) -> Row:
    calls: dict[str, Call] = {"ours": problem.ours}
    rivals: dict[str, Row] = {}
    candidates: dict[str, Rival] = {}
    if bench.on_gpu:
        known = {name for operation in operations for name in _REGISTRY.get(operation, ())}
        candidates |= {f"our {name}": _on_backend(name, problem.ours) for name in BACKENDS if name in known}
    candidates |= problem.rivals
    for name, rival in candidates.items():
        if isinstance(rival, str):
            rivals[name] = {"reason": rival}
            continue
        check = problem.error if name.startswith("our ") else problem.rival_error or problem.error
        try:
            rivals[name] = {"error": (error := check(rival()))}
        except Exception as failure:  # whatever a rival raises is its own affair, and is shown
            rivals[name] = {"reason": f"failed: {_in_words(failure)}"}
            continue
        rivals[name]["accurate"] = error <= problem.tolerance
        calls[name] = rival
    seconds = _SECONDS["quick" if bench.quick else bench.device.type]
    timings = paired(calls, bench.device, seconds=seconds, least=1 if bench.quick else 3)
    ours = timings.pop("ours")
    for name, timing in timings.items():
        rivals[name] |= {
            "seconds": timing.median,
            "ratio": timing.ratio(ours),
            "memory": timing.memory,
        }
    found: Row = {"seconds": ours.median, "memory": ours.memory, "rounds": len(ours.seconds)}
    if problem.work is not None:
        floor, bound = ceilings.floor(problem.work)
        found |= {"floor": floor, "bound": bound, "times_floor": ours.median / floor}
    return found | {"rivals": rivals}


def rows_table(case: Case, rows: Sequence[Row]) -> Table:
    """One case as a table: a line for each size, a column for each rival that ran."""
    names: dict[str, None] = {}
    for row in rows:
        names |= {name: None for name, rival in row.get("rivals", {}).items() if "seconds" in rival}
    columns = ["size", "time", "floor", "bound by", "x floor", "error", "memory", *names]
    lines = []
    for row in rows:
        label = in_words(row["size"])
        if row["status"] != "ok":
            what = "wrong" if row["status"] == "wrong" else row["reason"]
            lines.append([label, what, None, None, None, row.get("error"), None, *[None] * len(names)])
            continue
        floor = duration(row["floor"]) if "floor" in row else None
        memory = None if row["memory"] is None else bytes_in_words(row["memory"])
        line = [label, duration(row["seconds"]), floor, row.get("bound"), row.get("times_floor")]
        line += [row["error"], memory, *(_rival_cell(row["rivals"].get(name, {})) for name in names)]
        lines.append(line)
    return table(columns, lines, title=f"{case.name}: {case.title}")


def absences(rows: Sequence[Row]) -> str | None:
    """Which rivals did not run, and why, on one line."""
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, rival in row.get("rivals", {}).items():
            if "reason" in rival:
                reasons.setdefault(rival["reason"], {})[name] = None
    return "; ".join(f"without {', '.join(names)}: {reason}" for reason, names in reasons.items()) or None


def ceilings_table(machine: Row, ceilings: Ceilings) -> Table:
    """What the floors are computed from."""
    rates = [("copy, read plus written", f"{ceilings.copy / 1e9:.4g} GB/s")]
    rates += [(f"{name} products", f"{rate / 1e12:.3g} TFLOP/s") for name, rate in ceilings.products.items()]
    exps = f"{ceilings.exps / 1e9:.3g} billion/s" if ceilings.exps else "could not be measured: not in floors"
    return table(
        ("", ""), [*rates, ("exponentials", exps)], title=f"ceilings of {machine['device']}, measured"
    )


def document(machine: Row, ceilings: Ceilings, rows: Sequence[Row]) -> str:
    """Everything as JSON."""
    rates = {"copy": ceilings.copy, "products": ceilings.products, "exps": ceilings.exps}
    found = {"machine": machine, "ceilings": rates, "rows": list(rows)}
    return json.dumps(jsonable(found), indent=1, allow_nan=False) + "\n"


def run_bench(
    device: str, only: Sequence[str], quick: bool, show: Callable[[Table | str], None]
) -> tuple[str, bool]:
    """Run the benchmark, showing each table as it is done.

    Returns
    -------
    tuple
        The JSON document, and whether every result was right.
    """
    place, cases = choose_device(device), choose_cases(only)
    bench, machine = Bench(place, quick), describe_machine(place)
    ceilings = measure_ceilings(place, quick=quick)
    show(ceilings_table(machine, ceilings))
    everything: list[Row] = []
    for case, rows in run_cases(bench, cases, ceilings):
        everything += rows
        show(rows_table(case, rows))
        if missing := absences(rows):
            show(missing)
    return document(machine, ceilings, everything), all(row["status"] == "ok" for row in everything)


def in_words(numbers: Size) -> str:
    """A size as people write it."""
    return " ".join(
        f"{key}={value:,}" if isinstance(value, int) else str(value) for key, value in numbers.items()
    )


def duration(seconds: float) -> str:
    """Seconds in units that suit them."""
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def _rival_cell(rival: Row) -> str | None:
    if "seconds" not in rival:
        return None
    return f"{duration(rival['seconds'])} ({rival['ratio']:.3g}x){'' if rival['accurate'] else ' inaccurate'}"


def _on_backend(name: str, ours: Call) -> Call:
    def run() -> Any:
        with use_backend(name):
            return ours()

    return run


def _in_words(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"


def _clean_up(bench: Bench) -> None:
    """Leave nothing of one row to the next: memory, and compiled functions for sizes that will not come back."""
    gc.collect()
    if "torch._dynamo" in sys.modules:  # importing it takes seconds
        torch.compiler.reset()
    if bench.on_gpu:
        torch.cuda.empty_cache()
