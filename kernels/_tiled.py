r"""Sums over all pairs (i, j), tile by tile, closed under differentiation.

A *tile function* takes the rows of one tile, its columns and shared parameters, and returns contributions to
outputs that belong to rows (summed over j), to columns (summed over i) or to everything (summed over both):

.. math:: a_i = \sum_j f(x_i, y_j, \theta),\quad b_j = \sum_i g(x_i, y_j, \theta),\quad
          c = \sum_{ij} h(x_i, y_j, \theta).

Its vector-Jacobian product is a tile function again: cotangents of row outputs are further row inputs, and the
gradient of a row input is a row output, and so on. So is its Jacobian-vector product, and so is its batch under
vmap. One loop therefore gives values, gradients, gradients of gradients, forward mode and vmap, and no
(n, m) array outlives its tile.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from ._recompute import pull_back, push_forward

Kind = Literal["row", "column", "shared"]
DEFAULT_BUDGET = {"cpu": 32 << 20, "cuda": 512 << 20}  # bytes: about the last-level cache; a sliver of a GPU
_LEAST_SIDE = 64  # pairs: below this, calls cost more than arithmetic


def sum_over_tiles(
    function: Callable[..., tuple[Tensor, ...]],
    rows: Sequence[Tensor],
    columns: Sequence[Tensor],
    shared: Sequence[Tensor],
    outputs: Sequence[Kind],
    *,
    bytes_per_pair: int,
    memory_budget: int | None = None,
    fast: Callable[..., tuple[Tensor, ...]] | None = None,
) -> tuple[Tensor, ...]:
    """Sum a tile function over all pairs of rows and columns.

    Parameters
    ----------
    function : callable
        ``function(*rows, *columns, *shared, offset=...)``, pure and differentiable torch, returning one tensor for
        each of `outputs`. ``offset`` is an int, the index of the tile's first row minus that of its first column:
        entry (a, b) of a tile lies on the diagonal i = j when b = a + offset.
    rows, columns : sequence of Tensor, shapes (n, ...) and (m, ...)
        At least one of each.
    shared : sequence of Tensor
        Parameters; 0-d for bandwidths.
    outputs : sequence of {"row", "column", "shared"}
    bytes_per_pair : int
        Temporaries of the tile function for one pair, in bytes.
    memory_budget : int, optional
        Bytes that the temporaries of a tile may take. Default 32 MiB on a CPU, 512 MiB on a GPU; derivatives
        use tiles a quarter as large for their further temporaries.
    fast : callable, optional
        ``fast(*rows, *columns, *shared)`` with the same value, used for the value alone.

    Returns
    -------
    tuple of Tensor
    """
    tensors = [*rows, *columns, *shared]
    kinds: list[Kind] = [*["row"] * len(rows), *["column"] * len(columns), *["shared"] * len(shared)]  # type: ignore[list-item]
    budget = budget_of(memory_budget, tensors[0].device)
    plan = _Plan(
        function,
        tuple(kinds),
        (0,) * len(kinds),
        tuple(outputs),
        (0,) * len(outputs),
        bytes_per_pair,
        budget,
        fast,
    )
    return _Sum.apply(plan, *tensors)  # type: ignore[return-value]


def budget_of(memory_budget: int | None, device: torch.device) -> int:
    """Bytes that temporaries may take: what was asked for, or the default of the device."""
    return memory_budget or DEFAULT_BUDGET.get(device.type, DEFAULT_BUDGET["cpu"])


def tile_sides(n: int, m: int, bytes_per_pair: int, memory_budget: int) -> tuple[int, int]:
    """Rows and columns of a tile within the budget: nearly square, thin only where the problem is."""
    pairs = max(_LEAST_SIDE * _LEAST_SIDE, memory_budget // max(1, bytes_per_pair))
    side = math.isqrt(pairs)
    if m <= side:
        return max(1, min(n, pairs // max(1, m))), max(1, m)
    if n <= side:
        return max(1, n), max(1, min(m, pairs // max(1, n)))
    return side, side


@dataclass(frozen=True)
class _Plan:
    function: Callable[..., tuple[Tensor, ...]]
    kinds: tuple[Kind, ...]  # of the inputs
    dims: tuple[int, ...]  # where the rows or columns of an input lie: 1 behind a batch, else 0
    outputs: tuple[Kind, ...]
    output_dims: tuple[int, ...]
    bytes_per_pair: int
    memory_budget: int
    fast: Callable[..., tuple[Tensor, ...]] | None

    def extent(self, kind: Kind, tensors: Sequence[Tensor]) -> int:
        return next(
            t.shape[dim] for t, k, dim in zip(tensors, self.kinds, self.dims, strict=True) if k == kind
        )

    def run(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if self.fast is not None:
            return self.fast(*tensors)
        n, m = self.extent("row", tensors), self.extent("column", tensors)
        high, wide = tile_sides(n, m, self.bytes_per_pair, self.memory_budget)
        totals: list[Tensor | None] = [None] * len(self.outputs)
        # An empty side still runs one (empty) tile: its zeros have the right shape and dtype.
        for top in range(0, max(n, 1), high):
            height = min(high, n - top)
            for left in range(0, max(m, 1), wide):
                width = min(wide, m - left)
                tile = [
                    t
                    if kind == "shared"
                    else t.narrow(dim, *((top, height) if kind == "row" else (left, width)))
                    for t, kind, dim in zip(tensors, self.kinds, self.dims, strict=True)
                ]
                parts = self.function(*tile, offset=top - left)
                for k, (kind, dim, part) in enumerate(
                    zip(self.outputs, self.output_dims, parts, strict=True)
                ):
                    extent, start = (n, top) if kind == "row" else (m, left)
                    totals[k] = _add(totals[k], part, None if kind == "shared" else dim, extent, start)
        return tuple(totals)  # type: ignore[arg-type]


def _add(total: Tensor | None, part: Tensor, dim: int | None, extent: int, start: int) -> Tensor:
    """Add a tile's part of an output where it belongs; the first part makes room for the rest."""
    if dim is None:
        return part.clone() if total is None else total.add_(part)
    if total is None:
        if part.shape[dim] == extent:
            return part.clone()
        shape = list(part.shape)
        shape[dim] = extent
        total = part.new_zeros(shape)
    total.narrow(dim, start, part.shape[dim]).add_(part)
    return total


class _Sum(Function):
    @staticmethod
    def forward(plan: _Plan, *tensors: Tensor) -> tuple[Tensor, ...]:
        return plan.run(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.plan = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        plan, k = ctx.plan, len(ctx.plan.kinds)
        wanted = [i for i in range(k) if ctx.needs_input_grad[i + 1]]

        def pulled(*values: Tensor, offset: int) -> tuple[Tensor, ...]:
            tile = functools.partial(plan.function, offset=offset)
            return pull_back(tile, values[:k], wanted, tuple(values[k:]))

        found = _Sum.apply(
            _derived(plan, pulled, plan.outputs, plan.output_dims, wanted),
            *ctx.saved_tensors,
            *grad_outputs,
        )
        grads: list[Any] = [None] * (k + 1)
        for i, grad in zip(wanted, found, strict=True):  # type: ignore[arg-type]
            grads[i + 1] = grad
        return tuple(grads)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        plan, k = ctx.plan, len(ctx.plan.kinds)
        moved = [i for i in range(k) if grad_inputs[i + 1] is not None]

        def pushed(*values: Tensor, offset: int) -> tuple[Tensor, ...]:
            tile = functools.partial(plan.function, offset=offset)
            return push_forward(tile, values[:k], moved, values[k:])

        return _Sum.apply(
            replace(
                _derived(
                    plan,
                    pushed,
                    tuple(plan.kinds[i] for i in moved),
                    tuple(plan.dims[i] for i in moved),
                    moved,
                ),
                outputs=plan.outputs,
                output_dims=plan.output_dims,
            ),
            *ctx.saved_tensors,
            *[grad_inputs[i + 1] for i in moved],
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        plan, *tensors = args
        where = in_dims[1:]
        front = [t if dim is None else t.movedim(dim, 0) for t, dim in zip(tensors, where, strict=True)]
        batched = [None if dim is None else 0 for dim in where]

        def mapped(*values: Tensor, offset: int) -> tuple[Tensor, ...]:
            return torch.vmap(functools.partial(plan.function, offset=offset), in_dims=tuple(batched))(
                *values
            )

        over_all = replace(
            plan,
            function=mapped,
            dims=tuple(old + (b is not None) for old, b in zip(plan.dims, batched, strict=True)),
            output_dims=tuple(dim + 1 for dim in plan.output_dims),
            bytes_per_pair=plan.bytes_per_pair * info.batch_size,
            fast=None,
        )
        return _Sum.apply(over_all, *front), (0,) * len(plan.outputs)


def _derived(
    plan: _Plan, function: Any, kinds: tuple[Kind, ...], dims: tuple[int, ...], wanted: Sequence[int]
) -> _Plan:
    """The plan of a derivative: further inputs, outputs like the inputs `wanted`, four times the temporaries."""
    return replace(
        plan,
        function=function,
        kinds=plan.kinds + kinds,
        dims=plan.dims + dims,
        outputs=tuple(plan.kinds[i] for i in wanted),
        output_dims=tuple(plan.dims[i] for i in wanted),
        bytes_per_pair=4 * plan.bytes_per_pair,
        fast=None,
    )
