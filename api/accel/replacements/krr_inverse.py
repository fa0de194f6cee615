"""Inputs of provable-KRR's network with given features, from weights that are factored once, in float64.

Behaviour of `FCNN.inverse` of `models/model.py` (see `krr`), which solves with `torch.linalg.lstsq` in float32. Its
error is the condition number of the weights times a small multiple of ε; the answer here is rounded once. Where the
condition numbers, and the slopes between, amplify ε beyond 2^-10, or where lstsq might leave out directions, the
call is the original's.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._cache import cached, identity_key
from .krr import is_autocast, is_matrix, is_plain, needs_grad

# Condition numbers times machine epsilon: errors of the original below about 1e-3.
_AMPLIFICATION = 2.0**-10
# Norms are estimated from below, to a few per cent.
_MARGIN = 1.25


def inverse(self: Any, x: Tensor) -> Tensor:
    """Inputs of the network whose features are the columns of x.

    Shape, dtype and device are the original's; numbers agree to a small multiple of the condition number of the
    weights times ε. The first call factors the weights, 2/3 p³ operations in float64; then each costs 2 p² a column.
    """
    found = x.double()
    for module in reversed(self.classifier[:-1]):
        if type(module) is nn.Linear:
            lu, pivots, _ = _factored(module.weight)
            found = torch.linalg.lu_solve(lu, pivots, found)
        else:
            found = self.inverse_LeakyReLU(found)
    return found.to(x.dtype)


def why_not_inverse(self: Any, x: Any) -> str | None:
    """Weights that are not square, or so near to singular that the original's digits are few."""
    if not is_matrix(x) or is_autocast(x) or not is_plain(self):
        return "the network is not an FCNN as it was published, or features are no matrix without derivatives"
    amplification = torch.finfo(x.dtype).eps
    for module in reversed(self.classifier[:-1]):
        if type(module) is nn.LeakyReLU:
            slope = _slope(getattr(self, "inverse_LeakyReLU", None))
            if slope is None:
                return "`inverse_LeakyReLU` is no LeakyReLU of a positive slope that keeps its input"
            amplification *= max(slope, 1 / slope) if amplification > torch.finfo(x.dtype).eps else 1
            continue
        weight = module.weight
        if needs_grad(weight) or weight.dtype != x.dtype or weight.device != x.device:
            return "derivatives are asked for, or weights and features do not fit each other"
        if weight.shape[0] != weight.shape[1] or len(weight) != len(x):
            return "weights are not square, or features do not fit them"
        condition = _MARGIN * _factored(weight)[2]
        if not condition * len(weight) * torch.finfo(x.dtype).eps < 1:
            return "weights are so near to singular that lstsq may drop directions"
        amplification *= condition
    return (
        None
        if amplification <= _AMPLIFICATION
        else "weights are too near to singular for the original's digits"
    )


def _slope(activation: Any) -> float | None:
    """Slope below zero; None of another module, of one that overwrites its input, and where digits are lost."""
    if type(activation) is not nn.LeakyReLU or activation.inplace:
        return None
    slope = activation.negative_slope
    return float(slope) if isinstance(slope, (int, float)) and 0 < slope < math.inf else None


def _factored(weight: Tensor) -> tuple[Tensor, Tensor, float]:
    """LU of weights in float64, and their condition number; NaN where there is none."""
    key = ("krr.inverse", identity_key(weight))
    return cached(key, lambda: _factor(weight.detach().double()), 8 * weight.numel())


def _factor(weight: Tensor) -> tuple[Tensor, Tensor, float]:
    lu, pivots, info = torch.linalg.lu_factor_ex(weight)
    if int(info) or not bool(torch.isfinite(lu).all()):
        return lu, pivots, math.nan
    solve = functools.partial(torch.linalg.lu_solve, lu, pivots)
    largest = _norm(lambda V: weight @ V, lambda V: weight.T @ V, weight)
    return lu, pivots, largest * _norm(solve, functools.partial(solve, adjoint=True), weight)


def _norm(apply: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor], like: Tensor) -> float:
    """Spectral norm of a linear map from below, by four steps of subspace iteration from eight directions."""
    generator = torch.Generator().manual_seed(0)
    V = torch.randn(len(like), min(8, len(like)), dtype=like.dtype, generator=generator).to(like.device)
    for _ in range(4):
        V = torch.linalg.qr(adjoint(apply(V))).Q
    return float(torch.linalg.matrix_norm(apply(V), 2))
