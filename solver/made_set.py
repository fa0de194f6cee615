"""From chosen points to a distilled set: features as stored, labels, the model that they train, the certificate."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .certificate import Status
from .certify import certify
from .distilled_set import DistilledSet, Space
from .encoder import Encoder
from .fit import FullModel
from .points import cast_points
from .set_factor import SetFactor, storage_tolerance

# Below this share of W outside the span of the points, the rest is rounding and there is nothing to project.
_SPANNED = 1e-9


@dataclasses.dataclass(frozen=True)
class Made:
    """Points as stored, their features, and what their model is meant to be.

    `exact` holds features and labels of the closed form before preimage and cast, and their ridge; `labels`
    the final ones where they are part of the construction, not solved for.
    """

    x: Tensor
    space: Space
    stored_features: Tensor
    goal: Tensor
    ridge: float
    status: Status
    exact: tuple[Tensor, Tensor, float] | None = None
    labels: Tensor | None = None
    notes: tuple[str, ...] = ()


def made_set(
    full: FullModel,
    made: Made,
    storage: str,
    class_names: tuple[str, ...] | None,
    provenance: Mapping[str, Any] | None,
) -> tuple[DistilledSet, tuple[Tensor, Tensor]]:
    """The set with labels and certificate, and the model (W, bias) trained on it.

    Labels that are not part of the construction are the best for the points as stored, for any λ_S.
    """
    factor = SetFactor(
        made.stored_features, made.ridge, intercept=full.intercept, tolerance=storage_tolerance(made.x.dtype)
    )
    if made.labels is None:
        goal = projected_model(full, made.stored_features, made.goal)
        y = factor.labels(goal, best_bias(full, goal))
    else:
        y = made.labels
    y = y.to(torch.float64 if storage == "float64" else torch.float32)
    trained = factor.weights(y.double())
    certificate = certify(
        full,
        factor,
        trained,
        made.exact,
        status=made.status,
        distilled_ridge=made.ridge,
        x=made.x,
        in_input_units=made.space == "input",
        notes=made.notes,
    )
    distilled = DistilledSet(
        x=made.x,
        y=y,
        encoder=full.model.encoder,
        targets=full.model.targets,
        space=made.space,
        distilled_ridge=made.ridge,
        intercept=full.intercept,
        certificate=certificate,
        class_names=class_names,
        provenance=dict(provenance or {}),
        full_model=full.model,
    )
    return distilled, trained


def given_points(
    full: FullModel,
    z: Tensor,
    status: Status,
    storage: str,
    ridge: float,
    labels: Tensor | None = None,
    notes: Sequence[str] = (),
) -> Made:
    """Transformed points as they are, with labels to be solved for, or given ones."""
    encoder, said = full.model.encoder, list(notes)
    bijective = encoder.transform.bijective
    x = cast_points(encoder.transform.inverse(z) if bijective else z, storage, said)
    space: Space = "input" if bijective else "transformed"
    stored = stored_features(encoder, x, space)
    return Made(x, space, stored, full.model.weights, ridge, status, labels=labels, notes=tuple(said))


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


def stored_features(encoder: Encoder, x: Tensor, space: Space) -> Tensor:
    """Features (m, p), float64, of points as they are stored in `space`."""
    if space == "transformed":
        return encoder.feature_map.features(x.double())
    return encoder(x, torch.float64)
