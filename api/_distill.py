"""`distill`: a data set in, a distilled set out; and the same from statistics that were collected elsewhere."""

import math
import os
import platform
from collections.abc import Mapping
from typing import Any

import torch

from .solver._check import check_count, check_name, check_non_negative
from .solver.data import Data
from .solver.distillation import LABELS, METHODS, SPACES, PointOptions, distill_full_model
from .solver.distilled_set import DistilledSet
from .solver.encoder import PRECISIONS, Encoder
from .solver.feature_maps import FeatureMap, feature_map_names, make_feature_map
from .solver.fit import FullModel, fit_full_model, full_model_from_statistics
from .solver.points import BOUNDS, STORAGE
from .solver.progress import track
from .solver.reference import NEAR
from .solver.ridge_choice import RULES
from .solver.source import ArraySource, Source, as_source, batch_rows
from .solver.statistics import Statistics
from .solver.store import check_plain
from .solver.targets import Targets
from .solver.transforms import TRANSFORMS, Transform, make_transform

# Rows from which a feature map takes its length scale or its filters.
_SAMPLE_ROWS = 2000


def distill(
    X: Any,
    y: Any = None,
    *,
    method: str = "closed-form",
    per_class: int = 1,
    n_points: int | None = None,
    feature_map: str | FeatureMap | torch.nn.Module = "fcnn",
    feature_params: Mapping[str, Any] | None = None,
    transform: str | Transform = "auto",
    ridge: Any = "auto",
    distilled_ridge: float = 0.0,
    near: Any = "noise",
    labels: str = "auto",
    space: str = "auto",
    bounds: str = "free",
    storage: str = "float64",
    task: str = "auto",
    targets: str = "one-hot",
    n_classes: int | None = None,
    intercept: bool = False,
    sample_weight: Any = None,
    precision: str = "auto",
    refine_steps: int = 200,
    seed: int = 0,
    device: str = "auto",
    batch_bytes: int | None = None,
    progress: bool | None = None,
    class_names: tuple[str, ...] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> DistilledSet:
    r"""Distil a training set into points on which ridge regression gives the full model.

    Parameters
    ----------
    X : array, shape (n, d), (n, h, w) or (n, c, h, w), Data, or stream
        Raw inputs of any real dtype: NumPy (memory maps too), torch or CuPy. Or what `load_data` returns
        (its training split is used, and its checksums are kept). Or, without `y`, an iterable of
        ``(X, y)`` or ``(X, y, weight)`` batches such as a DataLoader; memory does not grow with n.
    y : array, shape (n,) or (n, k)
        Class labels (integers or strings), or numbers with ``task="regression"``.
    method : str, default "closed-form"
        "closed-form": the exact set nearest to reference points. "theorem": the published construction
        (Theorem 4.1 of Chen et al. 2024) with one-hot labels. "all-ridges": one set, of rank(Φ) points,
        that is exact for every ridge at once. "label-solve": reference points as they are, labels solved
        (exact from p points on). "refine": points that minimise the exact full-data loss by L-BFGS, for
        maps without preimage.
    per_class : int, default 1
        Points a class (an output, for regression).
    n_points : int, optional
        Number of points instead; fewer than the rank of the model gives the nearest model of lower rank.
    feature_map : str, FeatureMap or torch.nn.Module, default "fcnn"
        "identity" (linear model), "fourier", "fcnn", "deep-linear", "conv", "coupling", "patches", a map
        that is already made, or a frozen network.
    feature_params : mapping, optional
        Arguments of the map, for instance ``{"n_features": 4096}``.
    transform : str or Transform, default "auto"
        "standardize" (by channel, by column for vectors), "zca-kip", "zca-rfad", "zca-kornia", "none".
        "auto" standardises images and leaves vectors as they are.
    ridge : str, float, Ridge or sequence of float, default "auto"
        λ of the full model, or how to choose it: "holdout" (5 % of the rows, then refitted on all),
        "loo", "gcv"; candidates as a sequence. "auto" is "holdout" for classes ("loo" below 2000 rows) and
        "gcv" for regression.
    distilled_ridge : float, default 0.0
        λ_S, absolute, with which the set is to be trained. Any value is exact.
    near : {"noise", "data"} or array, default "noise"
        Reference points: noise with the mean and spread of the data, random rows of each class, or given
        raw points (m, *input_shape).
    labels : {"auto", "one-hot", "solved"}, default "auto"
        Labels that the points are made for: one-hot rows (up to a common scale, with an intercept a common
        offset too, and the last digits, which are solved for after storage), or whatever the full model
        predicts at the points, which leaves them closer to the reference. "auto" is "one-hot" near noise and
        "solved" near data or given points.
    space : {"auto", "input", "features"}, default "auto"
        Where the set lives. "auto" takes the input space wherever the feature map can be inverted.
    bounds : {"free", "data"}, default "free"
        "data" keeps values in the range of the training data as far as exactness allows.
    storage : {"float64", "float32", "float16", "uint8"}, default "float64"
        Type in which points are kept; labels are solved again after rounding.
    task : {"auto", "classification", "regression"}, default "auto"
        "auto" is classification for integer and string labels; floating-point `y` must say "regression".
    targets : {"one-hot", "centred"}, default "one-hot"
        Encoding of labels; "centred" subtracts 1/k, as KIP, RFAD and FRePo do.
    n_classes : int, optional
        Labels are 0 .. n_classes - 1; needed for streams.
    intercept : bool, default False
        Unpenalised intercept; off as in the papers.
    sample_weight : array, shape (n,), optional
    precision : {"auto", "high", "exact"}, default "auto"
        Arithmetic of features over the data set: that of the data, float32, or float64. Sums, solves and
        everything about the distilled points are float64 always.
    refine_steps : int, default 200
        For ``method="refine"``.
    seed : int, default 0
        Defines weights of the map, held-out rows, reference points. The same for any chunking.
    device : {"auto", "cpu"}, default "auto"
        CPU for now; a device asked for by name is used or refused.
    batch_bytes : int, optional
        Memory of one batch of features; default 64 MiB.
    progress : bool, optional
        True, False, or (default) after two seconds of work.
    class_names : tuple of str, optional
    provenance : mapping, optional
        Plain values to keep in the file.

    Returns
    -------
    DistilledSet
        With ``certificate``, ``predict``, ``score`` and ``save``.

    Raises
    ------
    ValueError
        For input that cannot be used, saying what was found and what to do.

    Notes
    -----
    Cost: one feature pass, n p² multiplications for the statistics, about 9 p³ for the factorisation, and
    O(m p²) for the points. Memory: O(p²) beyond one batch.

    References
    ----------
    Chen, Huang and Weng, "Provable and Efficient Dataset Distillation for Kernel Ridge Regression",
    NeurIPS 2024; see the modules `solver.closed_form`, `solver.ridge` and `solver.points`.

    Examples
    --------
    >>> import kernel_distill as kd
    >>> data = kd.load_data("digits")
    >>> ds = kd.distill(data.x_train, data.y_train, feature_map="identity")
    >>> len(ds), ds.certificate.stored_error < 1e-10
    (10, True)
    """
    _check_names(method, labels, space, bounds, storage, near, ridge, batch_bytes)
    check_plain(provenance)
    check_count(per_class, "per_class")
    check_non_negative(distilled_ridge, "distilled_ridge")
    X, y, task, n_classes, class_names, origin = _unpack(X, y, task, n_classes, class_names)
    encoder, source, coding = _prepare(
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
        device=device,
        progress=progress,
    )
    options = _options(
        coding,
        per_class,
        n_points,
        intercept,
        method=method,
        distilled_ridge=distilled_ridge,
        near=near,
        labels=labels,
        space=space,
        bounds=bounds,
        storage=storage,
        seed=seed,
        refine_steps=refine_steps,
        progress=progress,
    )
    _check_class_sizes(source, coding, options)
    full = fit_full_model(
        source,
        encoder,
        coding,
        ridge=ridge,
        intercept=intercept,
        seed=seed,
        candidates_per_class=_candidates(options, coding),
        batch_bytes=batch_bytes,
        progress=progress,
    )
    return _finish(full, options, class_names, {**origin, **(provenance or {})})


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
    X, y, task, n_classes, _, _ = _unpack(X, y, task, n_classes, None)
    if like is not None:
        if like.encoder is None or like.targets is None:
            raise ValueError("`like` does not know its encoder and targets: make it with collect_statistics")
        encoder, coding = like.encoder, like.targets
        source = as_source(X, y, sample_weight)
    else:
        encoder, source, coding = _prepare(
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
            device="auto",
            progress=progress,
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
    options = _options(
        statistics.targets,
        per_class,
        n_points,
        intercept,
        method=method,
        distilled_ridge=distilled_ridge,
        near=near,
        labels=labels,
        space=space,
        storage=storage,
        seed=seed,
    )
    full = full_model_from_statistics(statistics, ridge=ridge, intercept=intercept)
    return _finish(full, options, class_names, dict(provenance or {}))


def load(path: str | os.PathLike[str], *, module: torch.nn.Module | None = None) -> DistilledSet:
    """Read a distilled set from its file; see `DistilledSet.load`."""
    return DistilledSet.load(path, module=module)


def _unpack(
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


def _check_names(
    method: str, labels: str, space: str, bounds: str, storage: str, near: Any, ridge: Any, batch_bytes: Any
) -> None:
    """Refuse a misspelt name before the data are read."""
    check_name(method, METHODS, "method")
    check_name(labels, LABELS, "labels")
    check_name(space, SPACES, "space")
    check_name(bounds, BOUNDS, "bounds")
    check_name(storage, STORAGE, "storage type")
    if isinstance(near, str):
        check_name(near, NEAR, "reference points (near)")
    if isinstance(ridge, str):
        check_name(ridge, RULES, "ridge rule")
    elif isinstance(ridge, (int, float)):
        check_non_negative(ridge, "ridge")
    if batch_bytes is not None:
        check_count(batch_bytes, "batch_bytes")


def _prepare(
    X: Any,
    y: Any,
    sample_weight: Any,
    *,
    feature_map: Any,
    feature_params: Mapping[str, Any] | None,
    transform: Any,
    task: str,
    targets: str,
    n_classes: int | None,
    precision: str,
    seed: int,
    device: str,
    progress: bool | None,
) -> tuple[Encoder, Source, Targets]:
    """Everything that must be known before the pass over the data."""
    check_name(precision, PRECISIONS, "precision")
    check_name(task, ("auto", "classification", "regression"), "task")
    if isinstance(feature_map, str):
        check_name(feature_map, feature_map_names(), "feature map")
    if isinstance(transform, str):
        check_name(transform, ("auto", *TRANSFORMS), "transform")
    if device not in ("auto", "cpu"):
        raise ValueError(f"device {device!r} is not available for this method yet: use 'cpu' or 'auto'")
    source = as_source(X, y, sample_weight)
    coding = _coding(source, task, targets, n_classes)
    if not isinstance(transform, Transform):
        is_image = len(source.input_shape) == 3
        name = ("standardize" if is_image else "none") if transform == "auto" else transform
        transform = make_transform(name, lambda: _inputs(source), source.input_shape)
    elif transform.input_shape != source.input_shape:
        raise ValueError(
            f"the transform was fitted on rows of shape {transform.input_shape}, the data have"
            f" {source.input_shape}"
        )
    fitted = transform
    made = make_feature_map(
        feature_map,
        source.input_shape,
        seed=seed,
        sample=lambda: fitted.forward(source.sample(seed, "map", _SAMPLE_ROWS)),
        params=feature_params,
    )
    return Encoder(fitted, made, precision), source, coding


def _coding(source: Source, task: str, targets: str, n_classes: int | None) -> Targets:
    if task == "regression":
        return Targets.from_values(Targets.from_values(1).encode(source.first_y).shape[1])
    if not isinstance(source, ArraySource) and n_classes is None:
        raise ValueError("a stream cannot be searched for its classes beforehand: give n_classes")
    return Targets.from_labels(source.first_y, targets, n_classes)


def _inputs(source: Source):
    for batch in source.batches(batch_rows(0, math.prod(source.input_shape))):
        yield batch.X


def _options(
    coding: Targets, per_class: int, n_points: int | None, intercept: bool, **rest: Any
) -> PointOptions:
    per_class = check_count(per_class, "per_class")
    if n_points is None:
        # An intercept takes one degree of freedom, which the classes have to spare and values have not.
        n_points = per_class * coding.n_outputs + (intercept and not coding.is_classes)
    return PointOptions(n_points=check_count(n_points, "n_points"), **rest)


def _candidates(options: PointOptions, coding: Targets) -> int:
    if not (isinstance(options.near, str) and options.near == "data"):
        return 0
    return -(-options.n_points // coding.n_outputs) if coding.is_classes else options.n_points


def _check_class_sizes(source: Source, coding: Targets, options: PointOptions) -> None:
    """Refuse early what the pass would find out late: too few rows of a class to place points near."""
    if (
        not coding.is_classes
        or not isinstance(source, ArraySource)
        or not (wanted := _candidates(options, coding))
    ):
        return
    counts = coding.indices(source.y).bincount(minlength=coding.n_outputs)
    if options.n_points >= coding.n_outputs and int(counts.min()) < wanted:
        name = (coding.classes or ())[int(counts.argmin())]
        raise ValueError(
            f"class {name!r} has {int(counts.min())} rows, near='data' needs {wanted}: lower per_class or use"
            " near='noise'"
        )


def _finish(
    full: FullModel, options: PointOptions, class_names: tuple[str, ...] | None, origin: dict[str, Any]
) -> DistilledSet:
    from . import __version__

    if (
        class_names is not None
        and full.model.targets.is_classes
        and len(class_names) != full.model.targets.n_outputs
    ):
        raise ValueError(f"{len(class_names)} class names for {full.model.targets.n_outputs} classes")
    near = options.near if isinstance(options.near, str) else "given"
    chosen = {"method": options.method, "near": near, "labels": options.labels, "bounds": options.bounds}
    versions = {
        "kernel-distill": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    provenance = {**origin, "options": chosen, "seed": options.seed, "versions": versions}
    if math.isfinite(full.data_range[1] - full.data_range[0]):
        provenance["data_range"] = list(full.data_range)
    return distill_full_model(full, options, class_names=class_names, provenance=provenance)
