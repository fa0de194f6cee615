"""`evaluate`: what models trained on distilled sets do on a test set, which is looked at once."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._evaluation import Difference, Evaluation, Row, wilson_interval
from .solver._check import check_name
from .solver.data import Data
from .solver.distilled_set import DistilledSet
from .solver.encoder import Encoder
from .solver.kernel_encoder import KernelEncoder
from .solver.kernel_model import KernelModel, solve_kernel
from .solver.model import Model, RidgeModel, as_rows, decision_functions, score
from .solver.ridge import RidgePath
from .solver.source import row_keys, to_tensor

RECIPES = ("ridge",)
BASELINES = ("random",)


def evaluate(
    sets: Any,
    data: Any,
    *,
    recipe: str = "ridge",
    baselines: str | Sequence[str] = (),
    confidence: float = 0.95,
    seed: int = 0,
) -> Evaluation:
    """Score models trained on distilled sets on a test set.

    Parameters
    ----------
    sets : DistilledSet, path, or sequence or mapping of them
        Names in the table are keys, file names, or the feature map (or kernel) and number of points.
    data : Data or (X, y)
        What `load_data` returns (its test split is used), or raw test inputs with labels or values.
    recipe : {"ridge"}, default "ridge"
        "ridge" trains the set's own model: its feature map or kernel, its ridge, its labels.
    baselines : sequence of {"random"}, default ()
        "random": as many real training rows of each class in place of the points, drawn by ``seed``, with
        the same encoder, hard labels, and a ridge of their own, chosen by generalised cross-validation on
        those rows (the distilled ridge means nothing for other points). Needs ``data.x_train``.
    confidence : float, default 0.95
        Of the Wilson intervals of accuracies.
    seed : int, default 0
        Of the baselines.

    Returns
    -------
    Evaluation
        ``rows``, ``to_dict()``, ``to_json()``; prints as a table.

    Raises
    ------
    ValueError
        If there is no test split, the data are not those of the set (shape, classes), or a name is unknown.

    Notes
    -----
    Test rows are encoded once for all sets with the same transform and feature map. Sets that come fresh
    from `distill` also have the full model compared, row by row.

    Examples
    --------
    >>> import kernel_distill as kd
    >>> data = kd.load_data("digits")
    >>> ds = kd.distill(data.x_train, data.y_train, feature_map="identity")
    >>> [row] = kd.evaluate(ds, data).rows
    >>> row.score == row.full_score, row.n_different
    (True, 0)
    """
    check_name(recipe, RECIPES, "recipe")
    wanted = [baselines] if isinstance(baselines, str) else list(baselines)
    for baseline in wanted:
        check_name(baseline, BASELINES, "baseline")
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)) or not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence!r}")
    test = _Test(data, bool(wanted))
    entries: list[tuple[Row, RidgeModel | KernelModel, RidgeModel | None]] = []
    for name, ds in _named(sets):
        test.check(name, ds)
        metric = "accuracy" if ds.targets.is_classes else "r2"
        row = Row(
            name, "distilled", len(ds), ds.nbytes, metric, 0.0, stored_error=ds.certificate.stored_error
        )
        entries.append((row, ds.model, ds.full_model))
        for baseline in dict.fromkeys(wanted):
            model, nbytes = _random_rows(ds, test, seed)
            entries.append((Row(name, baseline, len(ds), nbytes, metric, 0.0), model, None))
    models = [model for _, *pair in entries for model in pair if model is not None]
    scores = iter(decision_functions(_share_encoders(models), test.x))
    rows = []
    for row, model, full in entries:
        mine = next(scores)
        theirs = None if full is None else next(scores)
        rows.append(_score_row(row, model, mine, theirs, test.labels(model.targets), confidence))
    return Evaluation(tuple(rows), test.name, len(test.y), recipe, float(confidence), seed)


class _Test:
    """Test rows, and training rows where baselines need them."""

    def __init__(self, data: Any, needs_training: bool) -> None:
        self.class_names: tuple[str, ...] = ()
        self.name = ""
        self.x: Any
        self.y: Any
        self.x_train: Any = None
        self.y_train: Any = None
        if isinstance(data, Data):
            if data.x_test is None:
                raise ValueError(
                    f"{data.name!r} has no test split: load it with load_data(..., test=0.2) and distil its"
                    " training split, or pass (X, y)"
                )
            self.name, self.class_names = data.name, data.class_names
            self.x, self.y, self.x_train, self.y_train = data.x_test, data.y_test, data.x_train, data.y_train
        elif isinstance(data, (tuple, list)) and len(data) == 2:
            self.x, self.y = data
        else:
            raise ValueError(f"`data` must be what load_data returns, or (X, y), got {type(data).__name__}")
        if needs_training and self.x_train is None:
            raise ValueError(
                "baselines are drawn from training rows: pass what load_data returns, not (X, y)"
            )
        if len(self.x) != len(self.y) or len(self.y) == 0:
            raise ValueError(
                f"expected as many labels as test rows, and some: got {len(self.x)} and {len(self.y)}"
            )

    def check(self, name: str, ds: DistilledSet) -> None:
        """Refuse class names that show the labels to mean something else."""
        ours, theirs = self.class_names, ds.class_names
        if ours and theirs and ours != theirs and not _are_numbers(ours) and not _are_numbers(theirs):
            raise ValueError(
                f"{name} was made for classes {', '.join(theirs[:4])}, ..., the test data have"
                f" {', '.join(ours[:4])}, ...: these are other data"
            )

    def labels(self, targets: Any, y: Any = None) -> Any:
        """Labels as the set has them: names, where it was made from names."""
        y = self.y if y is None else y
        if self.class_names and targets.is_classes and isinstance(targets.classes[0], str):
            return np.asarray(self.class_names)[np.asarray(y)]
        return y


def _are_numbers(names: tuple[str, ...]) -> bool:
    return all(name.isdecimal() for name in names)


def _named(sets: Any) -> list[tuple[str, DistilledSet]]:
    """(name, set) pairs with distinct names; paths are loaded."""
    if isinstance(sets, (DistilledSet, str, os.PathLike)):
        sets = [sets]
    if not isinstance(sets, Iterable):
        raise ValueError(
            f"`sets` must be a DistilledSet, a path, or several of them, got {type(sets).__name__}"
        )
    items = list(sets.items()) if isinstance(sets, Mapping) else [(None, item) for item in sets]
    if not items:
        raise ValueError("`sets` is empty: there is nothing to evaluate")
    named: dict[str, DistilledSet] = {}
    for key, item in items:
        if isinstance(item, (str, os.PathLike)):
            name, ds = os.fspath(item), DistilledSet.load(item)
        elif isinstance(item, DistilledSet):
            name, ds = f"{item.encoder.name}-{len(item)}", item
        else:
            raise ValueError(f"expected a DistilledSet or a path among `sets`, got {type(item).__name__}")
        name = unique = name if key is None else str(key)
        number = 1
        while unique in named:
            number += 1
            unique = f"{name} ({number})"
        named[unique] = ds
    return list(named.items())


def _share_encoders(models: Sequence[RidgeModel | KernelModel]) -> list[Model[Any]]:
    """Give models that encode alike one encoder object: files are loaded one by one, each with its own."""
    known: dict[str, Encoder | KernelEncoder] = {}
    return [
        dataclasses.replace(model, encoder=known.setdefault(model.encoder.digest(), model.encoder))
        for model in models
    ]


def _random_rows(ds: DistilledSet, test: _Test, seed: int) -> tuple[RidgeModel | KernelModel, int]:
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
