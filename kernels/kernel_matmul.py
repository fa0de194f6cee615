r"""Products :math:`K(X, Y)\,V` and row sums :math:`K(X, Y)\,1`, without ever storing K.

The matrix is formed tile by tile within a byte budget and consumed where it stands; sums over tiles are kept in
float64. For Y = X each tile off the diagonal serves its mirror image too, at half the work.
"""

from typing import Any

import torch
from torch import Tensor

from ._check import as_tensor
from ._dispatch import choose, implement
from ._pairs import Distances, check_sum, like_rows, prepare_pairs, set_diagonal
from ._thresholds import MOST_COLUMNS
from ._tiled import budget_of, sum_over_tiles, tile_sides
from .kernel_matrix import triton_rejects
from .radial import RadialKernel


def kernel_matmul(
    kernel: RadialKernel,
    X: Any,
    Y: Any,
    V: Any,
    *,
    leave_one_out: bool = False,
    centre: bool = True,
    precision: str = "high",
    memory_budget: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """``K(X, Y) @ V`` without storing K.

    Parameters
    ----------
    kernel : RadialKernel
    X : array of shape (n, d)
    Y : array of shape (m, d), or None
        None means X itself, at half the work.
    V : array of shape (m, t) or (m,)
    leave_one_out : bool, default False
        Leave out the terms i = j, by masking them (subtracting k(0) v_i afterwards would cancel). Needs ``Y=None``.
    centre, precision, backend
        As in `kernel_matrix`.
    memory_budget : int, optional
        Bytes that temporaries may take beyond copies of the arguments and the result; default 32 MiB on a CPU (about
        its last-level cache) and 512 MiB on a GPU.

    Returns
    -------
    Tensor, shape (n, t) or (n,)
        Differentiable in X, Y, V and the kernel's numbers, to any order, in forward mode and under vmap; derivatives
        run over the same tiles and store no (n, m) array either.

    Raises
    ------
    ValueError
        If shapes, dtypes or devices do not agree, or `leave_one_out` is asked for with a Y.

    Notes
    -----
    2 n m (d + t) operations (half for ``Y=None``) and O((n + m)(d + t)) memory.
    """
    x, y, same = prepare_pairs(kernel, X, Y, precision, centre)
    v = as_tensor(V, "V")
    if v.ndim not in (1, 2) or v.shape[0] != y.shape[0]:
        raise ValueError(
            f"`V` must be ({y.shape[0]}, t) or ({y.shape[0]},), a row for each row of"
            f" `{'X' if same else 'Y'}`, got {tuple(v.shape)}"
        )
    v = like_rows(v, x, X, "V")
    columns = v if v.ndim == 2 else v[:, None]
    product = _product(kernel, x, y, columns, same, leave_one_out, precision, memory_budget, backend)
    return product if v.ndim == 2 else product[:, 0]


def kernel_row_sums(
    kernel: RadialKernel,
    X: Any,
    Y: Any = None,
    *,
    leave_one_out: bool = False,
    centre: bool = True,
    precision: str = "high",
    memory_budget: int | None = None,
    backend: str | None = None,
) -> Tensor:
    """Row sums of K(X, Y), shape (n,): `kernel_matmul` with a column of ones, without its product.

    A kernel density estimate is this divided by the number of terms and the kernel's integral.
    """
    x, y, same = prepare_pairs(kernel, X, Y, precision, centre)
    return _product(kernel, x, y, None, same, leave_one_out, precision, memory_budget, backend)[:, 0]


def _product(
    kernel: RadialKernel,
    x: Tensor,
    y: Tensor,
    v: Tensor | None,
    same: bool,
    leave_one_out: bool,
    precision: str,
    memory_budget: int | None,
    backend: str | None,
) -> Tensor:
    check_sum(same, leave_one_out, memory_budget)
    run = choose("kernel_matmul", x, y, kernel, same, precision, v, backend=backend)
    parameters = kernel.parameters(x)
    given = () if v is None else (v,)

    def fast(x: Tensor, y: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        bound = kernel.with_parameters(*rest[len(given) :])
        return (
            run(
                bound,
                x,
                x if same else y,
                rest[0] if given else None,
                same=same,
                leave_one_out=leave_one_out,
                precision=precision,
                memory_budget=memory_budget,
            ),
        )

    def tile(x: Tensor, y: Tensor, *rest: Tensor, offset: int) -> tuple[Tensor, ...]:
        s = kernel.distances(x, y)
        k = kernel.profile(set_diagonal(s, 0.0, offset) if same else s, *rest[len(given) :])
        if leave_one_out:
            k = set_diagonal(k, 0.0, offset)
        return (k @ rest[0] if given else k.sum(1, keepdim=True),)

    (product,) = sum_over_tiles(
        tile,
        (x,),
        (y, *given),
        parameters,
        ("row",),
        bytes_per_pair=x.element_size() * kernel.temporaries,
        memory_budget=memory_budget,
        fast=fast,
    )
    return product


def _torch(
    kernel: RadialKernel,
    x: Tensor,
    y: Tensor,
    v: Tensor | None,
    *,
    same: bool,
    leave_one_out: bool,
    precision: str,
    memory_budget: int | None,
) -> Tensor:
    n, m = x.shape[0], y.shape[0]
    parameters = kernel.parameters(x)
    distances = Distances(kernel, x, y, precision)
    total = x.new_zeros((n, 1 if v is None else v.shape[1]), dtype=torch.float64)
    budget = budget_of(memory_budget, x.device)
    high, wide = tile_sides(n, m, x.element_size() * kernel.temporaries, budget)
    if same:
        high = wide = min(high, wide)
    buffer = x.new_empty(high * wide)
    for top in range(0, n, high):
        rows = slice(top, min(top + high, n))
        for left in range(top if same else 0, m, wide):
            columns = slice(left, min(left + wide, m))
            height, width = rows.stop - top, columns.stop - left
            s = distances.block(rows, columns, buffer[: height * width].view(height, width))
            on_diagonal = same and left == top
            if on_diagonal:
                s.diagonal().zero_()
            k = kernel.profile_(s, *parameters)
            if on_diagonal and leave_one_out:
                k.diagonal().zero_()
            total[rows] += k.sum(1, keepdim=True) if v is None else k @ v[columns]
            if same and not on_diagonal:
                total[columns] += k.sum(0)[:, None] if v is None else k.T @ v[rows]
    return total.to(x.dtype)


def sums_rejects(
    x: Tensor, y: Tensor, kernel: RadialKernel, same: bool, precision: str, *rest: Any
) -> str | None:
    """Why Triton cannot sum over these pairs."""
    if kernel.name == "squared":
        return "of distances, which do not vanish past the last column, is done in torch"
    return triton_rejects(x, y, kernel, same, precision)


def _slower(
    x: Tensor, y: Tensor, kernel: RadialKernel, same: bool, precision: str, v: Tensor | None
) -> str | None:
    if v is not None and v.shape[1] > MOST_COLUMNS:
        return f"of more than {MOST_COLUMNS} columns would form K again for every 64 of them"
    return None


implement("kernel_matmul", "torch", _torch)
implement(
    "kernel_matmul", "triton", "_triton.kernel_matmul:kernel_matmul", rejects=sums_rejects, slower=_slower
)
