r"""Greedy coresets of one kernel matrix as RFAD starts from them, bit for bit, with few passes over it.

Behaviour of `coresets.py` of yolky/RFAD; both take a kernel matrix K (n, n) and return row indices in order of choice.

* Mean discrepancy: row :math:`t` maximises :math:`\tfrac2n \sum_j K_{ji} - \tfrac1t (2 \sum_{s<t} K_{si} + K_{ii})`.
  The original adds up all of K and all chosen rows for every pick. The first sum never changes, and the second grows
  by one row: O(n) a pick after O(n²) in all, where the original takes O(n²) a pick.
* Variance reduction: the pick maximises :math:`\sum_j K_{ji}^2 / K_{ii} - K_{ii}`, then K loses
  :math:`r r^\top / K_{pp}` with its column r. The original writes five temporaries of the size of K for each pick; here
  each block of rows is squared, or updated and squared, while it is in the cache. (Updating the sums of squares from
  products with K instead would need no writes, but cancels: the sums shrink by orders of magnitude.)

**The same bits.** NumPy adds up the rows of a C-contiguous matrix one after the other, so a running sum to which rows
are added in that order has the bits of the whole sum, and the picks are the same even where scores are equal.
"""

from typing import Any

import numpy as np

_BLOCK = 2**19  # bytes of a block of rows and of each of its two temporaries: a second-level cache


def get_mmd_coreset(K: np.ndarray, n_samples: int) -> list[np.intp]:
    """Choose rows whose mean in the feature space follows that of all; picks are the original's bit for bit.

    n² + 3 n `n_samples` operations, no copy of K.
    """
    own = np.diag(K)
    mean = 2 * np.sum(K, 0) / K.shape[0]
    chosen: list[np.intp] = []
    total = None
    for i in range(n_samples):
        scores = mean - (own if total is None else (2 * total + own) / (i + 1))
        scores[chosen] = -np.inf
        best = np.argmax(scores)
        chosen.append(best)
        total = K[best].copy() if total is None else total + K[best]
    return chosen


def get_var_reduc_coreset(K: np.ndarray, n_samples: int, do_update: bool = True) -> list[np.intp]:
    """Choose rows that explain the variance of the others; picks are the original's bit for bit, K is not changed.

    5 n² operations a pick with `do_update`, which read and write one copy of K once; without it n² in all.
    """
    chosen: list[np.intp] = []
    if n_samples < 1:
        return chosen
    squares = _column_squares(K)
    rest = K
    while True:
        own = np.diag(rest)
        scores = squares / own - own
        scores[chosen] = -np.inf
        best = np.argmax(scores)
        chosen.append(best)
        if len(chosen) == n_samples:
            return chosen
        if do_update:
            rest = K.copy() if rest is K else rest
            squares = _column_squares(rest, best)


def why_not_mmd(K: Any, n_samples: Any) -> str | None:
    """Matrices whose rows NumPy does not add up one after the other."""
    if type(K) is not np.ndarray or K.dtype not in (np.float32, np.float64):
        return "the kernel matrix is not an array of float32 or float64"
    # A single column is added up in pairs.
    if K.ndim != 2 or K.shape[0] != K.shape[1] or len(K) < 2 or not K.flags.c_contiguous:
        return "the kernel matrix is not square, or not stored by rows"
    return None if isinstance(n_samples, (int, np.integer)) else "the number of samples is not a whole number"


def why_not_variance(K: Any, n_samples: Any, do_update: Any = True) -> str | None:
    """As for the mean discrepancy."""
    return why_not_mmd(K, n_samples)


def _column_squares(K: np.ndarray, best: np.intp | None = None) -> np.ndarray:
    """Sums of squares of columns, in the order of ``np.sum(K**2, 0)``; first K loses what row `best` explains."""
    n = len(K)
    rows = max(1, _BLOCK // (n * K.itemsize))
    total = np.zeros(n, K.dtype)
    squares = np.empty((rows + 1, n), K.dtype)
    column = None if best is None else K[:, best].copy()
    pivot = None if best is None else K[best, best].copy()
    for start in range(0, n, rows):
        block = K[start : start + rows]
        if column is not None:
            product = np.multiply(column[start : start + rows, None], column, out=squares[1 : len(block) + 1])
            product /= pivot
            block -= product
        squares[0] = total
        np.square(block, out=squares[1 : len(block) + 1])
        np.sum(squares[: len(block) + 1], 0, out=total)
    return total
