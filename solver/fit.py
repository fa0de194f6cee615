"""The full model in one pass over the data: statistics, choice of λ on rows held aside, refit on everything."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._check import check_name, check_non_negative
from .encoder import Encoder
from .model import RidgeModel
from .progress import track
from .ridge import Ridge, RidgePath, centred, rank_tolerance
from .source import Batch, Reservoir, Source, batch_rows, row_keys
from .statistics import Statistics
from .targets import Targets

RULES = ("auto", "holdout", "gcv", "loo")
HOLDOUT_SHARE = 0.05
# Held-out features stay in memory until the end of the pass.
_HOLDOUT_BYTES = 256 * 2**20
# Below this, five percent of the rows say little; exact leave-one-out uses all of them and is cheap.
_SMALL = 2000
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
    path : RidgePath
        A factorisation of all rows, or of those not held out (`ridge_rule` "holdout").
    scores : tuple of (float, float)
        (λ, score) for every candidate: accuracy, or minus the loss; larger is better. Empty if λ was given.
    statistics : Statistics or None
        Sums over all rows; None where n < p and the rows themselves are kept.
    rows : tuple of Tensor or None
        Features (n, p), square roots of the weights applied, where n < p.
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
    path: RidgePath
    scores: tuple[tuple[float, float], ...]
    statistics: Statistics | None
    rows: Tensor | None
    sample: Tensor | None
    candidates: Reservoir
    data_range: tuple[float, float]
    n_rows: int
    notes: tuple[str, ...]

    def gram_times(self, F: Tensor) -> Tensor:
        """G F' transposed, (m, p): the training data's (centred) Gram matrix applied to rows of features."""
        if self.statistics is None:
            assert self.rows is not None
            return (F @ self.rows.T) @ self.rows
        product = F @ self.statistics.gram
        if self.intercept:
            total = self.statistics.feature_sum
            product = product - torch.outer(F @ total, total) / self.statistics.weight
        return product


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
    rule, given, candidates = _parse_ridge(ridge, targets, source.n_rows)
    feature_map = encoder.feature_map
    p = feature_map.n_features
    rows = batch_rows(p, feature_map.n_inputs, *([] if batch_bytes is None else [batch_bytes]))
    total = math.ceil(source.n_rows / rows) if source.n_rows else None
    dual = source.n_rows is not None and source.n_rows < p
    collect = _Collector(targets, seed, candidates_per_class)
    statistics = None if dual else Statistics(p, targets.n_outputs, encoder, targets)
    kept: list[tuple[Tensor, Tensor, Tensor | None]] = []
    held: list[tuple[Tensor, Tensor, Tensor | None]] = []
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
        solver: _Primal | _Dual = _Primal(statistics, intercept)
    else:
        solver = _Dual(*_join(kept), intercept, torch.cat(asides) if asides else None)
    if rule == "given":
        assert given is not None
        path, scores = solver.path(), ()
        chosen = given.absolute(path.trace, path.weight)
    else:
        path, scores = _score(rule, solver, candidates, source, encoder, targets, rows, held, total, progress)
        chosen = _best(rule, scores)
    weights, bias, notes = solver.solve(chosen, path if rule != "holdout" else None, path)
    return FullModel(
        model=RidgeModel(encoder, targets, weights, bias),
        intercept=intercept,
        ridge=chosen,
        ridge_rule=rule,
        path=path,
        scores=tuple(scores),
        statistics=statistics,
        rows=solver.rows if isinstance(solver, _Dual) else None,
        sample=collect.sample(),
        candidates=collect.candidates,
        data_range=collect.data_range,
        n_rows=solver.count,
        notes=notes,
    )


def full_model_from_statistics(statistics: Statistics, *, ridge: Any = "gcv", intercept: bool = False) -> FullModel:
    """Fit ridge regression on statistics alone; λ by "gcv" or given. No rows, so no noise scale and no range.

    Raises
    ------
    ValueError
        If the rule needs rows.
    """
    encoder, targets = statistics.encoder, statistics.targets
    if encoder is None or targets is None or statistics.count < 1:
        raise ValueError("these statistics are empty or do not know their encoder and targets")
    rule, given, candidates = _parse_ridge(ridge, targets, None)
    if rule == "holdout" and candidates is not None:
        rule = "gcv"
    if rule not in ("gcv", "given"):
        raise ValueError(f"ridge={rule!r} needs the rows, which statistics do not hold: use 'gcv' or a number")
    path = RidgePath.from_statistics(statistics, intercept=intercept)
    scores: tuple[tuple[float, float], ...] = ()
    if given is not None:
        chosen = given.absolute(path.trace, path.weight)
    else:
        ridges = candidates or path.grid()
        scores = tuple((ridge, -value) for ridge, value in zip(ridges, path.gcv(ridges), strict=True))
        chosen = _best(rule, scores)
    weights, bias = path.weights(chosen)
    return FullModel(
        model=RidgeModel(encoder, targets, weights, bias),
        intercept=intercept,
        ridge=chosen,
        ridge_rule=rule,
        path=path,
        scores=scores,
        statistics=statistics,
        rows=None,
        sample=None,
        candidates=Reservoir(0, "near", 0),
        data_range=(-math.inf, math.inf),
        n_rows=statistics.count,
        notes=path.notes,
    )


def _best(rule: str, scores: Sequence[tuple[float, float]]) -> float:
    """The largest λ of the best score."""
    finite = [(ridge, value) for ridge, value in scores if math.isfinite(value)]
    if not finite:
        raise ValueError(f"no ridge candidate could be scored by {rule!r}: give ridge as a number")
    best = max(value for _, value in finite)
    return max(ridge for ridge, value in finite if value == best)


def _score(
    rule: str,
    solver: "_Primal | _Dual",
    candidates: Sequence[float] | None,
    source: Source,
    encoder: Encoder,
    targets: Targets,
    rows: int,
    held: list[tuple[Tensor, Tensor, Tensor | None]],
    total: int | None,
    progress: bool | None,
) -> tuple[RidgePath, list[tuple[float, float]]]:
    """Factor once and score every candidate; larger is better."""
    if rule == "holdout":
        F, Y, weight = _join(held)
        if len(F) == 0:
            raise ValueError("no rows were held out: use ridge='loo', 'gcv' or a number for so few rows")
        path = solver.path_without(F, Y, weight)
        ridges = candidates or path.grid()
        merits = _merit(path.scores(F, ridges), Y, weight, targets)
        return path, list(zip(ridges, merits.tolist(), strict=True))
    path = solver.path()
    ridges = candidates or path.grid()
    if rule == "gcv":
        return path, [(ridge, -value) for ridge, value in zip(ridges, path.gcv(ridges), strict=True)]
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


class _Primal:
    """Solves from the statistics (n ≥ p)."""

    def __init__(self, statistics: Statistics, intercept: bool) -> None:
        self._statistics, self._intercept = statistics, intercept
        self.count = statistics.count

    def path(self) -> RidgePath:
        return RidgePath.from_statistics(self._statistics, intercept=self._intercept)

    def path_without(self, F: Tensor, Y: Tensor, weight: Tensor | None) -> RidgePath:
        full = self._statistics
        held = Statistics(full.n_features, full.n_outputs, full.encoder, full.targets).add(F, Y, weight)
        return RidgePath.from_statistics(full - held, intercept=self._intercept)

    def solve(
        self, ridge: float, path: RidgePath | None, bound: RidgePath
    ) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """W, bias and notes at λ, from a path of all rows if there is one.

        Otherwise by Cholesky, where the spectrum of a part of the rows (`bound`: adding rows only raises
        eigenvalues) shows that G + λ is far from singular; and from a new path where it does not.
        """
        if path is None:
            p = self._statistics.n_features
            smallest = float(bound.values[-1]) if bound.rank == p else 0.0
            if smallest + ridge > 1e3 * rank_tolerance(bound.values[0], p):
                G, B, (phi, y), _ = centred(self._statistics, self._intercept)
                system = G.clone()
                system.diagonal().add_(ridge)
                factor, info = torch.linalg.cholesky_ex(system)
                if not int(info):
                    W = torch.cholesky_solve(B, factor)
                    return W, y - phi @ W, bound.notes
            path = self.path()
        W, bias = path.weights(ridge)
        return W, bias, path.notes


class _Dual:
    """Solves from the rows themselves (n < p)."""

    def __init__(
        self, F: Tensor, Y: Tensor, weight: Tensor | None, intercept: bool, aside: Tensor | None
    ) -> None:
        self._F, self._Y, self._weight, self._intercept = F, Y, weight, intercept
        self._aside = aside
        self.count = len(F)

    @property
    def rows(self) -> Tensor:
        """Centred features, square roots of the weights applied, so that ``rows' rows`` is G."""
        w = torch.ones(len(self._F), dtype=torch.float64) if self._weight is None else self._weight
        F = self._F - (w @ self._F) / w.sum() if self._intercept else self._F
        return F * w.sqrt()[:, None]

    def path(self) -> RidgePath:
        return RidgePath.from_rows(self._F, self._Y, self._weight, intercept=self._intercept)

    def path_without(self, F: Tensor, Y: Tensor, weight: Tensor | None) -> RidgePath:
        del F, Y, weight  # the same rows, known here by their positions
        rest = torch.ones(self.count, dtype=torch.bool)
        rest[self._aside] = False
        left = None if self._weight is None else self._weight[rest]
        return RidgePath.from_rows(self._F[rest], self._Y[rest], left, intercept=self._intercept)

    def solve(
        self, ridge: float, path: RidgePath | None, bound: RidgePath
    ) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        path = path or self.path()
        W, bias = path.weights(ridge)
        return W, bias, path.notes


class _Collector:
    """What else the pass keeps: targets, a sample of raw rows, rows of each class, the range of the data."""

    def __init__(self, targets: Targets, seed: int, per_class: int) -> None:
        groups = targets.n_outputs if targets.is_classes else 1
        self._targets, self._sample = targets, Reservoir(seed, "sample", _SAMPLE)
        self.candidates = Reservoir(seed, "near", per_class, groups)
        self._per_class = per_class
        self.data_range = (math.inf, -math.inf)

    def targets_of(self, batch: Batch) -> Tensor:
        """Target rows of the batch; looks at everything else on the way."""
        Y = self._targets.encode(batch.y)
        if Y.shape[1] != self._targets.n_outputs:
            raise ValueError(f"targets have {Y.shape[1]} outputs, expected {self._targets.n_outputs}")
        if not torch.isfinite(Y.sum()):
            row = batch.start + int((~torch.isfinite(Y)).any(dim=1).nonzero()[0])
            raise ValueError(f"`y` holds NaN or infinity in row {row}: remove those rows first")
        self._sample.offer(batch)
        if self._per_class:
            self.candidates.offer(batch, Y.argmax(dim=1) if self._targets.is_classes else None)
        low, high = (0, 255) if batch.X.dtype == torch.uint8 else map(float, batch.X.aminmax())
        self.data_range = (min(self.data_range[0], low), max(self.data_range[1], high))
        return Y

    def sample(self) -> Tensor:
        """A few raw rows."""
        rows = self._sample.rows()
        assert rows is not None
        return rows


def _join(parts: list[tuple[Tensor, Tensor, Tensor | None]]) -> tuple[Tensor, Tensor, Tensor | None]:
    F = torch.cat([part[0] for part in parts])
    Y = torch.cat([part[1] for part in parts])
    weights = [part[2] for part in parts if part[2] is not None]
    return F, Y, torch.cat(weights) if weights else None


def _parse_ridge(
    ridge: Any, targets: Targets, n_rows: int | None
) -> tuple[str, Ridge | None, Sequence[float] | None]:
    """(rule, given, candidates) of the `ridge` argument."""
    candidates = None
    if isinstance(ridge, Ridge):
        return "given", ridge, None
    if isinstance(ridge, (list, tuple)) or (hasattr(ridge, "__len__") and not isinstance(ridge, str)):
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
