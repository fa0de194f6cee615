"""Rivals of the operations on pairs of rows: what people use, and the best that plain torch can do.

Written for this benchmark. Each function takes the `Bench` and returns a call, or the reason why there is none.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .case import Bench, Call, rival

_ROWS, _COLUMNS = 2048, 4096  # of a chunk whose float32 values stay in a GPU's last cache


def multiply(x: Tensor, y: Tensor, operand: torch.dtype) -> Tensor:
    """``x @ y.T`` by the vendor's library, operands rounded to `operand`, float32 or float64 sums."""
    if operand in (torch.float16, torch.bfloat16):
        return torch.mm(x.to(operand), y.to(operand).T, out_dtype=torch.float32)
    return x.to(operand) @ y.to(operand).T


def gaussian(x: Tensor, y: Tensor, gamma: float, operand: torch.dtype) -> Tensor:
    """exp(-γ|x-y|²) in eager torch, in place: one product and as few passes as there are operations."""
    x_norms, y_norms = x.square().sum(1, keepdim=True), y.square().sum(1)
    if operand == x.dtype:
        product = torch.addmm(y_norms, x, y.T, alpha=-2)
    else:
        product = multiply(x, y, operand).mul_(-2).add_(y_norms)
    return product.add_(x_norms).clamp_(min=0).mul_(-gamma).exp_()


def row_chunks(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Rows of `x` in chunks of 1 GiB of K on a GPU, of 32 MiB on a CPU: where eager torch is at its best."""
    return x.split(_even(len(x), max(1, (2**28 if y.is_cuda else 2**23) // len(y))))


@rival()
def eager(bench: Bench, x: Tensor, y: Tensor, gamma: float, operand: torch.dtype) -> Call:
    """The whole matrix in eager torch."""
    return lambda: gaussian(x, y, gamma, operand)


@rival()
def eager_cdist(bench: Bench, x: Tensor, y: Tensor, gamma: float | None = None) -> Call:
    """torch.cdist, by matrix products; squared distances for no gamma."""

    def run() -> Tensor:
        s = torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist").square_()
        return s if gamma is None else s.mul_(-gamma).exp_()

    return run


@rival("sklearn", device="cpu")
def sklearn_gaussian(bench: Bench, x: Tensor, y: Tensor, gamma: float) -> Call:
    """scikit-learn's rbf_kernel."""
    from sklearn.metrics.pairwise import rbf_kernel

    a, b = x.numpy(), y.numpy()
    return lambda: rbf_kernel(a, b, gamma=gamma)


@rival("sklearn", device="cpu")
def sklearn_distances(bench: Bench, x: Tensor, y: Tensor) -> Call:
    """scikit-learn's euclidean_distances, squared."""
    from sklearn.metrics.pairwise import euclidean_distances

    a, b = x.numpy(), y.numpy()
    return lambda: euclidean_distances(a, b, squared=True)


@rival(compiles=True)
def compiled_gaussian(bench: Bench, x: Tensor, y: Tensor, gamma: float, operand: torch.dtype) -> Call:
    """The vendor's product and one pass that torch.compile fuses."""
    epilogue = torch.compile(_epilogue(gamma), dynamic=False)

    def run() -> Tensor:
        return epilogue(multiply(x, y, operand), x.square().sum(1, keepdim=True), y.square().sum(1))

    return run


@rival()
def eager_by_rows(
    bench: Bench,
    x: Tensor,
    y: Tensor,
    gamma: float,
    operand: torch.dtype,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Call:
    """Chunks of rows in eager torch; `reduce` turns a chunk of K into its rows of the result (default: sums)."""
    reduce = reduce or _row_sums
    return lambda: torch.cat([reduce(gaussian(part, y, gamma, operand)) for part in row_chunks(x, y)])


@rival(compiles=True)
def compiled_by_rows(
    bench: Bench,
    x: Tensor,
    y: Tensor,
    gamma: float,
    operand: torch.dtype,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Call:
    """Chunks of rows, everything inside torch.compile."""
    values, reduce = _epilogue(gamma), reduce or _row_sums

    def whole(part: Tensor, y: Tensor, y_norms: Tensor) -> Tensor:
        return reduce(values(multiply(part, y, operand), part.square().sum(1, keepdim=True), y_norms))

    chunk = torch.compile(whole, dynamic=False)

    def run() -> Tensor:
        y_norms = y.square().sum(1)
        return torch.cat([chunk(part, y, y_norms) for part in row_chunks(x, y)])

    return run


@rival(compiles=True)
def chunks_in_cache(
    bench: Bench,
    x: Tensor,
    y: Tensor,
    gamma: float,
    operand: torch.dtype,
    columns: Tensor | None = None,
) -> Call:
    """Products of the vendor's library small enough for the cache, each consumed in one fused pass."""
    values = _epilogue(gamma)

    def consume(g: Tensor, x_norms: Tensor, y_norms: Tensor, v: Tensor | None) -> Tensor:
        k = values(g, x_norms, y_norms)
        return k.sum(1) if v is None else k @ v

    fused = torch.compile(consume, dynamic=False)
    high, wide = _even(len(x), _ROWS), _even(len(y), _COLUMNS)

    def run() -> Tensor:
        x_norms, y_norms = x.square().sum(1, keepdim=True), y.square().sum(1)
        a, b = x.to(operand), y.to(operand)
        parts = []
        for top in range(0, len(x), high):
            rows = slice(top, top + high)
            total: Any = 0
            for left in range(0, len(y), wide):
                some = slice(left, left + wide)
                v = None if columns is None else columns[some]
                total = total + fused(multiply(a[rows], b[some], operand), x_norms[rows], y_norms[some], v)
            parts.append(total)
        return torch.cat(parts)

    return run


@rival("pykeops", compiles=True)
def keops(
    bench: Bench, x: Tensor, y: Tensor, gamma: float, v: Tensor | None = None, log: bool = False
) -> Call:
    """KeOps: row sums, products with `v`, or the logarithm of row sums."""
    from pykeops.torch import LazyTensor  # pyright: ignore[reportMissingImports]

    ones = torch.ones(len(y), 1, device=y.device, dtype=y.dtype)
    columns = ones if v is None else v

    def run() -> Tensor:
        s = -gamma * ((LazyTensor(x[:, None, :]) - LazyTensor(y[None, :, :])) ** 2).sum(-1)
        found = s.logsumexp(dim=1) if log else s.exp() @ columns
        return found if v is not None else found[:, 0]

    return run


@rival()
def autograd_that_stores_k(bench: Bench, x: Tensor, y: Tensor, gamma: float, v: Tensor) -> Call:
    """Gradients of K @ v by autograd over the whole matrix."""

    def run() -> tuple[Tensor, ...]:
        a = x.detach().requires_grad_()
        s = a.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * (a @ y.T)
        return torch.autograd.grad((torch.exp(-gamma * s.clamp(min=0)) @ v).sum(), a)

    return run


def _epilogue(gamma: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def values(g: Tensor, x_norms: Tensor, y_norms: Tensor) -> Tensor:
        return torch.exp(-gamma * (x_norms + y_norms - 2 * g).clamp(min=0))

    return values


def _row_sums(k: Tensor) -> Tensor:
    return k.sum(1)


def _even(n: int, most: int) -> int:
    """A length of chunks up to `most` that leaves no remainder, which would be compiled for itself, if there is one."""
    least = max(4, most // 2)
    return next(
        (size for size in range(min(n, most), least - 1, -1) if n % size == 0 and size % 4 == 0), most
    )
