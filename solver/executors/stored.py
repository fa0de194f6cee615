"""Results in a folder: one file a task, and `identity.json`, which says what work they are of."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from ..checkpoint import differences
from ..store import write_bytes
from .base import Task, TaskStore

_IDENTITY = "identity.json"


class StoredResults:
    """The results of a call that are in its store.

    Without a store none are there and none are written, so that executors need not ask.

    Parameters
    ----------
    store : TaskStore or None
    tasks : sequence of Task

    Raises
    ------
    ValueError
        If the folder holds results of other work.
    OSError
        If the folder cannot be made or written.
    """

    def __init__(self, store: TaskStore | None, tasks: Sequence[Task]) -> None:
        self._store = store
        if store is None:
            return
        _open(store)
        self._paths = {task.name: store.folder / (_file_name(task.name) + store.suffix) for task in tasks}

    @property
    def keeps(self) -> bool:
        """Whether results are written."""
        return self._store is not None

    def has(self, task: Task) -> bool:
        """Whether the result of a task is there."""
        return self._store is not None and self._paths[task.name].exists()

    def read(self, task: Task) -> Any:
        """The result of a task that is there.

        Raises
        ------
        ValueError
            If the file is damaged. It was written whole, so something else has changed it since: that is for a person
            to look into, and nothing is computed over it.
        """
        assert self._store is not None
        path = self._paths[task.name]
        try:
            return self._store.read(path)
        except ValueError as error:
            raise ValueError(
                f"the stored result of task {task.name!r}, {path}, cannot be read: {error}; delete the file to have"
                " it computed again"
            ) from error

    def write(self, task: Task, result: Any) -> None:
        """Store the result of a task."""
        if self._store is not None:
            self._store.write(self._paths[task.name], result)


def _open(store: TaskStore) -> None:
    """Make the folder, or see that it is of the same work."""
    try:
        here = json.loads(json.dumps(store.identity, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the identity of a store must be plain JSON: {error}") from None
    path = store.folder / _IDENTITY
    if not path.exists():
        store.folder.mkdir(parents=True, exist_ok=True)
        if others := sorted(other.name for other in store.folder.glob(f"*{store.suffix}")):
            raise ValueError(
                f"{store.folder} holds files ({others[0]}) but no {_IDENTITY} that says what they are of: give another"
                " folder"
            )
        write_bytes(path, json.dumps(here, indent=1).encode())
        return
    try:
        there = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): give another folder, or delete this one") from None
    if changes := differences(there, here):
        raise ValueError(
            f"{store.folder} holds results of other work ({'; '.join(changes)}): give another folder, or delete"
            " it to start anew"
        )


def _file_name(name: str) -> str:
    """A file name for a task: the name itself where every system takes it, otherwise made safe and told apart."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:80]
    return name if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
