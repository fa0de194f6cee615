"""Tasks one after the other in this process: the default, and what every other executor must give."""

from collections.abc import Generator
from typing import Any

from ..progress import track
from .base import Call, Executor, Retry
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

    def _run(self, call: Call) -> list[Any]:
        attempts = Attempts(self._retries, self.retries)
        results = track(self._results(call, attempts), call.label, len(call.tasks), show=call.progress)
        if (merge := call.merge) is None:
            return list(results)
        tree = MergeTree(len(call.tasks))
        for index, result in enumerate(results):
            pair = tree.put(Node(0, index), result)
            while pair is not None:
                name = merge_name([call.tasks[i].name for i in tree.leaves(pair.node)])
                merged = attempts.run(name, lambda pair=pair: merge(pair.first, pair.second), repeat=False)
                pair = tree.put(pair.node, merged)
        return [tree.root]

    def _results(self, call: Call, attempts: Attempts) -> Generator[Any]:
        """The results in order, each when it is asked for."""
        stored = StoredResults(call.store, call.tasks)
        for task in call.tasks:
            if stored.has(task):
                yield stored.read(task)
                continue
            result = attempts.run(task.name, lambda task=task: call.function(*call.shared, *task.arguments))
            stored.write(task, result)
            yield result
