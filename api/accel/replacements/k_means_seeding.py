r"""scikit-learn's greedy k-means++ with the same picks and far fewer float64 distances.

The original (`_kmeans_plusplus` of `sklearn/cluster/_kmeans.py`, which `KMeans`, `MiniBatchKMeans`, `kmeans_plusplus`
and `GaussianMixture` call) draws a few candidates a pick, forms the float64 distance of each to every row, and keeps
the candidate that lowers :math:`\sum_i w_i D_i^2` most. Of all these distances two things are used: which candidate is
best, and the best one's distances where they are below those to the seeds so far. So here one float32 product gives

.. math:: L_{ic} = (1 - m)(\|x_i\|^2 + \|c\|^2) - 2 x_i\cdot c \le \|x_i - c\|^2, \qquad m = (d + 16)\,2^{-24},

a lower bound by the rounding error of a sum of d products (Higham, eq. 3.5; twice the inner product is at most the sum
of the squares), which falls short by at most twice m times the squares. Where L is not below the distance so far, no
digit matters. The other rows give an interval for each candidate's potential; candidates that it cannot tell apart, one
most of the time, get scikit-learn's own float64 distances at those rows. Potentials, cumulated sums and random numbers
are formed by the original's very operations on the original's values.

What rounding can still change: float64 products of a few rows may round in their last bit unlike those of all rows
at once, and the sums that are searched with it. A pick flips with a chance of about 1e-9 as long as the potential is
not small beside the rows' squares, as it is for copies of few rows. Should it become so, the draws begin anew, from the
same state of the generator, with all distances by scikit-learn.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

# Numbers in X, columns and picks from which there is something to gain; float64 needs no conversion for each pick.
_FEWEST = {"f": (1 << 18, 32, 8), "d": (1 << 20, 128, 16)}
_BLOCK = 1 << 18  # numbers of X that are converted at a time
_UNIT = 2.0**-24
_RANGE = (1e-18, 1e30)  # mean squares of rows that float32 can hold and whose products it can add
# Potential, relative to the rows' squares, below which the rounding of float64 products is seen in the sums.
_SMALL = {"f": 1e-5, "d": 1e-9}


def greedy_seeds(
    X: np.ndarray,
    n_clusters: int,
    x_squared_norms: np.ndarray,
    sample_weight: np.ndarray,
    random_state: np.random.RandomState,
    n_local_trials: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Seeds of greedy k-means++: those that `sklearn.cluster._kmeans._kmeans_plusplus` picks.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        float32 or float64.
    n_clusters : int
    x_squared_norms : ndarray of shape (n,)
    sample_weight : ndarray of shape (n,)
    random_state : RandomState
    n_local_trials : int, optional
        Candidates a pick; default 2 + ⌊log k⌋.

    Returns
    -------
    centers : ndarray of shape (n_clusters, d)
    indices : ndarray of shape (n_clusters,)
        Equal to the original's, after the same random numbers.

    Notes
    -----
    A float32 product of the candidates with all rows each pick, and about n log k float64 distances in all in place of
    n k trials. A float32 copy of X for float64, and for float32 whose mean is large.
    """
    trials = 2 + int(np.log(n_clusters)) if n_local_trials is None else n_local_trials
    data = (X, n_clusters, x_squared_norms, sample_weight, random_state, trials)
    begin = random_state.get_state()
    bounds = _Bounds(X, x_squared_norms)
    indices = None
    if bounds.hold:
        indices = _picks(*data, bounds.minima, _SMALL[X.dtype.char] * float(bounds.squares @ sample_weight))
    if indices is None:
        random_state.set_state(begin)
        indices = _picks(*data, _all_minima, -np.inf)
        assert indices is not None
    return X[indices], indices


def why_not(
    X: Any,
    n_clusters: int,
    x_squared_norms: Any,
    sample_weight: Any,
    random_state: Any,
    n_local_trials: int | None = None,
) -> str | None:
    """Sparse and unusual arguments, and problems too small to gain."""
    if type(X) is not np.ndarray or X.dtype.char not in _SMALL or X.ndim != 2:
        return "X is no dense array of float32 or float64"
    for given in (x_squared_norms, sample_weight):
        if type(given) is not np.ndarray or given.dtype != X.dtype or given.shape != X.shape[:1]:
            return "norms or weights are no array like the rows of X"
    if not isinstance(random_state, np.random.RandomState):
        return "the generator is no RandomState"
    if any(
        size < least
        for size, least in zip((X.size, X.shape[1], n_clusters), _FEWEST[X.dtype.char], strict=True)
    ):
        return "too few rows, columns or seeds to gain"
    return None


def _picks(
    X: np.ndarray,
    k: int,
    norms: np.ndarray,
    w: np.ndarray,
    random_state: np.random.RandomState,
    trials: int,
    minima_of: Callable[..., np.ndarray],
    least: float,
) -> np.ndarray | None:
    """The seeds; None once the potential is not above `least`."""
    from sklearn.cluster import _kmeans

    # Up to scikit-learn 1.7 sums are cumulated in float64 by a function of its own, then in the dtype of X.
    cumulated = getattr(_kmeans, "stable_cumsum", np.cumsum)
    indices = np.full(k, -1, dtype=int)
    indices[0] = random_state.choice(len(X), p=w / w.sum())
    closest = _distances(X, norms, indices[:1])
    potential = closest @ w
    for pick in range(1, k):
        if not potential > least and least >= 0:
            return None
        drawn = random_state.uniform(size=trials) * potential
        candidates = np.searchsorted(cumulated(w * closest), drawn)
        np.clip(candidates, None, closest.size - 1, out=candidates)
        minima = minima_of(X, norms, w, candidates, closest.reshape(-1))
        potentials = minima @ w.reshape(-1, 1)
        best = np.argmin(potentials)
        potential, closest = potentials[best], minima[best]
        indices[pick] = candidates[best]
    return indices


def _distances(
    X: np.ndarray, norms: np.ndarray, candidates: np.ndarray, rows: Any = slice(None)
) -> np.ndarray:
    """Squared distances of candidates to rows as scikit-learn forms them."""
    from sklearn.metrics.pairwise import _euclidean_distances

    return _euclidean_distances(X[candidates], X[rows], Y_norm_squared=norms[rows], squared=True)


def _all_minima(
    X: np.ndarray, norms: np.ndarray, w: np.ndarray, candidates: np.ndarray, closest: np.ndarray
) -> np.ndarray:
    """Squared distances to the nearest seed, should a candidate become one: (trials, n)."""
    found = _distances(X, norms, candidates)
    return np.minimum(closest, found, out=found)


class _Bounds:
    """Lower bounds of squared distances from float32 products.

    Attributes
    ----------
    hold : bool
        Whether they are any: X is finite, within the range of float32, and the norms given are its rows'.
    squares : ndarray of shape (n,)
        Of the rows of X, in float64.
    """

    def __init__(self, X: np.ndarray, norms: np.ndarray) -> None:
        n, d = X.shape
        sample = X[:: max(1, n // 1024)].astype(np.float64)
        origin = sample.mean(0)
        spread = np.square(sample - origin).sum(1).mean()
        # As it is if that at most doubles the squares, to which the bounds are relative.
        as_it_is = X.dtype == np.float32 and origin @ origin <= spread
        self._rows = X if as_it_is else np.empty((n, d), np.float32)
        self.squares, own = np.empty((2, n))
        step = max(1, _BLOCK // d)
        with np.errstate(over="ignore", invalid="ignore"):
            for begin in range(0, n, step):
                part = slice(begin, begin + step)
                block = X[part].astype(np.float64)
                self.squares[part] = np.einsum("ij,ij->i", block, block)
                if as_it_is:
                    continue
                block -= origin
                self._rows[part] = block
                own[part] = np.einsum("ij,ij->i", block, block)
        own = self.squares if as_it_is else own
        self.hold = bool(_RANGE[0] < own.mean() and own.max() < _RANGE[1])
        if norms.dtype == np.float64:  # float32 ones are not used by scikit-learn
            self.hold &= bool(np.allclose(norms, self.squares, rtol=1e-8, atol=0))
        # scikit-learn forms those of float32 rows in float64 each time, to these very numbers.
        self._norms = self.squares if X.dtype == np.float32 else norms
        self._margin = (d + 16) * _UNIT
        self._own, self._lower = own, ((1 - self._margin) * own).astype(np.float32)
        # Squares that round to nothing, of rows at the origin: below what float32 resolves of the mean.
        self._floor = np.float32(_UNIT**2 * own.mean())

    def minima(
        self, X: np.ndarray, norms: np.ndarray, w: np.ndarray, candidates: np.ndarray, closest: np.ndarray
    ) -> np.ndarray:
        """As `_all_minima` in the best candidate's row; lower bounds, too large to be best, in others."""
        bound = (-2 * self._rows[candidates]) @ self._rows.T
        bound += self._lower
        bound += self._lower[candidates, None] - self._floor
        minima = np.minimum(closest, bound)
        potentials = (minima @ w.reshape(-1, 1))[:, 0].astype(np.float64)
        lower = [np.flatnonzero(row < closest) for row in bound]
        slack = np.array([self._slack(w, *pair) for pair in zip(lower, candidates, strict=True)])
        # Sums over rows round like a random walk, the original's too.
        least = (potentials + slack).min() * (1 + 8 * np.finfo(X.dtype).eps * len(X) ** 0.5)
        best = np.flatnonzero(potentials <= least)
        if sum(len(lower[c]) for c in best) > len(X):
            return _all_minima(X, norms, w, candidates, closest)
        step = max(1, _BLOCK // X.shape[1])
        for c in best:
            minima[c] = closest
            for begin in range(0, len(lower[c]), step):
                rows = lower[c][begin : begin + step]
                found = _distances(X, self._norms, candidates[c, None], rows)[0]
                minima[c, rows] = np.minimum(closest[rows], found)
        return minima

    def _slack(self, w: np.ndarray, rows: np.ndarray, candidate: int) -> float:
        """How much lower than the sum over `rows` of what they are the bounds can be."""
        own = self._own[rows] + self._own[candidate] + self._floor
        return float(2 * self._margin * (w[rows] @ own))
