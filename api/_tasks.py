"""What ablations, sweeps and evaluations need to run as tasks of an executor."""

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from pydantic import BaseModel

from ._job import Job
from ._methods import FITTED_METHODS
from .solver.distilled_set import DistilledSet
from .solver.executors import Executor

T = TypeVar("T")
_WITHOUT_GPU = ("full-kip", *FITTED_METHODS)


class Late(Generic[T]):
    """A value that is made whenever it is asked for here, and once before it travels: closures do not.

    Parameters
    ----------
    get : callable
        Makes it.
    packed : callable, optional
        What travels in its place, made of it, and is what `get` gives at the other end: arrays for tensors, say, which
        the tasks of a machine then share.
    """

    def __init__(self, get: Callable[[], T], packed: Callable[[T], Any] | None = None) -> None:
        self.get = get
        self._packed = packed

    def __reduce__(self) -> tuple[Any, ...]:
        value = self.get()
        return _known, (value if self._packed is None else self._packed(value),)


def _known(value: T) -> Late[T]:
    return Late(lambda: value)


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """How a set was learned; of a merged set, how its parts were, one after the other.

    Attributes
    ----------
    steps, selected_step : int
        Sums over the parts.
    seconds, init_seconds : float
        Likewise.
    stopped : str
        Why the loop ended; "diverged" if that of any part did, otherwise of the parts that ended otherwise than by
        their steps the first; "fitted" where there was no loop.
    """

    steps: int
    selected_step: int
    seconds: float
    init_seconds: float
    stopped: str


def run_record(ds: DistilledSet) -> RunRecord:
    """What a set says of its run or, if it was merged, of those of its parts."""
    runs = list(_runs(ds.provenance))
    ends = [run["stopped"] for run in runs]
    return RunRecord(
        steps=sum(run["steps"] for run in runs),
        selected_step=sum(run["selected_step"] for run in runs),
        seconds=math.fsum(run["seconds"] for run in runs),
        init_seconds=math.fsum(run["init_seconds"] for run in runs),
        stopped="diverged"
        if "diverged" in ends
        else next((end for end in ends if end != "steps"), ends[0] if ends else "fitted"),
    )


def _runs(provenance: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    if "run" in provenance:
        return [provenance["run"]]
    return [run for part in provenance.get("subtasks", ()) for run in _runs(part["provenance"])]


def gpu_share(device: str, method: str | None = None) -> float:
    """GPUs that a task makes use of: one, unless its method has no use for it or it is told to stay on the CPU."""
    return 0.0 if method in _WITHOUT_GPU or str(device).startswith("cpu") else 1.0


def distill_arguments(without: Collection[str]) -> list[str]:
    """Names of the arguments of `distill` but for some."""
    return [field.name for field in dataclasses.fields(Job) if field.init and field.name not in without]


def versions() -> dict[str, str]:
    """What computes: other versions may round otherwise, and results of both do not belong in one folder."""
    from . import __version__

    return {"kernel-distill": __version__, "torch": torch.__version__}


def retried_since(executor: Executor, before: int) -> tuple[str, ...]:
    """Tasks that were run again, and why, but for the first `before` of them."""
    return tuple(f"{retry.task} ({retry.reason})" for retry in executor.retries[before:])


def retry_remarks(retried: Sequence[str]) -> list[str]:
    """What a result says of tasks that were run again; nothing where none was."""
    if not retried:
        return []
    tasks = "1 task was" if len(retried) == 1 else f"{len(retried)} tasks were"
    return [f"{tasks} run again: {'; '.join(retried)}"]


def plain_settings(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Arguments as plain JSON, so that a folder of results can say what they follow from.

    Raises
    ------
    ValueError
        If one of them is no plain value.
    """
    try:
        return json.loads(json.dumps(values, sort_keys=True, allow_nan=False, default=_dumped))
    except (TypeError, ValueError) as error:
        raise ValueError(f"arguments that {what} hands to distill must be plain values: {error}") from None


def _dumped(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON")
