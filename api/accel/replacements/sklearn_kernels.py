r"""scikit-learn's kernel matrices of dense rows: ``rbf_kernel`` and ``laplacian_kernel``.

The behaviour is that of scikit-learn's ``sklearn/metrics/pairwise.py``: :math:`e^{-\gamma\|x-y\|^2}` and
:math:`e^{-\gamma\|x-y\|_1}`, one over the number of columns for :math:`\gamma` by default.

scikit-learn widens float32 rows to float64 for their products. Here they stay float32 wherever that is accurate enough,
moved near the origin by a mean of rows of Y where they are too far from it. Norms are summed in float64. With
:math:`u = 2^{-24}` a product of d numbers is off by no more than :math:`16u\,\|x\|\|y\|` (sums run in blocks of some
hundreds of terms, whose errors have no common sign; twice that where all terms are of one size), so that

.. math:: |\delta K_{ij}| \le K_{ij}\,\gamma\,16u\,(\|x_i\|^2 + \|y_j\|^2) .

What could be off by more than 32 u is formed again in float64: pair by pair where there are few, such as near
duplicates far from all others, and the whole panel where there are many.
"""

import math
from typing import Any

import numpy as np
import torch

from .row_distances import (
    by_panels,
    finish,
    half_squared_norms,
    manhattan_distances,
    negative_half_squared,
)

_PRODUCT_ERROR = 2.0**-20
_ALLOWED = 2.0**-19
# Pairs one by one in float64 take this many times as long as in a matrix product.
_ONE_BY_ONE = 40
# Numbers gathered at a time for them.
_GATHERED = 1 << 20
# Rows whose mean the origin is moved to.
_MOST_SAMPLED = 256
# Bandwidths, and root of the sum of all squares, for which no distance or exponent is too large or small for float32.
_LEAST_GAMMA, _MOST_GAMMA = 1e-30, 1e30
_LARGEST = 2.0**62
# Multiplications below which the original takes no longer.
_SMALL = 1 << 20
# Columns of float64 rows above which there is nothing to gain from what is not the product.
_MANY_COLUMNS = 256


def rbf_kernel(X: Any, Y: Any = None, gamma: float | None = None) -> np.ndarray:
    """Gaussian kernel matrix: one matrix product in the dtype of the rows (half of it for Y = X), and its exponential.

    Identical: shape, dtype, order, errors of bad input; for Y = X symmetry and ones on the diagonal. float32 values
    differ by up to 2e-6 (4e-6 for rows of numbers of one size, such as signs), usually 2e-7; float64
    ones by rounding. Memory beside the result: a copy of float32 rows that are moved (for gamma times the largest
    squared norm of rows above 1), where the original widens some rows at a time.
    """
    X, Y, rate = _checked(X, Y, gamma)
    return gaussian(X, Y, rate)


def laplacian_kernel(X: Any, Y: Any = None, gamma: float | None = None) -> np.ndarray:
    """Laplacian kernel matrix by all cores, half of it for Y = X.

    Identical: every bit (of float64, for rows of either dtype), order, errors of bad input.
    """
    X, Y, rate = _checked(X, Y, gamma)
    K = manhattan_distances(X, Y)
    K *= -rate
    return np.exp(K, out=K)


def gaussian(X: np.ndarray, Y: np.ndarray, gamma: float) -> np.ndarray:
    """Gaussian kernel matrix of two float32 or two float64 matrices; Y may be X itself."""
    if X.dtype == np.float32:
        pairs = _NarrowPairs(X, Y, gamma)
        return by_panels(X, Y, np.float32, pairs.fill)
    x_half = half_squared_norms(X)
    y_half = x_half if Y is X else half_squared_norms(Y)

    def fill(rows: slice, columns: slice, out: np.ndarray) -> None:
        negative_half_squared(X[rows], Y[columns], x_half[rows], y_half[columns], out, 2 * gamma)
        if Y is X:
            np.fill_diagonal(out, 0)
        np.exp(out, out=out)

    return by_panels(X, Y, np.float64, fill)


def unfit_rbf(X: Any, Y: Any = None, gamma: Any = None) -> str | None:
    """Guard: `unfit_rows`; extreme numbers; and float64 rows whose product, the same here, is nearly all the time."""
    reason = unfit_rows(X, Y, gamma)
    if reason is not None:
        return reason
    if X.dtype == np.float64 and X.shape[1] > _MANY_COLUMNS:
        return "the product of float64 rows with this many columns takes nearly all the time, here and there"
    if gamma is not None and not _LEAST_GAMMA < gamma < _MOST_GAMMA:
        return "gamma is too large or too small for float32"
    if any(np.linalg.norm(rows) > _LARGEST for rows in ((X,) if Y is None or Y is X else (X, Y))):
        return "the squares of the rows are too large for float32"
    return None


def unfit_laplacian(X: Any, Y: Any = None, gamma: Any = None) -> str | None:
    """Guard: `unfit_rows`; and two sets of rows with one core, which has nothing to gain."""
    reason = unfit_rows(X, Y, gamma)
    if reason is None and not (Y is None or Y is X) and torch.get_num_threads() == 1:
        return "one core forms distances of two sets of rows no faster"
    return reason


def unfit_rows(X: Any, Y: Any = None, gamma: Any = None) -> str | None:
    """Guard: anything but plain float32 or float64 matrices of a size worth the calls, and a positive number."""
    for rows in (X,) if Y is None else (X, Y):
        if type(rows) is not np.ndarray or rows.ndim != 2:
            return "the rows are no matrix of NumPy"
        if rows.dtype not in (np.float32, np.float64) or rows.dtype != X.dtype:
            return "the rows are not all of float32 or all of float64"
        if not rows.size or rows.shape[1] != X.shape[1]:
            return "there are no rows, no columns, or different columns"
    if gamma is not None and not (type(gamma) in (int, float, np.float64) and 0 < gamma < math.inf):
        return "gamma is no positive number"
    if len(X) * len(X if Y is None else Y) * X.shape[1] < _SMALL:
        return "the original takes no longer at this size"
    return None


def _checked(X: Any, Y: Any, gamma: float | None) -> tuple[np.ndarray, np.ndarray, float]:
    from sklearn.metrics.pairwise import check_pairwise_arrays

    X, Y = check_pairwise_arrays(X, Y)
    return X, Y, 1 / X.shape[1] if gamma is None else float(gamma)


class _NarrowPairs:
    """Gaussian values of float32 rows, by float32 products where their error is allowed."""

    def __init__(self, X: np.ndarray, Y: np.ndarray, gamma: float) -> None:
        self.X, self.Y, self.gamma = X, Y, gamma
        self.is_narrow = True
        with np.errstate(over="ignore"):
            roughly = [np.einsum("ij,ij->i", rows, rows) / 2 for rows in ((X,) if Y is X else (X, Y))]
            self.x, self.y = X, Y
            if not self._error(roughly[0], roughly[-1]) <= _ALLOWED:
                middle = Y[:: max(1, len(Y) // _MOST_SAMPLED)].mean(0, dtype=np.float64).astype(np.float32)
                self.x = X - middle
                self.y = self.x if Y is X else Y - middle
            # Rounded to float32 once; infinite ones allow no float32 product.
            self.x_half = (2 * half_squared_norms(self.x)).astype(np.float32) / 2
            self.y_half = self.x_half if Y is X else (2 * half_squared_norms(self.y)).astype(np.float32) / 2

    def _error(self, x_half: np.ndarray, y_half: np.ndarray) -> float:
        """Bound of what exponents can be off by."""
        return 2 * self.gamma * _PRODUCT_ERROR * (float(x_half.max()) + float(y_half.max()))

    def fill(self, rows: slice, columns: slice, out: np.ndarray) -> None:
        """Write the kernel values of some rows and columns."""
        same = self.Y is self.X
        self.is_narrow = self.is_narrow and self._fill_narrow(rows, columns, out)
        if not self.is_narrow:
            x, y = self.X[rows], self.Y[columns]
            negative_half_squared(x, y, half_squared_norms(x), half_squared_norms(y), out, 2 * self.gamma)
        if same:
            np.fill_diagonal(out, 0)
        np.exp(out, out=out)

    def _fill_narrow(self, rows: slice, columns: slice, out: np.ndarray) -> bool:
        """Write exponents; False where too many of them need float64."""
        x_half, y_half = self.x_half[rows], self.y_half[columns]
        error = self._error(x_half, y_half)
        if not error < math.inf:
            return False
        np.matmul(self.x[rows], self.y[columns].T, out=out)
        finish(out, x_half, y_half, 2 * self.gamma)
        if error <= _ALLOWED:
            return True
        # Values e^t are off by e^t `error`: those of exponents above this by more than is allowed.
        doubtful = out > -math.log(error / _ALLOWED)
        if self.Y is self.X:
            np.fill_diagonal(doubtful, False)
        if np.count_nonzero(doubtful) * _ONE_BY_ONE > out.size:
            return False
        i, j = np.nonzero(doubtful)
        x, y = self.X[rows], self.Y[columns]
        step = max(1, _GATHERED // x.shape[1])
        for first in range(0, len(i), step):
            a, b = i[first : first + step], j[first : first + step]
            gaps = x[a].astype(np.float64) - y[b]
            out[a, b] = -self.gamma * np.einsum("ij,ij->i", gaps, gaps)
        return True
