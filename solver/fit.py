"""The full model in one pass over the data: statistics, choice of λ on rows held aside, refit on everything."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from .encoder import Encoder
from .model import RidgeModel
from .moments import GramData, RowData
from .progress import track
from .ridge import RidgePath
from .ridge_choice import Rows, best_ridge, parse_ridge, score_ridges
from .source import ArraySource, Batch, Reservoir, Source, batch_rows, row_keys
from .statistics import Statistics
from .targets import Targets

HOLDOUT_SHARE = 0.05
# Held-out features stay in memory until the end of the pass.
_HOLDOUT_BYTES = 256 * 2**20
# Rows from which the scale of noise points is taken.
_SAMPLE = 512


@dataclasses.dataclass(frozen=True)
class FullModel:
    """The model of the whole data set, and what distillation needs of the data besides.

    Attributes
    ----------
    model : RidgeModel
    ridge : float
        λ, absolute.
    ridge_rule : str
    scores : tuple of (float, float)
        (λ, score) for every candidate: accuracy, or minus the loss; larger is better. Empty if λ was given.
    data : GramData or RowData
        Second moments of the training data: their Gram matrix, or the rows themselves where n < p.
    sample : Tensor or None
        A few raw rows, chosen by `row_keys`.
    candidates : Reservoir
        Raw rows of each class (or of the whole), to place points near.
    data_range : tuple of float
        Smallest and largest raw value.
    """

    model: RidgeModel
    intercept: bool
    ridge: float
    ridge_rule: str
    scores: tuple[tuple[float, float], ...]
    data: GramData | RowData
    sample: Tensor | None
    candidates: Reservoir
    data_range: tuple[float, float]
    n_rows: int
    notes: tuple[str, ...]


def fit_full_model(
    source: Source,
    encoder: Encoder,
    targets: Targets,
    *,
    ridge: Any = "auto",
    intercept: bool = False,
    seed: int = 0,
    candidates_per_class: int = 0,
    batch_bytes: int | None = None,
    progress: bool | None = None,
) -> FullModel:
    """Fit ridge regression on a stream.

    Parameters
    ----------
    source : Source
    encoder : Encoder
    targets : Targets
    ridge : str, float, Ridge or sequence of float, default "auto"
        "holdout": accuracy (loss, for values) on 5 % of the rows, held aside in the same pass, then refitted
        on everything. "gcv": from the statistics alone. "loo": exact leave-one-out, a second pass. "auto":
        "holdout" for classes ("loo" below 2000 rows), "gcv" for values. A number or `Ridge` is used as it
        is; a sequence gives the candidates of "auto". Ties go to the larger λ, the better conditioned model.
    intercept : bool, default False
        Unpenalised intercept.
    seed : int
        Decides which rows are held out.
    candidates_per_class : int
        Raw rows kept of each class.
    batch_bytes : int, optional
        Memory of one batch of features.
    progress : bool, optional

    Notes
    -----
    Primal (n ≥ p): n p² + 9 p³ multiplications, O(p²) memory. Dual (n < p, known n): O(n p) memory.
    """
    rule, given, candidates = parse_ridge(ridge, targets, source.n_rows)
    feature_map = encoder.feature_map
    p = feature_map.n_features
    rows = batch_rows(p, feature_map.n_inputs, *([] if batch_bytes is None else [batch_bytes]))
    total = math.ceil(source.n_rows / rows) if source.n_rows else None
    dual = source.n_rows is not None and source.n_rows < p
    collect = _Collector(targets, source, seed, candidates_per_class)
    statistics = None if dual else Statistics(p, targets.n_outputs, encoder, targets)
    kept: list[Rows] = []
    held: list[Rows] = []
    asides: list[Tensor] = []
    room = max(1, _HOLDOUT_BYTES // (8 * p))
    for batch in track(source.batches(rows), "features and statistics", total, show=progress):
        F = encoder(batch.X)
        Y = collect.targets_of(batch)
        if statistics is not None:
            statistics.add(F, Y, batch.weight)
        else:
            kept.append((F.double(), Y, batch.weight))
        if rule == "holdout":
            aside = row_keys(seed, "holdout", batch.start, len(batch)) < HOLDOUT_SHARE
            aside = aside.nonzero().flatten()[:room]
            room -= len(aside)
            held.append((F[aside], Y[aside], None if batch.weight is None else batch.weight[aside]))
            asides.append(aside + batch.start)
    if statistics is not None:
        moments: GramData | RowData = GramData(statistics, intercept)
    else:
        moments = RowData(*_join(kept), intercept, torch.cat(asides) if asides else None)
    if rule == "given":
        assert given is not None
        path, scores = moments.path(), []
        chosen = given.absolute(path.trace, path.weight)
    else:
        path, scores = score_ridges(
            rule, moments, candidates, source, encoder, targets, rows, _join(held) if held else None, progress
        )
        chosen = best_ridge(rule, scores)
    if rule == "holdout":
        weights, bias, notes = moments.solve(chosen, path)
    else:
        (weights, bias), notes = path.weights(chosen), path.notes
    if intercept and _is_rounding(weights, path):
        weights, bias = torch.zeros_like(weights), moments.means[1]
        notes = (*notes, "targets do not depend on the features: the model is its intercept")
    return FullModel(
        model=RidgeModel(encoder, targets, weights, bias),
        intercept=intercept,
        ridge=chosen,
        ridge_rule=rule,
        scores=tuple(scores),
        data=moments,
        sample=collect.sample(),
        candidates=collect.candidates,
        data_range=collect.data_range,
        n_rows=moments.count,
        notes=notes,
    )


def full_model_from_statistics(
    statistics: Statistics, *, ridge: Any = "gcv", intercept: bool = False
) -> FullModel:
    """Fit ridge regression on statistics alone; λ by "gcv" or given. No rows, so no noise scale and no range.

    Raises
    ------
    ValueError
        If the rule needs rows.
    """
    encoder, targets = statistics.encoder, statistics.targets
    if encoder is None or targets is None or statistics.count < 1:
        raise ValueError("these statistics are empty or do not know their encoder and targets")
    rule, given, candidates = parse_ridge(ridge, targets, None)
    if rule == "holdout" and candidates is not None:
        rule = "gcv"
    if rule not in ("gcv", "given"):
        raise ValueError(
            f"ridge={rule!r} needs the rows, which statistics do not hold: use 'gcv' or a number"
        )
    moments = GramData(statistics, intercept)
    path = moments.path()
    scores: tuple[tuple[float, float], ...] = ()
    if given is not None:
        chosen = given.absolute(path.trace, path.weight)
    else:
        ridges = candidates or path.grid()
        scores = tuple((ridge, -value) for ridge, value in zip(ridges, path.gcv(ridges), strict=True))
        chosen = best_ridge(rule, scores)
    weights, bias = path.weights(chosen)
    return FullModel(
        model=RidgeModel(encoder, targets, weights, bias),
        intercept=intercept,
        ridge=chosen,
        ridge_rule=rule,
        scores=scores,
        data=moments,
        sample=None,
        candidates=Reservoir(0, "near", 0),
        data_range=(-math.inf, math.inf),
        n_rows=statistics.count,
        notes=(*path.notes, *(f"left out of the data: {shard}" for shard in statistics.left_out)),
    )


def _is_rounding(W: Tensor, path: RidgePath) -> bool:
    """Whether predictions are below the rounding of the sums they came from, so that W means nothing."""
    spread = float((path.vectors.T @ W).square().sum(dim=1) @ path.values)
    scale = path.weight * float(path.target_mean.square().sum())
    return spread <= 1e-24 * scale


class _Collector:
    """What else the pass keeps: targets, a sample of raw rows, rows of each class, the range of the data."""

    def __init__(self, targets: Targets, source: Source, seed: int, per_class: int) -> None:
        groups = targets.n_outputs if targets.is_classes else 1
        self._targets, self._seed = targets, seed
        # Arrays give the same sample by themselves; a stream must be caught in passing.
        self._array = source if isinstance(source, ArraySource) else None
        self._sample = Reservoir(seed, "sample", _SAMPLE)
        self.candidates = Reservoir(seed, "near", per_class, groups)
        self._per_class = per_class
        self.data_range = (math.inf, -math.inf)

    def targets_of(self, batch: Batch) -> Tensor:
        """Target rows of the batch; looks at everything else on the way."""
        Y = self._targets.encode(batch.y, batch.start)
        if Y.shape[1] != self._targets.n_outputs:
            raise ValueError(f"targets have {Y.shape[1]} outputs, expected {self._targets.n_outputs}")
        if not torch.isfinite(Y.sum()):
            row = batch.start + int((~torch.isfinite(Y)).any(dim=1).nonzero()[0])
            raise ValueError(f"`y` holds NaN or infinity in row {row}: remove those rows first")
        if self._array is None:
            self._sample.offer(batch)
        if self._per_class:
            self.candidates.offer(batch, Y.argmax(dim=1) if self._targets.is_classes else None)
        low, high = (0, 255) if batch.X.dtype == torch.uint8 else map(float, batch.X.aminmax())
        self.data_range = (min(self.data_range[0], low), max(self.data_range[1], high))
        return Y

    def sample(self) -> Tensor:
        """A few raw rows."""
        if self._array is not None:
            return self._array.sample(self._seed, "sample", _SAMPLE)
        rows = self._sample.rows()
        assert rows is not None
        return rows


def _join(parts: list[Rows]) -> Rows:
    F = torch.cat([part[0] for part in parts])
    Y = torch.cat([part[1] for part in parts])
    weights = [part[2] for part in parts if part[2] is not None]
    return F, Y, torch.cat(weights) if weights else None
