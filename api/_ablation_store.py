"""What the runs of an ablation share, and the folder in which finished ones wait for the next call."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from ._ablation_result import Run
from ._tasks import plain_settings, versions
from .solver.data import Data
from .solver.executors import TaskStore
from .solver.loop import Loop
from .solver.store import write_bytes


def run_store(folder: Path, settings: dict[str, Any]) -> TaskStore:
    """A folder of finished runs with these settings: one file of JSON each."""
    return TaskStore(folder, settings, _write, _read, ".json")


def _write(path: Path, run: Run) -> None:
    write_bytes(path, json.dumps(vars(run), indent=2).encode())


def _read(path: Path) -> Run:
    try:
        return Run(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"it is not a run of an ablation ({error})") from None


def run_name(init: str | None, pick: str | None, varied: Mapping[str, Any], seed: int) -> str:
    """Name of a run; where it is plain, of its file."""
    values = [f"{key}={json.dumps(value)}" for key, value in varied.items()]
    return "-".join([init or "none", pick or "none", *values, f"seed{seed}"])


def shared_settings(
    data: Data,
    method: BaseModel,
    loop: Loop | None,
    budget: str,
    options: Mapping[str, Any],
    varied: Collection[str],
) -> dict[str, Any]:
    """Everything that decides what a run of an arm gives, as plain JSON; runs that differ in it do not compare.

    Equal time is equal only with the same threads and versions, so these belong to it.
    """
    per_class = "" if "per_class" in varied else f"{options.get('per_class', 1)} a class"
    points = options.get("n_points")
    given = {name: value for name, value in options.items() if name not in ("progress", "provenance")}
    settings = {
        "data": {"name": data.name, "digest": data_digest(data)},
        "metric": "r2" if _is_regression(data, options.get("task", "auto")) else "accuracy",
        "method": method.model_dump(mode="json", exclude={"pick"}),
        "points": f"{points} points" if points else "" if "n_points" in varied else per_class,
        "budget": budget,
        "loop": None if loop is None else loop.model_dump(mode="json"),
        "options": plain_settings(given, "an ablation"),
        "versions": versions(),
        "threads": torch.get_num_threads(),
    }
    return settings | ({"varied": sorted(varied)} if varied else {})


def _is_regression(data: Data, task: str) -> bool:
    return task == "regression" or (task == "auto" and np.asarray(data.y_train).dtype.kind == "f")


def data_digest(data: Data) -> str:
    """Of both splits, as a test split that was cut otherwise gives other scores, and of the names of classes."""
    digest = hashlib.sha256(json.dumps(data.class_names).encode())
    for part in (data.x_train, data.y_train, data.x_test, data.y_test):
        values = np.ascontiguousarray([] if part is None else part)
        if values.dtype.kind == "O":
            # Texts, of which such an array holds addresses.
            values = np.array(values.tolist())
        digest.update(f"{values.dtype.str}{values.shape}".encode())
        digest.update(values.data)
    return digest.hexdigest()
