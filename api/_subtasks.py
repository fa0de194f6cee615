"""Subtasks: blocks of neighbouring classes, each distilled by itself, and merged.

Source: the subtasks of D3 ("federated" in its code): 1000 classes as 5 blocks of 200 or 2 of 500. What all blocks share
is the transform, which is fitted once on all rows, and the seed; their rows, held-out rows, experts and steps are their
own. A block is what `distill` makes of its rows alone with that transform, whoever runs it.

Where the loop has a checkpoint, every block has one: after a kill, the call goes on from each. A block that was
finished costs its evaluation once more, and its experts, where these are not kept in a folder.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from ._inputs import prepare_rows
from ._job import Job
from ._learn import learn
from ._methods import NETWORK_METHODS, MethodOptions
from ._tasks import gpu_share
from .solver.distilled_set import DistilledSet
from .solver.executors import Task, make_executor
from .solver.loop import Loop
from .solver.merge import merge_sets
from .solver.reference import given_points
from .solver.source import ArraySource, as_array
from .solver.targets import Targets

# They explain one network, trained on all classes.
_OF_ONE_NETWORK = ("dkkt", "dkkt+dm")


def learn_subtasks(job: Job, method: MethodOptions | None) -> DistilledSet:
    """Distil each of ``job.subtasks`` blocks of neighbouring classes by itself, and merge the sets.

    Parameters
    ----------
    job : Job
        `loop` says how long each block learns. Its checkpoint and log become files of each block: "run.safetensors"
        is "run-subtask0.safetensors" and so on. So do experts: `experts_folder` has a folder "subtask-0" and so on.
    method : options of a method
        One whose points stand for themselves: "dm", "dc", "dsa", "mtt" or "d3".

    Returns
    -------
    DistilledSet
        As of `merge_sets`; the same for every executor.

    Raises
    ------
    ValueError
        If the method has no subtasks, a block would have less than two classes, a class too few rows, or what a block
        raises.
    """
    _check(job, method)
    source, transform, coding = prepare_rows(job.X, job.y, **job.rows)
    if not isinstance(source, ArraySource):
        raise ValueError("subtasks read the rows of some classes, which a stream cannot give: pass arrays")
    blocks = class_blocks(coding, job.subtasks)
    classes = coding.indices(source.y).numpy()
    counts = np.bincount(classes, minlength=coding.n_outputs)
    # Before the first block is learned, which takes long.
    least = max(1, getattr(method, "least_rows", 1))
    if counts.min() < least:
        label = (coding.classes or ())[int(counts.argmin())]
        raise ValueError(
            f"class {label!r} has {counts.min()} rows, and needs {least} or more: give some, or leave the class out"
        )
    m = job.points(coding)
    if m % coding.n_outputs:
        raise ValueError(
            f"{m} points are not as many for each of {coding.n_outputs} classes: give `per_class` with subtasks"
        )
    near = job.near
    if not isinstance(near, str):
        near = as_array(near, "near")
        given_points(near, m, transform)
    whole = dataclasses.replace(
        job,
        X=source.X,
        y=source.y,
        transform=transform,
        near=near,
        per_class=m // coding.n_outputs,
        n_points=None,
        n_classes=None,
        class_names=job.names(coding),
        provenance={**job.origin, **(job.provenance or {})},
        subtasks=1,
        executor=None,
        progress=False,
    )
    share = gpu_share(job.device, job.method_name)
    tasks = [Task(f"subtask-{index}", (index, block), share) for index, block in enumerate(blocks)]
    executor = make_executor(job.executor)
    sets = executor.map(_learn_block, tasks, shared=(whole, classes), label="subtasks", progress=job.progress)
    return merge_sets(sets)


def class_blocks(coding: Targets, count: int) -> list[tuple[int, int]]:
    """First class, and one past the last, of each of `count` blocks of neighbouring classes, as even as can be.

    Raises
    ------
    ValueError
        If there are no classes, or not two of them for each block.
    """
    if not coding.is_classes:
        raise ValueError("subtasks are blocks of classes: a task of regression has none")
    k = coding.n_outputs
    if k < 2 * count:
        raise ValueError(
            f"{count} subtasks of {k} classes: each needs two classes or more to tell apart, give at most {k // 2}"
        )
    return [(int(part[0]), int(part[-1]) + 1) for part in np.array_split(np.arange(k), count)]


def _check(job: Job, method: MethodOptions | None) -> None:
    name = job.method_name
    known = [each for each in NETWORK_METHODS if each not in _OF_ONE_NETWORK]
    if method is None or name not in known:
        reason = (
            "explains one network of all classes" if name in _OF_ONE_NETWORK else "fits all classes at once"
        )
        raise ValueError(
            f"method {name!r} {reason}, which does not fall into subtasks: leave out `subtasks`, or use"
            f" {', '.join(map(repr, known))}"
        )
    if job.loop is not None and job.loop.callbacks:
        raise ValueError(
            "callbacks cannot tell subtasks apart: leave them out, each subtask writes its `log`"
        )
    if job.sample_weight is not None:
        raise ValueError(f"method {name!r} takes no `sample_weight`: leave it out")


def _learn_block(whole: Job, classes: np.ndarray, index: int, block: tuple[int, int]) -> DistilledSet:
    """The set of the classes from block[0] up to block[1]."""
    first, last = block
    rows = np.flatnonzero((first <= classes) & (classes < last))
    points = slice(first * whole.per_class, last * whole.per_class)
    part = dataclasses.replace(
        whole,
        X=whole.X[rows],
        y=whole.y[rows],
        method=_with_own_files(whole.learned, index),
        near=whole.near if isinstance(whole.near, str) else whole.near[points],
        class_names=None if whole.class_names is None else whole.class_names[first:last],
        loop=None if whole.loop is None else _with_own_paths(whole.loop, index),
    )
    assert part.learned is not None
    return learn(part, part.learned)


def _with_own_files(method: Any, index: int) -> Any:
    """Options with a folder for the experts of this subtask."""
    folder = getattr(method, "experts_folder", None)
    if folder is None:
        return method
    return method.model_copy(update={"experts_folder": str(Path(folder) / f"subtask-{index}")})


def _with_own_paths(loop: Loop, index: int) -> Loop:
    """The loop with files of this subtask."""
    paths = {"checkpoint": loop.checkpoint, "log": loop.log}
    own = {
        name: path.with_name(f"{path.stem}-subtask{index}{path.suffix}")
        for name, path in paths.items()
        if path is not None
    }
    return loop.model_copy(update=own)
