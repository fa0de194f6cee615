r"""Kernel matrices :math:`K_{ij} = k(x_i, y_j)` and squared distances.

Distances come from one matrix product, :math:`\|x-y\|^2 = \|x\|^2 + \|y\|^2 - 2x\cdot y`, on centred rows (the
cancellation in this sum is what makes float32 distances of uncentred pixels inaccurate). For Y = X only the blocks on
and above the diagonal are formed: the result is exactly symmetric, and its diagonal exactly k(0).
"""

from typing import Any

import torch
from torch import Tensor

from ._dispatch import choose, compute_capability, implement
from ._pairs import Distances, prepare_pairs, set_diagonal
from ._recompute import recomputed
from ._tiled import budget_of
from .radial import RadialKernel, SquaredDistance
from .statistics import mirror_upper_


def kernel_matrix(
    kernel: RadialKernel,
    X: Any,
    Y: Any = None,
    *,
    centre: bool = True,
    precision: str = "high",
    psd_safe: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Kernel matrix of two sets of rows.

    Parameters
    ----------
    kernel : RadialKernel
        From `kernels.radial`, such as ``Gaussian(2.0)``; a bandwidth given as a tensor is differentiated.
    X : array of shape (n, d)
    Y : array of shape (m, d), optional
        Default X: the matrix is then exactly symmetric with an exact diagonal, at half the work.
    centre : bool, default True
        Subtract the median of Y from all rows first. Costs a copy; turn off for rows that are centred.
    precision : {"exact", "high", "medium", "low"}, default "high"
        See `kernels._precision`. On a CPU all but "exact" are the dtype of the data.
    psd_safe : bool, default False
        Take norms of the rounded rows, so that a matrix of a narrow precision is the kernel matrix of slightly
        moved points. For whatever meets a Cholesky; sums are more accurate without. No effect on a CPU.
    backend : {"torch", "triton"}, optional

    Returns
    -------
    Tensor, shape (n, m)
        float64 for "exact" and for float64 rows, otherwise float32. Differentiable in X, Y and the kernel's numbers:
        backward, forward mode, second derivatives and vmap (recomputed; K itself is not kept).

    Raises
    ------
    ValueError
        If shapes, dtypes or devices do not agree, an option is unknown, or the named backend cannot do it.

    Notes
    -----
    2 n m d operations (half for Y = X) and the result's memory; a GPU adds nothing, a CPU one block of rows.
    Float32 error of Gaussian values: about :math:`10^{-7}(1 + \|x\|^2/\sigma^2)` with centred rows; of a Matern-1/2
    near zero distance, its root. A row with NaN gives NaN in its own entries (off the diagonal for Y = X).
    """
    x, y, same = prepare_pairs(kernel, X, Y, precision, centre)
    parameters = kernel.parameters(x)
    run = choose("kernel_matrix", x, y, kernel, same, precision, backend=backend)
    points = (x,) if same else (x, y)

    def fast(*tensors: Tensor) -> Tensor:
        bound = kernel.with_parameters(*tensors[len(points) :])
        return run(
            bound, tensors[0], tensors[len(points) - 1], same=same, precision=precision, psd_safe=psd_safe
        )

    def definition(*tensors: Tensor) -> Tensor:
        s = kernel.distances(tensors[0], tensors[len(points) - 1])
        return kernel.profile(set_diagonal(s, 0.0, 0) if same else s, *tensors[len(points) :])

    return recomputed(fast, definition, *points, *parameters)


def squared_distances(
    X: Any,
    Y: Any = None,
    *,
    centre: bool = True,
    precision: str = "high",
    psd_safe: bool = False,
    backend: str | None = None,
) -> Tensor:
    """Squared Euclidean distances of two sets of rows, shape (n, m); arguments as in `kernel_matrix`.

    Not negative; with Y = X exactly symmetric, and zero on the diagonal.
    """
    return kernel_matrix(
        SquaredDistance(), X, Y, centre=centre, precision=precision, psd_safe=psd_safe, backend=backend
    )


def _torch(
    kernel: RadialKernel, x: Tensor, y: Tensor, *, same: bool, precision: str, psd_safe: bool
) -> Tensor:
    n, m = x.shape[0], y.shape[0]
    parameters = kernel.parameters(x)
    distances = Distances(kernel, x, y, precision, psd_safe)
    K = x.new_empty(n, m)
    budget = budget_of(None, x.device)
    high = max(1, min(n, budget // (K.element_size() * kernel.temporaries * max(1, m))))
    for top in range(0, n, high):
        rows = slice(top, min(top + high, n))
        columns = slice(top if same else 0, m)
        s = distances.block(rows, columns, K[rows, columns])
        if same:
            s.diagonal().zero_()
        k = kernel.profile_(s, *parameters)
        if k is not s:
            s.copy_(k)
    return mirror_upper_(K) if same else K


def triton_rejects(x: Tensor, y: Tensor, kernel: RadialKernel, same: bool, precision: str) -> str | None:
    """Why Triton cannot form these pairs."""
    if kernel.metric == "manhattan":
        return "of 1-norm distances has no matrix product to fuse with"
    if x.device.type == "cuda" and compute_capability(x.device) < (8, 0):
        return "needs compute capability 8.0"
    if x.dtype == torch.float64:
        return "in float64 runs in torch: tensor cores have no use for it here"
    return None


implement("kernel_matrix", "torch", _torch)
implement("kernel_matrix", "triton", "_triton.kernel_matrix:kernel_matrix", rejects=triton_rejects)
