r"""scikit-learn's kernel approximations: the cosines of `RBFSampler`, and the decomposition in `Nystroem`.

**RBFSampler.transform** (`sklearn/kernel_approximation.py`) is :math:`\sqrt{2/p}\,\cos(X W + b)`, in four passes over
the result, of which the cosine is one number at a time in float64. Here float64 features come from
`kernels.fourier_features`, whose cosines are vectorised and threaded; NumPy's own are vectorised in float32, and
there blocks of rows are finished while they are in cache.

**Nystroem.fit** needs :math:`K^{-1/2} = U \Sigma^{-1/2} V` of the kernel matrix of its basis, by a singular value
decomposition. K is symmetric: its eigenvectors Q give the same product as :math:`Q \Lambda^{-1/2} Q^\top` at less than
half the cost. Products of the inverse root differ by about the condition number times the rounding error, so this is
done where the smallest eigenvalue is above 10⁻⁶ of the largest. Below, the original divides by the roots of singular
values that are rounding, or clipped at 10⁻¹², and only its own decomposition gives its own answer.
"""

from typing import Any

import numpy as np

from ...kernels import fourier_features
from .._difference import difference

_FEWEST_FEATURES = 1 << 15  # numbers in the result
_BLOCK = 1 << 18  # numbers of the result that stay in cache between passes
_FEWEST_ROWS = 64  # of a matrix that is decomposed
_CONDITION = 1e6


def rbf_sampler_transform(self: Any, X: Any) -> Any:
    """Random Fourier features of the rows of X, with the estimator's own frequencies and offsets.

    Equal to the original's but for rounding; the dtype, the checks of X, and the container that `set_output` asked for
    are the original's. n p (d + 1) operations; temporaries of one block of rows.
    """
    from sklearn.utils._set_output import _wrap_data_with_container
    from sklearn.utils.validation import check_is_fitted, validate_data

    check_is_fitted(self)
    rows: Any = validate_data(self, X, accept_sparse="csr", reset=False)
    dtype = np.result_type(rows, self.random_weights_)
    rows, weights, offset = (
        a.astype(dtype, copy=False) for a in (rows, self.random_weights_, self.random_offset_)
    )
    scale = (2.0 / self.n_components) ** 0.5
    if dtype == np.float64:
        features = fourier_features(rows, weights.T, offset, scale=scale).numpy()
    else:
        features = _by_blocks(rows, weights, offset, scale)
    return _wrap_data_with_container("transform", features, X, self)


def _by_blocks(rows: np.ndarray, weights: np.ndarray, offset: np.ndarray, scale: float) -> np.ndarray:
    features = np.empty((len(rows), weights.shape[1]), rows.dtype)
    step = max(1, _BLOCK // weights.shape[1])
    for begin in range(0, len(rows), step):
        block = features[begin : begin + step]
        np.matmul(rows[begin : begin + step], weights, out=block)
        block += offset
        np.cos(block, out=block)
        block *= scale
    return features


def why_not_transform(self: Any, X: Any) -> str | None:
    """What is no dense float array, and what is too small to gain."""
    if type(X) is not np.ndarray or X.dtype.char not in "fd" or X.ndim != 2:
        return "X is no dense array of float32 or float64"
    fitted = getattr(self, "random_weights_", None), getattr(self, "random_offset_", None)
    if any(type(a) is not np.ndarray or a.dtype.char not in "fd" for a in fitted):
        return "it is not fitted, or not with arrays of float32 or float64"
    weights, offset = fitted
    assert weights is not None
    assert offset is not None
    if weights.ndim != 2 or offset.shape != weights.shape[1:] or offset.dtype != weights.dtype:
        return "its offsets are not one for each of its frequencies"
    if len(X) * weights.shape[1] < _FEWEST_FEATURES:
        return "too few features to gain"
    return None


def features_difference(original: Any, replacement: Any) -> float:
    """Largest difference of two results in one kind of container, relative to the largest entry."""
    if type(original) is not type(replacement):
        return float("inf")
    return difference(np.asarray(original), np.asarray(replacement))


def symmetric_svd(basis_kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular value decomposition of a kernel matrix, through its eigenvectors where it is well conditioned.

    U, S and V as the original binds them: orthonormal, and S in decreasing order. U and V may differ from the
    original's by signs and by rotations of equal values, which cancel in what it forms of them.
    """
    values, vectors = np.linalg.eigh(basis_kernel)
    if values[0] * _CONDITION > values[-1]:
        U = np.ascontiguousarray(vectors[:, ::-1])
        return U, values[::-1].copy(), U.T
    from sklearn import kernel_approximation

    # SciPy's up to scikit-learn 1.8, then NumPy's.
    U, S, V = getattr(kernel_approximation, "svd", np.linalg.svd)(basis_kernel)
    return U, S, V


def why_not_symmetric(basis_kernel: Any) -> str | None:
    """What is no symmetric float64 matrix, and what is too small to gain."""
    if type(basis_kernel) is not np.ndarray or basis_kernel.dtype != np.float64 or basis_kernel.ndim != 2:
        return "the kernel matrix is no array of float64"
    if len(basis_kernel) != basis_kernel.shape[1] or len(basis_kernel) < _FEWEST_ROWS:
        return "the basis is too small to gain"
    # A matrix is as scikit-learn forms it, symmetric to an ulp or two, or somebody's kernel is no kernel.
    largest = np.abs(basis_kernel).max()
    room = 16 * np.finfo(np.float64).eps * largest
    if not largest < np.inf or np.abs(basis_kernel - basis_kernel.T).max() > room:
        return "the kernel matrix is not symmetric, or not finite"
    return None


def normalization_difference(original: Any, replacement: Any) -> float:
    """Largest difference of the normalisations that two decompositions give, relative to the largest entry."""
    one, other = (U / np.sqrt(np.maximum(S, 1e-12)) @ V for U, S, V in (original, replacement))
    return float(np.abs(one - other).max() / np.abs(one).max())
