"""Derivatives by recomputation: run a fast forward, differentiate the plain definition when somebody asks.

A fast implementation (in place, or a GPU kernel) cannot be differentiated through, and the plain definition
would keep every temporary. `recomputed` runs the first and saves the inputs alone; backward, forward mode and vmap
evaluate the second again. Both of its derivatives are ordinary torch, so they can be differentiated in turn.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils._pytree import tree_map


def recomputed(fast: Callable[..., Tensor], definition: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``fast(*tensors)``, whose derivatives are those of ``definition(*tensors)``.

    Parameters
    ----------
    fast : callable
        Runs without a graph; may work in place on its own temporaries.
    definition : callable
        Pure torch with the same value, differentiable to the order wanted and usable under ``torch.vmap``.
    *tensors : Tensor
        Floating-point tensors, all that the value depends on differentiably.

    Returns
    -------
    Tensor
    """
    return _Recomputed.apply(fast, definition, *tensors)  # type: ignore[return-value]


class _Recomputed(Function):
    @staticmethod
    def forward(fast: Any, definition: Any, *tensors: Tensor) -> Tensor:
        return fast(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.definition = inputs[1]
        ctx.save_for_backward(*inputs[2:])
        ctx.save_for_forward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[2:]) if needed]
        found = pull_back(ctx.definition, ctx.saved_tensors, wanted, grad_outputs[0])
        result: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for i, grad in zip(wanted, found, strict=True):
            result[i + 2] = grad
        return tuple(result)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        moved = [i for i, tangent in enumerate(grad_inputs[2:]) if tangent is not None]
        return push_forward(ctx.definition, ctx.saved_tensors, moved, [grad_inputs[i + 2] for i in moved])

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        _, definition, *tensors = args
        batched = torch.vmap(definition, in_dims=in_dims[2:])
        return recomputed(batched, batched, *tensors), 0


def pull_back(function: Callable[..., Any], primals: Any, wanted: list[int], cotangents: Any) -> Any:
    """Cotangents of the inputs numbered `wanted`."""
    return _vjp(function, primals, wanted)[1](cotangents)


def push_forward(function: Callable[..., Any], primals: Any, moved: list[int], tangents: Any) -> Any:
    """Tangents of the outputs when the inputs numbered `moved` move by `tangents`.

    Transposes the transpose: forward mode cannot be nested inside ``torch.autograd.forward_ad``, reverse can.
    """
    outputs, pull = _vjp(function, primals, moved)
    zeros = tree_map(torch.zeros_like, outputs)
    (result,) = _vjp(pull, [zeros], [0])[1](tuple(tangents))
    return result


def _vjp(function: Callable[..., Any], primals: Any, wanted: list[int]) -> Any:
    """Outputs, and the function that pulls cotangents back to the inputs numbered `wanted`."""
    return torch.func.vjp(_in_some(function, primals, wanted), *[primals[i] for i in wanted])


def _in_some(function: Callable[..., Any], values: Any, which: list[int]) -> Callable[..., Any]:
    """`function` of the arguments numbered `which`, the others held at `values`."""

    def partial(*some: Tensor) -> Any:
        arguments = list(values)
        for i, value in zip(which, some, strict=True):
            arguments[i] = value
        return function(*arguments)

    return partial
