"""What the runs of an ablation share, and the folder in which finished runs wait for the next call."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from ._ablation_result import Run
from .solver.data import Data
from .solver.loop import Loop
from .solver.store import write_bytes

# Initialisation, pick, seed.
Key = tuple[str, str | None, int]


class RunFolder:
    """Finished runs as files, each with the settings that it was made with."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path, self._settings = path, settings

    def read(self, keys: Iterable[Key]) -> dict[Key, Run]:
        """Runs that are there already, of those asked for.

        Raises
        ------
        ValueError
            If one of them was made with other settings, or is no run.
        """
        return {key: self._run(key) for key in keys if self._name(*key).exists()}

    def write(self, run: Run) -> None:
        """Store a run, whole or not at all."""
        text = json.dumps({"settings": self._settings, "run": vars(run)}, indent=2)
        write_bytes(self._name(run.init, run.pick, run.seed), text.encode())

    def _run(self, key: Key) -> Run:
        path = self._name(*key)
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            settings, run = document["settings"], Run(**document["run"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a run of an ablation ({error!r}): take it away") from None
        different = [name for name in self._settings if settings.get(name) != self._settings[name]]
        if different or (run.init, run.pick, run.seed) != key:
            raise ValueError(
                f"{path} was made with other settings ({', '.join(different) or 'another arm'}): choose another"
                " folder, or take the file away"
            )
        return run

    def _name(self, init: str, pick: str | None, seed: int) -> Path:
        words = re.sub(r"[^\w.=-]+", "_", f"{init}-{pick or 'none'}")
        return self._path / f"{words}-seed{seed}.json"


def shared_settings(
    data: Data, method: BaseModel, loop: Loop, budget: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Everything that decides what a run of an arm gives, as plain JSON; runs that differ in it do not compare.

    Equal time is equal only with the same threads and versions, so these belong to it.
    """
    from . import __version__

    shared = {name: value for name, value in options.items() if name not in ("progress", "provenance")}
    try:
        shared = json.loads(json.dumps(shared, sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"arguments that an ablation hands to distill must be plain values: {error}"
        ) from None
    points = options.get("n_points")
    return {
        "data": {"name": data.name, "digest": _digest(data)},
        "metric": "accuracy" if data.class_names else "r2",
        "method": method.model_dump(mode="json", exclude={"pick"}),
        "points": f"{points} points" if points else f"{options.get('per_class', 1)} a class",
        "budget": budget,
        "loop": loop.model_dump(mode="json"),
        "options": shared,
        "versions": {"kernel-distill": __version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
    }


def _digest(data: Data) -> str:
    """Of both splits: a test split that was cut otherwise gives other scores."""
    digest = hashlib.sha256()
    for part in (data.x_train, data.y_train, data.x_test, data.y_test):
        values = np.ascontiguousarray(part)
        digest.update(f"{values.dtype.str}{values.shape}".encode())
        digest.update(values.data)
    return digest.hexdigest()
