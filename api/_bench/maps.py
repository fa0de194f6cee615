"""Benchmark cases of random features and of their statistics."""

import math

import torch
from torch import Tensor

from ..kernels.fourier import fourier_features
from ..kernels.frequencies import fourier_frequencies
from ..kernels.random import normal
from ..kernels.statistics import gram_add_, mirror_upper_, statistics_add_
from .case import Bench, Call, Problem, Work, case, largest_error, rival, some_rows
from .rivals import multiply

# Of a cosine: normal phases in float32; in float16 and bfloat16, √d roundings of products of 1/√d, five deviations.
_PHASE = {"high": 3e-5, "medium": 5e-3, "low": 4e-2}
# Of an entry of F'F, as a share of |F|'|F|: four deviations of 8192 float32 roundings; roundings of two operands.
_SUM = {"high": 4 * 8192**0.5 * 2.0**-24, "medium": 2.0**-10, "low": 2.0**-7}


@case(
    "fourier-features",
    "fourier_features",
    "cosines of random phases",
    quick=[dict(n=300, d=50, p=128)],
    cpu=[dict(n=10_000, d=784, p=4096)],
    cuda=[
        dict(n=50_000, d=3072, p=4096),
        dict(n=50_000, d=3072, p=4096, precision="medium"),
        dict(n=50_000, d=3072, p=16_384, precision="medium"),
    ],
)
def _fourier_features(bench: Bench, n: int, d: int, p: int, precision: str = "high") -> Problem:
    X = bench.normal(n, d)
    A, b = bench.normal(p, d, seed=1) / math.sqrt(d), bench.normal(p, seed=2)
    scale, operand, rows = math.sqrt(2 / p), bench.operand(precision), some_rows(n)

    def exact() -> Tensor:
        return scale * torch.cos(X[rows].double() @ A.double().T + b.double())

    return Problem(
        ours=lambda: fourier_features(X, A, b, precision=precision),
        error=lambda found: largest_error(found[rows], exact(), scale),
        tolerance=_PHASE[precision],
        rivals={
            "torch": _eager_features(bench, X, A, b, operand),
            "torch.compile": _compiled_features(bench, X, A, b, operand),
            "scikit-learn": _sklearn_features(bench, X, A, b),
        },
        work=Work(
            bench.products(2.0 * n * d * p, precision), exps=float(n) * p, bytes=4.0 * ((n + p) * d + n * p)
        ),
    )


@rival()
def _eager_features(bench: Bench, X: Tensor, A: Tensor, b: Tensor, operand: torch.dtype) -> Call:
    scale = math.sqrt(2 / len(A))
    return lambda: multiply(X, A, operand).add_(b).cos_().mul_(scale)


@rival(compiles=True)
def _compiled_features(bench: Bench, X: Tensor, A: Tensor, b: Tensor, operand: torch.dtype) -> Call:
    scale = math.sqrt(2 / len(A))
    epilogue = torch.compile(lambda phase, b: torch.cos(phase + b) * scale, dynamic=False)
    return lambda: epilogue(multiply(X, A, operand), b)


@rival("sklearn", device="cpu")
def _sklearn_features(bench: Bench, X: Tensor, A: Tensor, b: Tensor) -> Call:
    from sklearn.kernel_approximation import RBFSampler

    sampler = RBFSampler(n_components=len(A), random_state=0).fit(X[:2].numpy())
    sampler.random_weights_, sampler.random_offset_ = A.T.numpy(), b.numpy()
    rows = X.numpy()
    return lambda: sampler.transform(rows)


@case(
    "fourier-frequencies",
    ("fourier_frequencies", "normal"),
    "frequencies of random features, the same on every machine",
    quick=[dict(d=50, p=128)],
    cpu=[dict(d=784, p=4096)],
    cuda=[dict(d=3072, p=4096)],
)
def _fourier_frequencies(bench: Bench, d: int, p: int) -> Problem:
    def error(found: tuple[Tensor, Tensor]) -> float:
        # Standard normal entries; the numbers themselves are those of `normal`, which has its own tests.
        A = found[0]
        return max(abs(float(A.mean())), abs(float(A.std()) - 1)) * math.sqrt(A.numel())

    return Problem(
        ours=lambda: fourier_frequencies("gaussian", d, p, seed=0),
        error=error,
        tolerance=5.0,
        rivals={
            "torch.randn": lambda: torch.randn(p, d, dtype=torch.float64),
            "kernels.normal": lambda: normal(0, "bench", (p, d)),
        },
        rival_error=lambda found: 0.0,
    )


@case(
    "statistics",
    "statistics_add_",
    "Phi'Phi and Phi'Y of a chunk of features, added to float64 totals",
    quick=[dict(n=500, p=128, k=10)],
    cpu=[dict(n=8192, p=2048, k=10)],
    cuda=[
        dict(n=50_000, p=4096, k=10),
        dict(n=50_000, p=4096, k=10, precision="medium"),
        dict(n=50_000, p=16_384, k=10, precision="medium"),
    ],
)
def _statistics(bench: Bench, n: int, p: int, k: int, precision: str = "high") -> Problem:
    F, Y = bench.normal(n, p).cos_(), bench.normal(n, k, seed=1)
    gram = torch.zeros(p, p, dtype=torch.float64, device=bench.device)
    cross = torch.zeros(p, k, dtype=torch.float64, device=bench.device)
    operand, columns = bench.operand(precision), some_rows(p)

    def ours() -> tuple[Tensor, Tensor]:
        return statistics_add_(gram.zero_(), cross.zero_(), F, Y, precision=precision)

    def error(found: tuple[Tensor, Tensor]) -> float:
        G = mirror_upper_(found[0].clone())
        some = F[:, columns].double()
        parts = [(G[columns], some.T, F), (found[1][columns], some.T, Y)]
        return max(
            largest_error(got, left @ right.double(), left.abs() @ right.double().abs())
            for got, left, right in parts
        )

    def torchs() -> tuple[Tensor, Tensor]:
        gram.copy_(multiply(F.T, F.T, operand))
        cross.copy_(F.T @ Y)
        return gram, cross

    return Problem(
        ours=ours,
        error=error,
        tolerance=_SUM[precision],
        rivals={"torch": torchs},
        work=Work(
            bench.products(1.0 * n * p * p + 2.0 * n * p * k, precision),
            bytes=4.0 * n * (p + k) + 8.0 * p * (p + k),
        ),
    )


@case(
    "gram-add",
    ("gram_add_", "mirror_upper_"),
    "Phi'Phi of float64 features: half the products",
    quick=[dict(n=500, p=128)],
    cpu=[dict(n=8192, p=2048)],
    cuda=[dict(n=50_000, p=4096)],
)
def _gram_add(bench: Bench, n: int, p: int) -> Problem:
    F = bench.normal(n, p, dtype=torch.float64)
    gram, columns = torch.zeros(p, p, dtype=torch.float64, device=bench.device), some_rows(p)

    def error(found: Tensor) -> float:
        some = F[:, columns].T
        return largest_error(found[columns], some @ F, some.abs() @ F.abs())

    return Problem(
        ours=lambda: mirror_upper_(gram_add_(gram.zero_(), F)),
        error=error,
        tolerance=1e-12,
        rivals={"torch": lambda: torch.mm(F.T, F, out=gram)},
        work=Work({"float64": 1.0 * n * p * p}, bytes=8.0 * (n * p + p * p)),
    )
