"""Distil from sufficient statistics: shards that are collected apart, add up, and can be taken away again."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ._closed_form import finish
from ._inputs import check_class_names, default_points, prepare, unpack
from .solver._check import check_name
from .solver.collect import collect_sums
from .solver.distillation import PointOptions
from .solver.distilled_set import DistilledSet
from .solver.encoder import Encoder
from .solver.executors import Executor, make_executor
from .solver.feature_maps import FeatureMap
from .solver.fit import full_model_from_statistics
from .solver.progress import track
from .solver.shard_source import ON_BAD, ShardSource, without_bad
from .solver.shards import Shards
from .solver.source import Source, as_source, batch_rows
from .solver.statistics import Statistics
from .solver.targets import Targets
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
    executor: Executor | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_bad: str = "raise",
    progress: bool | None = None,
) -> Statistics:
    """Sufficient statistics of one shard, or of many at once: they add up, and a shard can be taken away again.

    Parameters are those of `distill`, and these.

    Parameters
    ----------
    X : array, Data, iterable or Shards
        `Shards` are read piecewise where the work is done; they have their own targets and weights.
    like : Statistics, optional
        Transform, feature map and classes are those of another shard's statistics, which is what makes two shards
        merge. Otherwise they are made first, from all rows, as `distill` makes them; over shards with a pass over
        the labels unless `n_classes` is given, one for "standardize", one for a sample of rows where the feature map
        needs it, and two for ZCA, in this process.
    executor : Executor, "serial" or "ray", optional
        Sums tiles of about 32,768 rows as tasks and merges them along a fixed tree: the same bits for any executor
        and any number of workers (of equally many threads), and those of one pass up to the rounding of float64.
        Shards are always summed so, by default in this process. A stream is read by one process and takes none.
    checkpoint : path, optional
        A folder for the sums of finished tiles, 8 p² bytes each: the same call over the same data goes on from them.
    on_bad : {"raise", "skip"}, default "raise"
        What to do with rows that are not finite, labels that are unknown, and files that are missing or damaged. With
        "skip" the file (of arrays, the tile) is left out as a whole and listed in `Statistics.left_out`, which goes
        into the certificate of what is distilled. The passes that found it are repeated without it.

    Returns
    -------
    Statistics
        ``a + b``, ``a - b``, ``save``, ``load``; then `distill_statistics`.

    Raises
    ------
    ValueError
        For bad input, which is named by shard and row; if the checkpoint is of other work.
    TaskError
        If a task fails for another reason, and again each time it is tried anew.

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
    if like is not None and (like.encoder is None or like.targets is None):
        raise ValueError("`like` does not know its encoder and targets: make it with collect_statistics")
    check_name(on_bad, ON_BAD, "on_bad")

    def prepared(X: Any, y: Any, weight: Any) -> tuple[Encoder, Source, Targets]:
        if like is not None and like.encoder is not None and like.targets is not None:
            return like.encoder, as_source(X, y, weight), like.targets
        return prepare(
            X,
            y,
            weight,
            feature_map=feature_map,
            feature_params=feature_params,
            transform=transform,
            task=task,
            targets=targets,
            n_classes=n_classes,
            precision=precision,
            seed=seed,
        )

    if isinstance(X, Shards) or executor is not None or checkpoint is not None or on_bad == "skip":
        source = ShardSource(
            _shards(X, y, sample_weight),
            make_executor(executor),
            on_bad=on_bad,
            input_shape=_input_shape(like, transform),
            progress=progress,
        )
        encoder, source, coding = without_bad(source, lambda rows: prepared(rows, None, None))
        return collect_sums(
            source, encoder, coding, batch_bytes, None if checkpoint is None else Path(checkpoint)
        )
    encoder, source, coding = prepared(X, y, sample_weight)
    p = encoder.feature_map.n_features
    rows = batch_rows(p, encoder.feature_map.n_inputs, *([] if batch_bytes is None else [batch_bytes]))
    statistics = Statistics(p, coding.n_outputs, encoder, coding)
    total = None if source.n_rows is None else -(-source.n_rows // rows)
    for batch in track(source.batches(rows), "features and statistics", total, show=progress):
        Y = coding.encode(batch.y, batch.start)
        statistics.add(encoder(batch.X), Y, batch.weight, first_row=batch.start)
    return statistics


def _shards(X: Any, y: Any, sample_weight: Any) -> Shards:
    """The rows as shards."""
    if not isinstance(X, Shards):
        return Shards.of(X, y, sample_weight=sample_weight)
    if y is not None or sample_weight is not None:
        raise ValueError("shards have their own targets and weights: give them to Shards.of")
    return X


def _input_shape(like: Statistics | None, transform: str | Transform) -> tuple[int, ...] | None:
    """Shape of a raw row, where it is known without looking at one."""
    if like is not None and like.encoder is not None:
        transform = like.encoder.transform
    return transform.input_shape if isinstance(transform, Transform) else None


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
