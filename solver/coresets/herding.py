r"""Rows whose mean is that of all: herding, in the space of the rows or in that of a kernel.

With features :math:`\varphi` and their mean :math:`\mu`, the next row is the one that brings the mean of the chosen
rows nearest to :math:`\mu`:

.. math:: \arg\min_i \Bigl\| t\mu - \sum_{s<t} \varphi(x_s) - \varphi(x_i) \Bigr\|^2
          = \arg\min_i \; k(x_i, x_i) + 2 \sum_{s<t} k(x_i, x_s) - 2 t\, \mu(x_i),
          \qquad \mu(x) = \tfrac1n \sum_j k(x, x_j),

over the rows that are left; of equals, the one of the smallest index. Divided by :math:`t^2` this is the squared mean
discrepancy of the chosen rows and all rows. With a linear kernel it is herding as used for exemplars (Welling, ICML
2009; Rebuffi et al., CVPR 2017, algorithm 4); a published library takes the arg*max*, which chooses outliers. With a
radial kernel, k(x, x) is a constant and this is kernel herding (Chen, Welling & Smola, UAI 2010).

Nothing of size n x n is stored: sums over the chosen rows grow by one column of the kernel a choice.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels import kernel_matrix, kernel_row_sums
from ...kernels.radial import RadialKernel
from .choice import Choice
from .radial import radial_kernel


def herding(X: Tensor, m: int, seed: int) -> Choice:
    """Choose m rows whose mean follows that of all; n d m products, and one copy of the rows. Uses no seed."""
    del seed
    # About the mean of all rows, t mu vanishes and what is left does not cancel.
    centred = X - X.double().mean(dim=0).to(X)
    norms = torch.linalg.vector_norm(centred, dim=1).square()
    if not torch.isfinite(norms.sum()):
        raise ValueError("squares of the rows overflow: scale X down, or pass float64")
    norms = norms.double()
    return _greedy(norms, torch.zeros_like(norms), m, lambda i: centred @ centred[i])


def kernel_herding(
    X: Tensor,
    m: int,
    seed: int,
    *,
    kernel: str | RadialKernel = "gaussian",
    bandwidth: str | float = "median",
) -> Choice:
    """Choose m rows whose kernel mean follows that of all; n² kernel values once, then n a choice.

    `kernel` and `bandwidth` as for "kernel-density"; the seed draws the rows of the median bandwidth.
    """
    function, notes = radial_kernel(kernel, bandwidth, X, seed)
    mean = kernel_row_sums(function, X).double() / len(X)
    moved = X - X[: 2**10].median(dim=0).values  # distances of rows near the origin round less
    chosen = _greedy(
        torch.zeros_like(mean),
        mean,
        m,
        lambda i: kernel_matrix(function, moved, moved[i : i + 1], centre=False)[:, 0],
    )
    return chosen._replace(notes=notes)


def _greedy(own: Tensor, mean: Tensor, m: int, column: Callable[[int], Tensor]) -> Choice:
    """The m choices for k(x_i, x_i), mu(x_i) and columns of k; of the first, up to a constant."""
    score = own.clone()
    chosen = []
    for _ in range(m):
        score -= 2 * mean
        best = int(score.argmin())
        chosen.append(best)
        score += 2 * column(best)
        score[best] = torch.inf
    weights = torch.full((m,), len(own) / m, dtype=torch.float64, device=own.device)
    return Choice(torch.tensor(chosen, dtype=torch.int64, device=own.device), weights)
