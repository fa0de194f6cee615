"""Where tasks run: in this process, one after the other, or on a cluster. The first says what the second must give.

A task is a function of module level and its arguments. Results come in the order of the tasks, and a reduction merges
them by a binary tree over that order, so that neither depends on how many workers there are or which is faster.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Task:
    """One call.

    Attributes
    ----------
    name : str
        Unique among the tasks of a call; what progress, errors and stored results call it.
    arguments : tuple
        After the shared ones. They travel with the task: keep them small.
    gpus : float, default 0
        Share of a GPU that it can make use of; it gets one only where there are some.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    gpus: float = 0.0


@dataclasses.dataclass(frozen=True)
class Retry:
    """A task that was run again: which, and why.

    Attributes
    ----------
    task, reason : str
    """

    task: str
    reason: str


@dataclasses.dataclass(frozen=True)
class TaskStore:
    """A folder in which finished results wait for the next call, so that work that was killed goes on.

    Attributes
    ----------
    folder : Path
        Made if it does not exist.
    identity : dict
        Plain JSON of everything that the results follow from. Results of another identity are refused.
    write : callable
        ``write(path, result)``: one file, whole or not at all.
    read : callable
        ``read(path)``: the result, bit for bit. Raises ValueError for a damaged file.
    suffix : str, default ".safetensors"
        Of the files.
    """

    folder: Path
    identity: dict[str, Any]
    write: Callable[[Path, Any], None]
    read: Callable[[Path], Any]
    suffix: str = ".safetensors"


class TaskError(RuntimeError):
    """A task that failed, after all its retries: names the task and says what happened."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of `Executor.map`, or of `map_reduce` where there is a `merge`; see there."""

    function: Callable[..., Any]
    merge: Callable[[Any, Any], Any] | None
    tasks: list[Task]
    shared: tuple[Any, ...]
    label: str
    store: TaskStore | None
    progress: bool | None


class Executor(abc.ABC):
    """Runs tasks.

    Attributes
    ----------
    retries : list of Retry
        All that happened so far, in order.
    """

    retries: list[Retry]

    def map(
        self,
        function: Callable[..., Any],
        tasks: Sequence[Task],
        *,
        shared: tuple[Any, ...] = (),
        label: str = "tasks",
        store: TaskStore | None = None,
        progress: bool | None = None,
    ) -> list[Any]:
        """Results ``function(*shared, *task.arguments)``, in the order of the tasks.

        Parameters
        ----------
        function : callable
            Of module level, of an installed module. What it returns follows from its arguments alone.
        tasks : sequence of Task
        shared : tuple
            Large arguments that all tasks have in common; sent once to each machine. Tasks must not change them.
        label : str
            What the progress display calls the work.
        store : TaskStore, optional
            Results that are there are not computed again; new ones are written as they come.
        progress : bool, optional
            As for `track`, in the process that calls.

        Raises
        ------
        ValueError, TypeError, ...
            What a task raised, as it is: bad input and bad code (`faults.PERMANENT`) are bad on every machine.
            ValueError too if names are not unique, the store is of other work or a file in it is damaged.
        TaskError
            If a task failed for another reason, and again each time it was tried anew.
        """
        return self._run(Call(function, None, check_tasks(tasks), shared, label, store, progress))

    def map_reduce(
        self,
        function: Callable[..., Any],
        merge: Callable[[Any, Any], Any],
        tasks: Sequence[Task],
        *,
        shared: tuple[Any, ...] = (),
        label: str = "tasks",
        store: TaskStore | None = None,
        progress: bool | None = None,
    ) -> Any:
        """All results merged, two neighbours at a time: ``merge(merge(r0, r1), merge(r2, r3))``.

        Arguments and errors as of `map`; without tasks it raises ValueError. `merge` may change and return its first
        argument. An error that it raises is not tried again. In a store are the results of the tasks, not the merges.
        """
        tasks = check_tasks(tasks, at_least=1)
        return self._run(Call(function, merge, tasks, shared, label, store, progress))[0]

    @abc.abstractmethod
    def _run(self, call: Call) -> list[Any]:
        """Results of all tasks in order; of `map_reduce`, the one that is left."""


def check_tasks(tasks: Sequence[Task], at_least: int = 0) -> list[Task]:
    """The tasks as a list.

    Raises
    ------
    ValueError
        If two have the same name, or there are fewer than `at_least`.
    """
    tasks = list(tasks)
    if len(tasks) < at_least:
        raise ValueError(f"there is nothing to merge: {len(tasks)} tasks, and at least {at_least} is needed")
    names: set[str] = set()
    for task in tasks:
        if task.name in names:
            raise ValueError(
                f"two tasks are named {task.name!r}: results are told apart by name, so give each its own"
            )
        names.add(task.name)
    return tasks
