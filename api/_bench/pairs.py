"""Benchmark cases of the operations on pairs of rows. Numbers are normal, and σ² = d: kernel values are around 1/e."""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from ..kernels.kernel_logsumexp import kernel_logsumexp
from ..kernels.kernel_matmul import kernel_matmul, kernel_row_sums
from ..kernels.kernel_matrix import kernel_matrix, squared_distances
from ..kernels.radial import Gaussian
from . import rivals
from .case import TOLERANCE, Bench, Problem, Work, case, largest_error, some_rows

_FLOAT = 4  # bytes of the data and of most results


@case(
    "gram",
    "kernel_matrix",
    "Gaussian kernel matrix of two sets of rows",
    quick=[dict(n=300, m=200, d=64)],
    cpu=[dict(n=4000, m=2000, d=3072)],
    cuda=[
        dict(n=50_000, m=500, d=3072),
        dict(n=50_000, m=5000, d=3072),
        dict(n=50_000, m=5000, d=3072, precision="medium"),
    ],
)
def _gram(bench: Bench, n: int, m: int, d: int, precision: str = "high") -> Problem:
    return _matrix(bench, bench.normal(n, d), bench.normal(m, d, seed=1), precision)


@case(
    "gram-symmetric",
    "kernel_matrix",
    "Gaussian kernel matrix of one set of rows: half the products",
    quick=[dict(n=300, d=64)],
    cpu=[dict(n=4000, d=3072)],
    cuda=[dict(n=50_000, d=3072), dict(n=50_000, d=3072, precision="medium")],
)
def _gram_symmetric(bench: Bench, n: int, d: int, precision: str = "high") -> Problem:
    return _matrix(bench, bench.normal(n, d), None, precision)


@case(
    "squared-distances",
    ("squared_distances", "kernel_matrix"),
    "squared Euclidean distances",
    quick=[dict(n=300, m=200, d=64)],
    cpu=[dict(n=4000, m=2000, d=784)],
    cuda=[dict(n=50_000, m=5000, d=3072)],
)
def _distances(bench: Bench, n: int, m: int, d: int, precision: str = "high") -> Problem:
    X, Y = bench.normal(n, d), bench.normal(m, d, seed=1)
    rows = some_rows(n)
    return Problem(
        ours=lambda: squared_distances(X, Y, precision=precision),
        error=lambda s: largest_error(s[rows], _squared(X[rows], Y)),
        tolerance=TOLERANCE[precision],
        rivals={
            "torch.cdist": rivals.eager_cdist(bench, X, Y),
            "scikit-learn": rivals.sklearn_distances(bench, X, Y),
        },
        work=Work(bench.products(2.0 * n * m * d, precision), bytes=_FLOAT * ((n + m) * d + n * m)),
    )


@case(
    "matmul",
    "kernel_matmul",
    "K(X, Y) @ V, K never stored",
    quick=[dict(n=400, m=300, d=16, t=10)],
    cpu=[dict(n=50_000, m=50_000, d=64, t=10)],
    cuda=[
        dict(n=50_000, m=50_000, d=64, t=10, precision="medium"),
        dict(n=50_000, m=50_000, d=512, t=10, precision="medium"),
        dict(n=50_000, m=50_000, d=64, t=10),
        dict(n=50_000, m=5000, d=3072, t=10),
    ],
)
def _matmul(bench: Bench, n: int, m: int, d: int, t: int, precision: str = "high") -> Problem:
    X, Y, V = bench.normal(n, d), bench.normal(m, d, seed=1), bench.normal(m, t, seed=2)
    gamma, operand, rows = 1 / (2 * d), bench.operand(precision), some_rows(n)

    def error(found: Any) -> float:
        k = _gaussian(X[rows], Y, gamma)
        return largest_error(found[rows], k @ V.double(), k @ V.double().abs())

    def reduce(k: Tensor) -> Tensor:
        return k @ V

    return Problem(
        ours=lambda: kernel_matmul(Gaussian(math.sqrt(d)), X, Y, V, precision=precision),
        error=error,
        tolerance=_of_sums(precision),
        rivals={
            "torch": rivals.eager_by_rows(bench, X, Y, gamma, operand, reduce),
            "torch.compile": rivals.compiled_by_rows(bench, X, Y, gamma, operand, reduce),
            "chunks in cache": rivals.chunks_in_cache(bench, X, Y, gamma, operand, V),
            "KeOps": rivals.keops(bench, X, Y, gamma, V),
        },
        work=Work(
            bench.products(2.0 * n * m * (d + t), precision),
            exps=float(n) * m,
            bytes=_FLOAT * ((n + m) * d + (n + m) * t),
        ),
    )


@case(
    "row-sums",
    ("kernel_row_sums", "kernel_matmul"),
    "row sums of K(X, Y)",
    quick=[dict(n=400, m=300, d=16)],
    cpu=[dict(n=20_000, m=20_000, d=64)],
    cuda=[dict(n=50_000, m=50_000, d=d, precision="medium") for d in (16, 64, 128, 512)]
    + [dict(n=50_000, m=50_000, d=64)],
)
def _row_sums(bench: Bench, n: int, m: int, d: int, precision: str = "high") -> Problem:
    return _sums(bench, bench.normal(n, d), bench.normal(m, d, seed=1), precision)


@case(
    "row-sums-symmetric",
    ("kernel_row_sums", "kernel_matmul"),
    "row sums of K(X, X) without the diagonal: half the products",
    quick=[dict(n=400, d=16)],
    cpu=[dict(n=20_000, d=64)],
    cuda=[
        dict(n=50_000, d=64, precision="medium"),
        dict(n=50_000, d=3072, precision="medium"),
        dict(n=50_000, d=3072),
    ],
)
def _row_sums_symmetric(bench: Bench, n: int, d: int, precision: str = "high") -> Problem:
    return _sums(bench, bench.normal(n, d), None, precision)


@case(
    "logsumexp",
    "kernel_logsumexp",
    "logarithms of row sums, without underflow",
    quick=[dict(n=400, m=300, d=16)],
    cpu=[dict(n=10_000, m=10_000, d=64)],
    cuda=[dict(n=50_000, m=50_000, d=64, precision="medium")],
)
def _logsumexp(bench: Bench, n: int, m: int, d: int, precision: str = "high") -> Problem:
    X, Y = bench.normal(n, d), bench.normal(m, d, seed=1)
    gamma, operand, rows = 1 / (2 * d), bench.operand(precision), some_rows(n)

    def reduce(k: Tensor) -> Tensor:
        return torch.logsumexp(k.log_(), 1)

    return Problem(
        ours=lambda: kernel_logsumexp(Gaussian(math.sqrt(d)), X, Y, precision=precision),
        error=lambda found: largest_error(found[rows], _gaussian(X[rows], Y, gamma).sum(1).log()),
        tolerance=_of_sums(
            precision
        ),  # of a logarithm of some ten: the relative error of the sum, divided by ten
        rivals={
            "torch": rivals.eager_by_rows(bench, X, Y, gamma, operand, reduce),
            "torch.compile": rivals.compiled_by_rows(
                bench, X, Y, gamma, operand, lambda k: torch.logsumexp(torch.log(k), 1)
            ),
            "KeOps": rivals.keops(bench, X, Y, gamma, log=True),
        },
        work=Work(
            bench.products(2.0 * n * m * d, precision), exps=float(n) * m, bytes=_FLOAT * ((n + m) * d + n)
        ),
    )


@case(
    "matmul-gradient",
    "kernel_matmul",
    "K(X, Y) @ v and its gradient in X, K never stored",
    quick=[dict(n=300, m=200, d=16)],
    cpu=[dict(n=5000, m=5000, d=64)],
    cuda=[dict(n=20_000, m=20_000, d=64)],
)
def _gradient(bench: Bench, n: int, m: int, d: int, precision: str = "high") -> Problem:
    X, Y, v = bench.normal(n, d), bench.normal(m, d, seed=1), bench.normal(m, seed=2)
    gamma, rows = 1 / (2 * d), some_rows(n)

    def ours() -> tuple[Tensor, ...]:
        x = X.detach().requires_grad_()
        return torch.autograd.grad(
            kernel_matmul(Gaussian(math.sqrt(d)), x, Y, v, precision=precision).sum(), x
        )

    def error(found: tuple[Tensor, ...]) -> float:
        k = _gaussian(X[rows], Y, gamma) * v.double()
        exact = 2 * gamma * (k @ Y.double() - k.sum(1, keepdim=True) * X[rows].double())
        scale = (
            2 * gamma * (k.abs() @ Y.double().abs() + k.abs().sum(1, keepdim=True) * X[rows].double().abs())
        )
        return largest_error(found[0][rows], exact, scale)

    return Problem(
        ours=ours,
        error=error,
        tolerance=_of_sums(precision),
        rivals={"torch": rivals.autograd_that_stores_k(bench, X, Y, gamma, v, needs=4.0 * _FLOAT * n * m)},
        work=Work(
            bench.products(6.0 * n * m * d, precision), exps=float(n) * m, bytes=_FLOAT * (2 * n + m) * d
        ),
    )


def _matrix(bench: Bench, X: Tensor, Y: Tensor | None, precision: str) -> Problem:
    n, d = X.shape
    columns = X if Y is None else Y
    m, gamma, operand = len(columns), 1 / (2 * d), bench.operand(precision)
    rows, share = some_rows(n), 1.0 if Y is not None else 0.5
    stored = 2.0 * _FLOAT * n * m
    return Problem(
        ours=lambda: kernel_matrix(Gaussian(math.sqrt(d)), X, Y, precision=precision),
        error=lambda K: largest_error(K[rows], _gaussian(X[rows], columns, gamma)),
        tolerance=TOLERANCE[precision],
        rivals={
            "scikit-learn": rivals.sklearn_gaussian(bench, X, columns, gamma),
            "torch": rivals.eager(bench, X, columns, gamma, operand, needs=stored),
            "torch.cdist": rivals.eager_cdist(bench, X, columns, gamma, needs=stored),
            "torch.compile": rivals.compiled_gaussian(bench, X, columns, gamma, operand, needs=stored),
        },
        work=Work(
            bench.products(2.0 * share * n * m * d, precision),
            exps=share * n * m,
            bytes=_FLOAT * (n * d + (0 if Y is None else m * d) + n * m),
        ),
    )


def _sums(bench: Bench, X: Tensor, Y: Tensor | None, precision: str) -> Problem:
    n, d = X.shape
    columns = X if Y is None else Y
    m, gamma, operand = len(columns), 1 / (2 * d), bench.operand(precision)
    rows, share, own = some_rows(n), 1.0 if Y is not None else 0.5, 0.0 if Y is not None else 1.0
    scale = _gaussian(X[rows], columns, gamma).sum(1) - own
    make = functools.partial(_less, own)
    return Problem(
        ours=lambda: kernel_row_sums(
            Gaussian(math.sqrt(d)), X, Y, leave_one_out=Y is None, precision=precision
        ),
        error=lambda sums: largest_error(sums[rows], scale, scale),
        tolerance=_of_sums(precision),
        rivals={
            "torch": make(rivals.eager_by_rows(bench, X, columns, gamma, operand)),
            "torch.compile": make(rivals.compiled_by_rows(bench, X, columns, gamma, operand)),
            "chunks in cache": make(rivals.chunks_in_cache(bench, X, columns, gamma, operand)),
            "KeOps": make(rivals.keops(bench, X, columns, gamma)),
        },
        work=Work(
            bench.products(2.0 * share * n * m * d, precision),
            exps=share * n * m,
            bytes=_FLOAT * (n * d + (0 if Y is None else m * d) + n),
        ),
    )


def _less(own: float, rival: Any) -> Any:
    """Take the diagonal away from a rival's sums, as people do who have no mask."""
    return rival if isinstance(rival, str) or not own else lambda: rival() - own


def _of_sums(precision: str) -> float:
    """Relative error of a sum of terms around 1/e, each of them off by what `TOLERANCE` allows."""
    return math.e * TOLERANCE[precision]


def _squared(x: Tensor, y: Tensor) -> Tensor:
    a, b = x.double(), y.double()
    return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * (a @ b.T)).clamp(min=0)


def _gaussian(x: Tensor, y: Tensor, gamma: float) -> Tensor:
    return torch.exp(-gamma * _squared(x, y))
