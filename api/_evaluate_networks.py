"""`evaluate` with networks: the trainings of a plan, one look at the test rows, and the figures."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._evaluation_data import EvaluationData
from ._evaluation_plan import EvaluationPlan, Key, Line
from ._learn import resolve_device
from ._network_evaluation import NetworkEvaluation, NetworkRow
from ._network_options import NetworkOptions
from ._tasks import Late, gpu_share, retried_since
from .nn_baselines.bootstrap import bootstrap_interval
from .nn_baselines.evaluator import Choice, Examinee, Trained, examine, train_on
from .nn_baselines.scores import hard_label_recovery, improvement_over_random, label_robust_score
from .nn_baselines.training_recipes import TrainingRecipe
from .solver.distilled_set import DistilledSet
from .solver.executors import Task
from .solver.model import as_rows
from .solver.networks import NetworkSpec
from .solver.source import as_array, to_tensor


def evaluate_networks(
    named: Sequence[tuple[str, list[DistilledSet]]], data: EvaluationData, options: NetworkOptions
) -> NetworkEvaluation:
    """Train networks on sets and baselines, and score all of them in one pass over the test rows.

    Parameters
    ----------
    named : sequence of (str, list of DistilledSet)
    data : EvaluationData
    options : NetworkOptions

    Returns
    -------
    NetworkEvaluation

    Raises
    ------
    ValueError
        If a set cannot be trained on, sets of one name differ in size, or training rows are too few.

    Notes
    -----
    All networks are kept until the test rows have been looked at.
    """
    plan = EvaluationPlan(named, data, options)
    X = as_array(data.x, "X")
    for _, sets in named:
        X = as_rows(X, sets[0].encoder.transform.input_shape)
        plan.truth(sets[0])
    before = len(options.executor.retries)
    trained = _train_all(plan, options)
    # To the device now: all are shown every piece of the test rows.
    examinees = [
        Examinee(trained[key].stack.to(options.device), plan.transform(job.ds), plan.truth(job.ds))
        for key, job in plan.trainings.items()
    ]
    found = examine(examinees, X, device=options.device, workers=options.workers)
    accuracies = {key: values.numpy() for key, values in zip(plan.trainings, found, strict=True)}
    return NetworkEvaluation(
        rows=tuple(_row(line, plan, trained, accuracies, options) for line in plan.lines),
        data=data.name,
        n_test=len(data.y),
        recipe=options.recipe.model_dump(mode="json"),
        confidence=float(options.confidence),
        seed=options.seed,
        n_held_out=plan.n_held_out,
        full_epochs=options.full_epochs if "full" in options.baselines else None,
        retried=retried_since(options.executor, before),
    )


def _train_all(plan: EvaluationPlan, options: NetworkOptions) -> dict[Key, Trained]:
    """Networks of all trainings, each training a task."""
    points: dict[Key, Late[Any]] = {}
    held: dict[Key, Late[Any]] = {}
    tasks: list[Task] = []
    for number, (key, job) in enumerate(plan.trainings.items(), 1):
        # The same points and rows for every network that is trained, or chosen, on them.
        what, rows = key[:-1], (id(plan.transform(job.ds)), job.ds.targets)
        points.setdefault(what, Late(job.points, _as_arrays))
        held.setdefault(rows, Late(lambda ds=job.ds: _held_out(plan, ds), _as_pieces))
        places = list(points).index(what), list(held).index(rows)
        given = {"count": options.count, "seed": job.seed, "workers": options.workers, "draw": job.draw}
        name = f"training {number} ({key[-2]}, {key[-1]})"
        tasks.append(Task(name, (*places, job.spec, job.recipe, given), gpu_share(options.train_device)))
    done = options.executor.map(
        _train,
        tasks,
        shared=(
            list(points.values()),
            list(held.values()),
            options.rates,
            options.choose_epoch,
            options.train_device,
        ),
        label="trainings",
        progress=options.progress,
    )
    return dict(zip(plan.trainings, done, strict=True))


def _train(
    points: Sequence[Late[Any]],
    held: Sequence[Late[Any]],
    rates: tuple[float, ...],
    choose_epoch: bool,
    device: str,
    place: int,
    held_place: int,
    spec: NetworkSpec,
    recipe: TrainingRecipe,
    given: dict[str, Any],
) -> Trained:
    """Networks of one training, by a task; they come back on the CPU, where every machine can take them."""
    where = resolve_device(device)

    def pieces() -> Iterator[tuple[Tensor, Tensor]]:
        for rows, classes in held[held_place].get():
            yield _on(where, rows), _on(where, classes)

    X, Y = points[place].get()
    choice = Choice(rates, choose_epoch, pieces)
    trained = train_on(spec, _on(where, X).float(), _on(where, Y), recipe, choice=choice, **given)
    return dataclasses.replace(trained, stack=trained.stack.to("cpu"))


def _held_out(plan: EvaluationPlan, ds: DistilledSet) -> Iterable[tuple[Tensor, Tensor]]:
    """Rows that something is chosen on, if there is anything to choose."""
    found = plan.choice(ds).pieces
    return () if found is None else found()


def _as_arrays(tensors: Iterable[Tensor]) -> tuple[np.ndarray, ...]:
    """Tensors as they travel: the tasks of a machine share the memory of arrays."""
    return tuple(tensor.cpu().numpy() for tensor in tensors)


def _as_pieces(pieces: Iterable[tuple[Tensor, Tensor]]) -> list[tuple[np.ndarray, ...]]:
    return [_as_arrays(piece) for piece in pieces]


def _on(device: torch.device, values: Tensor | np.ndarray) -> Tensor:
    return (values if isinstance(values, Tensor) else to_tensor(values)).to(device)


def _row(
    line: Line,
    plan: EvaluationPlan,
    trained: dict[Key, Trained],
    accuracies: dict[Key, np.ndarray],
    options: NetworkOptions,
) -> NetworkRow:
    def mean(other: Line | float | None) -> float | None:
        if isinstance(other, Line):
            return float(np.mean([accuracies[key] for key in other.keys]))
        return other

    values = np.stack([accuracies[key] for key in line.keys])
    own, random, hard, full = (mean(other) for other in (line, line.random, line.hard, line.full))
    assert own is not None
    ior = None if random is None else improvement_over_random(own, random)
    hlr = None if full is None or hard is None else hard_label_recovery(full, hard)
    interval = None
    if values.size > 1:
        interval = bootstrap_interval(values, confidence=options.confidence, seed=options.seed)
    jobs, done = [plan.trainings[key] for key in line.keys], [trained[key] for key in line.keys]
    return NetworkRow(
        name=", ".join(line.names),
        trained_on=line.trained_on,
        network=line.network,
        recipe=jobs[0].recipe.name,
        points=line.points,
        nbytes=line.nbytes,
        accuracies=tuple(tuple(each) for each in values.tolist()),
        score=own,
        std=float(values.std()) if values.size > 1 else None,
        interval=interval,
        seeds=tuple(job.seed for job in jobs),
        rates=tuple(each.rate for each in done),
        epochs=tuple(each.epoch for each in done),
        held_out=tuple(each.held_out for each in done),
        diverged=sum(each.diverged for each in done),
        ior=ior,
        hlr=hlr,
        lrs=None if ior is None or hlr is None else label_robust_score(ior, hlr),
    )
