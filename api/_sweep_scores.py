"""How sweeps and ablations score their sets: `evaluate`, with its arguments checked before any set is made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ._evaluate import evaluator
from ._evaluation import Evaluation, Row
from ._network_evaluation import NetworkEvaluation, NetworkRow
from .nn_baselines.training_recipes import TrainingRecipe
from .solver.data import Data
from .solver.distilled_set import DistilledSet
from .solver.executors import Executor, SerialExecutor

Scorer = Callable[[Any, Data], Evaluation | NetworkEvaluation]


def make_scorer(wanted: Any, runner: Executor, device: str | None, progress: bool | None) -> Scorer | None:
    """`evaluate` as `sweep` is asked for it; None for none.

    Raises
    ------
    ValueError
        If its arguments cannot be used.
    """
    if wanted is None:
        return None
    given = _arguments(wanted)
    if given["recipe"] == "ridge":
        return evaluator(**given)
    common: dict[str, Any] = {"executor": runner, "progress": progress, "baselines": ()}
    if device is not None:
        common["device"] = device
    return evaluator(**{**common, **given})


def network_score(wanted: Any, ds: DistilledSet, data: Data, seed: int, device: str | None) -> float:
    """Mean test accuracy of networks trained on one set, in this process; `seed` is theirs where `wanted` says none."""
    score = make_scorer({"seed": seed, **_arguments(wanted)}, SerialExecutor(), device, False)
    assert score is not None
    return sweep_scores({"set": [ds]}, {"set": data}, score)["set"][0]


def scorer_name(wanted: Any) -> str | None:
    """Its recipe, by name."""
    recipe = None if wanted is None else _arguments(wanted)["recipe"]
    return recipe.name if isinstance(recipe, TrainingRecipe) else recipe


def sweep_scores(
    sets: Mapping[str, Sequence[DistilledSet]], sources: Mapping[str, Data], score: Scorer
) -> dict[str, tuple[float, ...]]:
    """Test scores of the sets of each recipe; every test split is gone through once."""
    found: dict[str, tuple[float, ...]] = {}
    for source in {id(each): each for each in sources.values()}.values():
        names = [name for name in sets if sources[name] is source]
        result = score({name: list(sets[name]) for name in names}, source)
        rows: list[Row | NetworkRow] = [row for row in result.rows if row.trained_on == "distilled"]
        for name in names:
            own = [row for row in rows if isinstance(row, NetworkRow) and row.name == name]
            if own:
                of_sets = zip(*(row.accuracies for row in own), strict=True)
                found[name] = tuple(float(np.mean(np.concatenate(each))) for each in of_sets)
            else:
                # One row a set, in their order.
                found[name] = tuple(rows.pop(0).score for _ in sets[name])
    return found


def _arguments(wanted: Any) -> dict[str, Any]:
    return {"recipe": "ridge", **wanted} if isinstance(wanted, Mapping) else {"recipe": wanted}
