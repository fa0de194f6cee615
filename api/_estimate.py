"""A cost for people: the problem that a data set is, and the tables and JSON of an estimate."""

import dataclasses
import math
from typing import Any

from rich.table import Table

from ._tables import jsonable, size, table
from .solver.cost import Estimate, Problem
from .solver.data import Data

_COLUMNS = ("stage", "FLOPs", "read", "network", "time", "memory", "waits for")


def problem_of(data: Data, **changes: Any) -> Problem:
    """The problem that the training rows of a data set pose; `changes` replace its fields.

    Parameters
    ----------
    data : Data
    **changes
        Fields of `Problem`. As many features as inputs by default.
    """
    inputs = math.prod(data.x_train.shape[1:])
    outputs = len(data.class_names) or (1 if data.y_train.ndim == 1 else data.y_train.shape[1])
    found = {
        "rows": len(data.x_train),
        "inputs": inputs,
        "features": inputs,
        "outputs": outputs,
        "value_bytes": data.x_train.dtype.itemsize,
        "test_rows": 0 if data.x_test is None else len(data.x_test),
    }
    return Problem(**(found | changes))


def estimate_tables(found: Estimate) -> tuple[Table, Table]:
    """What every stage takes; and the sums."""
    rows = [
        (
            stage.name,
            stage.flops or None,
            _bytes(stage.read),
            _bytes(stage.network),
            duration(stage.seconds),
            _bytes(stage.memory),
            (stage.limit.replace("_", " ") or "-") + (" (shared)" if stage.shared else ""),
        )
        for stage in found.stages
    ]
    problem, machine = found.problem, found.machine
    fits = {True: "", False: f": more than the {size(int(machine.memory))} that it has"}
    sums = (
        ("time", duration(found.seconds)),
        ("longest stage", f"{found.bottleneck.name}, {found.bottleneck.seconds / found.seconds:.0%}"),
        ("shared by workers", f"{found.shared_seconds / found.seconds:.1%}"),
        ("most useful workers", found.useful_workers),
        ("one partial sum", size(problem.partial_bytes)),
        ("network", size(int(found.network))),
        ("memory, a worker", size(int(found.worker_memory))),
        (
            "memory, its machine",
            size(int(found.machine_memory)) + fits[found.machine_memory <= machine.memory],
        ),
        ("memory, solving", size(int(found.driver_memory)) + fits[found.driver_memory <= machine.memory]),
    )
    work = f"{problem.rows} rows, d = {problem.inputs}, p = {problem.features}, k = {problem.outputs}"
    workers = (
        f"{found.workers} worker{'s' * (found.workers > 1)} of {found.cores} core{'s' * (found.cores > 1)}"
    )
    return table(_COLUMNS, rows, title=f"{work}; {workers}, modelled"), table(("", ""), sums)


def estimate_json(found: Estimate) -> dict[str, Any]:
    """Everything, in bytes, FLOPs and seconds; infinite rates are null."""
    sums = ("seconds", "shared_seconds", "network", "worker_memory", "machine_memory", "driver_memory")
    document = dataclasses.asdict(found) | {name: getattr(found, name) for name in sums}
    document |= {"bottleneck": found.bottleneck.name, "partial_bytes": found.problem.partial_bytes}
    return jsonable(document)


def duration(seconds: float) -> str:
    """Write a time in the unit that people would use: two of a unit at least, but for seconds."""
    if seconds == 0:
        return "-"
    for unit, length, least in (("d", 86400, 2), ("h", 3600, 2), ("min", 60, 2), ("s", 1, 1)):
        if seconds >= least * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms"


def _bytes(count: float) -> str | None:
    return size(int(count)) if count else None
