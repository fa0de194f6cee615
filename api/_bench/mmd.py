"""Benchmark cases of the maximum mean discrepancy with five bandwidths, and of the median bandwidth."""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels.mmd import median_bandwidth, mmd2
from ..kernels.radial import MixtureOfGaussians
from .case import TOLERANCE, Bench, Call, Problem, Work, case, largest_error, rival
from .rivals import multiply

_RATIOS = (0.25, 0.5, 1.0, 2.0, 4.0)


@case(
    "mmd",
    "mmd2",
    "MMD² with five bandwidths",
    quick=[dict(n=100, m=80, d=32)],
    cpu=[dict(n=2000, m=2000, d=512)],
    cuda=[
        dict(n=10_000, m=10_000, d=512, precision="medium"),
        dict(n=50_000, m=50_000, d=512, precision="medium"),
        dict(n=10_000, m=10_000, d=512),
    ],
)
def _mmd(bench: Bench, n: int, m: int, d: int, precision: str = "high") -> Problem:
    X, Y, kernel = _samples(bench, n, m, d)
    gammas, operand = _gammas(d), bench.operand(precision)
    by_blocks = functools.partial(_by_blocks, X, Y, gammas, operand)
    return Problem(
        ours=lambda: mmd2(X, Y, kernel, biased=True, precision=precision),
        error=lambda value: largest_error(value, _exact(X, Y, gammas), len(_RATIOS)),
        tolerance=TOLERANCE[precision],
        rivals={
            "torch, by blocks": lambda: by_blocks(_mixture),
            "torch.compile, by blocks": _compiled_blocks(bench, by_blocks),
            "copied snippet": _snippet(bench, X, Y, gammas, needs=2 * 4.0 * (n + m) ** 2 * d),
        },
        work=_work(bench, n, m, d, precision),
    )


@case(
    "mmd-gradient",
    "mmd2",
    "MMD² with five bandwidths and its gradient in X",
    quick=[dict(n=50, m=40, d=32)],
    cpu=[dict(n=400, m=400, d=2048)],
    cuda=[dict(n=400, m=400, d=2048), dict(n=10_000, m=10_000, d=512)],
)
def _gradient(bench: Bench, n: int, m: int, d: int, precision: str = "high") -> Problem:
    X, Y, kernel = _samples(bench, n, m, d)
    gammas = _gammas(d)

    def differentiated(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        x = X.detach().requires_grad_()
        value = function(x)
        return value.detach(), torch.autograd.grad(value, x)[0]

    def error(found: tuple[Tensor, Tensor]) -> float:
        x, y = X.double().requires_grad_(), Y.double()
        exact = torch.autograd.grad(_whole(x, y, gammas), x)[0]
        return largest_error(found[1], exact)

    return Problem(
        ours=lambda: differentiated(lambda x: mmd2(x, Y, kernel, biased=True, precision=precision)),
        error=error,
        tolerance=1e-4,  # the gradient is a difference of sums some hundred times larger
        rivals={
            "torch": lambda: differentiated(lambda x: _whole(x, Y, gammas)),
            "torch.compile": _compiled_whole(bench, differentiated, Y, gammas, needs=8 * 4.0 * (n + m) ** 2),
            "copied snippet": _snippet(bench, X, Y, gammas, True, needs=3 * 4.0 * (n + m) ** 2 * d),
        },
        work=_work(bench, n, m, d, precision, times=3),
    )


@case(
    "mmd-groups",
    "mmd2",
    "MMD² of every class in one call",
    quick=[dict(groups=4, n=30, m=20, d=32)],
    cpu=[dict(groups=10, n=200, m=200, d=512)],
    cuda=[dict(groups=100, n=500, m=50, d=3072, precision="medium")],
)
def _groups(bench: Bench, groups: int, n: int, m: int, d: int, precision: str = "high") -> Problem:
    X, Y = bench.normal(groups, n, d), bench.normal(groups, m, d, seed=1) + 0.1
    kernel, gammas, operand = MixtureOfGaussians(math.sqrt(d), _RATIOS), _gammas(d), bench.operand(precision)

    def one_by_one() -> Tensor:
        pairs = zip(X, Y, strict=True)
        return torch.stack([_by_blocks(x, y, gammas, operand, _mixture) for x, y in pairs])

    def error(values: Tensor) -> float:
        exact = torch.stack([_exact(x, y, gammas) for x, y in zip(X, Y, strict=True)])
        return largest_error(values, exact, len(_RATIOS))

    return Problem(
        ours=lambda: mmd2(X, Y, kernel, biased=True, precision=precision),
        error=error,
        tolerance=TOLERANCE[precision],
        rivals={"torch, class by class": one_by_one},
        work=_work(bench, n, m, d, precision, times=groups),
    )


@case(
    "median-bandwidth",
    "median_bandwidth",
    "median distance of 500 rows",
    quick=[dict(n=300, d=32)],
    cpu=[dict(n=50_000, d=512)],
    cuda=[dict(n=50_000, d=3072)],
)
def _median(bench: Bench, n: int, d: int) -> Problem:
    X = bench.normal(n, d)
    some = X[torch.randperm(n, generator=torch.Generator().manual_seed(1))[:500].to(X.device)]
    exact = torch.pdist(some.double().cpu()).median().to(X.device)
    return Problem(
        ours=lambda: median_bandwidth(X),
        error=lambda sigma: largest_error(sigma, exact),
        tolerance=0.05,  # of another draw of 500 rows
        rivals={"torch.pdist of 500 rows": lambda: torch.pdist(some).median()},
    )


def _samples(bench: Bench, n: int, m: int, d: int) -> tuple[Tensor, Tensor, MixtureOfGaussians]:
    kernel = MixtureOfGaussians(math.sqrt(d), _RATIOS)
    return bench.normal(n, d), bench.normal(m, d, seed=1) + 0.1, kernel


def _gammas(d: int) -> list[float]:
    return [1 / (2 * d * ratio**2) for ratio in _RATIOS]


def _work(bench: Bench, n: int, m: int, d: int, precision: str, times: int = 1) -> Work:
    """XX and YY need half their pairs; one exponential a pair, from which the others follow by squaring."""
    pairs = times * (n * n / 2 + m * m / 2 + n * m)
    return Work(bench.products(2 * pairs * d, precision), exps=pairs, bytes=4.0 * (n + m) * d)


def _mixture(s: Tensor, gammas: list[float]) -> Tensor:
    return functools.reduce(torch.add, [torch.exp(-gamma * s) for gamma in gammas])


def _block_sum(
    product: Tensor, x_norms: Tensor, y_norms: Tensor, gammas: list[float], mixture: Any
) -> Tensor:
    s = (x_norms[:, None] + y_norms - 2 * product).clamp(min=0)
    return mixture(s, gammas).sum(dtype=torch.float64)


def _by_blocks(
    X: Tensor, Y: Tensor, gammas: list[float], operand: torch.dtype, mixture: Any, total: Any = _block_sum
) -> Tensor:
    """Means of kernel values, 4096 rows at a time, summed in float64."""

    def mean(a: Tensor, b: Tensor) -> Tensor:
        norms = b.square().sum(1)
        sums = [
            total(multiply(part, b, operand), part.square().sum(1), norms, gammas, mixture)
            for part in a.split(4096)
        ]
        return torch.stack(sums).sum() / (len(a) * len(b))

    return mean(X, X) + mean(Y, Y) - 2 * mean(X, Y)


@rival(compiles=True)
def _compiled_blocks(bench: Bench, by_blocks: Callable[..., Tensor]) -> Call:
    total = torch.compile(_block_sum, dynamic=False)
    return lambda: by_blocks(_mixture, total)


def _whole(x: Tensor, y: Tensor, gammas: list[float]) -> Tensor:
    """The whole matrix of both samples at once, by one product."""
    z = torch.cat([x, y])
    norms = z.square().sum(1)
    k = _mixture((norms[:, None] + norms - 2 * (z @ z.T)).clamp(min=0), gammas)
    n = len(x)
    return k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()


@rival(compiles=True)
def _compiled_whole(
    bench: Bench, differentiated: Callable[[Callable[[Tensor], Tensor]], Any], Y: Tensor, gammas: list[float]
) -> Call:
    fused = torch.compile(_whole, dynamic=False)
    return lambda: differentiated(lambda x: fused(x, Y, gammas))


@rival()
def _snippet(bench: Bench, X: Tensor, Y: Tensor, gammas: list[float], gradient: bool = False) -> Call:
    """As it is copied from one repository to the next: all differences of all pairs, (n + m)² d numbers."""

    def loss(x: Tensor) -> Tensor:
        z = torch.cat([x, Y])
        s = (z[None] - z[:, None]).pow(2).sum(2)
        k = _mixture(s, gammas)
        n = len(x)
        return k[:n, :n].mean() + k[n:, n:].mean() - k[:n, n:].mean() - k[n:, :n].mean()

    def run() -> Any:
        if not gradient:
            return loss(X)
        x = X.detach().requires_grad_()
        value = loss(x)
        return value.detach(), torch.autograd.grad(value, x)[0]

    return run


def _exact(X: Tensor, Y: Tensor, gammas: list[float]) -> Tensor:
    return _by_blocks(X.double(), Y.double(), gammas, torch.float64, _mixture)
