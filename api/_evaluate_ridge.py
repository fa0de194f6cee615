"""`evaluate` with the recipe "ridge": the model that a set was made for, trained on it, or on real rows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._evaluation import Difference, Evaluation, Row, wilson_interval
from ._evaluation_data import EvaluationData, named_sets, unused
from .solver._check import check_name
from .solver.distilled_set import DistilledSet
from .solver.encoder import Encoder
from .solver.kernel_encoder import KernelEncoder
from .solver.kernel_model import KernelModel, solve_kernel
from .solver.model import Model, RidgeModel, as_rows, decision_functions, score
from .solver.ridge import RidgePath
from .solver.source import row_keys, to_tensor

BASELINES = ("random",)


def evaluate_ridge(
    sets: Any, data: Any, baselines: Sequence[str], confidence: float, seed: int
) -> Evaluation:
    """Score the sets' own models, and the same kind of model trained on real rows.

    Parameters
    ----------
    sets, data, confidence, seed
        As for `evaluate`.
    baselines : sequence of {"random"}

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        As `evaluate`.
    """
    for baseline in baselines:
        check_name(baseline, BASELINES, "baseline")
    test = EvaluationData(data, "baselines are drawn from" if baselines else "")
    entries: list[tuple[Row, RidgeModel | KernelModel, RidgeModel | None]] = []
    flat: dict[str, DistilledSet] = {}
    for name, several in named_sets(sets):
        for ds in several:
            flat[unused(name, flat)] = ds
    for name, ds in flat.items():
        test.check(name, ds)
        metric = "accuracy" if ds.targets.is_classes else "r2"
        row = Row(
            name, "distilled", len(ds), ds.nbytes, metric, 0.0, stored_error=ds.certificate.stored_error
        )
        entries.append((row, ds.model, ds.full_model))
        for baseline in dict.fromkeys(baselines):
            model, nbytes = _random_rows(ds, test, seed)
            entries.append((Row(name, baseline, len(ds), nbytes, metric, 0.0), model, None))
    models = [model for _, *pair in entries for model in pair if model is not None]
    scores = iter(decision_functions(_share_encoders(models), test.x))
    rows = []
    for row, model, full in entries:
        mine = next(scores)
        theirs = None if full is None else next(scores)
        rows.append(_score_row(row, model, mine, theirs, test.labels(model.targets), confidence))
    return Evaluation(tuple(rows), test.name, len(test.y), "ridge", float(confidence), seed)


def _share_encoders(models: Sequence[RidgeModel | KernelModel]) -> list[Model[Any]]:
    """Give models that encode alike one encoder object: files are loaded one by one, each with its own."""
    known: dict[str, Encoder | KernelEncoder] = {}
    return [
        dataclasses.replace(model, encoder=known.setdefault(model.encoder.digest(), model.encoder))
        for model in models
    ]


def _random_rows(ds: DistilledSet, test: EvaluationData, seed: int) -> tuple[RidgeModel | KernelModel, int]:
    """Model of as many real rows of each class as the set has points, and the bytes of those rows."""
    targets = ds.targets
    X = as_rows(test.x_train, ds.encoder.transform.input_shape)
    y = test.labels(targets, test.y_train)
    keys = row_keys(seed, "random", 0, len(X))
    if ds.labels is None:
        groups, counts = torch.zeros(len(X), dtype=torch.int64), [len(ds)]
    else:
        groups, counts = targets.indices(y), ds.labels.bincount(minlength=targets.n_outputs).tolist()
    chosen: list[Tensor] = []
    for group, count in enumerate(counts):
        members = (groups == group).nonzero().flatten()
        if len(members) < count:
            name = "" if targets.classes is None else f" of class {targets.classes[group]!r}"
            raise ValueError(
                f"baseline 'random' needs {count} training rows{name}, the data have {len(members)}"
            )
        chosen.append(members[keys[members].argsort()[:count]])
    rows = torch.cat(chosen).numpy()
    model = _train_on(ds, ds.encoder(to_tensor(X[rows]), torch.float64), targets.encode(np.asarray(y)[rows]))
    return model, X[rows].nbytes + np.asarray(y)[rows].nbytes


def _train_on(ds: DistilledSet, encoded: Tensor, Y: Tensor) -> RidgeModel | KernelModel:
    """Model of rows as the set's encoder gives them, with a ridge of their own.

    A kernel matrix K = U S U' is that of the features U sqrt(S), which have the same residuals at every ridge.
    """
    encoder = ds.encoder
    if not isinstance(encoder, KernelEncoder):
        path = RidgePath.from_rows(encoded, Y, intercept=ds.intercept)
        return RidgeModel(encoder, ds.targets, *path.weights(_best_ridge(path)))
    K = encoder.kernel.matrix(encoded)
    values, vectors = torch.linalg.eigh(K)
    path = RidgePath.from_rows(vectors * values.clamp_min(0).sqrt(), Y)
    return KernelModel(encoder, ds.targets, encoded, solve_kernel(K, Y, _best_ridge(path)))


def _best_ridge(path: RidgePath) -> float:
    """Ridge of the least generalised cross-validation score."""
    candidates = path.grid()
    return min(zip(path.gcv(candidates), candidates, strict=True))[1]


def _score_row(
    row: Row, model: Model[Any], scores: np.ndarray, full: np.ndarray | None, y: Any, confidence: float
) -> Row:
    """`row` with its results."""
    targets = model.targets
    if not targets.is_classes:
        found = tuple(targets.encode(y).shape)
        if found != scores.shape:
            raise ValueError(f"{row.name} predicts {scores.shape[1]} value(s) a row, `y` has shape {found}")
        full_score = None if full is None else score(targets, full, y)
        return dataclasses.replace(row, score=score(targets, scores, y), full_score=full_score)
    truth = targets.indices(y).numpy()
    predicted = scores.argmax(axis=1)
    hits = int((predicted == truth).sum())
    done = dataclasses.replace(
        row, score=hits / len(truth), interval=wilson_interval(hits, len(truth), confidence)
    )
    if full is None:
        return done
    other = full.argmax(axis=1)
    classes: list[Any] = list(targets.classes or ())
    differences = tuple(
        Difference(
            row=index,
            truth=classes[truth[index]],
            distilled=classes[predicted[index]],
            full=classes[other[index]],
            distilled_margin=_margin(scores[index]),
            full_margin=_margin(full[index]),
        )
        for index in np.flatnonzero(predicted != other).tolist()
    )
    return dataclasses.replace(done, full_score=float((other == truth).mean()), differences=differences)


def _margin(scores: np.ndarray) -> float:
    second, first = np.partition(scores, -2)[-2:]
    return float(first - second)
