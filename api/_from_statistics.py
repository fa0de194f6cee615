"""Distil from sufficient statistics: shards that are collected apart, add up, and can be taken away again."""

from collections.abc import Mapping
from typing import Any

import torch

from ._closed_form import finish
from ._inputs import check_class_names, default_points, prepare, unpack
from .solver.distillation import PointOptions
from .solver.distilled_set import DistilledSet
from .solver.feature_maps import FeatureMap
from .solver.fit import full_model_from_statistics
from .solver.progress import track
from .solver.source import as_source, batch_rows
from .solver.statistics import Statistics
from .solver.transforms import Transform


def collect_statistics(
    X: Any,
    y: Any = None,
    *,
    like: Statistics | None = None,
    feature_map: str | FeatureMap | torch.nn.Module = "fcnn",
    feature_params: Mapping[str, Any] | None = None,
    transform: str | Transform = "auto",
    task: str = "auto",
    targets: str = "one-hot",
    n_classes: int | None = None,
    sample_weight: Any = None,
    precision: str = "auto",
    seed: int = 0,
    batch_bytes: int | None = None,
    progress: bool | None = None,
) -> Statistics:
    """Sufficient statistics of one shard: they add up over shards, and a shard can be taken away again.

    Parameters are those of `distill`; with `like`, transform, feature map and classes are those of another
    shard's statistics, which is what makes two shards merge.

    Returns
    -------
    Statistics
        ``a + b``, ``a - b``, ``save``, ``load``; then `distill_statistics`.

    Examples
    --------
    >>> import kernel_distill as kd
    >>> data = kd.load_data("digits")
    >>> first = kd.collect_statistics(data.x_train[:700], data.y_train[:700], n_classes=10)
    >>> second = kd.collect_statistics(data.x_train[700:], data.y_train[700:], like=first)
    >>> (first + second).count == len(data.x_train)
    True
    """
    X, y, task, n_classes, _, _ = unpack(X, y, task, n_classes, None)
    if like is not None:
        if like.encoder is None or like.targets is None:
            raise ValueError("`like` does not know its encoder and targets: make it with collect_statistics")
        encoder, coding = like.encoder, like.targets
        source = as_source(X, y, sample_weight)
    else:
        encoder, source, coding = prepare(
            X,
            y,
            sample_weight,
            feature_map=feature_map,
            feature_params=feature_params,
            transform=transform,
            task=task,
            targets=targets,
            n_classes=n_classes,
            precision=precision,
            seed=seed,
        )
    p = encoder.feature_map.n_features
    rows = batch_rows(p, encoder.feature_map.n_inputs, *([] if batch_bytes is None else [batch_bytes]))
    statistics = Statistics(p, coding.n_outputs, encoder, coding)
    total = None if source.n_rows is None else -(-source.n_rows // rows)
    for batch in track(source.batches(rows), "features and statistics", total, show=progress):
        statistics.add(encoder(batch.X), coding.encode(batch.y, batch.start), batch.weight)
    return statistics


def distill_statistics(
    statistics: Statistics,
    *,
    method: str = "closed-form",
    per_class: int = 1,
    n_points: int | None = None,
    ridge: Any = "gcv",
    distilled_ridge: float = 0.0,
    near: Any = "noise",
    labels: str = "auto",
    space: str = "auto",
    storage: str = "float64",
    intercept: bool = False,
    seed: int = 0,
    class_names: tuple[str, ...] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> DistilledSet:
    """Distil from statistics alone: merged shards, or what is left after unlearning one.

    Parameters are those of `distill`, as far as they need no rows: λ is chosen by "gcv" or given, and
    reference points are standard normal in the transformed space, or given.
    """
    if statistics.targets is None or statistics.encoder is None:
        raise ValueError(
            "these statistics do not know their encoder and targets: make them with collect_statistics"
        )
    options = PointOptions(
        n_points=default_points(statistics.targets, per_class, n_points, intercept),
        method=method,
        distilled_ridge=distilled_ridge,
        near=near,
        labels=labels,
        space=space,
        storage=storage,
        seed=seed,
    )
    names = check_class_names(class_names, statistics.targets)
    full = full_model_from_statistics(statistics, ridge=ridge, intercept=intercept)
    return finish(full, options, names, provenance or {})
