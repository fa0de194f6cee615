"""Weights of rows: of one shape and place with them, and usable."""

from typing import Any

from torch import Tensor

from ._check import as_tensor


def row_weights(weights: Any, x: Tensor) -> Tensor | None:
    """Weights of the rows of `x` in float64, checked on metadata only."""
    if weights is None:
        return None
    w = as_tensor(weights, "weights")
    if w.shape != (len(x),):
        raise ValueError(f"`weights` must be ({len(x)},), one for each row of `X`, got {tuple(w.shape)}")
    if w.device != x.device:
        raise ValueError(f"`X` is on {x.device} but `weights` are on {w.device}: move one of them")
    return w.detach().double().contiguous()


def check_weight_sums(least: float, mass: float) -> None:
    """Raise unless the smallest weight and the sum of all are those of usable weights."""
    if not least >= 0:
        raise ValueError(f"`weights` must not be negative or NaN, the smallest is {least}")
    if not 0 < mass < float("inf"):
        raise ValueError(f"`weights` must have a positive, finite sum, got {mass}")
