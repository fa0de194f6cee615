"""Tasks one after the other in this process: the default, and what every other executor must give."""

from collections.abc import Callable, Generator, Sequence
from typing import Any

from ..progress import track
from .base import Executor, Retry, Task, TaskStore, check_tasks
from .faults import Attempts, check_retries
from .merge_tree import MergeTree, Node, merge_name
from .stored import StoredResults


class SerialExecutor(Executor):
    """Runs tasks in this process.

    Parameters
    ----------
    retries : int, default 3
        How often a task that raised is run again before it is given up.
    """

    def __init__(self, retries: int = 3) -> None:
        self._retries = check_retries(retries)
        self.retries: list[Retry] = []

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
        tasks = check_tasks(tasks)
        attempts = Attempts(self._retries, self.retries)
        results = self._results(function, tasks, shared, store, attempts)
        return list(track(results, label, len(tasks), show=progress))

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
        tasks = check_tasks(tasks, at_least=1)
        tree = MergeTree(len(tasks))
        attempts = Attempts(self._retries, self.retries)
        results = self._results(function, tasks, shared, store, attempts)
        for index, result in enumerate(track(results, label, len(tasks), show=progress)):
            pair = tree.put(Node(0, index), result)
            while pair is not None:
                name = merge_name([tasks[i].name for i in tree.leaves(pair.node)])
                merged = attempts.run(name, lambda pair=pair: merge(pair.first, pair.second), repeat=False)
                pair = tree.put(pair.node, merged)
        return tree.root

    def _results(
        self,
        function: Callable[..., Any],
        tasks: list[Task],
        shared: tuple[Any, ...],
        store: TaskStore | None,
        attempts: Attempts,
    ) -> Generator[Any]:
        """The results in order, each when it is asked for."""
        stored = StoredResults(store, tasks)
        for task in tasks:
            if stored.has(task):
                yield stored.read(task)
                continue
            result = attempts.run(task.name, lambda task=task: function(*shared, *task.arguments))
            stored.write(task, result)
            yield result
