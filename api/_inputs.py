"""What every way of distilling needs before it starts: rows, their transform, targets, and a feature map."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .solver._check import check_count, check_name
from .solver.data import Data
from .solver.encoder import PRECISIONS, Encoder
from .solver.feature_maps import feature_map_names, make_feature_map
from .solver.shard_source import ShardSource
from .solver.shards import Shards
from .solver.source import Source, as_source, batch_rows
from .solver.targets import Targets
from .solver.transforms import TRANSFORMS, Transform, make_transform

TASKS = ("auto", "classification", "regression")
# Rows from which a feature map or a kernel takes its length scale or its filters.
_SAMPLE_ROWS = 2000


def unpack(
    X: Any, y: Any, task: str, n_classes: int | None, class_names: tuple[str, ...] | None
) -> tuple[Any, Any, str, int | None, tuple[str, ...] | None, dict[str, Any]]:
    """What a `Data` knows besides its arrays: task, classes, names and origin. Arrays pass through."""
    if not isinstance(X, Data):
        return X, y, task, n_classes, class_names, {}
    if y is not None:
        raise ValueError("pass either a Data object or X and y, not both")
    origin = {"data": X.name, "checksums": dict(X.checksums)}
    if X.y_train.dtype.kind == "f" and task == "auto":
        task = "regression"
    if X.class_names and task != "regression":
        # Every named class counts, also one that has no training row.
        n_classes, class_names = n_classes or len(X.class_names), class_names or X.class_names
    return X.x_train, X.y_train, task, n_classes, class_names, origin


def prepare_rows(
    X: Any,
    y: Any,
    sample_weight: Any = None,
    *,
    transform: Any,
    task: str,
    targets: str,
    n_classes: int | None,
) -> tuple[Source, Transform, Targets]:
    """Rows as a source, the transform fitted on them, and the encoding of their targets."""
    check_name(task, TASKS, "task")
    if isinstance(transform, str):
        check_name(transform, ("auto", *TRANSFORMS), "transform")
    if isinstance(X, Shards):
        raise ValueError(
            "shards are read where their sums are made: distil from those,"
            " distill_statistics(collect_statistics(shards))"
        )
    source = as_source(X, y, sample_weight)
    return source, fit_transform(source, transform), _coding(source, task, targets, n_classes)


def prepare(
    X: Any,
    y: Any,
    sample_weight: Any,
    *,
    feature_map: Any,
    feature_params: Mapping[str, Any] | None,
    precision: str,
    seed: int,
    **rows: Any,
) -> tuple[Encoder, Source, Targets]:
    """`prepare_rows`, with the feature map; everything that must be known before the pass over the data."""
    check_name(precision, PRECISIONS, "precision")
    if isinstance(feature_map, str):
        check_name(feature_map, feature_map_names(), "feature map")
    source, transform, coding = prepare_rows(X, y, sample_weight, **rows)
    made = make_feature_map(
        feature_map,
        source.input_shape,
        seed=seed,
        sample=sampler(source, transform, seed),
        params=feature_params,
    )
    return Encoder(transform, made, precision), source, coding


def sampler(source: Source, transform: Transform, seed: int) -> Callable[[], torch.Tensor]:
    """Transformed rows for whoever asks: length scales and filters are taken from them."""
    return lambda: transform.forward(source.sample(seed, "map", _SAMPLE_ROWS))


def fit_transform(source: Source, transform: Any) -> Transform:
    """`transform` itself, or the one of that name fitted on the rows."""
    if isinstance(transform, Transform):
        if transform.input_shape != source.input_shape:
            raise ValueError(
                f"the transform was fitted on rows of shape {transform.input_shape}, the data have"
                f" {source.input_shape}"
            )
        return transform
    is_image = len(source.input_shape) == 3
    name = ("standardize" if is_image else "none") if transform == "auto" else transform
    if name == "standardize" and isinstance(source, ShardSource):
        return source.standardize()

    def pieces():
        for batch in source.batches(batch_rows(0, math.prod(source.input_shape))):
            yield batch.X

    return make_transform(name, pieces, source.input_shape)


def _coding(source: Source, task: str, targets: str, n_classes: int | None) -> Targets:
    if task == "regression":
        some = source.head_y if isinstance(source, ShardSource) else source.first_y
        return Targets.from_values(Targets.from_values(1).encode(some).shape[1])
    if source.n_rows is None and n_classes is None:
        raise ValueError("a stream cannot be searched for its classes beforehand: give n_classes")
    return Targets.from_labels(source.first_y if n_classes is None else None, targets, n_classes)


def default_points(coding: Targets, per_class: int, n_points: int | None, intercept: bool) -> int:
    """Number of points of a set: as given, or so many a class (an output)."""
    if n_points is not None:
        return check_count(n_points, "n_points")
    # An intercept takes one degree of freedom, which the classes have to spare and values have not.
    return check_count(per_class, "per_class") * coding.n_outputs + (intercept and not coding.is_classes)


def check_class_names(names: tuple[str, ...] | None, coding: Targets) -> tuple[str, ...] | None:
    """Class names, one for each class."""
    if names is not None and coding.is_classes and len(names) != coding.n_outputs:
        raise ValueError(f"{len(names)} class names for {coding.n_outputs} classes")
    return names
