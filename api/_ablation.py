"""`ablate`: whether another initialisation, another way to draw batches, or other options help at equal time.

Every arm, a combination of these, runs once with each seed, as a task of an executor. Runs of one seed share its
held-out rows, so arms are compared in pairs (`_ablation_result`). The set of a run is chosen on held-out rows, and the
test split is looked at once, for the set that was chosen.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ._ablation_arms import ArmPlan, make_arms
from ._ablation_result import Ablation, Run
from ._ablation_store import run_name, run_store, shared_settings
from ._distill import distill
from ._inputs import fit_transform
from ._methods import FITTED_METHODS, NETWORK_METHODS, method_options
from ._sweep_scores import SetScores, make_scorer, network_score, scorer_name, scores_own_models
from ._tasks import Late, distill_arguments, gpu_share, plain_settings, retried_since, run_record
from .nn_baselines.training_recipes import TrainingRecipe
from .solver._check import check_count, check_name, check_non_negative
from .solver.data import Data
from .solver.executors import Executor, SerialExecutor, Task, make_executor
from .solver.learners.pick import Pick
from .solver.loop import Loop
from .solver.source import as_source

# Steps of a run that only time ends.
_UNLIMITED = 10**9
# Arguments of `distill` that an ablation gives itself.
_OWN = ("X", "y", "executor", "loop", "method", "near", "seed")


def ablate(
    data: Data,
    method: Any,
    *,
    inits: Sequence[str] = ("random",),
    picks: Sequence[str | Pick] | None = None,
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: int | Sequence[int] = 5,
    time_limit: float | None = None,
    steps: int | None = None,
    loop: Loop | None = None,
    out: str | os.PathLike[str] | None = None,
    evaluate: str | TrainingRecipe | Mapping[str, Any] = "ridge",
    executor: str | Executor | None = None,
    confidence: float = 0.95,
    progress: bool | None = None,
    **options: Any,
) -> Ablation:
    """Compare initialisations, ways to draw batches, and other options of a learned method.

    Parameters
    ----------
    data : Data
        What `load_data` returns, with a test split.
    method : KIP, DM, D3, ... or the name of one
        Options of a learned method. What `picks` and `vary` say of them is replaced.
    inits : sequence of str, default ("random",)
        What points start from: "data", "noise", or coresets by name. Not for methods that learn distributions.
    picks : sequence of str or Pick, optional
        How batches are drawn: "uniform", "balanced", "loss", with options after commas
        (``"loss,mixing=0.2"``), or `Pick`. By default as
        the method's options say.
    vary : mapping of str to sequence, optional
        Values to try, by option of the method (a dotted key for one inside another) or argument of `distill`:
        ``{"bandwidths": [(1, 2, 4, 8, 16), "median"], "per_class": [1, 10], "subtasks": [1, 5]}``. Plain values:
        numbers, texts, lists and mappings of them. Every combination, with every init and pick, is an arm.
    seeds : int or sequence of int, default 5
        How many (0, 1, ...), or which.
    time_limit : float, optional
        Seconds of the loop, the same for every run; finding the first points comes before it and is reported.
    steps : int, optional
        Steps of the loop instead. A method that is fitted at once ("class-gaussians") takes neither.
    loop : Loop, optional
        The other options of the loop. What ends a run early or writes files of its own (`patience`,
        `checkpoint`, `log`, `callbacks`) is taken out: every arm gets the whole budget.
    out : path, optional
        Folder for one JSON file a run. Runs that are there already are not repeated, so an ablation that was
        killed goes on where it was.
    evaluate : str, TrainingRecipe or mapping, default "ridge"
        How the set of a run is scored on the test split: by its own model, or by networks that are trained on it, with
        the seed of the run: a recipe of `evaluate`, or its arguments, as
        ``{"recipe": "dc-bench", "networks": "mlp", "count": 3}``.
    executor : {"serial", "ray"} or Executor, optional
        Where runs run; by default here, one after the other.
    confidence : float, default 0.95
        Of the intervals.
    progress : bool, optional
        True, False, or (default) after two seconds of work.
    **options
        Further arguments of `distill`: per_class, n_points, transform, storage, holdout, device, ...

    Returns
    -------
    Ablation
        ``arms``, ``runs``, ``to_dict()``, ``to_json()``; prints as a table. The first arm, the first of `inits`
        with the first of `picks` and the first value of everything in `vary`, is the one that others are compared
        with.

    Raises
    ------
    ValueError
        If an argument cannot be used, or `out` holds runs with other settings.
    ImportError
        If the executor's library is not installed.

    Notes
    -----
    Runs follow each other seed by seed, and each seed begins with another arm, so that a machine that slows
    down, or the first run's warming up, is not charged to one arm alone. On a busy machine equal time is not
    equal work: give `steps` then, or look at the steps in the table. So it is where an executor runs several at
    once on one machine: with `steps` the results are those of the default, with `time_limit` they are not. Every
    subtask has the whole budget, as in `distill`.

    Examples
    --------
    >>> import kernel_distill as kd
    >>> data = kd.load_data("digits")
    >>> ablate(data, "kip", picks=["uniform", "loss"], seeds=2, steps=3).arms[1].pick
    'loss'
    """
    arms = make_arms(method, inits, picks, vary)
    numbers = seed_numbers(seeds)
    budget, shared = _budget(arms[0].method, loop, time_limit, steps)
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence!r}")
    if data.x_test is None or data.y_test is None:
        raise ValueError(
            f"{data.name!r} has no test split to compare on: load it with load_data(..., test=0.2)"
        )
    for name in options:
        if name in _OWN:
            raise ValueError(f"an ablation sets `{name}` itself: leave it out")
        check_name(name, distill_arguments(_OWN), "argument of ablate, or of distill,")
    if both := arms[0].arguments.keys() & options.keys():
        raise ValueError(f"{', '.join(sorted(both))}: given both once and to vary: leave one out")
    options = {"progress": False, **options}
    runner = make_executor(executor)
    before = len(runner.retries)
    settings = shared_settings(data, method_options(method), shared, budget, options, arms[0].varied)
    device = options.get("device", "auto")
    # Checked here, made anew by every task.
    make_scorer(evaluate, runner, device, progress)
    alone = scores_own_models(evaluate)
    if not alone:
        settings["evaluated"] = {
            "by": scorer_name(evaluate),
            **plain_settings({"evaluate": evaluate}, "an ablation"),
        }
    if time_limit is not None and not isinstance(runner, SerialExecutor):
        settings["executor"] = type(runner).__name__
    # Seed by seed, each beginning with the next arm.
    order = [
        (seed, arms[(index + turn) % len(arms)])
        for turn, seed in enumerate(numbers)
        for index in range(len(arms))
    ]
    gpus = gpu_share(device, arms[0].method.method if alone else None)
    runs = runner.map(
        _run,
        [Task(run_name(arm.init, arm.pick, arm.varied, seed), (arm, seed), gpus) for seed, arm in order],
        shared=(data, _transforms(data, arms, options), shared, options, evaluate),
        label="runs",
        store=None if out is None else run_store(Path(out), settings),
        progress=progress,
    )
    done = {(run.arm, run.seed): run for run in runs}
    return Ablation(
        settings,
        numbers,
        tuple(done[arm.label, seed] for arm in arms for seed in numbers),
        float(confidence),
        retried_since(runner, before),
    )


def _run(
    data: Data,
    transforms: Mapping[str, Late[Any]],
    loop: Loop | None,
    options: Mapping[str, Any],
    evaluate: Any,
    arm: ArmPlan,
    seed: int,
) -> Run:
    """One run, by a task."""
    given = {**options, **arm.arguments}
    given["transform"] = transforms[_key(given)].get()
    if loop is not None:
        given["loop"] = loop
    if arm.init is not None:
        given["near"] = arm.init
    ds = distill(data, method=arm.method, seed=seed, **given)
    if scores_own_models(evaluate):
        found = SetScores((float(ds.score(data.x_test, data.y_test)),))
    else:
        found = network_score(evaluate, ds, data, seed, options.get("device"))
    record, certificate = run_record(ds), ds.certificate
    return Run(
        init=arm.init,
        pick=arm.pick,
        seed=seed,
        score=found.scores[0],
        heldout_score=certificate.heldout_score,
        heldout_loss=certificate.heldout_loss,
        **dataclasses.asdict(record),
        varied=arm.varied,
        networks_diverged=found.diverged,
    )


def _transforms(data: Data, arms: Sequence[ArmPlan], options: Mapping[str, Any]) -> dict[str, Late[Any]]:
    """Transforms of all arms, each fitted once: whitening takes as long as many steps."""
    made: dict[str, Late[Any]] = {}
    for arm in arms:
        given = {**options, **arm.arguments}
        transform = given.get("transform", "auto")
        # That of a network which the method learns from, if there is one: `distill` finds it.
        own = transform == "auto" and arm.method.method in NETWORK_METHODS

        def fitted(transform: Any = transform, own: bool = own) -> Any:
            return transform if own else fit_transform(as_source(data.x_train, data.y_train), transform)

        made.setdefault(_key(given), Late(functools.cache(fitted)))
    return made


def _key(given: Mapping[str, Any]) -> str:
    return str(given.get("transform", "auto"))


def seed_numbers(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """Seeds 0, 1, ... so many, or those given."""
    if isinstance(seeds, Sequence) and not isinstance(seeds, str):
        found = tuple(check_count(seed, "seeds", 0) for seed in seeds)
        if not found or len(set(found)) < len(found):
            raise ValueError(f"`seeds` must be distinct numbers, one or more, got {list(seeds)}")
        return found
    return tuple(range(check_count(seeds, "seeds")))


def _budget(
    method: Any, loop: Loop | None, time_limit: float | None, steps: int | None
) -> tuple[str, Loop | None]:
    """The budget in words, and the loop that every run gets; nothing for a method without steps."""
    if method.method in FITTED_METHODS:
        if (loop, time_limit, steps) != (None, None, None):
            raise ValueError(f"method {method.method!r} takes no steps: leave out loop, time_limit and steps")
        return "", None
    if (time_limit is None) == (steps is None):
        raise ValueError("give either time_limit (seconds, equal time) or steps (equal steps)")
    if time_limit is not None:
        if check_non_negative(time_limit, "time_limit") == 0:
            raise ValueError("`time_limit` must be more than 0 seconds")
        words = f"{time_limit:g} s each"
    else:
        words = f"{check_count(steps, 'steps')} steps each"
    plain = {"patience": None, "checkpoint": None, "log": None, "callbacks": ()}
    limits = {"time_limit": time_limit, "steps": _UNLIMITED if steps is None else steps}
    return words, (loop or Loop()).model_copy(update={**plain, **limits})
