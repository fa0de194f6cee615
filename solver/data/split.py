"""Holding out a test split where the source has none."""

from dataclasses import replace

import numpy as np

from ...kernels import uniform
from .base import Data


def hold_out(data: Data, fraction: float, seed: int = 0) -> Data:
    """Move a stratified fraction of the training rows to the test split.

    Parameters
    ----------
    data : Data
        Without a test split.
    fraction : float
        In (0, 1). Of each class, ``round(fraction * count)`` rows are held out, but never all of them.
    seed : int, default 0
        A row is drawn by its own counter-based random number, so the split is the same on every machine.

    Returns
    -------
    Data
        Rows keep their order within each split.

    Raises
    ------
    ValueError
        If there is a test split already, or the fraction leaves one side empty.
    """
    if data.x_test is not None:
        raise ValueError(
            f"{data.name!r} has a test split of {len(data.x_test)} rows already: leave `test` out"
        )
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise ValueError(f"`test` must be a fraction between 0 and 1, got {fraction!r}")
    n = len(data.x_train)
    draws = uniform(seed, "holdout", n).numpy()
    held = np.zeros(n, dtype=bool)
    strata = data.y_train if data.class_names else np.zeros(n, dtype=np.int64)
    for label in np.unique(strata):
        rows = np.flatnonzero(strata == label)
        count = min(round(fraction * len(rows)), len(rows) - 1)
        held[rows[np.argsort(draws[rows], kind="stable")[:count]]] = True
    if not held.any():
        raise ValueError(f"test={fraction} of {n} rows holds out none: use a larger fraction")
    return replace(
        data,
        x_train=data.x_train[~held],
        y_train=data.y_train[~held],
        x_test=data.x_train[held],
        y_test=data.y_train[held],
    )
