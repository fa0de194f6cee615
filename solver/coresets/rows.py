"""Coresets of the rows that a method learns from."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._check import check_finite
from ..learners.rows import TrainingRows
from .coreset import Coreset
from .select import choose


def coreset_rows(
    rows: TrainingRows,
    method: str,
    counts: int | Sequence[int],
    *,
    seed: int,
    embedding: Callable[[Tensor], Tensor] | None = None,
    **params: Any,
) -> Coreset:
    """Choose among training rows by their transformed inputs.

    Parameters
    ----------
    rows : TrainingRows
        Rows that are held out are not looked at.
    method : str
        A name of `CORESETS`.
    counts : sequence of int, or int
        Rows of each class, in the order of ``rows.targets.classes``; or the number of all, whatever their classes.
    seed : int
    embedding : callable, optional
        Maps transformed inputs (b, *input_shape) to what is compared instead of them, (b, ...).
    **params
        Options of the method, as for `select`.

    Returns
    -------
    Coreset
        Its indices are those of `TrainingRows`.

    Raises
    ------
    ValueError
        As `select`; if counts by class are given for rows without classes.

    Notes
    -----
    Holds the rows of one class (of all, for one number) at a time, as `rows` gives them, besides what `rows` holds.
    """
    groups = None
    if isinstance(counts, Sequence):
        if rows.classes is None:
            raise ValueError("rows without classes take one number of rows, not one for each class")
        groups = rows.classes

    def fetch(index: Tensor) -> Tensor:
        out: Tensor | None = None
        for start in range(0, len(index), rows.chunk):
            piece = rows.inputs(index[start : start + rows.chunk])
            if embedding is not None:
                with torch.no_grad():
                    piece = embedding(piece)
                check_finite(piece, "the embedding of X")
            piece = piece.flatten(1)
            if out is None:
                out = piece.new_empty(len(index), piece.shape[1])
            out[start : start + rows.chunk] = piece
        assert out is not None
        return out

    return choose(fetch, groups, rows.n, counts, method, seed=seed, names=rows.targets.classes, params=params)
