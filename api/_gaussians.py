"""Class-Gaussian sets: Gaussians fitted to each class, and the ridge model of what is expected over them.

No step is taken and nothing is drawn: moments of the rows, a Gram matrix in closed form, one eigen-decomposition. The
ridge is chosen on rows that were held out, of which the Gaussians know nothing.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._inputs import prepare
from ._job import Job
from ._provenance import provenance
from ._start import point_counts
from ._tasks import retried_since, retry_remarks
from .solver._check import check_name
from .solver.certificate import Certificate, Status
from .solver.certify import share_outside
from .solver.distributional_set import DistributionalSet, raw_points
from .solver.distributions.fit_gaussians import fit_gaussians
from .solver.distributions.fourier_moments import has_moments
from .solver.distributions.gaussians import Gaussians
from .solver.encoder import Encoder
from .solver.executors import Task, make_executor
from .solver.feature_maps import RandomFourier
from .solver.learners.class_gaussians import ClassGaussians
from .solver.learners.rows import TrainingRows
from .solver.model import RidgeModel
from .solver.reference import nominal_classes
from .solver.ridge import RidgePath
from .solver.ridge_choice import best_ridge, parse_ridge
from .solver.targets import Targets

_UNUSED = ("distilled_ridge", "labels", "space", "bounds", "sample_weight", "batch_bytes", "loop")
# Features of the map where their number is left open: as many as inputs, its own default, are for preimages.
_N_FEATURES = 2048
_STORAGE = {"float64": torch.float64, "float32": torch.float32}
# Held-out rows below which their figures are noted as rough.
_FEW_ROWS = 30


def learn_gaussians(job: Job, method: ClassGaussians) -> DistributionalSet:
    """Distil into Gaussians; see `distill`.

    Parameters
    ----------
    job : Job
        `per_class` (or `n_points`) Gaussians a class, `feature_map` "fourier" (the default here, of 2048 features) or
        "identity", `storage` "float64" or "float32", `ridge` a number, candidates or "holdout". `subtasks` and
        `executor` say where classes are fitted; the set is the same.
    method : ClassGaussians

    Returns
    -------
    DistributionalSet

    Raises
    ------
    ValueError
        For targets that are no classes, other feature maps, arguments of no use here, and classes of too few rows.

    Notes
    -----
    The passes of `fit_gaussians`, the moments of `add_moments_` for each Gaussian, and about 9 p³ multiplications.
    """
    encoder, rows, counts = _prepared(job)
    coding, k = rows.targets, rows.targets.n_outputs
    names = job.names(coding)
    executor = make_executor(job.executor)
    before = len(executor.retries)
    parts: list[Gaussians] = executor.map(
        fit_gaussians,
        [
            Task(f"classes {block[0]} to {block[-1]}", (block,))
            for block in (part.tolist() for part in torch.arange(k).tensor_split(job.subtasks))
        ],
        shared=(rows, counts, method.covariance, method.rank, job.seed, _STORAGE[job.storage]),
        label="Gaussians of classes",
        progress=job.progress,
    )
    gaussians = Gaussians.joined(parts)
    labels = nominal_classes(len(gaussians), coding)
    y = _target_rows(coding, labels)
    y = y if job.storage == "float64" else y.float()
    statistics = gaussians.statistics(encoder, coding, y)
    assert statistics is not None
    path = RidgePath.from_statistics(statistics, intercept=job.intercept)
    ridge, rule, score = _choose(job.ridge, path, encoder, rows)
    transform = encoder.transform
    x = raw_points(gaussians.points(), transform)
    nbytes = sum(gaussians.storage().values()) + y.nbytes
    inputs = nbytes / (4 * encoder.feature_map.n_inputs)
    size = f"{nbytes} bytes, as many as {inputs:.4g} inputs of float32 values"
    made = DistributionalSet(
        x=x,
        y=y,
        encoder=encoder,
        targets=coding,
        space="input" if transform.bijective else "transformed",
        distilled_ridge=ridge,
        intercept=job.intercept,
        certificate=Certificate(
            status=Status.MOMENTS,
            ridge_rule=rule,
            distilled_ridge=ridge,
            rank=path.rank,
            condition=float((path.values[0] / path.values[-1]).sqrt()) if path.rank else 1.0,
            max_abs_x=float(x.abs().max()),
            out_of_range=share_outside(x, rows.data_range) if transform.bijective else None,
            n_rows=rows.n,
            notes=(size, *path.notes, *_notes(rows, rule), *retry_remarks(retried_since(executor, before))),
            heldout_score=score,
            heldout_rows=rows.n_held_out,
        ),
        labels=labels,
        class_names=names,
        provenance=provenance(
            {**job.origin, **(job.provenance or {})},
            {**method.model_dump(mode="json"), "holdout": job.holdout},
            job.seed,
            rows.data_range,
        ),
        distribution=gaussians,
    )
    # What the set would train from the same sums when it is first asked: these sums are most of the work.
    vars(made)["model"] = RidgeModel(encoder, coding, *path.weights(ridge))
    return made


def _prepared(job: Job) -> tuple[Encoder, TrainingRows, list[int]]:
    """Encoder, rows in float64 and the number of Gaussians of each class, after all checks."""
    if job.device not in ("auto", "cpu"):
        raise ValueError(f"method 'class-gaussians' runs on the CPU: leave out device={job.device!r}")
    job.refuse(*_UNUSED)
    if job.near_name != "noise":
        raise ValueError("method 'class-gaussians' fits its Gaussians to all rows: leave out `near`")
    check_name(job.storage, _STORAGE, "storage type of Gaussians")
    # "fcnn" is the default of `distill`, which no moments are known for.
    kind = "fourier" if job.feature_map == "fcnn" else job.feature_map
    params = dict(job.feature_params or {})
    if kind in (RandomFourier.name, "rff"):
        params.setdefault("n_features", _N_FEATURES)
    encoder, source, coding = prepare(
        job.X,
        job.y,
        None,
        feature_map=kind,
        feature_params=params,
        precision=job.precision,
        seed=job.seed,
        **job.rows,
    )
    if not coding.is_classes:
        raise ValueError("method 'class-gaussians' needs classes: use 'closed-form' for regression")
    if not has_moments(encoder.feature_map):
        raise ValueError(
            "method 'class-gaussians' takes feature_map='fourier' or 'identity', whose moments are known, got"
            f" {encoder.feature_map.name!r}"
        )
    rule, *_ = parse_ridge(job.ridge, coding, None)
    if rule not in ("given", "holdout"):
        raise ValueError(
            f"ridge={rule!r} scores the rows that a model was fitted to, which Gaussians do not hold: use 'holdout',"
            " candidates or a number"
        )
    m = job.points(coding)
    counts = point_counts(coding, m)
    if isinstance(counts, int) or min(counts) == 0:
        raise ValueError(
            f"{m} Gaussians do not give each of {coding.n_outputs} classes one: raise `n_points`"
        )
    if job.subtasks > coding.n_outputs:
        raise ValueError(
            f"{coding.n_outputs} classes do not make {job.subtasks} subtasks: lower `subtasks` to as many at most"
        )
    # Each class is read by its own task, once or twice: nothing is kept transformed, and little travels.
    rows = TrainingRows(
        source,
        encoder.transform,
        coding,
        seed=job.seed,
        holdout=job.holdout,
        dtype=torch.float64,
        cache_bytes=0,
    )
    return encoder, rows, counts


def _target_rows(coding: Targets, labels: Tensor | None) -> Tensor:
    assert labels is not None
    assert coding.classes is not None
    return coding.encode([coding.classes[index] for index in labels.tolist()])


def _choose(wanted: Any, path: RidgePath, encoder: Encoder, rows: TrainingRows) -> tuple[float, str, float]:
    """λ, how it was chosen, and its accuracy on the rows held out."""
    rule, given, candidates = parse_ridge(wanted, rows.targets, None)
    ridges: Sequence[float] = candidates or path.grid()
    if given is not None:
        ridges = [given.absolute(path.trace, path.weight)]
    right, n = torch.zeros(len(ridges), dtype=torch.int64), 0
    for inputs, Y in rows.held_out():
        predicted = path.scores(encoder.feature_map.features(inputs), ridges).argmax(dim=2)
        right += (predicted == Y.argmax(dim=1)).sum(dim=1)
        n += len(Y)
    scores = dict(zip(ridges, (right.double() / n).tolist(), strict=True))
    ridge = ridges[0] if given is not None else best_ridge(rule, list(scores.items()))
    return ridge, rule, scores[ridge]


def _notes(rows: TrainingRows, rule: str) -> list[str]:
    if rows.n_held_out == 0:
        chosen = "" if rule == "given" else " and the ridge was chosen by it"
        return [f"no rows were held out: the score is that of training rows{chosen}, which flatters the set"]
    if rows.n_held_out < _FEW_ROWS:
        what = "their score is" if rule == "given" else "their score, and the choice by it, are"
        return [f"only {rows.n_held_out} rows were held out: {what} rough"]
    return []
