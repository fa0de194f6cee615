"""The caller's side of one call: hands tasks to Ray, takes results, and hands out again what was lost.

Ray decides where and when a task runs. Here it is decided only what there is to run: tasks in their order, a merge as
soon as its two inputs are there, and again what failed.

Ray could retry by itself (`max_retries`, `retry_exceptions`) and rebuild lost objects, but it reports to its dashboard
and not to the caller which task it ran again and why. So its own retries are off and a failed task is handed out anew.
A lost input of a merge is made again from the tasks below it: inputs further down are released once merged, which is
what bounds the memory of a large reduction.

A call that ends early, by an error or an interrupt, hands out nothing more and lets what Ray has run out. It is not
cancelled: `ray.cancel` of a task that ends at that moment aborts the calling process, or leaves it waiting for ever
(Ray 2.60, both seen within a minute of trying: "Tried to complete task that was not pending").
"""

import copy
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from .base import Task
from .faults import Attempts
from .merge_tree import MergeTree, Node, merge_name
from .ray_worker import call_merge
from .stored import StoredResults


class Submit(NamedTuple):
    """How to hand things to Ray.

    Attributes
    ----------
    ray : module
    task : callable
        ``task(name, gpus, function, *arguments)`` -> references of the error, or None, and of the result.
    limit : callable
        How many tasks may be out at once: enough that no worker waits, and few enough that merges are not queued
        behind all the tasks, with all results in memory, and that little runs out after an error.
    """

    ray: Any
    task: Callable[..., tuple[Any, Any]]
    limit: Callable[[], int]


class _Running(NamedTuple):
    """A task or merge that Ray has, and where its result belongs. A merge has two inputs, a task none."""

    node: Node
    name: str
    result: Any
    inputs: tuple[Any, ...] = ()


class RayWork:
    """One call of `map`, or of `map_reduce` where `merge` is given.

    Parameters
    ----------
    submit : Submit
    function, merge : callable
    shared : list of references
    tasks : list of Task
    stored : StoredResults
    attempts : Attempts

    Attributes
    ----------
    results : list
        Of `map`, in order; of `map_reduce`, the one at the root.
    """

    def __init__(
        self,
        submit: Submit,
        function: Callable[..., Any],
        merge: Callable[[Any, Any], Any] | None,
        shared: list[Any],
        tasks: list[Task],
        stored: StoredResults,
        attempts: Attempts,
    ) -> None:
        self._submit, self._ray = submit, submit.ray
        self._function, self._merge, self._shared = function, merge, shared
        self._tasks, self._stored, self._attempts = tasks, stored, attempts
        self._tree = MergeTree(len(tasks)) if merge is not None else None
        self._waiting = deque(range(len(tasks)))
        self._running: dict[Any, _Running] = {}
        self.results: list[Any] = [None] * (len(tasks) if merge is None else 1)

    def finished(self) -> Generator[int]:
        """Run it all; yields the index of each task when its result is there for the first time."""
        seen: set[int] = set()
        while self._waiting or self._running:
            while self._waiting and len(self._running) < self._submit.limit():
                self._start_task(self._waiting.popleft())
            (ready,), _ = self._ray.wait(list(self._running), num_returns=1, fetch_local=False)
            done = self._running.pop(ready)
            if self._take(ready, done) and not done.inputs and done.node.place not in seen:
                seen.add(done.node.place)
                yield done.node.place

    def _start_task(self, index: int) -> None:
        task, node = self._tasks[index], Node(0, index)
        if self._stored.has(task):
            ready, result = self._ray.put(None), self._ray.put(self._stored.read(task))
        else:
            ready, result = self._submit.task(
                task.name, task.gpus, self._function, *self._shared, *task.arguments
            )
        self._running[ready] = _Running(node, task.name, result)

    def _start_merge(self, node: Node, inputs: tuple[Any, ...]) -> None:
        assert self._tree is not None
        name = merge_name([self._tasks[i].name for i in self._tree.leaves(node)])
        ready, result = self._submit.task(name, 0.0, call_merge, self._merge, *inputs)
        self._running[ready] = _Running(node, name, result, inputs)

    def _take(self, ready: Any, done: _Running) -> bool:
        """Put a result where it belongs; False if it has to be made again."""
        try:
            error = self._ray.get(ready)
            if error is None:
                self._keep(done)
        except self._ray.exceptions.RayError as fault:
            self._again(done, fault)
            return False
        if error is not None:
            # What a merge raised is not tried again, as in the serial executor: it is arithmetic on two results.
            self._attempts.failed(done.name, error, repeat=not done.inputs)
            self._start_task(done.node.place)
            return False
        return True

    def _keep(self, done: _Running) -> None:
        node, result = done.node, done.result
        is_new = not done.inputs and self._stored.keeps and not self._stored.has(self._tasks[node.place])
        if self._tree is None or is_new:
            # Copied: what Ray gives is a read-only view, and holds its place in the object store.
            value = copy.deepcopy(self._ray.get(result))
            if is_new:
                self._stored.write(self._tasks[node.place], value)
            if self._tree is None:
                self.results[node.place] = value
        if self._tree is not None:
            pair = self._tree.put(node, result)
            if pair is not None:
                self._start_merge(pair.node, (pair.first, pair.second))
            elif self._tree.done:
                self.results[0] = copy.deepcopy(self._ray.get(self._tree.root))

    def _again(self, done: _Running, fault: Exception) -> None:
        """Hand out anew what Ray lost: the task or merge itself, or the tasks below an input that is gone."""
        error = self._cause(fault)
        lost = self._lost_inputs(done, error)
        if lost:
            self._remake_inputs(done, lost, error)
            return
        self._attempts.failed(done.name, error)
        if done.inputs:
            self._start_merge(done.node, done.inputs)
        else:
            self._start_task(done.node.place)

    def _lost_inputs(self, done: _Running, error: Exception) -> list[int]:
        """Which inputs of a merge are gone: those that the error names, or all, if it names what is not known here."""
        if not isinstance(error, self._ray.exceptions.ObjectLostError):
            return []
        lost = getattr(error, "object_ref_hex", None)
        if lost == done.result.hex():
            return []
        named = [i for i, reference in enumerate(done.inputs) if reference.hex() == lost]
        return named or list(range(len(done.inputs)))

    def _remake_inputs(self, done: _Running, lost: list[int], error: Exception) -> None:
        """Let the tasks below the lost inputs of a merge run again; the other input waits in the tree for them."""
        assert self._tree is not None
        for i, reference in enumerate(done.inputs):
            child = Node(done.node.level - 1, 2 * done.node.place + i)
            if i not in lost:
                self._tree.put(child, reference)
                continue
            for index in reversed(self._tree.leaves(child)):
                self._attempts.failed(self._tasks[index].name, error)
                self._waiting.appendleft(index)

    def _cause(self, fault: Exception) -> Exception:
        """What went wrong, without the wrappers in which Ray brings it."""
        while isinstance(getattr(fault, "cause", None), Exception):
            fault = fault.cause  # pyright: ignore[reportAttributeAccessIssue]
        missing = getattr(fault, "client_exc", None)
        if isinstance(missing, (ImportError, AttributeError)):
            return ValueError(
                f"a worker cannot load what it is sent ({missing}): install the same version of kernel-distill on every"
                " machine, or send yours along as RayExecutor(wheel=...); functions must be of an installed module"
            )
        return fault
