"""From a full model to a distilled set: choose points, go back to the input space, store, certify."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..kernels import normal
from ._check import check_name, check_non_negative
from .certificate import Status
from .certify import certify
from .closed_form import (
    best_rank,
    gram_set,
    nearest_features,
    theorem_features,
    theorem_noise,
    theorem_reference,
)
from .distilled_set import DistilledSet, Space
from .encoder import Encoder
from .fit import FullModel
from .points import STORAGE, cast_features, cast_points, points_from_features, scale_into_bound
from .reference import nominal_classes, reference_points
from .refine import refine_points
from .set_factor import SetFactor, storage_tolerance

METHODS = ("closed-form", "theorem", "all-ridges", "label-solve", "refine")
SPACES = ("auto", "input", "features")
LABELS = ("auto", "one-hot", "solved")
# Below this share of W outside the span of the points, the rest is rounding and there is nothing to project.
_SPANNED = 1e-9


@dataclasses.dataclass(frozen=True)
class PointOptions:
    """How the points of a set are chosen; see `kernel_distill.distill` for the meaning of each."""

    n_points: int
    method: str = "closed-form"
    distilled_ridge: float = 0.0
    near: Any = "noise"
    labels: str = "auto"
    space: str = "auto"
    bounds: str = "free"
    storage: str = "float64"
    seed: int = 0
    refine_steps: int = 200
    progress: bool | None = None

    def __post_init__(self) -> None:
        check_name(self.method, METHODS, "method")
        check_name(self.labels, LABELS, "labels")
        check_name(self.space, SPACES, "space")
        check_name(self.storage, STORAGE, "storage type")
        check_non_negative(self.distilled_ridge, "distilled_ridge")


def distill_full_model(
    full: FullModel,
    options: PointOptions,
    *,
    class_names: tuple[str, ...] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> DistilledSet:
    """Distil a fitted model into a set of points.

    Raises
    ------
    ValueError
        If the options do not fit each other, the data or the feature map.
    """
    encoder, targets = full.model.encoder, full.model.targets
    space = _space(encoder, options)
    made = _make(full, options, space)
    factor = SetFactor(
        made.stored_features, made.ridge, intercept=full.intercept, tolerance=storage_tolerance(made.x.dtype)
    )
    if made.labels is None:
        goal = projected_model(full, made.stored_features, made.goal)
        y = factor.labels(goal, best_bias(full, goal))
    else:
        y = made.labels
    y = y.to(torch.float64 if options.storage == "float64" else torch.float32)
    trained = factor.weights(y.double())
    certificate = certify(
        full,
        factor,
        trained,
        made.exact,
        status=made.status,
        distilled_ridge=made.ridge,
        x=made.x,
        in_input_units=space == "input",
        notes=made.notes,
    )
    return DistilledSet(
        x=made.x,
        y=y,
        encoder=encoder,
        targets=targets,
        space=space,
        distilled_ridge=made.ridge,
        intercept=full.intercept,
        certificate=certificate,
        labels=_classes(full, options, made, trained),
        class_names=class_names,
        provenance=dict(provenance or {}),
        full_model=full.model,
    )


@dataclasses.dataclass(frozen=True)
class _Made:
    """Points as stored, their features, and what their model is meant to be.

    `exact` holds features and labels of the closed form before preimage and cast, and their ridge; `labels`
    the final ones where they are part of the construction, not solved for.
    """

    x: Tensor
    stored_features: Tensor
    goal: Tensor
    ridge: float
    status: Status
    exact: tuple[Tensor, Tensor, float] | None = None
    labels: Tensor | None = None
    notes: tuple[str, ...] = ()


def _make(full: FullModel, options: PointOptions, space: Space) -> _Made:
    encoder = full.model.encoder
    W, m, intercept = full.model.weights, options.n_points, full.intercept
    if not torch.isfinite(W).all():
        raise ValueError("the full model is not finite: are features or targets of extreme scale?")
    if float(W.norm()) == 0 and not intercept:
        raise ValueError("the full model is zero: targets or features are zero throughout")
    if options.method == "all-ridges":
        return _make_all_ridges(full, options, space)
    reference = reference_points(full, m, options.near, options.seed)
    F_reference = encoder.feature_map.features(reference)
    if options.method in ("label-solve", "refine"):
        return _make_given(full, options, reference)
    goal, Q, lost = best_rank(W, m - intercept)
    notes: tuple[str, ...] = ()
    if lost:
        notes = (f"{m} points carry rank {Q.shape[1]} of the model: {lost:.3g} of its norm is lost",)
    labels = _wanted_labels(full, options, m)
    ridge = options.distilled_ridge

    def exact(F: Tensor) -> Tensor:
        return nearest_features(goal, F, rank=Q.shape[1], labels=labels, intercept=intercept)

    if options.method == "theorem":
        if labels is None or intercept:
            raise ValueError(
                "method 'theorem' needs class labels, at least one point a class, and no intercept"
            )
        if isinstance(options.near, str) and options.near == "noise":
            Z = theorem_noise(W, labels, normal(options.seed, "theorem.noise", (m, W.shape[0])))
        else:
            Z = theorem_reference(W, labels, F_reference, ridge)
        made = theorem_features(W, labels, Z, ridge)
        F, notes, closed = made.features, notes + made.notes, (made.features, made.labels, ridge)
    else:
        F = exact(F_reference)
        closed = (F, SetFactor(F, ridge, intercept=intercept).labels(goal, best_bias(full, goal)), ridge)
    status = Status.LOW_RANK if lost else Status.EXACT
    if space == "features":
        x = cast_features(F, options.storage)
        return _Made(x, x.double(), goal, ridge, status, closed, notes=notes)
    x, scaled = points_from_features(
        F,
        encoder,
        reference,
        full.data_range,
        exact=exact,
        lost=lambda features: SetFactor(features, intercept=intercept).residual(goal),
        bounds=options.bounds,
        storage=options.storage,
    )
    stored = _stored_features(encoder, x, space)
    return _Made(x, stored, goal, ridge, status, closed, notes=notes + scaled)


def _make_all_ridges(full: FullModel, options: PointOptions, space: Space) -> _Made:
    """One set with the ridge path of the full data (Izzo and Zou)."""
    if options.distilled_ridge:
        raise ValueError(
            "an all-ridges set is trained with the full model's own ridge: leave distilled_ridge at 0"
        )
    made = gram_set(full.data.path())
    F, Y = made.features, made.labels
    exact, goal = (F, Y, full.ridge), full.model.weights
    if space == "features":
        x = cast_features(F, options.storage)
        return _Made(x, x.double(), goal, full.ridge, Status.EXACT, exact, labels=Y)
    encoder = full.model.encoder
    scale = scale_into_bound(F, encoder.feature_map.feature_bound)
    z = encoder.feature_map.preimage(F * scale)
    x = cast_points(encoder.transform.inverse(z) if space == "input" else z, options.storage)
    notes = (
        () if scale == 1 else (f"features and labels were scaled by {scale:.3g}: ridges scale by its square",)
    )
    stored = _stored_features(encoder, x, space)
    ridge = full.ridge * scale**2
    return _Made(x, stored, goal, ridge, Status.EXACT, exact, labels=Y * scale, notes=notes)


def _make_given(full: FullModel, options: PointOptions, reference: Tensor) -> _Made:
    """Labels solved for given points, or points refined on the full-data loss first."""
    encoder = full.model.encoder
    notes: tuple[str, ...] = ()
    status = Status.PROJECTED
    z = reference
    if options.method == "refine":
        z, notes = refine_points(
            full, reference, steps=options.refine_steps, bounds=options.bounds, progress=options.progress
        )
        status = Status.REFINED
    bijective = encoder.transform.bijective
    x = cast_points(encoder.transform.inverse(z) if bijective else z, options.storage)
    stored = _stored_features(encoder, x, "input" if bijective else "transformed")
    return _Made(x, stored, full.model.weights, options.distilled_ridge, status, notes=notes)


def best_bias(full: FullModel, W: Tensor) -> Tensor:
    """The intercept that suits W best over the training data: predictions agree with targets on average."""
    if not full.intercept:
        return full.model.bias
    feature_mean, target_mean = full.data.means
    return target_mean - feature_mean @ W


def projected_model(full: FullModel, F: Tensor, goal: Tensor) -> Tensor:
    r"""The model in the row space of F whose predictions over the training data are nearest to the goal's.

    With M = G + λI, that is :math:`F_c^\top (F_c M F_c^\top)^{+} F_c M W`: the projection of W in the metric
    in which predictions are compared, not in that of the weights. The goal itself where the row space holds it.
    """
    C = F - F.mean(dim=0) if full.intercept else F
    if SetFactor(C).residual(goal) < _SPANNED:
        return goal
    metric = full.data.gram_times(C) + full.ridge * C
    return C.T @ torch.linalg.lstsq(C @ metric.T, metric @ goal, driver="gelsd").solution


def _wanted_labels(full: FullModel, options: PointOptions, m: int) -> Tensor | None:
    """One-hot label rows, where they are asked for and can carry the model; None for solved labels."""
    targets = full.model.targets
    nominal = nominal_classes(m, targets)
    possible = nominal is not None and m >= targets.n_outputs
    if options.labels == "one-hot" and not possible:
        raise ValueError(f"one-hot labels need classes and at least one point a class, got {m} points")
    near_noise = isinstance(options.near, str) and options.near == "noise"
    wanted = (
        options.labels == "one-hot"
        or options.method == "theorem"
        or (options.labels == "auto" and near_noise)
    )
    if nominal is None or not possible or not wanted:
        return None
    return targets.encode([(targets.classes or ())[index] for index in nominal.tolist()])


def _classes(
    full: FullModel, options: PointOptions, made: _Made, model: tuple[Tensor, Tensor]
) -> Tensor | None:
    """Class of each point: the one it was made for, or of its real row; else what the set's model says of it."""
    targets, m = full.model.targets, len(made.x)
    if not targets.is_classes or made.labels is not None:
        return None
    near_data = isinstance(options.near, str) and options.near == "data"
    made_for = options.method in ("closed-form", "theorem") and _wanted_labels(full, options, m) is not None
    if near_data or made_for:
        return nominal_classes(m, targets)
    W, bias = model
    return (made.stored_features @ W + bias).argmax(dim=1)


def _space(encoder: Encoder, options: PointOptions) -> Space:
    feature_map = encoder.feature_map
    reachable: Space = "input" if encoder.transform.bijective else "transformed"
    if options.method in ("label-solve", "refine") and options.space == "features":
        raise ValueError(f"method {options.method!r} makes points in the input space")
    if options.space == "features":
        return "features"
    if options.space == "input" and reachable != "input":
        raise ValueError(
            f"the transform {encoder.transform.name!r} cannot be undone for every point: use space='auto', which"
            " keeps the points transformed"
        )
    if feature_map.has_preimage or options.method in ("label-solve", "refine"):
        return reachable
    if options.space == "input":
        raise ValueError(
            f"the {feature_map.name!r} map ({feature_map.n_inputs} inputs, {feature_map.n_features} features) has no"
            " preimage. Use space='features' (exact), method='label-solve' with at least"
            f" {feature_map.n_features} points (exact), or method='refine' (points that minimise the full-data loss)"
        )
    return "features"


def _stored_features(encoder: Encoder, x: Tensor, space: Space) -> Tensor:
    if space == "transformed":
        return encoder.feature_map.features(x.double())
    return encoder(x, torch.float64)
