"""Benchmark cases of sensitivity scores: coresets, densities, leverage."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels.leverage import lewis_weights, ridge_leverage_scores
from ..kernels.sensitivity import (
    Sensitivity,
    kernel_density_sensitivity,
    lightweight_sensitivity,
    rbf_sensitivity,
)
from .case import Bench, Call, Problem, Work, case, largest_error, rival, some_rows
from .rivals import gaussian, row_chunks


@case(
    "lightweight-sensitivity",
    "lightweight_sensitivity",
    "scores of the lightweight k-means coreset",
    quick=[dict(n=500, d=16)],
    cpu=[dict(n=50_000, d=512)],
    cuda=[dict(n=50_000, d=3072), dict(n=1_000_000, d=512)],
)
def _lightweight(bench: Bench, n: int, d: int) -> Problem:
    X = bench.normal(n, d)

    def error(scores: Tensor) -> float:
        mean = torch.stack([part.double().sum(0) for part in X.split(65_536)]).sum(0) / n
        spread = torch.cat([(part.double() - mean).square().sum(1) for part in X.split(65_536)])
        exact = 0.5 / n + 0.5 * spread / spread.sum()
        return largest_error(scores, exact, exact)

    def scores(X: Tensor) -> Tensor:
        spread = (X - X.mean(0)).square().sum(1)
        return 0.5 / len(X) + 0.5 * spread / spread.sum()

    return Problem(
        ours=lambda: lightweight_sensitivity(X),
        error=error,
        tolerance=1e-6,
        rivals={"torch": lambda: scores(X), "torch.compile": _compiled(bench, scores, X)},
        work=Work(bytes=2 * 4.0 * n * d + 8.0 * n),
    )


@rival(compiles=True)
def _compiled(bench: Bench, scores: Callable[[Tensor], Tensor], X: Tensor) -> Call:
    fused = torch.compile(scores, dynamic=False)
    return lambda: fused(X)


@case(
    "density-sensitivity",
    ("kernel_density_sensitivity", "kernel_matmul"),
    "scores inverse to the Gaussian kernel density",
    quick=[dict(n=400, d=16)],
    cpu=[dict(n=10_000, d=64)],
    cuda=[dict(n=50_000, d=64, precision="medium"), dict(n=50_000, d=3072, precision="medium")],
)
def _density(bench: Bench, n: int, d: int, precision: str = "high") -> Problem:
    X = bench.normal(n, d)
    sigma, rows = math.sqrt(d), some_rows(n)
    gamma = 1 / (2 * d)

    def error(scores: Tensor) -> float:
        # Scores are known up to their sum: those of two rows are as their densities are.
        a, b = X[rows].double(), X.double()
        s = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * (a @ b.T)
        density = torch.exp(-gamma * s.clamp(min=0)).sum(1)
        product = density * scores[rows]
        total = abs(float(scores.sum()) - 1)
        return max(largest_error(product / product.mean(), torch.ones_like(product)), total)

    return Problem(
        ours=lambda: kernel_density_sensitivity(X, sigma, precision=precision),
        error=error,
        tolerance={"high": 1e-5, "medium": 2e-3}[precision],
        rivals={"torch": _eager_densities(bench, X, gamma, bench.operand(precision))},
        work=Work(bench.products(1.0 * n * n * d, precision), exps=n * n / 2, bytes=4.0 * n * d + 8 * n),
    )


@rival()
def _eager_densities(bench: Bench, X: Tensor, gamma: float, operand: torch.dtype) -> Call:
    def run() -> Tensor:
        sums = [gaussian(part, X, gamma, operand).sum(1) for part in row_chunks(X, X)]
        scores = 1 / torch.cat(sums)
        return scores / scores.sum()

    return run


@case(
    "rbf-sensitivity",
    "rbf_sensitivity",
    "scores of the coreset for radial basis functions",
    quick=[dict(n=500, d=8)],
    cpu=[dict(n=50_000, d=64)],
    cuda=[dict(n=200_000, d=128)],
)
def _rbf(bench: Bench, n: int, d: int) -> Problem:
    X = bench.normal(n, d)

    def error(found: Sensitivity) -> float:
        x = X.double()
        lifted = torch.cat([x.square().sum(1, keepdim=True), x, torch.ones_like(x[:, :1])], dim=1)
        return _lewis_residual(lifted, found.scores * (d + 2))

    return Problem(ours=lambda: rbf_sensitivity(X), error=error, tolerance=2e-3)


@case(
    "lewis-weights",
    "lewis_weights",
    "ℓ1 Lewis weights",
    quick=[dict(n=500, p=16)],
    cpu=[dict(n=20_000, p=128)],
    cuda=[dict(n=200_000, p=256)],
)
def _lewis(bench: Bench, n: int, p: int) -> Problem:
    A = bench.normal(n, p)

    def by_inverses() -> Tensor:
        a, w = A.double(), A.new_ones(n, dtype=torch.float64)
        for _ in range(12):
            inverse = torch.linalg.inv((a / w[:, None]).T @ a)
            w = ((a @ inverse) * a).sum(1).sqrt()
        return w

    return Problem(
        ours=lambda: lewis_weights(A).weights,
        error=lambda weights: _lewis_residual(A.double(), weights),
        tolerance=2e-3,
        rivals={"torch": by_inverses},
    )


def _lewis_residual(a: Tensor, w: Tensor) -> float:
    """How far weights are from the fixed point that defines them."""
    factor = torch.linalg.cholesky((a / w[:, None]).T @ a)
    u = torch.linalg.solve_triangular(factor, a.T, upper=False).square().sum(0).sqrt()
    return largest_error(u / w, torch.ones_like(w))


@case(
    "ridge-leverage",
    "ridge_leverage_scores",
    "ridge leverage scores of features",
    quick=[dict(n=500, p=64)],
    cpu=[dict(n=20_000, p=1024)],
    cuda=[dict(n=100_000, p=4096)],
)
def _leverage(bench: Bench, n: int, p: int, ridge: float = 1.0) -> Problem:
    F, rows = bench.normal(n, p), some_rows(n)

    def gram() -> Tensor:
        G = sum(part.T @ part for part in (some.double() for some in F.split(16_384)))
        return G + ridge * torch.eye(p, dtype=torch.float64, device=F.device)

    def error(scores: Tensor) -> float:
        some = F[rows].double()
        exact = (some * torch.linalg.solve(gram(), some.T).T).sum(1)
        return largest_error(scores[rows], exact, exact)

    def by_inverse() -> Tensor:
        inverse = torch.linalg.inv(gram())
        return torch.cat([((part @ inverse) * part).sum(1) for part in (f.double() for f in F.split(16_384))])

    return Problem(
        ours=lambda: ridge_leverage_scores(F, ridge).scores,
        error=error,
        tolerance=1e-9,
        rivals={"torch": by_inverse},
        work=Work({"float64": 2.0 * n * p * p}, bytes=8.0 * n * p),
    )
