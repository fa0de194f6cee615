"""Benchmark cases of picking rows: farthest first, and seeds of k-means."""

import math

import torch
from torch import Tensor

from ..kernels.k_center import KCenter, k_center_greedy
from ..kernels.k_means_seeding import k_means_parallel, k_means_plus_plus
from .case import Bench, Call, Problem, Work, case, rival

_CHECKED = 24  # picks of the traversal that are checked to be the farthest


@case(
    "k-center",
    "k_center_greedy",
    "farthest-first traversal",
    quick=[dict(n=1000, d=16, k=20)],
    cpu=[dict(n=50_000, d=512, k=500)],
    cuda=[dict(n=50_000, d=512, k=500), dict(n=50_000, d=3072, k=500)],
)
def _k_center(bench: Bench, n: int, d: int, k: int) -> Problem:
    X = bench.normal(n, d)

    def error(found: KCenter) -> float:
        return _not_farthest(X, found.indices)

    return Problem(
        ours=lambda: k_center_greedy(X, k, first=0),
        error=error,
        tolerance=1e-5,
        rivals={
            "stores k n distances": _all_distances(bench, X, k, needs=8.0 * k * n),
            "torch, running minimum": _running_minimum(bench, X, k),
        },
        rival_error=lambda picks: _not_farthest(X, picks),
        work=Work(bytes=4.0 * n * d),  # to read X once: nothing says that each pick must
    )


@rival()
def _all_distances(bench: Bench, X: Tensor, k: int) -> Call:
    """The published way: a row of distances for each pick, and a minimum over all of them each time."""

    def run() -> Tensor:
        distances, picks, pick = X.new_empty(k, len(X)), [], 0
        for i in range(k):
            picks.append(pick)
            c = X[pick]
            squared = X.square().sum(1) + c.square().sum() - 2 * (X @ c)
            distances[i] = squared.clamp(min=0).sqrt()
            pick = int(distances[: i + 1].min(0).values.argmax())
        return torch.tensor(picks, device=X.device)

    return run


@rival()
def _running_minimum(bench: Bench, X: Tensor, k: int) -> Call:
    """The same with norms taken once and nothing kept but the minimum."""

    def run() -> Tensor:
        norms = X.square().sum(1)
        nearest = torch.full_like(norms, torch.inf)
        pick, picks = torch.zeros((), dtype=torch.int64, device=X.device), []
        for _ in range(k):
            picks.append(pick)
            torch.minimum(nearest, torch.addmv(norms, X, X[pick], alpha=-2).add_(norms[pick]), out=nearest)
            pick = nearest.argmax()
        return torch.stack(picks)

    return run


def _not_farthest(X: Tensor, picks: Tensor) -> float:
    """How much nearer than the farthest row a pick is, as a share: the worst of the first ones, in float64."""
    nearest = torch.full((len(X),), torch.inf, dtype=torch.float64, device=X.device)
    worst = 0.0 if len(set(picks.tolist())) == len(picks) else math.inf
    for i in range(min(_CHECKED, len(picks) - 1)):
        before = X[picks[i]].double()
        for some, part in zip(nearest.split(65_536), X.split(65_536), strict=True):
            torch.minimum(some, (part.double() - before).square().sum(1), out=some)
        farthest = float(nearest.max())
        worst = max(worst, (farthest - float(nearest[picks[i + 1]])) / farthest)
    return worst


@case(
    "k-means-plus-plus",
    "k_means_plus_plus",
    "k-means++ seeds, best of 2 + log k trials",
    quick=[dict(n=1000, d=16, k=20)],
    cpu=[dict(n=20_000, d=128, k=100)],
    cuda=[dict(n=50_000, d=512, k=500), dict(n=50_000, d=3072, k=500)],
)
def _plus_plus(bench: Bench, n: int, d: int, k: int) -> Problem:
    X = _clusters(bench, n, d, k)
    return _seeding(bench, X, k, lambda: k_means_plus_plus(X, k))


@case(
    "k-means-parallel",
    ("k_means_parallel", "k_means_plus_plus"),
    "seeds among candidates of five rounds",
    quick=[dict(n=1000, d=16, k=20)],
    cpu=[dict(n=20_000, d=128, k=100)],
    cuda=[dict(n=50_000, d=512, k=500)],
)
def _parallel(bench: Bench, n: int, d: int, k: int) -> Problem:
    X = _clusters(bench, n, d, k)
    return _seeding(bench, X, k, lambda: k_means_parallel(X, k))


def _clusters(bench: Bench, n: int, d: int, k: int) -> Tensor:
    """Rows of unit variance around k centres ten times as far apart."""
    return bench.normal(n, d) + 10 * bench.normal(k, d, seed=1)[torch.arange(n, device=bench.device) % k]


def _seeding(bench: Bench, X: Tensor, k: int, ours: Call) -> Problem:
    def excess(indices: Tensor) -> float:
        """Cost of seeds as a multiple of the least one, which is that of the centres the clusters were made from."""
        return _cost(X, indices) / X.numel() if len(set(indices.tolist())) == k else math.inf

    return Problem(
        ours=lambda: ours().indices,
        error=excess,
        tolerance=8 * (math.log(k) + 2),  # of the mean: Arthur & Vassilvitskii 2007, theorem 1.1
        rivals={"scikit-learn": _sklearn_seeds(bench, X, k), "torch, one trial": _torch_seeds(bench, X, k)},
        work=Work(bytes=4.0 * X.numel()),
    )


@rival("sklearn", device="cpu")
def _sklearn_seeds(bench: Bench, X: Tensor, k: int) -> Call:
    from sklearn.cluster import kmeans_plusplus

    rows = X.numpy()
    return lambda: torch.from_numpy(kmeans_plusplus(rows, k, random_state=0)[1]).long()


@rival()
def _torch_seeds(bench: Bench, X: Tensor, k: int) -> Call:
    """Plain D² sampling, a running minimum and a float64 sum a pick."""

    def run() -> Tensor:
        norms = X.square().sum(1)
        pick, picks, nearest = torch.zeros(1, dtype=torch.int64, device=X.device), [], None
        u = torch.rand(k, 1, dtype=torch.float64, device=X.device)
        for i in range(k):
            picks.append(pick)
            squared = (norms + norms[pick] - 2 * (X @ X[pick[0]])).clamp_(min=0)
            nearest = squared if nearest is None else torch.minimum(nearest, squared)
            sums = nearest.double().cumsum(0)
            pick = torch.searchsorted(sums, u[i] * sums[-1]).clamp(max=len(X) - 1)
        return torch.cat(picks)

    return run


def _cost(X: Tensor, indices: Tensor) -> float:
    """Sum of squared distances to the nearest seed."""
    C = X[indices].double()
    norms = C.square().sum(1)
    parts = (part.double() for part in X.split(16_384))
    return float(sum((p.square().sum(1) + (norms - 2 * (p @ C.T)).amin(1)).clamp(min=0).sum() for p in parts))
