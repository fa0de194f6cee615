"""From a full model to a distilled set: choose points, go back to the input space, store, certify."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels import normal
from ._check import check_finite, check_name, check_non_negative
from .certificate import Status
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
from .made_set import Made, best_bias, given_points, made_set, stored_features
from .points import STORAGE, cast_features, cast_points, points_from_features, scale_into_bound
from .reference import nominal_classes, reference_points
from .set_factor import SetFactor

METHODS = ("closed-form", "theorem", "all-ridges", "label-solve")
SPACES = ("auto", "input", "features")
LABELS = ("auto", "one-hot", "solved")


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
    made = _make(full, options, _space(full.model.encoder, options))
    distilled, trained = made_set(full, made, options.storage, class_names, provenance)
    return dataclasses.replace(distilled, labels=_classes(full, options, made, trained))


def distill_points(
    full: FullModel,
    learned: Mapping[str, Tensor],
    *,
    storage: str = "float64",
    steps: int | None = None,
    selected_step: int | None = None,
    class_names: tuple[str, ...] | None = None,
    provenance: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> DistilledSet:
    """A set of points that a learner found for a full model (`learners.full_kip`), with its whole certificate.

    Parameters
    ----------
    full : FullModel
    learned : mapping of str to Tensor
        "x", transformed points (m, *input_shape); "y", labels (m, k); "ridge", λ_S, absolute. A ridge of zero says
        that labels were solved: they are solved again for the points as they are stored.
    storage : {"float64", "float32", "float16", "uint8"}, default "float64"
    steps, selected_step : int, optional
        Of the run, for the certificate.
    class_names, provenance
        As in `DistilledSet`.
    notes : sequence of str
        For the certificate, after those of the fit.

    Returns
    -------
    DistilledSet
        In raw units where the transform can be undone. The class of a point is that of its largest label.

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, or the storage cannot hold the points.
    """
    encoder, targets = full.model.encoder, full.model.targets
    x, y = (learned[name].detach().cpu().double() for name in ("x", "y"))
    if tuple(x.shape[1:]) != encoder.transform.input_shape or tuple(y.shape) != (len(x), targets.n_outputs):
        raise ValueError(
            f"learned points of shape {tuple(x.shape)} and labels of shape {tuple(y.shape)} do not fit a model of"
            f" inputs {encoder.transform.input_shape} and {targets.n_outputs} outputs"
        )
    check_finite(x, "x")
    check_finite(y, "y")
    ridge = float(learned["ridge"])
    made = given_points(full, x, Status.REFINED, storage, ridge, y if ridge else None, notes)
    distilled, _ = made_set(full, made, storage, class_names, provenance)
    return dataclasses.replace(
        distilled,
        labels=distilled.y.argmax(dim=1) if targets.is_classes else None,
        certificate=distilled.certificate.model_copy(update={"steps": steps, "selected_step": selected_step}),
    )


def _make(full: FullModel, options: PointOptions, space: Space) -> Made:
    encoder = full.model.encoder
    W, m, intercept = full.model.weights, options.n_points, full.intercept
    if not torch.isfinite(W).all():
        raise ValueError("the full model is not finite: are features or targets of extreme scale?")
    if float(W.norm()) == 0 and not intercept:
        raise ValueError("the full model is zero: targets or features are zero throughout")
    if options.method == "all-ridges":
        return _make_all_ridges(full, options, space)
    reference = reference_points(full, m, options.near, options.seed)
    if options.method == "label-solve":
        return given_points(full, reference, Status.PROJECTED, options.storage, options.distilled_ridge)
    F_reference = encoder.feature_map.features(reference)
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
        return Made(x, space, x.double(), goal, ridge, status, closed, notes=notes)
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
    stored = stored_features(encoder, x, space)
    return Made(x, space, stored, goal, ridge, status, closed, notes=notes + scaled)


def _make_all_ridges(full: FullModel, options: PointOptions, space: Space) -> Made:
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
        return Made(x, space, x.double(), goal, full.ridge, Status.EXACT, exact, labels=Y)
    encoder = full.model.encoder
    scale = scale_into_bound(F, encoder.feature_map.feature_bound)
    z = encoder.feature_map.preimage(F * scale)
    x = cast_points(encoder.transform.inverse(z) if space == "input" else z, options.storage)
    notes = (
        () if scale == 1 else (f"features and labels were scaled by {scale:.3g}: ridges scale by its square",)
    )
    stored = stored_features(encoder, x, space)
    ridge = full.ridge * scale**2
    return Made(x, space, stored, goal, ridge, Status.EXACT, exact, labels=Y * scale, notes=notes)


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
    full: FullModel, options: PointOptions, made: Made, model: tuple[Tensor, Tensor]
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
    if options.method == "label-solve" and options.space == "features":
        raise ValueError("method 'label-solve' makes points in the input space")
    if options.space == "features":
        return "features"
    if options.space == "input" and reachable != "input":
        raise ValueError(
            f"the transform {encoder.transform.name!r} cannot be undone for every point: use space='auto', which"
            " keeps the points transformed"
        )
    if feature_map.has_preimage or options.method == "label-solve":
        return reachable
    if options.space == "input":
        raise ValueError(
            f"the {feature_map.name!r} map ({feature_map.n_inputs} inputs, {feature_map.n_features} features) has no"
            " preimage. Use space='features' (exact), method='label-solve' with at least"
            f" {feature_map.n_features} points (exact), or method='full-kip' (points that minimise the full-data loss)"
        )
    return "features"
