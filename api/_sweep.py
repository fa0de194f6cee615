"""`sweep`: recipes by seeds, each run a task of an executor, and one table of what came of them.

All sets are made before the test split is looked at, which is done once. With a folder, every set is a file there as
soon as it is made, and a sweep that was killed goes on.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ._ablation import seed_numbers
from ._ablation_store import data_digest
from ._distill import distill
from ._recipe import Recipe
from ._recipes import load_recipe
from ._sweep_result import Sweep, SweepRow
from ._sweep_scores import SetScores, make_scorer, scorer_name, sweep_scores
from ._tasks import distill_arguments, gpu_share, plain_settings, retried_since, run_record, versions
from .nn_baselines.training_recipes import TrainingRecipe
from .solver._check import check_name
from .solver.data import Data
from .solver.distilled_set import DistilledSet
from .solver.executors import Executor, Task, TaskStore, make_executor

# Arguments of `distill` that the sweep gives itself.
_OWN = ("X", "y", "executor", "loop", "method", "progress", "provenance", "seed")
# Those that say how a set is made and not which.
_OF_MACHINES = ("batch_bytes", "device")


def sweep(
    recipes: Any,
    data: Data | Mapping[str, Data],
    *,
    seeds: int | Sequence[int] = 1,
    executor: str | Executor | None = None,
    out: str | os.PathLike[str] | None = None,
    changes: Mapping[str, Any] | None = None,
    evaluate: str | TrainingRecipe | Mapping[str, Any] | None = "ridge",
    progress: bool | None = None,
    any_data: bool = False,
    **arguments: Any,
) -> Sweep:
    """Distil by several recipes, with several seeds each, and compare.

    Parameters
    ----------
    recipes : str, path, Recipe, or sequence of them
        Names as for `load_recipe`.
    data : Data or mapping of str to Data
        What `load_data` returns; a mapping has one for each recipe, by its name.
    seeds : int or sequence of int, default 1
        How many (0, 1, ...), or which.
    executor : {"serial", "ray"} or Executor, optional
        Where the runs, and the trainings of an evaluation by networks, run; by default here, one after the other.
        What they give does not depend on it, unless a recipe's loop has a `time_limit`.
    out : path, optional
        Folder for the sets, ``<recipe>-seed<seed>.safetensors``, each as soon as it is made. Those that are there
        already are not made again.
    changes : mapping of str to value, optional
        Values in place of those of every recipe, by dotted key: see `Recipe.replaced`.
    evaluate : str, TrainingRecipe, mapping or None, default "ridge"
        How sets are scored on the test split, which is looked at once, after all sets are made: a recipe of `evaluate`,
        or its arguments, as ``{"recipe": "dc-bench", "networks": "mlp", "count": 3}``. There are no
        baselines. None leaves the test split alone.
    progress : bool, optional
        True, False, or (default) after two seconds of work.
    any_data : bool, default False
        Whether data of another shape or with other classes than a recipe is for are let through.
    **arguments
        Further arguments of `distill`, the same for every run: ``device="cpu"``, ``batch_bytes=...``.

    Returns
    -------
    Sweep
        ``rows``, ``sets``, ``to_dict()``, ``to_json()``; prints as a table.

    Raises
    ------
    ValueError
        If an argument, a recipe or the data cannot be used, or `out` holds sets of another sweep. More seeds, and
        further recipes, go on with the same folder.
    ImportError
        If the executor's library is not installed.

    Examples
    --------
    >>> import kernel_distill as kd
    >>> data = kd.load_data("digits")
    >>> changes = {"loop.steps": 2, "per_class": 1, "method.batch_size": 100}
    >>> result = sweep("kip-fc1-cifar10-100", data, changes=changes, any_data=True)
    >>> [(row.recipe, row.points, len(row.scores)) for row in result.rows]
    [('kip-fc1-cifar10-100', 10, 1)]
    """
    named = _recipes(recipes, changes)
    numbers = seed_numbers(seeds)
    sources = _data(named, data, any_data)
    _check_arguments(named.values(), arguments)
    named = {name: _changed(recipe, arguments) for name, recipe in named.items()}
    runner = make_executor(executor)
    score = make_scorer(evaluate, runner, arguments.get("device"), progress)
    for source in sources.values():
        if score is not None and (source.x_test is None or source.y_test is None):
            raise ValueError(
                f"{source.name!r} has no test split to score on: load it with load_data(..., test=0.2), or give"
                " evaluate=None"
            )
    before = len(runner.retries)
    # Data that several recipes share travel once.
    distinct = list({id(source): source for source in sources.values()}.values())
    digests = {id(source): data_digest(source) for source in distinct}
    tasks, marks = [], set()
    for name, recipe in named.items():
        source = sources[name]
        gpus = gpu_share(arguments.get("device", "auto"), recipe.method_options.method)
        place = next(index for index, each in enumerate(distinct) if each is source)
        for seed in numbers:
            mark = _mark(recipe, digests[id(source)], seed)
            marks.add(mark)
            tasks.append(Task(f"{name}-seed{seed}", (place, recipe, seed, mark), gpus))
    made = runner.map(
        _distil,
        tasks,
        shared=(distinct, arguments),
        label="sets",
        store=None if out is None else _store(Path(out), arguments, marks),
        progress=progress,
    )
    count = len(numbers)
    sets = {name: tuple(made[i * count : (i + 1) * count]) for i, name in enumerate(named)}
    scores = {} if score is None else sweep_scores(sets, sources, score)
    return Sweep(
        rows=tuple(
            _row(recipe, sources[name], numbers, sets[name], scores.get(name, SetScores(())))
            for name, recipe in named.items()
        ),
        sets=sets,
        evaluated=scorer_name(evaluate),
        retried=retried_since(runner, before),
    )


def _recipes(recipes: Any, changes: Mapping[str, Any] | None) -> dict[str, Recipe]:
    """Recipes by name, with the changes."""
    several = (
        recipes
        if isinstance(recipes, Iterable) and not isinstance(recipes, (str, os.PathLike, Recipe))
        else [recipes]
    )
    named: dict[str, Recipe] = {}
    for each in several:
        recipe = each if isinstance(each, Recipe) else load_recipe(each)
        if recipe.name in named:
            raise ValueError(f"two recipes are called {recipe.name!r}: every one can be given once only")
        named[recipe.name] = recipe.replaced(changes) if changes else recipe
    if not named:
        raise ValueError("`recipes` is empty: name one or more")
    return named


def _data(named: Mapping[str, Recipe], data: Any, any_data: bool) -> dict[str, Data]:
    """Data of each recipe."""
    if isinstance(data, Mapping):
        for name in named:
            check_name(name, data, "recipe among the keys of `data`:")
    sources = {name: data[name] if isinstance(data, Mapping) else data for name in named}
    for name, source in sources.items():
        if not isinstance(source, Data):
            raise ValueError(
                f"`data` must be what load_data returns, or a mapping of it, got {type(source).__name__}"
            )
        if not any_data:
            named[name].check(source)
    return sources


def _check_arguments(recipes: Iterable[Recipe], arguments: Mapping[str, Any]) -> None:
    for name in arguments:
        check_name(name, distill_arguments(_OWN), "argument of sweep, or of distill,")
        for recipe in recipes:
            if name in recipe.arguments():
                raise ValueError(f"recipe {recipe.name!r} has a `{name}` of its own: replace it by `changes`")


def _changed(recipe: Recipe, arguments: Mapping[str, Any]) -> Recipe:
    """The recipe, which knows the arguments that make its sets others than the published ones."""
    given = [name for name in arguments if name not in (*_OF_MACHINES, *recipe.changed)]
    return recipe.model_copy(update={"changed": (*recipe.changed, *given)})


def _mark(recipe: Recipe, data: str, seed: int) -> str:
    """What a set follows from besides the arguments of the sweep; its file carries it."""
    document = [
        recipe.model_dump(mode="json", exclude={"title", "note", "published", "measured"}),
        data,
        seed,
    ]
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _store(folder: Path, arguments: Mapping[str, Any], marks: set[str]) -> TaskStore:
    identity = {"arguments": plain_settings(arguments, "a sweep"), "versions": versions()}

    def read(path: Path) -> DistilledSet:
        ds = DistilledSet.load(path)
        if ds.provenance.get("sweep") not in marks:
            raise ValueError("it was made by another recipe of that name, or of other data")
        return ds

    return TaskStore(folder, identity, lambda path, ds: ds.save(path), read)


def _distil(
    data: Sequence[Data], arguments: Mapping[str, Any], place: int, recipe: Recipe, seed: int, mark: str
) -> DistilledSet:
    """One set, by a task; as its file would give it, without the full model."""
    given = {**recipe.arguments(), **arguments}
    given["provenance"] = {**given["provenance"], "sweep": mark}
    try:
        ds = distill(data[place], seed=seed, progress=False, **given)
    except ValueError as error:
        raise ValueError(f"recipe {recipe.name!r}, seed {seed}: {error}") from error
    return dataclasses.replace(ds, full_model=None)


def _fits(recipe: Recipe, data: Data) -> bool:
    try:
        recipe.check(data)
    except ValueError:
        return False
    return True


def _row(
    recipe: Recipe,
    data: Data,
    seeds: tuple[int, ...],
    sets: Sequence[DistilledSet],
    found: SetScores,
) -> SweepRow:
    scores = found.scores
    records = [run_record(ds) for ds in sets]
    return SweepRow(
        recipe=recipe.name,
        data=data.name,
        seeds=seeds,
        points=len(sets[0]),
        nbytes=sets[0].nbytes,
        metric="accuracy" if sets[0].targets.is_classes else "r2",
        scores=scores,
        score=float(np.mean(scores)) if scores else None,
        deviation=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        steps=float(np.mean([record.steps for record in records])),
        seconds=float(np.mean([record.seconds for record in records])),
        published=recipe.published if _fits(recipe, data) else (),
        published_for=recipe.data,
        changed=recipe.changed,
        diverged=sum(record.stopped == "diverged" for record in records),
        networks_diverged=found.diverged,
    )
