"""Derivatives by recomputation: run a fast forward, differentiate the plain definition when somebody asks.

A fast implementation (in place, or a GPU kernel) cannot be differentiated through, and the plain definition
would keep every temporary. `recomputed` runs the first and saves the inputs alone; backward, forward mode and vmap
evaluate the second again, by calls of `recomputed` in turn: so derivatives nest in any order, forward inside forward
and reverse inside forward too, where a tangent made of plain operations would be taken for a constant of the inputs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils._pytree import tree_map


def recomputed(fast: Callable[..., Any], definition: Callable[..., Any], *tensors: Tensor) -> Any:
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
    Tensor or tuple of Tensor
        As `fast` returns.
    """
    return _Recomputed.apply(fast, definition, *tensors)


class _Recomputed(Function):
    @staticmethod
    def forward(fast: Any, definition: Any, *tensors: Tensor) -> Any:
        return fast(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.definition, ctx.single = inputs[1], isinstance(output, Tensor)
        ctx.save_for_backward(*inputs[2:])
        ctx.save_for_forward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        definition, single, saved = ctx.definition, ctx.single, ctx.saved_tensors
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[2:]) if needed]

        def pulled(*values: Tensor) -> tuple[Tensor, ...]:
            primals, cotangents = values[: len(saved)], values[len(saved) :]
            return pull_back(definition, primals, wanted, cotangents[0] if single else cotangents)

        result: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        for i, grad in zip(wanted, recomputed(pulled, pulled, *saved, *grad_outputs), strict=True):
            result[i + 2] = grad
        return tuple(result)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        return recomputed_tangent(ctx.definition, ctx.saved_tensors, grad_inputs[2:])

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        _, definition, *tensors = args
        batched = torch.vmap(definition, in_dims=in_dims[2:])
        result = recomputed(batched, batched, *tensors)
        return result, 0 if isinstance(result, Tensor) else (0,) * len(result)


def recomputed_tangent(definition: Callable[..., Any], primals: Any, tangents: Any) -> Any:
    """Tangent of ``definition(*primals)``, itself recomputed; None stands for a tangent of zero."""
    moved = [i for i, tangent in enumerate(tangents) if tangent is not None]

    def pushed(*values: Tensor) -> Any:
        return push_forward(definition, values[: len(primals)], moved, values[len(primals) :])

    return recomputed(pushed, pushed, *primals, *[tangents[i] for i in moved])


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
