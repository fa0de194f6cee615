r"""Distances of all pairs of rows in plain torch, differentiable to any order.

**Manhattan distances** :math:`D_{ij} = \sum_k |x_{ik} - y_{jk}|` have derivatives in signs. They are summed feature by
feature, in O(n m) memory; the derivative of a sign is taken as 0.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def pairwise_squared(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances of all pairs by one matrix product; plain torch, differentiable to any order.

    Rounding can push small ones below zero: values are clamped, derivatives are those of the unclamped formula.
    """
    s = x.square().sum(-1)[:, None] + y.square().sum(-1) - 2 * (x @ y.mT)
    return s + (s.clamp(min=0) - s).detach()


def manhattan(x: Tensor, y: Tensor) -> Tensor:
    """Distances in the 1-norm, shape (n, m); n m d operations."""
    return _Manhattan.apply(x, y)  # type: ignore[return-value]


class _Manhattan(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        total = x.new_zeros(()) + torch.zeros_like(x[:, :1]) + torch.zeros_like(y[:, :1]).mT
        for k in range(x.shape[1]):
            total = total + (x[:, k, None] - y[:, k]).abs()
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return _SignPull.apply(*ctx.saved_tensors, *grad_outputs)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        tx, ty = grad_inputs
        x, y = ctx.saved_tensors
        return _SignPush.apply(x, y, _or_zeros(tx, x), _or_zeros(ty, y))


class _SignPull(Function):
    """Cotangents of x and y: sums over j (and -sums over i) of g_ij sign(x_ik - y_jk); linear in g."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        of_x, of_y = [], []
        for k in range(x.shape[1]):
            signed = torch.sign(x[:, k, None] - y[:, k]) * g
            of_x.append(signed.sum(1))
            of_y.append(-signed.sum(0))
        return torch.stack(of_x, 1), torch.stack(of_y, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return None, None, _SignPush.apply(*ctx.saved_tensors, *grad_outputs)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        *_, tg = grad_inputs
        x, y = ctx.saved_tensors
        if tg is None:
            return torch.zeros_like(x), torch.zeros_like(y)
        return _SignPull.apply(x, y, tg)


class _SignPush(Function):
    """Tangent of the distances: sum over k of sign(x_ik - y_jk) (a_ik - b_jk); linear in a and b."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros_like(x[:, :1]) + torch.zeros_like(y[:, :1]).mT
        for k in range(x.shape[1]):
            total = total + torch.sign(x[:, k, None] - y[:, k]) * (a[:, k, None] - b[:, k])
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return None, None, *_SignPull.apply(*ctx.saved_tensors, *grad_outputs)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        *_, ta, tb = grad_inputs
        x, y = ctx.saved_tensors
        return _SignPush.apply(x, y, _or_zeros(ta, x), _or_zeros(tb, y))


def _or_zeros(tangent: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tangent is None else tangent
