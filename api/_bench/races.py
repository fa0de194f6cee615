"""Rivals of weighted sampling: exponential races and cumulative sums in torch and CuPy, and torch.multinomial."""

from typing import Any

import torch
from torch import Tensor

from .case import Bench, Call, Rival, rival

_CHUNK = 1 << 22
_CATEGORIES = 1 << 24  # what torch.multinomial takes at most


@rival()
def race_in_torch(bench: Bench, w: Tensor, k: int) -> Call:
    """The first k arrivals of exponential clocks, chunk by chunk, float32."""
    return lambda: race(w, k)


def race(w: Tensor, k: int) -> Tensor:
    """Indices of the k largest ``w / E`` with E standard exponential, from the largest k of each chunk."""
    best, where = w.new_empty(0), torch.empty(0, dtype=torch.int64, device=w.device)
    for start in range(0, len(w), _CHUNK):
        some = w[start : start + _CHUNK]
        keys = some / torch.empty_like(some).exponential_()
        values, indices = keys.topk(min(k, len(some)), sorted=False)
        best, where = torch.cat([best, values]), torch.cat([where, indices.add_(start)])
        if len(best) > k:
            best, kept = best.topk(k, sorted=False)
            where = where[kept]
    return where[best.argsort(descending=True)]


def multinomial(bench: Bench, w: Tensor, k: int, replacement: bool) -> Rival:
    """torch.multinomial, where it can."""
    if len(w) > _CATEGORIES:
        return f"takes at most 2^24 categories, these are {len(w):,}"
    return lambda: torch.multinomial(w, k, replacement)


@rival()
def sums_in_torch(bench: Bench, w: Tensor, k: int, *, systematic: bool = False) -> Call:
    """Search in float64 cumulative sums for k uniform points, or for k equidistant ones."""

    def run() -> Tensor:
        sums = w.cumsum(0, dtype=torch.float64)
        u = torch.rand(1 if systematic else k, dtype=torch.float64, device=w.device)
        if systematic:
            u = (torch.arange(k, device=w.device) + u) / k
        return torch.searchsorted(sums, u * sums[-1], right=True)

    return run


@rival("cupy", device="cuda")
def race_in_cupy(bench: Bench, w: Tensor, k: int) -> Call:
    """The race in CuPy, one partition of all keys."""
    cupy = _cupy()
    weights = cupy.from_dlpack(w)

    def run() -> Any:
        keys = weights / -cupy.log1p(-cupy.random.random(len(weights), dtype=cupy.float32))
        return cupy.argpartition(-keys, k)[:k]

    return run


@rival("cupy", device="cuda")
def sums_in_cupy(bench: Bench, w: Tensor, k: int) -> Call:
    """Search in float64 cumulative sums in CuPy."""
    cupy = _cupy()
    weights = cupy.from_dlpack(w)

    def run() -> Any:
        sums = cupy.cumsum(weights, dtype=cupy.float64)
        return cupy.searchsorted(sums, cupy.random.random(k) * sums[-1], side="right")

    return run


def _cupy() -> Any:
    """CuPy with its memory from torch's allocator: one pool, and one count of it."""
    import cupy

    pool = cupy.cuda.PythonFunctionAllocator(
        torch.cuda.caching_allocator_alloc, lambda pointer, _: torch.cuda.caching_allocator_delete(pointer)
    )
    cupy.cuda.set_allocator(pool.malloc)
    return cupy
