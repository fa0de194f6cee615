r"""Sensitivity scores: probabilities that favour the rows which some query could not do without.

A coreset draws rows i.i.d. with probabilities :math:`q_i` and gives a row drawn the weight :math:`1/(m q_i)`; any sum
over the rows is then estimated without bias, and its relative error over a family of non-negative functions is small
when :math:`q_i` is not much below the share :math:`\sup_f w_i f(x_i)/\sum_j w_j f(x_j)` of the row, its sensitivity
(Langberg & Schulman, SODA 2010).

**Lightweight** (k-means; Bachem, Lucic & Krause, KDD 2018, eq. 5), with :math:`W = \sum_j w_j` and the weighted mean μ:

.. math:: q_i = \frac{w_i}{2W} + \frac{w_i \|x_i-\mu\|^2}{2\sum_j w_j\|x_j-\mu\|^2} .

**RBF** (after Tukan et al., ICML 2023). With the lift :math:`q(x) = (\|x\|^2, x, 1)`, the functions
:math:`t_c(x) = \gamma\|x-c\|^2` and :math:`1 + t_c(x)` are linear in q(x), so the ℓ1 Lewis weights of the rows
:math:`w_i q(x_i)` (see `leverage`) bound their sensitivities, for every centre c and scale γ, with constant one and a
sum of at most d + 2. (The paper takes an ℓ1 basis from a Löwner ellipsoid and adds :math:`w_i/W`; constant functions
are in the span of the lift, so that term is inside the Lewis weights already.) Where :math:`t_c \le D` for all rows,
:math:`e^{-D}/(1+D) \le e^{-t}/(1+t) \le 1`, and Gaussian sensitivities are at most :math:`(1+D)e^{D}` times as large.
That factor is the paper's; as :math:`e^{D} w_i/W` bounds them too, the theory sees no gain over uniform sampling for
Gaussians alone. The gain is in the tails: the bound is for all scales at once.

**Kernel density.** The share of row i in the density at its own place, :math:`w_i k(0)/\sum_j w_j k(x_i, x_j)`, is a
*lower* bound of its Gaussian sensitivity: :math:`q_i` proportional to it draws lone rows as often as whole clusters.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._check import as_rows
from ._dispatch import choose, implement
from ._precision import working_dtype
from ._weights import check_weight_sums, row_weights
from .kernel_matmul import kernel_matmul, kernel_row_sums
from .leverage import lewis_of_blocks, rows_within
from .radial import Gaussian


class Sensitivity(NamedTuple):
    """Probabilities (n,) in float64, and what to multiply them by for upper bounds of the sensitivities."""

    scores: Tensor
    total: float


def lightweight_sensitivity(
    X: Any, weights: Any = None, *, memory_budget: int = 64 << 20, backend: str | None = None
) -> Tensor:
    """Probabilities of the lightweight coreset for k-means.

    Parameters
    ----------
    X : array of shape (n, d)
    weights : array of shape (n,), optional
        Non-negative, any floating dtype; default one.
    memory_budget : int, default 64 MiB
        Bytes that temporaries may take beyond vectors of length n and d (plain torch; Triton keeps sums of 512 rows).
    backend : {"triton", "torch"}, optional
        Use this one or raise.

    Returns
    -------
    Tensor, shape (n,), float64
        Sums to one. If all rows of positive weight are equal, the second term is 0/0 and the scores are ``w_i / W``.

    Raises
    ------
    ValueError
        If X or the weights are not finite, a weight is negative, or all are zero: seen in the last sums, so that
        there is no pass over X for it and one wait for the device.

    Notes
    -----
    Two passes over X, 5 n d operations in float64. Distances are taken to the mean as they stand (never as
    |x|² - 2x·μ + |μ|², which cancels), after the first row is subtracted, so that equal rows are at distance zero.
    """
    x = as_rows(X, "X").detach()
    w = row_weights(weights, x)
    if not len(x):
        raise ValueError("`X` has no rows")
    run = choose("lightweight_sensitivity", x, w, memory_budget=memory_budget, backend=backend)
    spread = run(x, w, memory_budget=memory_budget)
    if w is None:
        share = torch.full_like(spread, 1 / len(x))
        least, mass = 0.0, 1.0
    else:
        spread = spread.mul_(w)
        share = w / w.sum()
        least, mass = torch.stack((w.min(), w.sum())).tolist()
    check_weight_sums(least, mass)
    total = float(spread.sum())
    if not total < float("inf"):
        raise ValueError("`X` holds NaN or infinite values, or values whose squares overflow")
    return share if total == 0 else share.mul_(0.5).add_(spread, alpha=0.5 / total)


def rbf_sensitivity(
    X: Any,
    weights: Any = None,
    *,
    iterations: int = 60,
    tolerance: float = 1e-3,
    memory_budget: int = 64 << 20,
) -> Sensitivity:
    """Probabilities of the coreset for radial basis functions, with certified bounds.

    Parameters
    ----------
    X : array of shape (n, d)
    weights : array of shape (n,), optional
        Non-negative, any floating dtype; default one.
    iterations, tolerance
        Of the fixed point, as in `lewis_weights`; the bounds hold however it is cut short.
    memory_budget : int, default 64 MiB
        Bytes that temporaries may take beyond vectors of length n and a few (d + 2, d + 2) matrices.

    Returns
    -------
    Sensitivity
        ``total * scores[i]`` is at least the sensitivity of row i over all :math:`1 + t_c`; `total` is at most d + 2,
        within `tolerance`. Moving, rotating or scaling X changes nothing.

    Raises
    ------
    ValueError
        If X or the weights are not finite, a weight is negative, or all are zero.

    Notes
    -----
    6 to 20 passes of 1.5 n d² multiplications in float64.
    """
    x = as_rows(X, "X").detach()
    w = row_weights(weights, x)
    if not len(x):
        raise ValueError("`X` has no rows")
    if w is not None:
        check_weight_sums(*torch.stack((w.min(), w.sum())).tolist())
        w = w / w.max()  # only their ratios matter, and squares of tiny ones would vanish
    n, d = x.shape
    step = rows_within(memory_budget, d + 2)
    origin, mean = _mean(x, w, step)

    def lifted() -> Iterator[Tensor]:
        for start in range(0, n, step):
            block = x.new_empty(min(step, n - start), d + 2, dtype=torch.float64)
            centred = block[:, :d]
            torch.sub(x[start : start + step], origin, out=centred).sub_(mean)
            block[:, d] = torch.linalg.vector_norm(centred, dim=1).square_()
            block[:, d + 1] = 1.0
            yield block if w is None else block.mul_(w[start : start + step, None])

    found, _, distortion = lewis_of_blocks(lifted, x.device, iterations=iterations, tolerance=tolerance)
    mass = float(found.sum())
    return Sensitivity(found / mass, distortion * mass)


def kernel_density_sensitivity(
    X: Any,
    bandwidth: float,
    weights: Any = None,
    *,
    precision: str = "high",
    memory_budget: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Probabilities inverse to the Gaussian kernel density at the rows.

    Parameters
    ----------
    X : array of shape (n, d)
    bandwidth : float
        σ of exp(-|x-y|²/2σ²), in units of the data. Far below the distances between rows the scores are uniform; far
        above, they are uniform again.
    weights : array of shape (n,), optional
        Non-negative, any floating dtype; default one.
    precision, memory_budget, backend
        As in `kernel_row_sums`.

    Returns
    -------
    Tensor, shape (n,), float64
        Sums to one. Before that division the sum lies in [1, n] and counts clusters of the size of σ.

    Raises
    ------
    ValueError
        If X or the weights are not finite, a weight is negative, or all are zero.

    Notes
    -----
    The n² kernel values of `kernel_row_sums`, never stored.
    """
    x = as_rows(X, "X").detach()
    w = row_weights(weights, x)
    if not len(x):
        raise ValueError("`X` has no rows")
    if w is not None:
        check_weight_sums(*torch.stack((w.min(), w.sum())).tolist())
        w = w / w.max()
    # A row's own term is added in float64, so that no row of positive weight has a density of zero.
    others = _density_of_others(Gaussian(bandwidth), x, w, precision, memory_budget, backend).double()
    scores = 1 / (others + 1) if w is None else torch.where(w > 0, w / (others + w), 0.0)
    total = scores.sum()
    if not float(total) < float("inf"):
        raise ValueError("`X` holds NaN or infinite values, or values whose squares overflow")
    return scores / total


def _density_of_others(
    kernel: Gaussian,
    x: Tensor,
    w: Tensor | None,
    precision: str,
    memory_budget: int | None,
    backend: str | None,
) -> Tensor:
    options: dict[str, Any] = {"precision": precision, "memory_budget": memory_budget, "backend": backend}
    if w is None:
        return kernel_row_sums(kernel, x, leave_one_out=True, **options)
    return kernel_matmul(
        kernel, x, None, w.to(working_dtype(x.dtype, precision)), leave_one_out=True, **options
    )


def _mean(x: Tensor, w: Tensor | None, step: int) -> tuple[Tensor, Tensor]:
    """First row, and the mean of the rows less it, in float64."""
    origin = x[0].double()
    total = torch.zeros_like(origin)
    for start in range(0, len(x), step):
        block = x[start : start + step].double() - origin
        total += block.sum(0) if w is None else w[start : start + step] @ block
    return origin, total.div_(len(x) if w is None else w.sum())


def _torch(x: Tensor, w: Tensor | None, *, memory_budget: int) -> Tensor:
    """Squared distances to the weighted mean, in float64."""
    step = rows_within(memory_budget, x.shape[1])
    origin, mean = _mean(x, w, step)
    spread = origin.new_empty(len(x))
    for start in range(0, len(x), step):
        block = (x[start : start + step].double() - origin).sub_(mean)
        spread[start : start + step] = block.square_().sum(1)
    return spread


implement("lightweight_sensitivity", "torch", _torch)
implement("lightweight_sensitivity", "triton", "_triton.sensitivity:lightweight_spread")
