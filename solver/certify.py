"""Measure what a distilled set gives, against the full model where there is one: the numbers of its certificate."""

import math

import torch
from torch import Tensor

from .certificate import Certificate, Status
from .closed_form import model_rank
from .fit import FullModel
from .set_factor import SetFactor

# A stored set is called exact up to this relative error of its weights.
_EXACT = 1e-6


def certify(
    full: FullModel,
    factor: SetFactor,
    stored: tuple[Tensor, Tensor],
    closed: tuple[Tensor, Tensor, float] | None,
    *,
    status: Status,
    distilled_ridge: float,
    x: Tensor,
    in_input_units: bool,
    notes: tuple[str, ...],
) -> Certificate:
    """Measure a set against the full model.

    Parameters
    ----------
    full : FullModel
    factor : SetFactor
        Factorisation of the features of the points as they are stored.
    stored : tuple of Tensor
        Weights and bias of the model trained on the stored set.
    closed : tuple of (Tensor, Tensor, float), optional
        Features, labels and ridge of the closed form, before preimage and cast.
    status : Status
        What the construction promises; changed to what was measured where storage or luck decide otherwise.
    distilled_ridge : float
    x : Tensor
        Points as stored.
    in_input_units : bool
        Whether they are raw inputs, which have a range to be compared with.
    notes : tuple of str
        Of the construction; those of the fit come first.
    """
    W, bias = stored
    truth = full.model.weights
    norm = float(truth.norm()) or 1.0  # a model that is its intercept alone has no weights to compare with
    stored_error = weight_error = float((W - truth).norm()) / norm
    if closed is not None:
        features, labels, ridge = closed
        clean, _ = SetFactor(features, ridge, intercept=full.intercept).weights(labels)
        weight_error = float((clean - truth).norm()) / norm
    if status in (Status.PROJECTED, Status.REFINED) and stored_error <= _EXACT:
        status = Status.EXACT
    elif status is Status.EXACT and stored_error > _EXACT:
        status = Status.ROUNDED
    return Certificate(
        status=status,
        weight_error=weight_error,
        stored_error=stored_error,
        prediction_error=_prediction_error(full, W, bias),
        ridge=full.ridge,
        ridge_rule=full.ridge_rule,
        distilled_ridge=distilled_ridge,
        rank=factor.rank,
        model_rank=model_rank(torch.linalg.svdvals(truth)),
        condition=factor.condition,
        max_abs_x=float(x.double().abs().max()),
        out_of_range=share_outside(x.double(), full.data_range) if in_input_units else None,
        n_rows=full.n_rows,
        notes=full.notes + notes,
    )


def _prediction_error(full: FullModel, W: Tensor, bias: Tensor) -> float:
    """Relative root mean square of the difference of predictions over the training data, from G alone."""
    truth, (feature_mean, target_mean) = full.model.weights, full.data.means
    difference, n = W - truth, full.data.weight
    if full.intercept:
        offset = feature_mean @ difference + bias - full.model.bias
    else:
        offset = target_mean = torch.zeros_like(bias)

    def square(V: Tensor, shift: Tensor) -> float:
        return max(float((V * full.data.gram_times(V.T).T).sum()), 0.0) + n * float(shift.square().sum())

    whole = square(truth, target_mean)
    return (square(difference, offset) / whole) ** 0.5 if whole > 0 else 0.0


def share_outside(x: Tensor, data_range: tuple[float, float]) -> float | None:
    """Share of values beyond the data's, up to rounding; None where the range is not known."""
    low, high = data_range
    if not math.isfinite(high - low):
        return None
    slack = 1e-9 * max(abs(low), abs(high), 1.0)
    return float(((x < low - slack) | (x > high + slack)).double().mean())


def kernel_rank(K: Tensor, tolerance: float) -> tuple[int, float]:
    """Rank and condition number of the features behind a kernel matrix, from its eigenvalues.

    Eigenvalues are squares of singular values, known to the rounding of the largest: what lies below the square of
    `tolerance` (`storage_tolerance`), or below that rounding, counts as zero.
    """
    values = torch.linalg.eigvalsh(K).flip(0)
    floor = float(values[0]) * max(tolerance**2, len(K) * torch.finfo(K.dtype).eps)
    kept = values[values > floor]
    return len(kept), float((kept[0] / kept[-1]).sqrt()) if len(kept) else 1.0
