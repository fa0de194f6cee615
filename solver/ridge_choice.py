"""How λ is chosen: what the `ridge` argument means, the score of every candidate, and the best of them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._check import check_name, check_non_negative
from .encoder import Encoder
from .moments import GramData, RowData
from .progress import track
from .ridge import Ridge, RidgePath
from .source import Source
from .targets import Targets

RULES = ("auto", "holdout", "gcv", "loo")
# Below this, five percent of the rows say little; exact leave-one-out uses all of them and is cheap.
_SMALL = 2000

# Features, targets and weights of some rows.
Rows = tuple[Tensor, Tensor, Tensor | None]


def parse_ridge(
    ridge: Any, targets: Targets, n_rows: int | None
) -> tuple[str, Ridge | None, Sequence[float] | None]:
    """(rule, given, candidates) of the `ridge` argument."""
    candidates = None
    if isinstance(ridge, Ridge):
        return "given", ridge, None
    if not isinstance(ridge, str) and np.ndim(ridge) > 0:
        candidates = [check_non_negative(value, "ridge") for value in ridge]
        if not candidates:
            raise ValueError("`ridge` is an empty sequence: give at least one candidate")
        ridge = "auto"
    if not isinstance(ridge, str):
        return "given", Ridge(check_non_negative(ridge, "ridge")), None
    rule = check_name(ridge, RULES, "ridge rule")
    if rule == "auto":
        small = n_rows is not None and n_rows < _SMALL
        rule = ("loo" if small else "holdout") if targets.is_classes else "gcv"
    return rule, None, candidates


def best_ridge(rule: str, scores: Sequence[tuple[float, float]]) -> float:
    """The largest λ of the best score."""
    finite = [(ridge, value) for ridge, value in scores if math.isfinite(value)]
    if not finite:
        raise ValueError(f"no ridge candidate could be scored by {rule!r}: give ridge as a number")
    best = max(value for _, value in finite)
    return max(ridge for ridge, value in finite if value == best)


def score_ridges(
    rule: str,
    moments: GramData | RowData,
    candidates: Sequence[float] | None,
    source: Source,
    encoder: Encoder,
    targets: Targets,
    rows: int,
    held: Rows | None,
    progress: bool | None,
) -> tuple[RidgePath, list[tuple[float, float]]]:
    """Factor once and score every candidate; larger is better."""
    if rule == "holdout":
        if held is None or len(held[0]) == 0:
            raise ValueError("no rows were held out: use ridge='loo', 'gcv' or a number for so few rows")
        F, Y, weight = held
        path = moments.path_without(F, Y, weight)
        ridges = candidates or path.grid()
        merits = _merit(path.scores(F, ridges), Y, weight, targets)
        return path, list(zip(ridges, merits.tolist(), strict=True))
    path = moments.path()
    ridges = candidates or path.grid()
    if rule == "gcv":
        return path, [(ridge, -value) for ridge, value in zip(ridges, path.gcv(ridges), strict=True)]
    total = math.ceil(source.n_rows / rows) if source.n_rows else None
    merits, seen = torch.zeros(len(ridges), dtype=torch.float64), 0.0
    for batch in track(source.batches(rows), "leave-one-out", total, show=progress):
        Y = targets.encode(batch.y)
        weight = torch.ones(len(Y), dtype=torch.float64) if batch.weight is None else batch.weight
        predicted = path.leave_one_out(encoder(batch.X), Y, ridges, batch.weight)
        merits += _merit(predicted, Y, weight, targets) * weight.sum()
        seen += float(weight.sum())
    return path, list(zip(ridges, (merits / seen).tolist(), strict=True))


def _merit(predicted: Tensor, Y: Tensor, weight: Tensor | None, targets: Targets) -> Tensor:
    """Weighted mean accuracy, or minus squared error, for each λ."""
    if targets.is_classes:
        merit = (predicted.argmax(dim=2) == Y.argmax(dim=1)).double()
        merit[torch.isnan(predicted).any(dim=2)] = torch.nan
    else:
        merit = -(predicted - Y).square().sum(dim=2)
    weight = torch.ones(len(Y), dtype=torch.float64) if weight is None else weight
    return (merit @ weight) / weight.sum()
