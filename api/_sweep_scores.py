"""How sweeps and ablations score their sets: `evaluate`, with its arguments checked before any set is made."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ._evaluate import evaluator
from ._evaluation import Evaluation, Row
from ._network_evaluation import NetworkEvaluation, NetworkRow, changed_fields
from .nn_baselines.training_recipes import TrainingRecipe
from .solver.data import Data
from .solver.distilled_set import DistilledSet
from .solver.executors import Executor, SerialExecutor

Scorer = Callable[[Any, Data], Evaluation | NetworkEvaluation]


class SetScores(NamedTuple):
    """Test scores of the sets of one recipe, and how many of the networks behind them diverged."""

    scores: tuple[float, ...]
    diverged: int = 0


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
    if given.get("baselines"):
        raise ValueError("sets alone are scored here: leave out `baselines`, or hand the sets to `evaluate`")
    if given["recipe"] == "ridge":
        return evaluator(**given)
    common: dict[str, Any] = {"executor": runner, "progress": progress, "baselines": ()}
    if device is not None:
        common["device"] = device
    return evaluator(**{**common, **given})


def network_score(wanted: Any, ds: DistilledSet, data: Data, seed: int, device: str | None) -> SetScores:
    """Mean accuracy of networks trained on one set, in this process; `seed` is theirs where `wanted` says none."""
    score = make_scorer({"seed": seed, **_arguments(wanted)}, SerialExecutor(), device, False)
    assert score is not None
    return sweep_scores({"set": [ds]}, {"set": data}, score)["set"]


def scorer_name(wanted: Any) -> str | None:
    """Its recipe by name, with everything that was given besides."""
    if wanted is None:
        return None
    given = _arguments(wanted)
    recipe = given.pop("recipe")
    changed = [f"{name}={value!r}" for name, value in given.items()]
    if isinstance(recipe, TrainingRecipe):
        recipe, changed = recipe.name, changed_fields(recipe.model_dump(mode="json")) + changed
    return f"{recipe} ({', '.join(changed)})" if changed else recipe


def scores_own_models(wanted: Any) -> bool:
    """Whether sets are scored by their own models, and no networks are trained."""
    return _arguments(wanted)["recipe"] == "ridge"


def sweep_scores(
    sets: Mapping[str, Sequence[DistilledSet]], sources: Mapping[str, Data], score: Scorer
) -> dict[str, SetScores]:
    """Test scores of the sets of each recipe; every test split is gone through once."""
    found: dict[str, SetScores] = {}
    for source in {id(each): each for each in sources.values()}.values():
        names = [name for name in sets if sources[name] is source]
        result = score({name: list(sets[name]) for name in names}, source)
        rows: list[Row | NetworkRow] = [row for row in result.rows if row.trained_on == "distilled"]
        for name in names:
            own = [row for row in rows if isinstance(row, NetworkRow) and row.name == name]
            if own:
                of_sets = zip(*(row.accuracies for row in own), strict=True)
                means = tuple(float(np.mean(np.concatenate(each))) for each in of_sets)
                found[name] = SetScores(means, sum(row.diverged for row in own))
            else:
                # One row a set, in their order.
                found[name] = SetScores(tuple(rows.pop(0).score for _ in sets[name]))
    return found


def _arguments(wanted: Any) -> dict[str, Any]:
    return {"recipe": "ridge", **wanted} if isinstance(wanted, Mapping) else {"recipe": wanted}
