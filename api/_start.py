"""Where points start from or are placed near: noise, random rows, coresets, or given points."""

from typing import Any

import torch
from torch import Tensor

from .kernels import normal
from .solver.coresets import CORESETS, coreset_rows
from .solver.learners.rows import TrainingRows
from .solver.reference import given_points, nominal_classes
from .solver.source import ArraySource, Source, row_keys
from .solver.targets import Targets
from .solver.transforms import Transform

# Rows from which the mean and spread of noise points are taken.
_NOISE_ROWS = 2000


def named_points(near: Any, source: Source, transform: Transform, coding: Targets, m: int, seed: int) -> Any:
    """`near` as closed forms know it: the name of a coreset becomes the raw rows of that coreset."""
    if not isinstance(near, str) or near not in CORESETS:
        return near
    if not isinstance(source, ArraySource) or source.weight is not None:
        raise ValueError(
            f"near={near!r} chooses among rows of arrays without weights: pass arrays and no sample_weight, or give"
            " points, near='data' or near='noise'"
        )
    # Every row is looked at once: there is nothing to keep.
    rows = TrainingRows(source, transform, coding, seed=seed, holdout=0.0, cache_bytes=0)
    return rows.raw(coreset_rows(rows, near, point_counts(coding, m), seed=seed).indices)


def point_counts(coding: Targets, m: int) -> list[int] | int:
    """Points of each class, as even as can be; one number where there are no classes."""
    nominal = nominal_classes(m, coding)
    return m if nominal is None else nominal.bincount(minlength=coding.n_outputs).tolist()


def start_points(
    near: Any, rows: TrainingRows, m: int, seed: int, *, labels: str = "learned"
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Where a learned set starts.

    Parameters
    ----------
    near : str or array
        "noise" (normal, with mean and spread of the rows), "data" (random rows), the name of a coreset, or raw
        points (m, *input_shape), in class order.
    rows : TrainingRows
    m : int
    seed : int
    labels : str
        What the method does with labels.

    Returns
    -------
    points : Tensor, shape (m, *input_shape), float64
        Transformed.
    labels : Tensor, shape (m, k), float64
        Target rows: of the classes, of the rows taken, or (points without either) the mean target.
    classes : Tensor, shape (m,), int64, or None

    Raises
    ------
    ValueError
        If points that have neither class nor target are to keep the labels they start with.
    """
    coding, shape = rows.targets, rows.transform.input_shape
    classes = nominal_classes(m, coding)
    if isinstance(near, str) and near != "noise":
        method = "random" if near == "data" else near
        index = coreset_rows(rows, method, point_counts(coding, m), seed=seed).indices
        return rows.inputs(index).double(), rows.outputs(index), classes
    if isinstance(near, str):
        # Random ones: a file that is sorted by class begins with one class.
        index = row_keys(seed, "noise", 0, rows.n).argsort(stable=True)[:_NOISE_ROWS]
        sample = rows.inputs(index.sort().values).double()
        noise = normal(seed, "near.noise", (m, *shape)).to(sample)
        points = sample.mean(dim=0) + sample.std(dim=0, correction=0) * noise
    else:
        points = given_points(near, m, rows.transform).to(rows.device)
    if classes is None:
        if labels == "fixed":
            raise ValueError(
                "points from noise or from `near` have no targets to keep: learn or solve them (labels='learned' of"
                " the method), or start from rows with near='data'"
            )
        mean = torch.stack([Y.sum(dim=0) for _, _, Y in rows.chunks()]).sum(dim=0) / rows.n
        return points, mean.expand(m, -1).clone(), None
    return (
        points,
        coding.encode([(coding.classes or ())[index] for index in classes.tolist()]).to(points),
        classes,
    )
