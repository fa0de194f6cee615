"""`evaluate` with networks: the trainings of a plan, one look at the test rows, and the figures."""

from collections.abc import Sequence

import numpy as np
import torch

from ._evaluation_data import EvaluationData
from ._evaluation_plan import EvaluationPlan, Key, Line
from ._network_evaluation import NetworkEvaluation, NetworkRow
from ._network_options import NetworkOptions
from .nn_baselines.bootstrap import bootstrap_interval
from .nn_baselines.evaluator import Examinee, Trained, examine, train_on
from .nn_baselines.scores import hard_label_recovery, improvement_over_random, label_robust_score
from .solver.distilled_set import DistilledSet
from .solver.model import as_rows
from .solver.progress import track
from .solver.source import as_array


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
    trained: dict[Key, Trained] = {}
    for key, job in track(plan.trainings.items(), "trainings", len(plan.trainings), show=options.progress):
        points, labels = job.points()
        trained[key] = train_on(
            job.spec,
            points.to(options.device, torch.float32),
            labels.to(options.device),
            job.recipe,
            count=options.count,
            seed=job.seed,
            choice=plan.choice(job.ds),
            workers=options.workers,
        )
    examinees = [
        Examinee(trained[key].stack, plan.transform(job.ds), plan.truth(job.ds))
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
    )


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
