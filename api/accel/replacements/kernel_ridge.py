r"""scikit-learn's kernel ridge regression, ``sklearn/kernel_ridge.py``: the same systems, solved with less around them.

Fitting solves :math:`(K + \alpha I)\,c = y`, with sample weights w scaled by :math:`\sqrt w` on either side; predicting
is :math:`K(X, X_{fit})\,c`. Here

* distances (or inner products) of rows are kept between calls (`row_pairs`), so that a grid search forms them once, not
  once for each candidate and fold, and kernels of other bandwidths are made from the same ones. Of float32 rows
  distances are computed in float64 and inner products in float32, as in scikit-learn: a system magnifies errors.
* LAPACK factors K in place, where ``scipy.linalg.solve`` copies and transposes it. Whatever it finds singular or
  ill-conditioned, and numbers that overflow, go through scikit-learn's own functions, with their warnings and least
  squares.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import get_lapack_funcs
from scipy.sparse import issparse
from sklearn.base import _fit_context
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model._ridge import _solve_cholesky_kernel
from sklearn.metrics.pairwise import check_pairwise_arrays
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from .._call import only_originals
from .._difference import difference
from .row_distances import manhattan_distances, squared_distances
from .row_pairs import RowPairs

# Rows (fitting) and pairs (predicting) below which the original takes no longer.
_FEW_ROWS = 1000
_FEW_PAIRS = 1 << 16
_NUMBERS = (int, float, np.float64, np.int64)


@_fit_context(prefer_skip_nested_validation=True)
def fit(self: Any, X: Any, y: Any, sample_weight: Any = None) -> Any:
    """Fit with distances that may be known, and the system factored in place: one n x n array at a time besides them.

    Identical: validation and its errors, dtypes, attributes but for `dual_coef_`, which differs by the rounding of a
    solver in float64 (or float32 where rows and targets are), warnings, the least squares of singular systems.
    """
    X, y = validate_data(self, X, y, accept_sparse=("csr", "csc"), multi_output=True, y_numeric=True)
    if sample_weight is not None and not isinstance(sample_weight, float):
        sample_weight = _check_sample_weight(sample_weight, X)
    targets = y.reshape(-1, 1) if y.ndim == 1 else y
    alpha = np.atleast_1d(self.alpha)
    try:
        with np.errstate(over="raise", invalid="raise"):
            coefficients = _by_cholesky(_kernel(self, X), targets, alpha[0], sample_weight)
    except FloatingPointError:  # what there is to warn of is told once, and by the original's own steps
        coefficients = None
    if coefficients is None:
        with only_originals():
            K = self._get_kernel(X)
        coefficients = _solve_cholesky_kernel(K, targets, alpha, sample_weight, False)
    self.dual_coef_ = coefficients.ravel() if y.ndim == 1 else coefficients
    self.X_fit_ = X
    return self


def predict(self: Any, X: Any) -> np.ndarray:
    """Predict with distances that may be known: of rows that were fitted before, in this or another fold.

    Identical: validation and its errors, also of `X_fit_`, warnings, dtype and shape; values up to rounding.
    """
    check_is_fitted(self)
    X = validate_data(self, X, accept_sparse=("csr", "csc"), reset=False)
    rows, fitted = check_pairwise_arrays(X, self.X_fit_)
    try:
        with np.errstate(over="raise", invalid="raise"):
            K = _kernel(self, rows, fitted)
    except FloatingPointError:
        with only_originals():
            K = self._get_kernel(X, self.X_fit_)
    return np.dot(K, self.dual_coef_)


def unfit_fit(self: Any, X: Any, y: Any, sample_weight: Any = None) -> str | None:
    """Guard: other kernels and penalties, subclasses with kernels of their own, sparse or odd rows, few rows."""
    if type(self.alpha) not in _NUMBERS:
        return "alpha is no number"
    if issparse(y):
        return "the targets are sparse"
    reason = _unfit(self, X)
    if reason is None and len(X) < _FEW_ROWS:
        return "the original takes no longer with few rows"
    return reason


def unfit_predict(self: Any, X: Any) -> str | None:
    """Guard: as `unfit_fit`, or of a model that is not fitted to dense rows."""
    fitted = getattr(self, "X_fit_", None)
    if type(fitted) is not np.ndarray or fitted.ndim != 2:
        return "the model is not fitted to dense rows"
    reason = _unfit(self, X)
    if reason is None and len(X) * len(fitted) < _FEW_PAIRS:
        return "the original takes no longer with few rows"
    return reason


def difference_of_fits(original: Any, replacement: Any) -> float:
    """Largest difference of fitted values on the training rows, relative to the sums of magnitudes they come from.

    That is what a solver of systems keeps small: coefficients themselves may be as far apart as the condition number
    lets rounding drive them. Of float32 systems as if rounded in float64.
    """
    gap = difference(_without_coefficients(original), _without_coefficients(replacement))
    a, b = original.dual_coef_, replacement.dual_coef_
    if gap == math.inf or a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    K = original._get_kernel(original.X_fit_)
    step, scale = np.abs(K @ (a - b)).max(), (np.abs(K) @ np.abs(a)).max()
    rounding = float(np.finfo(a.dtype).eps / np.finfo(np.float64).eps)
    return max(gap, float(step / scale) / rounding if scale > 0 else float(step))


def _without_coefficients(model: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(model).items() if name.endswith("_") and name != "dual_coef_"}


def _unfit(self: Any, X: Any) -> str | None:
    if type(self.kernel) is not str or self.kernel not in _KERNELS:
        return "the kernel is a function, precomputed, or none of these: " + ", ".join(_KERNELS)
    if type(self)._get_kernel is not KernelRidge._get_kernel:
        return "the kernel is that of a subclass"
    if self.gamma is not None and (type(self.gamma) not in _NUMBERS or not 0 <= self.gamma < math.inf):
        return "gamma is no number"
    if type(self.degree) not in _NUMBERS or type(self.coef0) not in _NUMBERS:
        return "degree or coef0 is no number"
    kinds = ()
    if getattr(X, "ndim", 0) == 2:  # of a column of a data frame `dtypes` is no list
        kinds = (X,) if type(X) is np.ndarray else tuple(getattr(X, "dtypes", ()))
    if not kinds:
        return "the rows are neither a matrix of NumPy nor a data frame"
    allowed = (np.float32, np.float64, np.int32, np.int64)
    if any(not isinstance(getattr(kind, "dtype", kind), np.dtype) for kind in kinds):
        return "the data frame has columns of other types"
    if any(getattr(kind, "dtype", kind) not in allowed for kind in kinds):
        return "the rows are neither float32, float64, int32 nor int64"
    return None


def _kernel(model: Any, X: np.ndarray, Y: np.ndarray | None = None) -> np.ndarray:
    """Kernel matrix, an array of the caller's own."""
    is_narrow = X.dtype == np.float32 and (Y is None or Y.dtype == np.float32)
    dtype = np.float32 if is_narrow else np.float64
    pairs, finish = _KERNELS[model.kernel]
    x = X.astype(dtype, copy=False)
    y = x if Y is None or Y is X else Y.astype(dtype, copy=False)
    K = pairs.of_one_set(x) if y is x else pairs.of_two_sets(x, y)
    finish(K, 1 / X.shape[1] if model.gamma is None else model.gamma, model)
    return K


def _exponential(K: np.ndarray, gamma: float, model: Any) -> None:
    K *= -gamma
    np.exp(K, out=K)


def _power(K: np.ndarray, gamma: float, model: Any) -> None:
    K *= gamma
    K += model.coef0
    K **= model.degree


def _nothing(K: np.ndarray, gamma: float, model: Any) -> None:
    pass


def _inner_products(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    return X @ Y.T


_products = RowPairs("products", _inner_products)
_KERNELS: dict[str, tuple[RowPairs, Callable[[np.ndarray, float, Any], None]]] = {
    "linear": (_products, _nothing),
    "poly": (_products, _power),
    "polynomial": (_products, _power),
    "rbf": (RowPairs("squared", squared_distances), _exponential),
    "laplacian": (RowPairs("manhattan", manhattan_distances), _exponential),
}


def _by_cholesky(K: np.ndarray, y: np.ndarray, alpha: Any, sample_weight: Any) -> np.ndarray | None:
    """Coefficients, by a factor that overwrites K; None where the system is singular, ill-conditioned or not finite."""
    dtype = np.result_type(K, y)
    if dtype not in (np.float32, np.float64):
        return None
    roots = np.ones(1)
    if isinstance(sample_weight, np.ndarray) or (sample_weight is not None and sample_weight != 1.0):
        roots = np.sqrt(np.atleast_1d(sample_weight))
        y = y * roots[:, None]
        K *= roots[:, None]
        K *= roots
    K.flat[:: len(K) + 1] += alpha
    A = K.astype(dtype, copy=False)
    lange, potrf, pocon, potrs = get_lapack_funcs(("lange", "potrf", "pocon", "potrs"), (A,))
    # LAPACK reads columns: the transpose of a symmetric matrix in rows is the matrix, without a copy.
    norm = lange("1", A.T)
    factor, failed = potrf(A.T, lower=False, overwrite_a=True, clean=False)
    if failed:
        return None
    reciprocal_condition, failed = pocon(factor, norm)
    if failed or not reciprocal_condition > np.finfo(dtype).eps:
        return None
    coefficients, failed = potrs(factor, y.astype(dtype, copy=False), lower=False)
    if failed or not np.isfinite(coefficients).all():
        return None
    coefficients *= roots[:, None].astype(dtype)
    return np.ascontiguousarray(coefficients)
