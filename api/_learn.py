"""Sets that are learned: rows, points to start from, a learner, the loop, and the set that came of it."""

import dataclasses
import math
import time
from typing import Any, TypeVar

import torch
from pydantic import BaseModel

from ._closed_form import fit
from ._inputs import prepare_rows, sampler
from ._job import Job
from ._methods import NETWORK_METHODS, MethodOptions
from ._plan import Start, make_plan
from ._provenance import provenance
from ._start import start_points
from .solver.distillation import distill_points
from .solver.distilled_set import DistilledSet
from .solver.distributional_set import DistributionalSet
from .solver.learned_set import as_stored, check_storage, learned_set
from .solver.learner import Learner
from .solver.learners.class_gaussians import ClassGaussians
from .solver.learners.full_kip import FullKIP, FullKIPLearner
from .solver.learners.rows import TrainingRows
from .solver.loop import Loop, LoopResult, run_loop
from .solver.reference import nominal_classes, reference_points

# Of no use to methods that learn from rows: they have no full model, and their sets no intercept.
_OF_FULL_MODEL = (
    "feature_map",
    "feature_params",
    "ridge",
    "distilled_ridge",
    "labels",
    "space",
    "bounds",
    "intercept",
    "sample_weight",
    "precision",
    "batch_bytes",
)
Options = TypeVar("Options", bound=BaseModel)
# Held-out rows below which their figures are noted as rough.
_FEW_ROWS = 30


def learn(job: Job, method: MethodOptions) -> DistilledSet:
    """Distil by a learned method; see `distill`."""
    if isinstance(method, FullKIP):
        return _learn_full(job, method)
    if isinstance(method, ClassGaussians):
        from ._gaussians import learn_gaussians

        return learn_gaussians(job, method)
    job.refuse(*_OF_FULL_MODEL)
    options: Any = _effective(method, job.loop or Loop())
    networks: Any = None
    prepared = job.rows
    if options.method in NETWORK_METHODS:
        from . import _network_plan as networks

        networks.check_job(job, options)
        if job.transform == "auto" and (known := networks.expert_transform(options)) is not None:
            prepared["transform"] = known
    source, transform, coding = prepare_rows(job.X, job.y, **prepared)
    if networks is not None:
        networks.check_images(options, transform, coding)
    check_storage(job.storage, transform)
    names, m = job.names(coding), job.points(coding)
    rows = TrainingRows(
        source, transform, coding, seed=job.seed, holdout=job.holdout, device=resolve_device(job.device)
    )
    started = time.monotonic()
    # A method that may see a share of the rows starts from these too. One whose loss sees none (a fraction of 0)
    # starts from noise of the mean and spread of all, or from whatever rows `near` asks for.
    fraction = getattr(options, "fraction", 0)
    seen = rows.share(fraction, job.seed) if fraction else rows
    start = Start(*start_points(job.near, seen, m, job.seed, labels=options.labels))
    if networks is not None:
        plan = networks.make_network_plan(job, options, rows, seen, start)
    else:
        plan = make_plan(job, options, rows, start, sampler(source, transform, job.seed))
    init_seconds = time.monotonic() - started
    result = _run(plan.learner, job, options)
    x, y = result.learned["x"], result.learned["y"]
    distribution = None if plan.distribution is None else plan.distribution(result.learned)
    if distribution is not None:
        x = distribution.points()
    if job.storage != "float64":
        y = plan.stored_labels(result.learned, as_stored(x, transform, job.storage)[1])
    classes = start.classes
    if classes is not None:
        classes = classes.repeat(len(x) // m)  # mirror images of points are points of their own
    ds = learned_set(
        plan.encoder(result.learned),
        coding,
        x,
        y,
        relative_ridge=options.ridge,
        labels=classes,
        n_rows=seen.n,
        storage=job.storage,
        data_range=seen.data_range,
        heldout_score=_finite(result.figures["score"]),
        heldout_loss=result.figures["loss"],
        heldout_rows=rows.n_held_out,
        selected_step=result.step,
        steps=result.steps,
        class_names=names,
        provenance=_provenance(job, options, result, init_seconds, seen.data_range),
        notes=[*_notes(result, options.steps, rows), *plan.notes],
    )
    if distribution is not None:
        return DistributionalSet.of(dataclasses.replace(ds, y=ds.y.float()), distribution)
    if job.storage == "float64":
        return ds
    score = _finite(plan.heldout_score(ds))
    return dataclasses.replace(ds, certificate=ds.certificate.model_copy(update={"heldout_score": score}))


def _learn_full(job: Job, method: FullKIP) -> DistilledSet:
    """Full-data KIP: the full model in one pass over the rows, then its points."""
    job.refuse("holdout", "labels", "bounds", "space", "distilled_ridge")
    method = _effective(method, job.loop or Loop())
    if job.device not in ("auto", "cpu"):
        raise ValueError(f"method 'full-kip' runs on the CPU: leave out device={job.device!r}")
    full, near = fit(job)
    coding = full.model.targets
    names, m = job.names(coding), job.points(coding)
    started = time.monotonic()
    start = reference_points(full, m, near, job.seed)
    init_seconds = time.monotonic() - started
    classes = nominal_classes(m, coding)
    labels = None
    if classes is not None:
        labels = coding.encode([(coding.classes or ())[index] for index in classes.tolist()])
    elif method.labels != "solved":
        # Values have no label of their own: start from what the full model says of the points.
        labels = full.model.encoder.feature_map.features(start) @ full.model.weights + full.model.bias
    result = _run(FullKIPLearner(full, start, method, labels), job, method)
    return distill_points(
        full,
        result.learned,
        storage=job.storage,
        steps=result.steps,
        selected_step=result.step,
        class_names=names,
        provenance=_provenance(job, method, result, init_seconds, full.data_range),
        notes=_notes(result, method.steps),
    )


def _run(learner: Learner, job: Job, method: Any) -> LoopResult:
    return run_loop(
        learner,
        job.loop or Loop(),
        steps=method.steps,
        evaluate_every=method.evaluate_every,
        label=method.method,
        progress=job.progress,
    )


def _provenance(
    job: Job,
    method: MethodOptions,
    result: LoopResult,
    init_seconds: float,
    data_range: tuple[float, float],
) -> dict[str, Any]:
    run = {
        "steps": result.steps,
        "selected_step": result.step,
        "stopped": result.stopped,
        "patience": None if job.loop is None else job.loop.patience,
        "seconds": round(result.seconds, 3),
        "init_seconds": round(init_seconds, 3),
        "figures": {name: value for name, value in result.figures.items() if math.isfinite(value)},
        # Learned numbers beside the points: RFAD's scale of the predictions under its cross-entropy.
        "learned": {name: float(value) for name, value in result.learned.items() if value.ndim == 0},
    }
    options = {**method.model_dump(mode="json"), "near": job.near_name}
    if not isinstance(method, FullKIP):
        options["holdout"] = job.holdout
    return provenance({**job.origin, **(job.provenance or {})}, options, job.seed, data_range, run=run)


def _effective(method: Options, loop: Loop) -> Options:
    """Options with the loop's numbers in place of the method's own, so that schedules and files know them."""
    given = {"steps": loop.steps, "evaluate_every": loop.evaluate_every}
    return method.model_copy(update={name: value for name, value in given.items() if value is not None})


def _notes(result: LoopResult, wanted: int | None = None, rows: TrainingRows | None = None) -> list[str]:
    """What a user should know of the run."""
    notes = []
    if result.stopped == "diverged":
        notes.append(
            f"the loss was not finite after {result.steps} steps: the set is the best from before that"
        )
    elif result.stopped == "time":
        notes.append(f"stopped by its budget of time after {result.steps} steps")
    if result.step == 0 and result.steps:
        notes.append("no evaluation was better than that of the points to start from: the set is those")
    if wanted is not None and result.steps > wanted:
        notes.append(f"the checkpoint had {result.steps} steps already, of {wanted} that were asked for")
    if rows is None:
        return notes
    if rows.n_held_out == 0:
        notes.append("no rows were held out: figures are of training rows, and flatter the set")
    elif rows.n_held_out < _FEW_ROWS:
        notes.append(f"only {rows.n_held_out} rows were held out: figures, and the choice by them, are rough")
    if not math.isfinite(result.figures["score"]):
        notes.append("the rows held out have one value only, of which R² says nothing")
    return notes


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def resolve_device(device: str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one.

    Raises
    ------
    ValueError
        If there is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found).cpu()
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here: {first}") from None
    return found
