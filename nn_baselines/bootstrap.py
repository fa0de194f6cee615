r"""How far a mean accuracy is known: the two-level bootstrap over distilled sets and the networks trained on them.

With accuracies :math:`a_{sj}` of networks :math:`j = 1 \ldots M` on sets :math:`s = 1 \ldots S` of one method, a
resample draws :math:`S` sets with replacement and, for each of those draws, :math:`M` of its networks with replacement,

.. math:: \bar a^* = \frac{1}{SM} \sum_{i=1}^{S} \sum_{j=1}^{M} a_{s_i t_{ij}},
          \qquad s_i \sim U\{1 \ldots S\}, \quad t_{ij} \sim U\{1 \ldots M\},

and the interval is that between the percentiles :math:`(1 \mp c)/2` of many such means. Networks of one set share
its luck, so that drawing them alone, as if they were :math:`SM` independent results, gives intervals that are too
narrow (Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8, strategy with replacement
at both levels). With one set the upper level has nothing to draw, and the interval is that of this one set.

The expected variance of a resample is

.. math:: \frac1S \Bigl[ \frac{S-1}{S} \Bigl(\sigma_b^2 + \frac{\sigma_w^2}{M}\Bigr)
          + \frac{M-1}{M} \frac{\sigma_w^2}{M} \Bigr]
          \quad\text{beside the true}\quad \frac1S \Bigl[ \sigma_b^2 + \frac{\sigma_w^2}{M} \Bigr]

for variances :math:`\sigma_b^2` between sets and :math:`\sigma_w^2` within: a factor (S - 1)/S too small where sets
differ much, and 2 - 1/S - 1/M too large where they do not differ at all. With one set it is (M - 1)/M of the variance
over networks.
"""

from typing import Any

import numpy as np

from ..kernels.random import uniform
from ..solver._check import check_count

# Percentiles of 10,000 means are steady to a hundredth of the width of the interval or so.
DRAWS = 10_000
# Resampled accuracies in memory at one time.
_BLOCK = 2**21


def resampled_means(
    accuracies: Any, *, draws: int = DRAWS, seed: int = 0, stream: str = "bootstrap"
) -> np.ndarray:
    """Means of resampled sets and networks.

    Parameters
    ----------
    accuracies : array, shape (sets, networks)
        Fractions (or any finite numbers): one row for each distilled set, one column for each network trained on it.
    draws : int, default 10_000
    seed, stream : int, str
        Key of the counter-based randomness: draw i depends on them, on i and on the shape alone.

    Returns
    -------
    ndarray of float64, shape (draws,)

    Raises
    ------
    ValueError
        If `accuracies` is no matrix of finite numbers with at least one row and column.

    Notes
    -----
    ``draws * sets * (networks + 1)`` random numbers, in blocks of bounded memory.
    """
    values = np.asarray(accuracies, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"`accuracies` must have shape (sets, networks), got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("`accuracies` holds NaN or infinity: leave out networks that diverged")
    check_count(draws, "draws")
    n_sets, n_networks = values.shape
    means = np.empty(draws)
    step = max(1, _BLOCK // (n_sets * (n_networks + 1)))
    for start in range(0, draws, step):
        block = min(step, draws - start)
        # Of each drawn set, one number says which it is and the others which of its networks.
        shape = (block, n_sets, n_networks + 1)
        u = uniform(seed, stream, shape, start * n_sets * (n_networks + 1)).numpy()
        sets = (u[..., :1] * n_sets).astype(np.int64)
        networks = (u[..., 1:] * n_networks).astype(np.int64)
        means[start : start + block] = values[sets, networks].mean(axis=(1, 2))
    return means


def bootstrap_interval(
    accuracies: Any, *, confidence: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over sets and networks.

    Parameters
    ----------
    accuracies : array, shape (sets, networks)
    confidence : float, default 0.95
        Between 0 and 1.
    draws, seed : int
        As for `resampled_means`.

    Returns
    -------
    low, high : float
        The same number twice where all accuracies are equal.

    Raises
    ------
    ValueError
        As `resampled_means`; if `confidence` is outside (0, 1).

    Notes
    -----
    With one set, what is unknown is the mean over networks trained on *this* set. With few sets (under five or so)
    the interval is narrower than its name says: see the module for by how much.
    """
    if isinstance(confidence, bool) or not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence!r}")
    means = resampled_means(accuracies, draws=draws, seed=seed)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
