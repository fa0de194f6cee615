r"""Logarithms of kernel sums, :math:`\ell_i = \log\sum_j w_j\,k(x_i, y_j)`, without storing K and without underflow.

The sum runs over tiles with its largest exponent split off (the streaming log-sum-exp). Its derivatives are those of
:math:`\ell_i = c_i + \log\sum_j \exp(a_{ij} - c_i)` with :math:`c_i` held at the value :math:`\ell_i`: the sum is then
1, and is differentiated tile by tile.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ._check import as_tensor
from ._dispatch import choose, implement
from ._pairs import Distances, check_sum, diagonal_length, like_rows, prepare_pairs, set_diagonal
from ._tiled import budget_of, sum_over_tiles, tile_sides
from .kernel_matmul import sums_rejects
from .radial import RadialKernel


def kernel_logsumexp(
    kernel: RadialKernel,
    X: Any,
    Y: Any = None,
    log_weights: Any = None,
    *,
    leave_one_out: bool = False,
    centre: bool = True,
    precision: str = "high",
    memory_budget: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Logarithm of the weighted row sums of K(X, Y).

    Parameters
    ----------
    kernel : RadialKernel
    X : array of shape (n, d)
    Y : array of shape (m, d), optional
        Default X.
    log_weights : array of shape (m,), optional
        Logarithms of the weights; -inf leaves a term out. Default 0 (weights 1).
    leave_one_out, centre, precision, memory_budget, backend
        As in `kernel_matmul`.

    Returns
    -------
    Tensor, shape (n,)
        Finite however far the points are apart (float32 sums of exponentials vanish beyond s/2σ² = 104); -inf where
        there is no term. Differentiable like `kernel_matmul`.

    Raises
    ------
    ValueError
        As `kernel_matmul`.

    Notes
    -----
    Time as row sums and one exponential more for each tile row; O((n + m) d) memory.
    """
    x, y, same = prepare_pairs(kernel, X, Y, precision, centre)
    check_sum(same, leave_one_out, memory_budget)
    weights: tuple[Tensor, ...] = ()
    if log_weights is not None:
        b = as_tensor(log_weights, "log_weights")
        if b.shape != (y.shape[0],):
            raise ValueError(f"`log_weights` must have shape ({y.shape[0]},), got {tuple(b.shape)}")
        weights = (like_rows(b, x, X, "log_weights"),)
    run = choose("kernel_logsumexp", x, y, kernel, same, precision, backend=backend)
    parameters = kernel.parameters(x)
    options = dict(same=same, leave_one_out=leave_one_out, precision=precision, memory_budget=memory_budget)

    def value_of(x: Tensor, y: Tensor, *rest: Tensor) -> Tensor:
        bound = kernel.with_parameters(*rest[len(weights) :])
        return run(bound, x, x if same else y, rest[0] if weights else None, **options)

    def exponents(x: Tensor, y: Tensor, rest: tuple[Tensor, ...], offset: int) -> Tensor:
        s = kernel.distances(x, y)
        a = kernel.log_profile(set_diagonal(s, 0.0, offset) if same else s, *rest[len(weights) :])
        if weights:
            a = a + rest[0]
        return set_diagonal(a, -torch.inf, offset) if leave_one_out else a

    def shares(x: Tensor, c: Tensor, y: Tensor, *rest: Tensor, offset: int) -> tuple[Tensor, ...]:
        return (torch.exp(exponents(x, y, rest, offset) - c[:, None]).sum(1),)

    inputs = (x, y, *weights, *parameters)
    value = _Constant.apply(value_of, *[t.detach() for t in inputs])
    finite = value.isfinite()
    anchor = torch.where(finite, value, 0)
    (ones,) = sum_over_tiles(
        shares,
        (x, anchor),
        (y, *weights),
        parameters,
        ("row",),
        bytes_per_pair=x.element_size() * (kernel.temporaries + 1),
        memory_budget=memory_budget,
        fast=lambda x, c, *rest: (torch.ones_like(c),),
    )
    change = torch.log(torch.where(finite, ones, 1))
    return value + (change - change.detach())


class _Constant(Function):
    """A value without derivatives that vmap computes one by one (a log-sum-exp is no sum over tiles)."""

    @staticmethod
    def forward(function: Any, *tensors: Tensor) -> Tensor:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        function, *tensors = args

        def entry(b: int) -> list[Tensor]:
            return [
                t if dim is None else t.select(dim, b) for t, dim in zip(tensors, in_dims[1:], strict=True)
            ]

        values = [_Constant.apply(function, *entry(b)) for b in range(info.batch_size)]
        return torch.stack(values), 0  # type: ignore[arg-type]


def _torch(
    kernel: RadialKernel,
    x: Tensor,
    y: Tensor,
    log_weights: Tensor | None,
    *,
    same: bool,
    leave_one_out: bool,
    precision: str,
    memory_budget: int | None,
) -> Tensor:
    n, m = x.shape[0], y.shape[0]
    parameters = kernel.parameters(x)
    distances = Distances(kernel, x, y, precision)
    budget = budget_of(memory_budget, x.device)
    high, wide = tile_sides(n, m, x.element_size() * (kernel.temporaries + 1), budget)
    buffer = x.new_empty(high * wide)
    result = x.new_empty(n)
    for top in range(0, n, high):
        rows = slice(top, min(top + high, n))
        largest = x.new_full((rows.stop - top,), -torch.inf)
        total = torch.zeros_like(largest, dtype=torch.float64)
        for left in range(0, m, wide):
            columns = slice(left, min(left + wide, m))
            height, width = rows.stop - top, columns.stop - left
            s = distances.block(rows, columns, buffer[: height * width].view(height, width))
            crosses = diagonal_length(height, width, top - left) > 0
            if same and crosses:
                s.diagonal(top - left).zero_()
            a = kernel.log_profile(s, *parameters)
            if log_weights is not None:
                a += log_weights[columns]
            if leave_one_out and crosses:
                a.diagonal(top - left).fill_(-torch.inf)
            above = torch.maximum(largest, a.amax(1))
            finite = torch.where(above.isfinite(), above, 0)  # rows without a term so far
            total = total * torch.exp(largest - finite) + a.sub_(finite[:, None]).exp_().sum(1)
            largest = above
        result[rows] = torch.where(largest.isfinite(), largest + torch.log(total), largest)
    return result


implement("kernel_logsumexp", "torch", _torch)
implement("kernel_logsumexp", "triton", "_triton.kernel_logsumexp:kernel_logsumexp", rejects=sums_rejects)
