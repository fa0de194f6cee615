r"""Seeds for k-means: D² sampling one row at a time, and in few rounds.

**k-means++** (Arthur & Vassilvitskii, SODA 2007): the first seed is drawn in proportion to the weights, each next one
in proportion to :math:`w_i D_i^2`, D being the distance to the nearest seed so far. Drawing several candidates and
keeping the one that lowers :math:`\sum_i w_i D_i^2` most is their greedy variant, with 2 + ⌊log k⌋ candidates as in
scikit-learn.

**k-means∥** (Bahmani et al., VLDB 2012, algorithm 2): in each round every row becomes a candidate by itself with
probability :math:`\min(1, \ell w_i D_i^2 / \sum_j w_j D_j^2)`; after a few rounds the candidates, weighted by the rows
nearest to them, are reduced to k by k-means++. Few passes of matrix products take the place of k passes.

**Randomness.** A draw in proportion to mass is made from one uniform number u: the first row whose cumulated mass, in
float64, exceeds u times the total. This costs one number a candidate and a sum that is needed anyway (a race between
all rows would cost n numbers a candidate), depends on neither chunks nor workers, and never gives a row without mass:
a row that equals a seed is at distance zero exactly. Uniform numbers are a function of (seed, pick, candidate), and of
(seed, round, row) for k-means∥. Distances of another backend differ in rounding, and a draw within that rounding of
the edge between two rows may go to the other one there.

Distances are those of `k_center`: accurate relative to themselves, and zero for equal rows.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._check import as_rows, check_whole
from ._dispatch import choose, implement
from ._near import blocks_of, near_exact_distances, near_mean, side_within, working
from ._weights import check_weight_sums, row_weights
from .random import uniform

_MOST_TRIALS = 32  # candidates whose distances fit the registers of a program
_CACHE = 8 << 20  # bytes: temporaries of a block of rows stay in the cache of a CPU


class KMeansSeeds(NamedTuple):
    """Rows that are seeds, in order (k,), and each row's squared distance to the nearest of them (n,)."""

    indices: Tensor
    squared_distances: Tensor


def k_means_plus_plus(
    X: Any,
    k: int,
    *,
    weights: Any = None,
    trials: int | None = None,
    seed: int = 0,
    memory_budget: int = 64 << 20,
    backend: str | None = None,
) -> KMeansSeeds:
    """Draw k seeds one after another, each in proportion to the squared distance from those before.

    Parameters
    ----------
    X : array of shape (n, d)
    k : int
        Number of seeds, at most the number of distinct rows of positive weight.
    weights : array of shape (n,), optional
        Non-negative, any floating dtype; default one.
    trials : int, optional
        Candidates a pick; default 2 + ⌊log k⌋. One is plain D² sampling.
    seed : int, default 0
    memory_budget : int, default 64 MiB
        Bytes that temporaries may take beyond a number for each row and trial (two in Triton) and the candidates.
    backend : {"triton", "torch"}, optional
        Use this one or raise.

    Returns
    -------
    KMeansSeeds
        Int64 indices; squared distances in float32, or the float64 of X.

    Raises
    ------
    ValueError
        If k or `trials` do not fit, fewer than k distinct rows have a positive weight (there is nothing to draw
        then, and a repeated seed would be an empty cluster), or X or the weights are not finite or negative. What
        depends on values is seen in the result, so that nothing waits for the device before.

    Notes
    -----
    2 n d k `trials` operations. In Triton two launches a pick, one of which reads X, once for all trials.
    """
    x = as_rows(X, "X").detach()
    w = row_weights(weights, x)
    k = check_whole(k, "k")
    count = 2 + int(math.log(max(k, 1))) if trials is None else check_whole(trials, "trials")
    if not 1 <= k <= len(x) or count < 1:
        raise ValueError(
            f"`k` must be between 1 and the {len(x)} rows and `trials` positive, got {k} and {trials}"
        )
    first, later = uniform(seed, "k-means++.first", 1), uniform(seed, "k-means++", (k - 1, count))
    start = _draw(x.new_ones(len(x), dtype=torch.float64) if w is None else w, first)
    run = choose("k_means_plus_plus", x, w, start, later, memory_budget=memory_budget, backend=backend)
    indices, squared = run(x, w, start, later, memory_budget=memory_budget)
    _check(x, w, indices, squared)
    return KMeansSeeds(indices, squared)


def k_means_parallel(
    X: Any,
    k: int,
    *,
    rounds: int = 5,
    oversampling: float = 2.0,
    weights: Any = None,
    trials: int | None = None,
    seed: int = 0,
    memory_budget: int = 64 << 20,
) -> KMeansSeeds:
    """Draw candidates in a few rounds, then k seeds among them.

    Parameters
    ----------
    X : array of shape (n, d)
    k : int
        Number of seeds, at most the number of distinct rows of positive weight.
    rounds : int, default 5
        More are made while there are fewer than k distinct candidates.
    oversampling : float, default 2.0
        Candidates expected a round, as a multiple of k (the paper's ℓ is this times k).
    weights, trials, seed, memory_budget
        As in `k_means_plus_plus`, which reduces the candidates.

    Returns
    -------
    KMeansSeeds

    Raises
    ------
    ValueError
        As `k_means_plus_plus`.

    Notes
    -----
    2 n d k (1 + `rounds` · `oversampling`) operations in matrix products; O(n) memory, and the candidates.
    """
    x = as_rows(X, "X").detach()
    w = row_weights(weights, x)
    n = len(x)
    k, rounds = check_whole(k, "k"), check_whole(rounds, "rounds")
    if not 1 <= k <= n or rounds < 0 or not 1 <= oversampling * k < math.inf:
        raise ValueError(
            f"`k` must be between 1 and the {n} rows, `rounds` not negative and `oversampling` at least 1/k, got {k},"
            f" {rounds} and {oversampling}"
        )
    mass = x.new_ones(n, dtype=torch.float64) if w is None else w
    check_weight_sums(*torch.stack((mass.min(), mass.sum())).tolist())
    nearest = _Nearest(x, memory_budget)
    nearest.add(_draw(mass, uniform(seed, "k-means-parallel.first", 1)))
    made = 0
    while True:
        potential = nearest.squared.double() * mass
        total = float(potential.sum())
        if not total < math.inf:
            raise ValueError("`X` holds NaN or infinite values, or values whose squares overflow")
        if total == 0 or (made >= rounds and nearest.distinct() >= k):
            break
        chance = uniform(seed, f"k-means-parallel.{made}", n).to(x.device)
        nearest.add((chance * total < potential.mul_(oversampling * k)).nonzero()[:, 0])
        made += 1
    if (found := nearest.distinct()) < k:
        raise ValueError(_TOO_FEW.format(k=k, found=found))
    candidates = nearest.rows
    owned = torch.zeros(len(candidates), dtype=torch.float64, device=x.device)
    owned.index_add_(0, nearest.owner, mass)
    options: dict[str, Any] = {"trials": trials, "seed": seed, "memory_budget": memory_budget}
    seeds = candidates[k_means_plus_plus(x[candidates], k, weights=owned, **options).indices]
    final = _Nearest(x, memory_budget)
    final.add(seeds)
    return KMeansSeeds(seeds, final.squared)


_TOO_FEW = "`k` is {k}, but only {found} distinct rows of `X` have a positive weight: ask for at most as many"


def _check(x: Tensor, w: Tensor | None, indices: Tensor, squared: Tensor) -> None:
    """Raise if the result shows that the arguments were no good."""
    found, farthest = (indices >= 0).sum().double(), squared.max().double()
    sums = (squared.new_zeros(()), squared.new_ones(())) if w is None else (w.min(), w.sum())
    least, mass, found, farthest = torch.stack((*(s.double() for s in sums), found, farthest)).tolist()
    check_weight_sums(least, mass)
    if not farthest < math.inf:
        raise ValueError("`X` holds NaN or infinite values, or values whose squares overflow")
    if found < len(indices):
        raise ValueError(_TOO_FEW.format(k=len(indices), found=int(found)))


def _draw(mass: Tensor, u: Tensor) -> Tensor:
    """Rows drawn in proportion to float64 `mass`, one for each uniform number; -1 where there is no mass."""
    rows = (mass > 0).nonzero()[:, 0]
    if not len(rows):
        return torch.full_like(u, -1, dtype=torch.int64, device=mass.device)
    upto = mass[rows].cumsum(0)
    return rows[torch.searchsorted(upto, u.to(mass.device) * upto[-1], right=True).clamp_(max=len(rows) - 1)]


class _Nearest:
    """Squared distance of every row to the nearest of some rows, and which that is, as rows are added."""

    def __init__(self, x: Tensor, memory_budget: int) -> None:
        self._x, self._origin = x, near_mean(x)
        self._side = side_within(memory_budget, x.shape[1], self._origin.element_size())
        self.squared = torch.full((len(x),), torch.inf, dtype=working(x), device=x.device)
        self.owner = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.rows = torch.empty(0, dtype=torch.int64, device=x.device)

    def add(self, rows: Tensor) -> None:
        for part, block in blocks_of(self._x, self._side):
            for begin in range(0, len(rows), self._side):
                some = self._x[rows[begin : begin + self._side]].to(block.dtype)
                squared, which = near_exact_distances(block, some, self._origin).min(1)
                better = squared < self.squared[part]
                self.squared[part] = torch.where(better, squared, self.squared[part])
                self.owner[part] = torch.where(better, which + (len(self.rows) + begin), self.owner[part])
        self.rows = torch.cat([self.rows, rows])

    def distinct(self) -> int:
        """How many of the rows added differ: of equal ones only the first owns itself."""
        return int((self.owner[self.rows] == torch.arange(len(self.rows), device=self.rows.device)).sum())


def _torch(
    x: Tensor, w: Tensor | None, first: Tensor, uniforms: Tensor, *, memory_budget: int
) -> tuple[Tensor, Tensor]:
    """Seeds (-1 once there is nothing to draw) and squared distances."""
    n, dtype = len(x), working(x)
    origin = near_mean(x)
    width = (x.shape[1] + uniforms.shape[1]) * origin.element_size()
    step = max(1, min(memory_budget, _CACHE if x.device.type == "cpu" else memory_budget) // (8 * width))
    squared = torch.full((n,), torch.inf, dtype=dtype, device=x.device)
    candidates, indices = first, []
    for u in (*uniforms, uniforms.new_empty(0)):
        rows = x[candidates.clamp(min=0)].to(dtype)
        minima = torch.empty(len(rows), n, dtype=dtype, device=x.device)
        total = torch.zeros(len(rows), dtype=torch.float64, device=x.device)
        for part, block in blocks_of(x, step):
            torch.minimum(near_exact_distances(block, rows, origin).T, squared[part], out=minima[:, part])
            mass = minima[:, part].double()
            total += mass.sum(1) if w is None else mass @ w[part]
        best = total.argmin()
        squared = minima[best]
        indices.append(candidates[best])
        mass = squared.double()
        candidates = _draw(mass if w is None else mass.mul_(w), u)
    return torch.stack(indices), squared


def _rejects(
    x: Tensor, w: Tensor | None, first: Tensor, uniforms: Tensor, *, memory_budget: int
) -> str | None:
    if x.dtype == torch.float64:
        return "is done in float32 in Triton, and `X` is float64"
    if uniforms.shape[1] > _MOST_TRIALS:
        return f"takes at most {_MOST_TRIALS} trials in Triton, and there are {uniforms.shape[1]}"
    return None


implement("k_means_plus_plus", "torch", _torch)
implement("k_means_plus_plus", "triton", "_triton.k_center:k_means_plus_plus", rejects=_rejects)
