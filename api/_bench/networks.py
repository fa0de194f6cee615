"""Benchmark cases of the kernels of wide networks."""

import math
from typing import Any

import torch
from torch import Tensor

from ..kernels.arc_cosine import arc_cosine_kernel
from ..kernels.arc_cosine_conv import conv_arc_cosine_kernel
from .case import Bench, Call, Problem, Work, case, largest_error, rival, some_rows


@case(
    "arc-cosine",
    "arc_cosine_kernel",
    "NTK of a fully connected network",
    quick=[dict(n=200, m=100, d=32, depth=3)],
    cpu=[dict(n=2000, m=1000, d=784, depth=3)],
    cuda=[
        dict(n=20_000, m=5000, d=3072, depth=3),
        dict(n=20_000, m=5000, d=3072, depth=3, precision="medium"),
    ],
)
def _arc_cosine(bench: Bench, n: int, m: int, d: int, depth: int, precision: str = "high") -> Problem:
    X, Y = bench.normal(n, d), bench.normal(m, d, seed=1)
    rows = some_rows(n)
    return Problem(
        ours=lambda: arc_cosine_kernel(X, Y, depth=depth, precision=precision),
        error=lambda K: largest_error(K[rows], _dense_ntk(X[rows].double(), Y.double(), depth)),
        tolerance={"high": 1e-6, "medium": 1e-4}[precision],
        rivals={
            "torch, float32": lambda: _dense_ntk(X, Y, depth),
            "torch, float64": lambda: _dense_ntk(X.double(), Y.double(), depth),
        },
        # An arc tangent and two square roots a layer and entry, each at least as long as an exponential.
        work=Work(
            {"float32" if precision == "medium" else "float64": 2.0 * n * m * d},
            exps=3.0 * depth * n * m,
            bytes=4.0 * ((n + m) * d + n * m),
        ),
    )


def _dense_ntk(x: Tensor, y: Tensor, depth: int, weight: float = 2.0, bias: float = 0.01) -> Tensor:
    """The recursion over whole matrices, as it is usually written; `weight` and `bias` are variances."""
    covariance = weight / x.shape[1] * (x @ y.T) + bias
    x_variance, y_variance = (weight / z.shape[1] * z.square().sum(1) + bias for z in (x, y))
    tangent = covariance
    for _ in range(depth):
        value, slope = _duals(covariance, (x_variance[:, None] * y_variance).sqrt())
        covariance = weight * value + bias
        tangent = covariance + weight * slope * tangent
        x_variance, y_variance = weight / 2 * x_variance + bias, weight / 2 * y_variance + bias
    return tangent


def _duals(covariance: Tensor, stds: Tensor) -> tuple[Tensor, Tensor]:
    """Expectations of ReLU products and of products of its slopes (Cho & Saul 2009, eq. 6)."""
    cosine = (covariance / stds).clamp(-1, 1)
    angle = torch.arccos(cosine)
    slope = (math.pi - angle) / (2 * math.pi)
    return stds * (1 - cosine.square()).clamp(min=0).sqrt() / (2 * math.pi) + slope * covariance, slope


@case(
    "arc-cosine-conv",
    "conv_arc_cosine_kernel",
    "NTK of a convolutional network with average pooling",
    quick=[dict(n=6, m=4, side=8, depth=2)],
    cpu=[dict(n=24, m=16, side=16, depth=3)],
    cuda=[dict(n=100, m=50, side=32, depth=3)],
)
def _arc_cosine_conv(bench: Bench, n: int, m: int, side: int, depth: int, precision: str = "high") -> Problem:
    X, Y = bench.normal(n, 3, side, side), bench.normal(m, 3, side, side, seed=1)
    rows = some_rows(n, 2)
    cells = float(n * m) * side**4

    def error(K: Tensor) -> float:
        return largest_error(K[rows, :2], _conv_ntk(X[rows].double(), Y[:2].double(), depth))

    return Problem(
        ours=lambda: conv_arc_cosine_kernel(X, Y, depth=depth, precision=precision),
        error=error,
        tolerance=1e-6,
        rivals={"torch, all pairs of pixels": _all_pixels(bench, X, Y, depth, needs=6 * 4 * cells)},
    )


@rival()
def _all_pixels(bench: Bench, X: Tensor, Y: Tensor, depth: int) -> Call:
    return lambda: _conv_ntk(X, Y, depth)


def _conv_ntk(x: Tensor, y: Tensor, depth: int, weight: float = 2.0, bias: float = 0.01) -> Tensor:
    """The recursion over all pairs of pixels: 3 x 3 filters, zero padding, a pooling after each layer, flattening."""
    channels = x.shape[1]
    pair: Any = torch.einsum("ncij,mckl->nmijkl", x, y) / channels
    own = [torch.einsum("ncij,nckl->nijkl", z, z) / channels for z in (x, y)]
    slopes = torch.zeros_like(pair)
    for _ in range(depth):
        own = [weight * _filtered(k) + bias for k in own]
        variances = [k.flatten(1, 2).flatten(2).diagonal(dim1=1, dim2=2).reshape(k.shape[:3]) for k in own]
        covariance = weight * _filtered(pair) + bias
        tangent = covariance + weight * _filtered(slopes)
        stds = (variances[0][:, None, :, :, None, None] * variances[1][None, :, None, None]).sqrt()
        pair, slope = _duals(covariance, stds)
        pair, slopes = _pooled(pair), _pooled(slope * tangent)
        own = [
            _pooled(_duals(k, (v[:, :, :, None, None] * v[:, None, None]).sqrt())[0])
            for k, v in zip(own, variances, strict=True)
        ]
    covariance = weight * _mean_over_pixels(pair) + bias
    return covariance + weight * _mean_over_pixels(slopes)


def _filtered(k: Tensor) -> Tensor:
    """Mean over the nine common shifts of both pixels; nothing outside the image."""
    h, w = k.shape[-2:]
    padded = torch.nn.functional.pad(k, (1,) * 8)
    shifts = [(a, b) for a in range(3) for b in range(3)]
    return sum(padded[..., a : a + h, b : b + w, a : a + h, b : b + w] for a, b in shifts) / 9  # type: ignore[return-value]


def _pooled(k: Tensor) -> Tensor:
    h, w = k.shape[-2:]
    blocks = k.reshape(*k.shape[:-4], h // 2, 2, w // 2, 2, h // 2, 2, w // 2, 2)
    return blocks.mean((-7, -5, -3, -1))


def _mean_over_pixels(k: Tensor) -> Tensor:
    return k.flatten(-4, -3).flatten(-2).diagonal(dim1=-2, dim2=-1).mean(-1)
