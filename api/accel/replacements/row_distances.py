r"""Distances of rows of NumPy, one panel of rows at a time, as scikit-learn defines them.

Squared distances come from :math:`\|x-y\|^2 = \|x\|^2 + \|y\|^2 - 2x\cdot y` in float64, whatever the rows are, as in
scikit-learn's ``sklearn/metrics/pairwise.py`` (``_euclidean_distances``). That makes an array of the size of the result
for each of its steps; here all but the product is done in place, on strips that fit a cache. Distances in the 1-norm
are SciPy's, as there, which uses one core: panels go to all of them. Of one set of rows only what lies on and above the
diagonal is formed. Products are NumPy's, not torch's: on some processors its library is a third faster.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from ...kernels.statistics import mirror_upper_
from ...solver._workers import single_core_workers

# Rows of a panel of one set of rows, half of whose products are not needed: at their full rate above some 200.
_PANEL = 512
# Of two sets: products prepare all rows of the second once for each panel.
_TALL_PANEL = 4096
# Rows and columns that are widened to float64 at a time, and how many numbers of them unless rows are very long.
_WIDENED = 1024
_WIDENED_NUMBERS = 1 << 21
_FEWEST_WIDENED = 64
# Numbers of a strip, which stays in a core's cache.
_STRIP = 1 << 16
# Rows of a panel that one core computes alone.
_SHARE = 64

Fill = Callable[[slice, slice, np.ndarray], None]


def by_panels(
    X: np.ndarray,
    Y: np.ndarray,
    dtype: type,
    fill: Fill,
    *,
    height: int | None = None,
    run: Callable[[Callable[[int], None], Iterable[int]], Iterable[Any]] = map,
) -> np.ndarray:
    """A matrix of all pairs of rows, exactly symmetric where `Y` is `X`.

    Parameters
    ----------
    X, Y : ndarray, shapes (n, d) and (m, d)
    dtype : type
        Of the result.
    fill : callable
        ``fill(rows, columns, out)`` writes the entries of some rows of X and of Y. Where Y is X those left of the
        first row are not asked for.
    height : int, optional
        Rows of a panel.
    run : callable, default map
        Calls a function for each panel.
    """
    n, m, same = len(X), len(Y), Y is X
    K = np.empty((n, m), dtype)
    height = height or (_PANEL if same else _TALL_PANEL)

    def panel(top: int) -> None:
        rows, columns = slice(top, min(top + height, n)), slice(top if same else 0, m)
        fill(rows, columns, K[rows, columns])

    for _ in run(panel, range(0, n, height)):
        pass
    return mirror_upper_(torch.from_numpy(K)).numpy() if same else K


def half_squared_norms(X: np.ndarray) -> np.ndarray:
    """Half the squared norms of rows, in float64."""
    norms = np.empty(len(X))
    step = max(1, _STRIP // max(1, X.shape[1]))
    for top in range(0, len(X), step):
        wide = X[top : top + step].astype(np.float64, copy=False)
        norms[top : top + step] = np.einsum("ij,ij->i", wide, wide)
    return norms / 2


def negative_half_squared(
    x: np.ndarray, y: np.ndarray, x_half: np.ndarray, y_half: np.ndarray, out: np.ndarray, scale: float
) -> None:
    r"""Write :math:`-\frac c2\|x-y\|^2 \le 0` of all pairs, computed in float64.

    Parameters
    ----------
    x, y : ndarray, shapes (h, d) and (w, d)
    x_half, y_half : ndarray, float64
        `half_squared_norms` of the rows.
    out : ndarray, shape (h, w)
        Of the dtype of the rows.
    scale : float
        c.
    """
    if out.dtype == np.float64:
        np.matmul(x, y.T, out=out)
        finish(out, x_half, y_half, scale)
        return
    step = min(_WIDENED, max(_FEWEST_WIDENED, _WIDENED_NUMBERS // x.shape[1]))
    for top in range(0, len(x), step):
        rows = slice(top, top + step)
        wide = x[rows].astype(np.float64)
        for left in range(0, len(y), step):
            columns = slice(left, left + step)
            block = wide @ y[columns].astype(np.float64).T
            finish(block, x_half[rows], y_half[columns], scale)
            out[rows, columns] = block


def finish(products: np.ndarray, x_half: np.ndarray, y_half: np.ndarray, scale: float) -> None:
    """Turn inner products into `negative_half_squared`, in place."""
    high = max(1, _STRIP // max(1, products.shape[1]))
    for top in range(0, len(products), high):
        strip = products[top : top + high]
        strip -= x_half[top : top + high, None]
        strip -= y_half
        np.minimum(strip, 0, out=strip)
        strip *= products.dtype.type(scale)


def squared_distances(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances in the dtype of the rows; zero on the diagonal where `Y` is `X`."""
    x_half = half_squared_norms(X)
    y_half = x_half if Y is X else half_squared_norms(Y)

    def fill(rows: slice, columns: slice, out: np.ndarray) -> None:
        negative_half_squared(X[rows], Y[columns], x_half[rows], y_half[columns], out, 2.0)
        np.negative(out, out=out)
        if Y is X:
            np.fill_diagonal(out, 0)

    return by_panels(X, Y, X.dtype.type, fill)


def manhattan_distances(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    """Distances in the 1-norm: the float64 values of SciPy's ``cdist``, bit for bit, by all cores."""
    from scipy.spatial.distance import cdist

    def fill(rows: slice, columns: slice, out: np.ndarray) -> None:
        out[...] = cdist(X[rows], Y[columns], "cityblock")

    with single_core_workers(None) as pool:
        return by_panels(X, Y, np.float64, fill, height=_SHARE, run=pool.map)
