"""`evaluate`: what models trained on distilled sets do on a test set, which is looked at once."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

from ._evaluate_networks import evaluate_networks
from ._evaluate_ridge import evaluate_ridge
from ._evaluation import Evaluation
from ._evaluation_data import EvaluationData, named_sets
from ._learn import resolve_device
from ._network_evaluation import NetworkEvaluation
from ._network_options import network_options
from .nn_baselines.training_recipes import TRAINING_RECIPES, TrainingRecipe
from .solver._check import check_name
from .solver.executors import Executor, SerialExecutor, make_executor

RECIPES = ("ridge", *TRAINING_RECIPES)


@overload
def evaluate(
    sets: Any,
    data: Any,
    *,
    recipe: Literal["ridge"] = "ridge",
    baselines: str | Sequence[str] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Evaluation: ...
@overload
def evaluate(
    sets: Any,
    data: Any,
    *,
    recipe: str | TrainingRecipe,
    networks: str | Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    count: int | None = None,
    baselines: str | Sequence[str] | None = None,
    rates: float | Sequence[float] = (),
    choose_epoch: bool = False,
    full_accuracy: float | Mapping[str, float] | None = None,
    full_epochs: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    device: str = "auto",
    executor: str | Executor | None = None,
    workers: int | None = None,
    progress: bool | None = None,
    **changes: Any,
) -> Evaluation | NetworkEvaluation: ...
def evaluate(
    sets: Any,
    data: Any,
    *,
    recipe: str | TrainingRecipe = "ridge",
    networks: str | Sequence[str] | Mapping[str, Mapping[str, Any]] | None = None,
    count: int | None = None,
    baselines: str | Sequence[str] | None = None,
    rates: float | Sequence[float] = (),
    choose_epoch: bool = False,
    full_accuracy: float | Mapping[str, float] | None = None,
    full_epochs: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    device: str = "auto",
    executor: str | Executor | None = None,
    workers: int | None = None,
    progress: bool | None = None,
    **changes: Any,
) -> Evaluation | NetworkEvaluation:
    """Score models trained on distilled sets on a test set, which is looked at once.

    Parameters
    ----------
    sets : DistilledSet, path, or sequence or mapping of them
        Names in the table are keys, file names, or the feature map (or kernel) and number of points. A mapping may
        have several sets under one name, made by one method with several seeds: with networks, they are one row.
    data : Data or (X, y)
        What `load_data` returns (its test split is used), or raw test inputs with labels or values.
    recipe : str or TrainingRecipe, default "ridge"
        "ridge" trains the set's own model: its feature map or kernel, its ridge, its labels. The others train networks
        on its transformed points: "dc-bench", "dsa", "kip-finite", "frepo", "soft-label", "d3", or one of your own.
    networks : str, sequence of str, or mapping of str to dict, default "convnet"
        Networks by name ("mlp", "lenet", "alexnet", "vgg11", "resnet18", ...); a mapping gives their options. Every one
        of them is trained on every set, with weights of its own.
    count : int, default 5
        Networks for each set. Published tables have 5 (DC-BENCH, MTT) or 20 (DC, DSA, DM).
    baselines : str or sequence of str, optional
        What stands beside the sets, as many real training rows of each class as a set has points. With "ridge",
        "random" on demand: drawn by ``seed``, with the same encoder, hard labels, and a ridge of their own, chosen by
        generalised cross-validation on those rows (the distilled ridge means nothing for other points). With networks,
        "random" and "k-center" always, unless this is empty: ``()``; and on demand "herding", "k-means",
        "label-solve" (random rows with the best soft labels for the set's ridge model, where the recipe has soft
        labels) and "full" (all training rows). Needs ``data.x_train``.
    rates : float or sequence of float, default ()
        Learning rates to choose from, for each set and baseline, by a tenth of the training rows that is held out of
        the baselines (drawn by ``seed``, class by class); by default the recipe's rate.
    choose_epoch : bool, default False
        Whether networks are taken after the epoch (of ten, evenly spread) that is best on those rows, instead of the
        last.
    full_accuracy : float or mapping of str to float, optional
        Accuracy of a network (by name) trained on all rows, if it is known, for HLR and LRS.
    full_epochs : int, optional
        Epochs of "full": by default those of the recipe, but at most 50.
    confidence : float, default 0.95
        Of the Wilson intervals of accuracies ("ridge"), or of the bootstrap intervals over sets and networks.
    seed : int, default 0
        Of the baselines, and of networks: the s-th set of a name, and what stands beside it, have ``seed + s``.
    device : str, default "auto"
        Where networks are trained: "cpu", "cuda", ...; a GPU by default, where there is one. "ridge" has no choice.
    executor : {"serial", "ray"} or Executor, optional
        What runs the trainings; by default one after the other, here. Not for "ridge", which trains no networks.
    workers : int, optional
        Threads that train networks on a CPU, by default as many as torch uses. No result depends on it.
    progress : bool, optional
        Show progress of trainings; by default after two seconds.
    **changes
        Fields of `TrainingRecipe` that replace the recipe's: ``epochs=100``, ``augment="color_crop_cutout"``.

    Returns
    -------
    Evaluation or NetworkEvaluation
        The second for networks. ``rows``, ``to_dict()``, ``to_json()``; prints as a table.

    Raises
    ------
    ValueError
        If there is no test split, the data are not those of the set (shape, classes), a name is unknown, networks are
        to be trained on something else than points with classes, or arguments do not fit the recipe.
    ImportError
        If the executor's library is not installed.

    Notes
    -----
    "ridge": test rows are encoded once for all sets with the same transform and feature map. Sets that come fresh
    from `distill` also have the full model compared, row by row.

    Networks: for each set or baseline and kind of network, ``count`` trainings for each rate. All networks are kept
    until the test rows have been read, once, and transformed once for all sets with the same transform. With an
    executor, all that networks are trained on is made here before it is sent, each thing once; the test rows stay.

    Examples
    --------
    >>> import kernel_distill as kd
    >>> data = kd.load_data("digits")
    >>> ds = kd.distill(data.x_train, data.y_train, feature_map="identity")
    >>> [row] = kd.evaluate(ds, data).rows
    >>> row.score == row.full_score, row.n_different
    (True, 0)
    >>> table = kd.evaluate(ds, data, recipe="dc-bench", networks="mlp", count=2, epochs=5)
    >>> [(row.trained_on, row.networks) for row in table.rows]
    [('distilled', 2), ('random', 2), ('k-center', 2)]
    """
    arguments = dict(locals())
    sets, data = arguments.pop("sets"), arguments.pop("data")
    return _checked(**arguments)(sets, data)


def evaluator(**arguments: Any) -> Callable[[Any, Any], Evaluation | NetworkEvaluation]:
    """`evaluate` with everything but its sets and data, which are checked here already.

    Parameters
    ----------
    **arguments
        Of `evaluate`.

    Returns
    -------
    callable
        ``(sets, data)``: what `evaluate` returns.

    Raises
    ------
    ValueError, ImportError
        As `evaluate`.
    """
    given = inspect.signature(evaluate).bind(None, None, **arguments)
    given.apply_defaults()
    return _checked(
        **{name: given.arguments[name] for name in given.arguments if name not in ("sets", "data")}
    )


def _given(value: Any) -> bool:
    """Whether an argument is something else than one of the defaults of those for networks."""
    return not (value is None or value is False or (isinstance(value, Sequence) and not value))


def _checked(
    *,
    recipe: str | TrainingRecipe,
    baselines: str | Sequence[str] | None,
    confidence: float,
    seed: int,
    device: str,
    executor: str | Executor | None,
    progress: bool | None,
    changes: Mapping[str, Any],
    **of_networks: Any,
) -> Callable[[Any, Any], Evaluation | NetworkEvaluation]:
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence!r}")
    if not isinstance(recipe, TrainingRecipe):
        check_name(recipe, RECIPES, "recipe")
    if recipe == "ridge":
        given = {
            **of_networks,
            "executor": executor,
            "device": None if device == "auto" else device,
            **changes,
        }
        if wrong := [name for name, value in given.items() if _given(value)]:
            raise ValueError(
                f"recipe 'ridge' trains no networks: leave out {', '.join(wrong)}, or choose another recipe"
            )
        wanted = [baselines] if isinstance(baselines, str) else list(baselines or ())
        return lambda sets, data: evaluate_ridge(sets, data, wanted, confidence, seed)
    runner = make_executor(executor)
    # A device that is asked for by name is that of the machines which train.
    here = device if isinstance(runner, SerialExecutor) or device == "cpu" else "auto"
    options = network_options(
        recipe,
        changes,
        baselines=baselines,
        confidence=confidence,
        seed=seed,
        device=resolve_device(here),
        train_device=device,
        executor=runner,
        progress=progress,
        **of_networks,
    )

    def run(sets: Any, data: Any) -> NetworkEvaluation:
        rows = EvaluationData(data, options.needs_training)
        return evaluate_networks(named_sets(sets), rows, options)

    return run
