r"""What is computed for every pair of samples, and what its derivatives are.

For a group of rows :math:`x_1 \dots x_n` and :math:`y_1 \dots y_m`,

.. math:: M = \frac{1}{N_x}\sum_{i,i'} k(x_i,x_{i'}) + \frac{1}{N_y}\sum_{j,j'} k(y_j,y_{j'})
              - \frac{2}{nm}\sum_{i,j} k(x_i,y_j),

a number: its gradient is known up to the factor that comes back from what is done with M, and is computed along with
it (`_mmd_pass`). Derivatives of higher order, forward mode and vmap go through the definition, a sum over tiles.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.forward_ad import unpack_dual

from ._mmd_batches import Batch, Counts, batches, group_of_row
from ._mmd_pass import USUAL, Pass, Rows
from ._pairs import diagonal_length, set_diagonal
from ._recompute import pull_back, recomputed_tangent
from ._tiled import budget_of, sum_over_tiles
from .radial import RadialKernel


@dataclass(frozen=True)
class Sums:
    """M of every group.

    Parameters
    ----------
    kernel : RadialKernel
    counts : Counts
        Sizes of the groups; their rows follow one another.
    biased : bool
        Count pairs of a row with itself: :math:`N_x = n^2`. Otherwise leave them out: :math:`N_x = n(n-1)`.
    memory_budget : int, optional
        Bytes for the temporaries of tiles.
    """

    kernel: RadialKernel
    counts: Counts
    biased: bool
    memory_budget: int | None

    def values(self, x: Tensor, y: Tensor, *parameters: Tensor) -> Tensor:
        """M, shape (C,), float64."""
        return self.values_and_gradients((False,) * (2 + len(parameters)), x, y, *parameters)[0]

    def values_and_gradients(
        self, wanted: tuple[bool, ...], x: Tensor, y: Tensor, *parameters: Tensor
    ) -> tuple[Tensor, list[Tensor | None]]:
        """M, and its gradients in those of x, y and the parameters that are `wanted`.

        Gradients in rows have the shape of the rows, those in parameters the shape of M.
        """
        values = x.new_zeros(len(self.counts[0]), dtype=torch.float64)
        like = (x, y, *(x.new_zeros(len(values)) for _ in parameters))
        gradients = [torch.zeros_like(t) if w else None for t, w in zip(like, wanted, strict=True)]
        for batch, pairs in self._batches(x, 4 if any(wanted) else 1):
            groups = torch.tensor(batch.groups, device=x.device)
            left = Rows.of(batch.x.take(x), batch.x.weights, wanted[0])
            right = Rows.of(batch.y.take(y), batch.y.weights, wanted[1])
            over = Pass(self.kernel, parameters, wanted[2:], not self.biased, pairs, len(groups))
            n_x, n_y, n_xy = self._divisors(batch.x.count, batch.y.count)
            values[groups] = (
                over.sum(left, left, n_x) + over.sum(right, right, n_y) + over.sum(left, right, n_xy)
            )
            for total, side, rows in zip(gradients[:2], (batch.x, batch.y), (left, right), strict=True):
                part = rows.gradient(self.kernel.metric)
                if total is not None and part is not None:
                    total.index_add_(0, side.rows, part.flatten(0, 1))
            for total, part in zip(gradients[2:], over.gradients, strict=True):
                if total is not None and part is not None:
                    total[groups] = part.flatten()
        return values, gradients

    def definition(self, x: Tensor, y: Tensor, *parameters: Tensor) -> Tensor:
        """M, differentiable to any order, in forward mode and under vmap, from all tiles of all three sums."""
        dims = (0, 0, 0, 0, *[None] * len(parameters))
        found, order = [], []
        for batch, _ in self._batches(x, 1):
            sides = (batch.x.take(x), batch.x.weights, batch.y.take(y), batch.y.weights)
            found.append(torch.vmap(self._group, in_dims=dims)(*sides, *parameters))
            order += batch.groups
        return torch.cat(found)[torch.tensor(order, device=x.device).argsort()]

    def _batches(self, x: Tensor, temporaries: int) -> Iterator[tuple[Batch, int]]:
        """Batches, and how many pairs of rows a tile of each of their groups may have."""
        budget = budget_of(self.memory_budget, x.device)
        pairs = budget // (x.element_size() * self.kernel.temporaries * temporaries)
        for batch in batches(self.counts, x, pairs, USUAL):
            yield batch, pairs // len(batch.groups)

    def _divisors(self, n: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        left_out = 0 if self.biased else 1
        return n * (n - left_out), m * (m - left_out), n * m / -2

    def _group(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor, *parameters: Tensor) -> Tensor:
        X, Y = (x, u), (y, v)
        divisors = self._divisors(u.sum(dtype=torch.float64), v.sum(dtype=torch.float64))
        total = torch.zeros_like(divisors[0])
        for left, right, divisor in zip((X, Y, X), (X, Y, Y), divisors, strict=True):
            (part,) = sum_over_tiles(
                partial(self._tile, left_out=left is right and not self.biased),
                left,
                right,
                parameters,
                ("shared",),
                bytes_per_pair=x.element_size() * self.kernel.temporaries,
                memory_budget=self.memory_budget,
            )
            total = total + part / divisor
        return total

    def _tile(
        self, a: Tensor, u: Tensor, b: Tensor, v: Tensor, *parameters: Tensor, offset: int, left_out: bool
    ) -> tuple[Tensor]:
        s = self.kernel.distances(a, b)
        length = diagonal_length(len(a), len(b), offset)
        if length > 0 and self.kernel.metric == "squared":
            difference = a.narrow(0, max(0, -offset), length) - b.narrow(0, max(0, offset), length)
            s = torch.diagonal_scatter(s, difference.square().sum(-1), offset)
        k = self.kernel.profile(s, *parameters)
        if left_out:
            k = set_diagonal(k, 0.0, offset)
        return ((u * (k @ v)).sum(dtype=torch.float64),)


def mmd_with_gradient(sums: Sums, x: Tensor, y: Tensor, *parameters: Tensor) -> Tensor:
    """`Sums.values`, differentiable; the gradient of what requires one is computed in the same pass."""
    tensors = (x, y, *parameters)
    primals = [unpack_dual(t).primal.detach() for t in tensors]
    with torch.no_grad():
        given = sums.values_and_gradients(tuple(t.requires_grad for t in tensors), *primals)
    return _Given.apply(*given, sums, *tensors)  # type: ignore[return-value]


class _Given(Function):
    """Values whose gradient is known; derivatives of it, and forward mode, are those of the definition."""

    @staticmethod
    def forward(values: Tensor, gradients: Any, sums: Sums, *tensors: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.gradients, ctx.sums, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (grad,) = grad_outputs
        result: list[Any] = [None] * len(ctx.needs_input_grad)
        if torch.is_grad_enabled():  # for derivatives of this one
            wanted = [i for i, needed in enumerate(ctx.needs_input_grad[3:]) if needed]
            found = pull_back(ctx.sums.definition, ctx.saved_tensors, wanted, grad)
            for i, gradient in zip(wanted, found, strict=True):
                result[i + 3] = gradient
            return tuple(result)
        for i, gradient in enumerate(ctx.gradients):
            if gradient is None:
                continue
            factor = grad.to(gradient.dtype)
            if i < 2:
                result[i + 3] = gradient * factor[group_of_row(ctx.sums.counts[i], grad.device)][:, None]
            else:
                result[i + 3] = (gradient * factor).sum()
        return tuple(result)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return recomputed_tangent(ctx.sums.definition, ctx.saved_tensors, tangents[3:])
