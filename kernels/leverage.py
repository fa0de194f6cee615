r"""How much a row matters to least squares and to sums of absolute values: leverage scores and Lewis weights.

**Ridge leverage scores** of features :math:`\phi_i`, the rows of F, with :math:`G = F^\top F` (Alaoui & Mahoney,
NeurIPS 2015, eq. 2, whose :math:`n\lambda` is the ridge :math:`\rho` here):

.. math:: \ell_i = \phi_i^\top (G + \rho I)^{-1} \phi_i = \big(K (K + \rho I)^{-1}\big)_{ii}, \qquad K = F F^\top .

They lie in [0, 1] and their sum is the effective dimension. The first form needs no n x n matrix.

**ℓ1 Lewis weights** (Lewis 1978; Cohen & Peng, STOC 2015) of rows :math:`a_i` are the numbers with
:math:`u_i^2 = a_i^\top M(u)^{-1} a_i`, :math:`M(u) = \sum_j a_j a_j^\top / u_j`. They sum to the rank, do not change
when A is multiplied by an invertible matrix from the right, and bound the ℓ1 sensitivity of every row,

.. math:: \sup_v |a_i^\top v| \,/\, \sum_j |a_j^\top v| \;\le\; u_i .

*Proof, also for numbers that are not quite a fixed point.* Let :math:`w > 0`, :math:`u_i^2 = a_i^\top M(w)^{-1} a_i`
and :math:`\delta = \max_i u_i/w_i`. By Cauchy-Schwarz :math:`|a_i^\top v| \le u_i \|v\|_M`. With it,
:math:`\|v\|_M^2 = \sum_j |a_j^\top v|^2 / w_j \le \delta \|v\|_M \sum_j |a_j^\top v|`; hence
:math:`|a_i^\top v| \le \delta u_i \sum_j |a_j^\top v|`. So :math:`\delta u_i` is a bound that needs no convergence.
The iteration :math:`w \leftarrow u` halves the largest error of :math:`\log w` (Cohen & Peng, section 3).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._check import as_rows
from .statistics import gram_add_, mirror_upper_


class LeverageScores(NamedTuple):
    """Scores (n,) in float64, their sum, and "ok" or what went wrong (the scores are NaN then)."""

    scores: Tensor
    effective_dimension: float
    status: str


class LewisWeights(NamedTuple):
    """Weights (n,) in float64, the rank (which they sum to), and δ: δ times a weight bounds the sensitivity."""

    weights: Tensor
    rank: int
    distortion: float


def ridge_leverage_scores(
    features: Any, ridge: float, *, gram: Any = None, memory_budget: int = 64 << 20
) -> LeverageScores:
    """Ridge leverage scores of the rows of `features`.

    Parameters
    ----------
    features : array of shape (n, p), or an iterable of such arrays
        Chunks of rows are read once, in order; the scores of all are returned.
    ridge : float
        ρ, what is added to the diagonal of the Gram matrix; not negative. For the per-sample scale of the kernel
        literature pass nλ, n being the number of rows in the Gram matrix.
    gram : array of shape (p, p), optional
        Symmetric, e.g. of `gram_add_` and `mirror_upper_` or of a rescaled sample of rows (scores are approximate
        then, and may exceed one). Default: that of `features`, in one more pass over them.
    memory_budget : int, default 64 MiB
        Bytes that copies of chunks may take, beyond three (p, p) matrices and the scores.

    Returns
    -------
    LeverageScores
        On the device of the first chunk. If G + ρI is not positive definite in float64, `status` says so and the
        scores are NaN: nothing is added to repair it.

    Raises
    ------
    ValueError
        If shapes or devices do not agree, numbers are not finite, `ridge` is negative, or there are chunks but no
        `gram`.

    Notes
    -----
    One Cholesky factor and n p² multiplications, n p² more without `gram`, all in float64.
    """
    if not (math.isfinite(ridge) and ridge >= 0):
        raise ValueError(f"`ridge` must be a non-negative number, got {ridge!r}")
    if hasattr(features, "shape"):
        whole = as_rows(features, "features")
        chunks: Iterable[Any] = (whole,)
        system = _gram(whole, memory_budget) if gram is None else None
    elif gram is None:
        raise ValueError("chunks of features are read once: pass their Gram matrix as `gram`")
    else:
        chunks, system = features, None
    if system is None:
        system = as_rows(gram, "gram").to(torch.float64, copy=True)
    p = len(system)
    if system.shape[1] != p:
        raise ValueError(f"`gram` must be (p, p), got {tuple(system.shape)}")
    if not bool(system.isfinite().all()):
        raise ValueError("the Gram matrix holds NaN or infinite values")
    system.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(system)
    status = "ok"
    if minor := int(info):
        factor.fill_(torch.nan)
        status = (
            f"not positive definite: the Gram matrix plus {ridge:g} fails at its leading minor {minor} of {p};"
            " use a larger ridge"
        )
    scores = [_scores(factor, _rows_of(chunk, p, factor.device), memory_budget) for chunk in chunks]
    found = torch.cat([system.new_empty(0), *scores])
    return LeverageScores(found, float(found.sum()), status)


def lewis_weights(
    A: Any, *, iterations: int = 60, tolerance: float = 1e-3, memory_budget: int = 64 << 20
) -> LewisWeights:
    """ℓ1 Lewis weights of the rows of a matrix: certified bounds on their ℓ1 sensitivities.

    Parameters
    ----------
    A : array of shape (n, p)
        To weight a row by w, multiply it by w.
    iterations : int, default 60
        Passes over A at most; 6 to 20 are usual.
    tolerance : float, default 1e-3
        Stop when no weight changes by more than this factor less one.
    memory_budget : int, default 64 MiB
        Bytes that copies of chunks may take, beyond a few (p, p) matrices and vectors of length n.

    Returns
    -------
    LewisWeights
        A row of zeros has weight zero. Directions whose singular value is below √(max(n, p) 2⁻⁵²) of the largest
        (columns being scaled to equal norms) cannot be told from rounding: they do not count in `rank`, and the
        bounds do not cover them.

    Raises
    ------
    ValueError
        If A is not a matrix of finite numbers.

    Notes
    -----
    1.5 n p² multiplications in float64 a pass.
    """
    rows = as_rows(A, "A")
    n, p = rows.shape
    step = rows_within(memory_budget, p)

    def blocks() -> Iterator[Tensor]:
        return (rows[start : start + step].double() for start in range(0, n, step))

    return lewis_of_blocks(blocks, rows.device, iterations=iterations, tolerance=tolerance)


def rows_within(memory_budget: int, p: int) -> int:
    """Rows of a chunk whose float64 copy, and three temporaries of its size, fit the budget."""
    return max(1, memory_budget // (4 * 8 * max(1, p)))


def lewis_of_blocks(
    blocks: Callable[[], Iterator[Tensor]], device: torch.device, *, iterations: int, tolerance: float
) -> LewisWeights:
    """`lewis_weights` of float64 rows that `blocks` makes anew, in the same order, at every call."""
    basis = _orthonormal(blocks)
    if basis is None:
        n = sum(len(block) for block in blocks())
        return LewisWeights(torch.zeros(n, dtype=torch.float64, device=device), 0, 1.0)
    # The columns of A times the basis are orthonormal under weights 1/w, at first of one: u is the norm of a row.
    rank = basis.shape[1]
    weights, distortion = basis.new_ones(1), math.inf
    for _ in range(max(1, iterations)):
        gram = torch.zeros(rank, rank, dtype=torch.float64, device=device)
        parts: list[Tensor] = []
        for block in blocks():
            rotated = block @ basis
            parts.append(torch.linalg.vector_norm(rotated, dim=1))
            gram_add_(gram, rotated.mul_(torch.where(parts[-1] > 0, parts[-1].rsqrt(), 0.0)[:, None]))
        old, weights = weights, torch.cat(parts)
        ratio = (weights / old)[weights > 0]
        distortion, least = float(ratio.max()), float(ratio.min())
        if max(distortion, 1 / least) <= 1 + tolerance:
            break
        factor = torch.linalg.cholesky(mirror_upper_(gram))
        basis = torch.linalg.solve_triangular(factor, basis.T, upper=False).T
    return LewisWeights(weights, rank, distortion)


def _orthonormal(blocks: Callable[[], Iterator[Tensor]]) -> Tensor | None:
    """Columns that turn the rows into an orthonormal basis of A's range, shape (p, rank); None for A = 0."""
    gram, n = None, 0
    for block in blocks():
        if gram is None:
            gram = block.new_zeros(block.shape[1], block.shape[1])
        gram_add_(gram, block)
        n += len(block)
    if gram is None:
        return None
    mirror_upper_(gram)
    if not bool(gram.isfinite().all()):
        raise ValueError("the rows hold NaN or infinite values, or values whose squares overflow")
    norms = gram.diagonal().sqrt()
    scale = torch.where(norms > 0, 1 / norms, 0.0)
    values, vectors = torch.linalg.eigh(gram * scale[:, None] * scale)
    kept = values > max(n, len(gram)) * torch.finfo(torch.float64).eps * values[-1]
    if not bool(kept.any()):
        return None
    return scale[:, None] * vectors[:, kept] * values[kept].rsqrt()


def _gram(rows: Tensor, memory_budget: int) -> Tensor:
    n, p = rows.shape
    gram = torch.zeros(p, p, dtype=torch.float64, device=rows.device)
    step = rows_within(memory_budget, p)
    for start in range(0, n, step):
        gram_add_(gram, rows[start : start + step].double())
    return mirror_upper_(gram)


def _rows_of(chunk: Any, p: int, device: torch.device) -> Tensor:
    rows = as_rows(chunk, "features")
    if rows.shape[1] != p:
        raise ValueError(f"`gram` is ({p}, {p}) but `features` are {tuple(rows.shape)}")
    if rows.device != device:
        raise ValueError(f"`gram` is on {device} but `features` are on {rows.device}: move one of them")
    return rows


def _scores(factor: Tensor, rows: Tensor, memory_budget: int) -> Tensor:
    """Squared norms of the solutions of L z = φ_i."""
    scores = factor.new_empty(len(rows))
    step = rows_within(memory_budget, rows.shape[1])
    for start in range(0, len(rows), step):
        half = torch.linalg.solve_triangular(factor, rows[start : start + step].double().T, upper=False)
        scores[start : start + step] = half.square_().sum(0)
    return scores
