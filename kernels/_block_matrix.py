r"""The matrix of a function of pairs, :math:`K_{ij} = f(x_i, y_j, \theta)`, block by block, closed under derivatives.

The matrix is returned, but the temporaries of f exist for one block at a time: in the value, in gradients and in
forward mode, which evaluate f again instead of keeping what it computed. For X against itself the blocks below
the diagonal are copies, so that the matrix is exactly symmetric, and the diagonal is given, because it is usually
known more accurately than f gives it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._recompute import pull_back, push_forward, recomputed
from ._tiled import budget_of


def block_matrix(
    function: Callable[..., Tensor],
    rows: Sequence[Tensor],
    columns: Sequence[Tensor],
    shared: Sequence[Tensor],
    *,
    diagonal: Tensor | None = None,
    dtype: torch.dtype,
    value_bytes: tuple[int, int],
    derivative_bytes: tuple[int, int],
    memory_budget: int | None,
) -> Tensor:
    """The matrix of `function`, differentiable to any order that `function` is.

    Parameters
    ----------
    function : callable
        ``function(*rows, *columns, *shared)`` of the rows and columns of one block gives the block: pure torch,
        usable under ``torch.func.vjp`` and ``torch.vmap``.
    rows, columns : sequence of Tensor, shapes (n, ...) and (m, ...)
        What belongs to the rows and columns of the matrix.
    shared : sequence of Tensor
        Parameters, passed on whole. Their dtype is that of the computation: blocks of rows and columns are cast
        to it, and gradients summed in it.
    diagonal : Tensor, shape (n,), optional
        For `columns` that are `rows`: makes the matrix symmetric with this diagonal.
    dtype : dtype
        The matrix is rounded to it.
    value_bytes, derivative_bytes : tuple of two int
        Temporaries of `function`, and of its derivative, for one entry and for one row or column of a block.
    memory_budget : int or None
        Bytes that temporaries may take. None: 32 MiB on a CPU and 512 MiB on a GPU, or what one entry needs.

    Returns
    -------
    Tensor, shape (n, m)

    Raises
    ------
    ValueError
        If not even one entry can be computed within `memory_budget`.
    """
    n, m = len(rows[0]), len(columns[0])
    budget = _budget(rows[0], derivative_bytes[0] + 2 * derivative_bytes[1], memory_budget)
    value_sides, derivative_sides = (_sides(n, m, *each, budget) for each in (value_bytes, derivative_bytes))
    if diagonal is None:
        plan = _Plan(function, len(rows), len(columns), value_sides, derivative_sides, dtype, symmetric=False)
        return _BlockMatrix.apply(plan, *rows, *columns, *shared)  # type: ignore[return-value]
    plan = _Plan(function, len(rows), len(rows), value_sides, derivative_sides, dtype, symmetric=True)
    return _BlockMatrix.apply(plan, *rows, *shared, diagonal)  # type: ignore[return-value]


def by_rows(
    function: Callable[..., Tensor],
    X: Tensor,
    shared: Sequence[Tensor],
    *,
    derivative_bytes: int,
    memory_budget: int | None,
) -> Tensor:
    """``function(X, *shared)`` of a function of single rows, in chunks of rows within the budget."""
    size = max(1, _budget(X, derivative_bytes, memory_budget) // derivative_bytes)
    return torch.cat([recomputed(function, function, chunk, *shared) for chunk in X.split(size)])


def _budget(example: Tensor, least: int, asked: int | None) -> int:
    if asked is None:
        return max(least, budget_of(None, example.device))
    if asked < least:
        raise ValueError(
            f"`memory_budget` is {asked} bytes, but one entry of this matrix takes {least}: raise it"
        )
    return asked


def _sides(n: int, m: int, pair_bytes: int, row_bytes: int, budget: int) -> tuple[int, int]:
    """Rows and columns of a block: nearly square, thin only where the matrix is."""
    # The largest s with s² pair_bytes + 2 s row_bytes within the budget.
    half = row_bytes / pair_bytes
    side = max(1, int(math.sqrt(half * half + budget / pair_bytes) - half))
    short = max(1, min(n, m))
    if short >= side:
        return side, side
    long = max(1, (budget - short * row_bytes) // (short * pair_bytes + row_bytes))
    return (short, long) if n <= m else (long, short)


@dataclass(frozen=True)
class _Plan:
    function: Callable[..., Tensor]
    rows: int  # how many of the tensors belong to rows
    columns: int
    value_sides: tuple[int, int]
    derivative_sides: tuple[int, int]
    dtype: torch.dtype
    symmetric: bool  # the tensors of the rows are those of the columns too, and the last one is the diagonal

    def blocks(self, tensors: Sequence[Tensor], sides: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of every block to compute; an empty matrix is one empty block."""
        n, m = self.shape(tensors)
        high, wide = (min(sides), min(sides)) if self.symmetric else sides
        for top in range(0, max(n, 1), high):
            for left in range(top if self.symmetric else 0, max(m, 1), wide):
                yield slice(top, min(top + high, n)), slice(left, min(left + wide, m))

    def shape(self, tensors: Sequence[Tensor]) -> tuple[int, int]:
        return len(tensors[0]), len(tensors[0 if self.symmetric else self.rows])

    def sources(self, i: slice, j: slice, count: int) -> list[tuple[int, slice | None]]:
        """The arguments of the function for block (i, j): which tensor, and which part of it."""
        left = 0 if self.symmetric else self.rows
        shared = range(left + self.columns, count - self.symmetric)
        parts: list[tuple[int, slice | None]] = [(k, i) for k in range(self.rows)]
        return [*parts, *((left + k, j) for k in range(self.columns)), *((k, None) for k in shared)]

    def arguments(self, tensors: Sequence[Tensor], sources: list[tuple[int, slice | None]]) -> list[Tensor]:
        dtype = tensors[sources[-1][0]].dtype
        return [(tensors[k] if part is None else tensors[k][part]).to(dtype) for k, part in sources]

    def assemble(
        self,
        tensors: Sequence[Tensor],
        sides: tuple[int, int],
        diagonal: Tensor,
        evaluate: Callable[..., Tensor],
    ) -> Tensor:
        """The matrix whose block (i, j) is ``evaluate(sources of (i, j))``; linear in blocks and diagonal."""
        total: Tensor | None = None
        for i, j in self.blocks(tensors, sides):
            block = evaluate(self.sources(i, j, len(tensors))).to(self.dtype)
            if self.symmetric and i == j:
                upper = torch.triu(block, 1)
                block = upper + upper.mT + torch.diag_embed(diagonal[i].to(self.dtype))
            if total is None:
                total = block.new_empty(self.shape(tensors))
            total[i, j] = block
            if self.symmetric and i != j:
                total[j, i] = block.mT
        assert total is not None
        return total


class _BlockMatrix(Function):
    @staticmethod
    def forward(plan: _Plan, *tensors: Tensor) -> Tensor:
        def evaluate(sources: list[tuple[int, slice | None]]) -> Tensor:
            return plan.function(*plan.arguments(tensors, sources))

        return plan.assemble(tensors, plan.value_sides, tensors[-1], evaluate)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.plan = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        plan, tensors, needed = ctx.plan, ctx.saved_tensors, ctx.needs_input_grad[1:]
        # Gradients of the parts of each tensor, by where the part begins.
        parts: list[dict[int, Tensor]] = [{} for _ in tensors]
        for i, j in plan.blocks(tensors, plan.derivative_sides):
            cotangent = grads[0][i, j]
            if plan.symmetric:
                mirrored = grads[0][j, i].mT
                if i == j:
                    if needed[-1]:
                        parts[-1][i.start] = cotangent.diagonal()
                    cotangent = torch.triu(cotangent + mirrored, 1)
                else:
                    cotangent = cotangent + mirrored
            sources = plan.sources(i, j, len(tensors))
            wanted = [a for a, (k, _) in enumerate(sources) if needed[k]]
            arguments = plan.arguments(tensors, sources)
            found = pull_back(plan.function, arguments, wanted, cotangent.to(arguments[-1].dtype))
            for a, gradient in zip(wanted, found, strict=True):
                k, part = sources[a]
                start = 0 if part is None else part.start
                parts[k][start] = parts[k][start] + gradient if start in parts[k] else gradient
        result: list[Tensor | None] = [None]
        for tensor, found in zip(tensors, parts, strict=True):
            ordered = [found[start] for start in sorted(found)]
            whole = None if not ordered else torch.cat(ordered) if tensor.ndim else ordered[0]
            result.append(None if whole is None else whole.to(tensor.dtype))
        return tuple(result)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        plan, tensors, tangents = ctx.plan, ctx.saved_tensors, tangents[1:]

        def pushed(sources: list[tuple[int, slice | None]]) -> Tensor:
            moved = [a for a, (k, _) in enumerate(sources) if tangents[k] is not None]
            arguments = plan.arguments(tensors, sources)
            steps = [
                tangents[k] if part is None else tangents[k][part] for k, part in (sources[a] for a in moved)
            ]
            return push_forward(
                plan.function, arguments, moved, [step.to(arguments[-1].dtype) for step in steps]
            )

        diagonal = torch.zeros_like(tensors[-1]) if tangents[-1] is None else tangents[-1]
        return plan.assemble(tensors, plan.derivative_sides, diagonal, pushed)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        items = [
            [a if dim is None else a.select(dim, b) for a, dim in zip(arguments, in_dims, strict=True)]
            for b in range(info.batch_size)
        ]
        return torch.stack([_BlockMatrix.apply(*item) for item in items]), 0  # type: ignore[arg-type]
