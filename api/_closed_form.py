"""Sets in closed form: the full model in one pass over the rows, then its points."""

from collections.abc import Mapping
from typing import Any

import torch

from ._inputs import prepare
from ._job import Job
from ._provenance import provenance
from ._start import named_points, point_counts
from .solver._check import check_name
from .solver.distillation import METHODS, PointOptions, distill_full_model
from .solver.distilled_set import DistilledSet
from .solver.fit import FullModel, fit_full_model
from .solver.source import ArraySource, Source
from .solver.targets import Targets


def closed_form(job: Job) -> DistilledSet:
    """Distil in closed form; see `distill`."""
    if job.device not in ("auto", "cpu"):
        raise ValueError(f"closed forms run on the CPU: device {job.device!r} is for learned methods")
    job.refuse("holdout", "loop")
    full, near = fit(job)
    options = PointOptions(
        n_points=job.points(full.model.targets),
        method=check_name(job.method, METHODS, "method"),
        distilled_ridge=job.distilled_ridge,
        near=near,
        labels=job.labels,
        space=job.space,
        bounds=job.bounds,
        storage=job.storage,
        seed=job.seed,
    )
    return finish(
        full,
        options,
        job.names(full.model.targets),
        {**job.origin, **(job.provenance or {})},
        near=job.near_name,
    )


def fit(job: Job) -> tuple[FullModel, Any]:
    """The full model of a job's rows, and its reference points: a kind of them, or raw points."""
    encoder, source, coding = prepare(
        job.X,
        job.y,
        job.sample_weight,
        feature_map=job.feature_map,
        feature_params=job.feature_params,
        precision=job.precision,
        seed=job.seed,
        **job.rows,
    )
    m = job.points(coding)
    wanted = _candidates(job, coding, m)
    if wanted:
        _check_class_sizes(source, coding, m)
    near = named_points(job.near, source, encoder.transform, coding, m, job.seed)
    full = fit_full_model(
        source,
        encoder,
        coding,
        ridge=job.ridge,
        intercept=job.intercept,
        seed=job.seed,
        candidates_per_class=wanted,
        batch_bytes=job.batch_bytes,
        progress=job.progress,
    )
    return full, near


def finish(
    full: FullModel,
    options: PointOptions,
    class_names: tuple[str, ...] | None,
    origin: Mapping[str, Any],
    near: str | None = None,
) -> DistilledSet:
    """The set of a full model, with what it says of its origin."""
    if near is None:
        near = options.near if isinstance(options.near, str) else "given"
    chosen = {"method": options.method, "near": near, "labels": options.labels, "bounds": options.bounds}
    return distill_full_model(
        full,
        options,
        class_names=class_names,
        provenance=provenance(origin, chosen, options.seed, full.data_range),
    )


def _candidates(job: Job, coding: Targets, m: int) -> int:
    """Rows of each class (of the whole, for values) to keep on the way as places for points."""
    if job.near_name != "data":
        return 0
    return -(-m // coding.n_outputs) if coding.is_classes else m


def _check_class_sizes(source: Source, coding: Targets, m: int) -> None:
    """Refuse early what the pass would find out late: too few rows of a class to place points near."""
    if not coding.is_classes or not isinstance(source, ArraySource):
        return
    counts = coding.indices(source.y).bincount(minlength=coding.n_outputs)
    wanted = torch.tensor(point_counts(coding, m))
    if (short := (counts < wanted).nonzero().flatten()).numel():
        group = int(short[0])
        raise ValueError(
            f"class {(coding.classes or ())[group]!r} has {int(counts[group])} rows, near='data' needs"
            f" {int(wanted[group])}: lower per_class or use near='noise'"
        )
