r"""The Matérn profiles of half-integer order, and derivatives that are right at distance zero.

With :math:`t = c^2 s` (s the squared distance) the three half-integer profiles form a ladder,

.. math:: f_0 = e^{-\sqrt t},\quad f_1 = (1+\sqrt t)e^{-\sqrt t},\quad f_2 = (1+\sqrt t+t/3)e^{-\sqrt t},
          \qquad f_1' = -f_0/2,\quad f_2' = -f_1/6,

so the root is differentiated only in :math:`f_0`, whose derivative :math:`-f_0/(2\sqrt t)` is infinite at zero:
there the kernel has a kink in x, and 0 is returned, its symmetric subgradient. Through the square root, automatic
differentiation would give NaN, and wrong second derivatives of the smoother ones.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def matern_profile(t: Tensor, order: int) -> Tensor:
    """:math:`f_p(t)` for p = 0, 1, 2 (smoothness 1/2, 3/2, 5/2); `t` >= 0 of any shape."""
    return _Matern.apply(t, order)  # type: ignore[return-value]


def log_matern_profile(t: Tensor, order: int) -> Tensor:
    r""":math:`\log f_p(t)`, without underflow: :math:`-\sqrt t` and the logarithm of the polynomial."""
    return _LogMatern.apply(t, order)  # type: ignore[return-value]


class _Matern(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor, order: int) -> Tensor:
        root = t.sqrt()
        return _polynomial(t, root, order) * torch.exp(-root)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        t, ctx.order = inputs
        ctx.save_for_backward(t)
        ctx.save_for_forward(t)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (t,) = ctx.saved_tensors
        return grad_outputs[0] * _matern_derivative(t, ctx.order), None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        (t,) = ctx.saved_tensors
        return grad_inputs[0] * _matern_derivative(t, ctx.order)


class _LogMatern(Function):
    generate_vmap_rule = True
    setup_context = _Matern.setup_context

    @staticmethod
    def forward(t: Tensor, order: int) -> Tensor:
        root = t.sqrt()
        return torch.log(_polynomial(t, root, order)) - root

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (t,) = ctx.saved_tensors
        return grad_outputs[0] * _log_matern_derivative(t, ctx.order), None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        (t,) = ctx.saved_tensors
        return grad_inputs[0] * _log_matern_derivative(t, ctx.order)


def _polynomial(t: Tensor, root: Tensor, order: int) -> Tensor:
    if order == 0:
        return torch.ones_like(t)
    return 1 + root if order == 1 else 1 + root + t / 3


def _matern_derivative(t: Tensor, order: int) -> Tensor:
    if order == 2:
        return -matern_profile(t, 1) / 6
    if order == 1:
        return -matern_profile(t, 0) / 2
    return torch.where(t > 0, -matern_profile(_positive(t), 0) / (2 * _positive(t).sqrt()), 0.0)


def _log_matern_derivative(t: Tensor, order: int) -> Tensor:
    root = torch.where(t > 0, _positive(t).sqrt(), 0.0)
    if order == 2:
        return -(1 + root) / (6 * _polynomial(t, root, 2))
    if order == 1:
        return -1 / (2 * (1 + root))
    return torch.where(t > 0, -1 / (2 * _positive(t).sqrt()), 0.0)


def _positive(t: Tensor) -> Tensor:
    """`t` where it is positive, elsewhere 1: keeps roots, and what autograd makes of them, finite."""
    return torch.where(t > 0, t, 1.0)
