r"""Label Solve: the best labels of given points over all training rows, in closed form.

With :math:`K_{TS}` (n, m) the kernel between training rows and points, predictions are :math:`K_{TS}\alpha`.
Labels reach every :math:`\alpha`, by :math:`Y_S = (K_{SS} + \lambda_S I)\,\alpha` whatever :math:`\lambda_S` is,
so the best ones are

.. math:: \hat\alpha = K_{TS}^{+} Y_T,

and predictions are the orthogonal projection of :math:`Y_T` on the range of :math:`K_{TS}`. Nguyen, Chen and Lee
(ICLR 2021, and their published notebook) solve
:math:`(K_{ST}K_{TS} + \tfrac{r}{m} I)\,\alpha = K_{ST}Y_T`, which squares the condition number. Here the triangle of
:math:`[K_{TS}, Y_T] = QR` is accumulated over pieces of rows, and the singular values of its first m columns decide
what is kept.
"""

import dataclasses
import math

import torch
from torch import Tensor

from ..kernel_functions import KernelFunction
from .kernel_ridge import absolute_ridge
from .rows import TrainingRows

# Share of the largest singular value of K_TS below which a direction is left out. Using it would multiply the rounding
# of whoever evaluates the kernel in float32 by more than one.
_TOLERANCE = 1e-7
# Added to the normal equations of a batch, whose diagonal is one: above their rounding for points that coincide.
_JITTER = 1e-10


@dataclasses.dataclass(frozen=True)
class SolvedLabels:
    """What `solve_labels` found.

    Attributes
    ----------
    labels : Tensor, shape (m, k), float64
    coefficients : Tensor, shape (m, k), float64
        α.
    loss : float
        Half the mean square of the residuals over all training rows and outputs.
    rank : int
        Directions kept, of m.
    lost : float
        No labels lower `loss` by more: what the directions left out could add at most.
    """

    labels: Tensor
    coefficients: Tensor
    loss: float
    rank: int
    lost: float


def solve_labels(
    rows: TrainingRows, kernel: KernelFunction, points: Tensor, *, ridge: float = 1e-6
) -> SolvedLabels:
    """Labels for which the set's predictions are the best that its points can give.

    Parameters
    ----------
    rows : TrainingRows
        All n training rows are used; those held out are not.
    kernel : KernelFunction
    points : Tensor, shape (m, *input_shape)
        Transformed.
    ridge : float, default 1e-6
        Relative: λ_S is that times the mean of the diagonal of K_SS. It changes the labels, not the predictions.

    Returns
    -------
    SolvedLabels
        All NaN where kernel values are not finite: a loop then ends as diverged.

    Notes
    -----
    n m kernel values in float64, n m² (1 + m/c) multiplications for the triangle with pieces of c rows, 20 m³ at the
    end; memory for one piece of rows and a few matrices (m, m).
    """
    points = points.double()
    m = len(points)
    triangle = torch.empty(0, m + rows.targets.n_outputs, dtype=torch.float64, device=points.device)
    for _, X, Y in rows.chunks():
        piece = torch.cat([kernel.matrix(X.double(), points), Y], dim=1)
        triangle = torch.linalg.qr(torch.cat([triangle, piece]), mode="r").R
    if not torch.isfinite(triangle).all():
        nothing = torch.full(
            (m, rows.targets.n_outputs), torch.nan, dtype=torch.float64, device=points.device
        )
        return SolvedLabels(nothing, nothing, loss=math.nan, rank=0, lost=math.nan)
    U, S, Vh = torch.linalg.svd(triangle[:m, :m], full_matrices=False)
    rank = int((_TOLERANCE * S[0] < S).sum())
    target = U.T @ triangle[:m, m:]
    coefficients = Vh[:rank].T @ (target[:rank] / S[:rank, None])
    per_value = 0.5 / (rows.n * rows.targets.n_outputs)
    K_SS = kernel.matrix(points)
    return SolvedLabels(
        labels=K_SS @ coefficients + absolute_ridge(K_SS, ridge) * coefficients,
        coefficients=coefficients,
        loss=per_value * float((triangle[:, m:] - triangle[:, :m] @ coefficients).square().sum()),
        rank=rank,
        lost=per_value * float(target[rank:].square().sum()),
    )


def solve_batch(K_TS: Tensor, Y_T: Tensor, weights: Tensor) -> Tensor:
    r"""The α (m, k) that fits a batch best: of :math:`\sum_i w_i \|K_i \alpha - y_i\|^2`, up to a jitter.

    Parameters
    ----------
    K_TS : Tensor, shape (b, m), float32 or float64
    Y_T : Tensor, shape (b, k), float64
    weights : Tensor, shape (b,), float64

    Returns
    -------
    Tensor, shape (m, k), float64
        Without derivative: that of the least loss is the one for constant α (envelope theorem). NaN if values in
        the arguments are not finite.

    Notes
    -----
    b m² + m³/3 multiplications. The normal equations, scaled to a diagonal of one: what they lose beside `solve_labels`
    is beside what a batch leaves open.
    """
    with torch.no_grad():
        K = K_TS.double()
        weighted = weights[:, None] * K
        system = weighted.T @ K
        scale = system.diagonal().clamp_min(torch.finfo(K.dtype).tiny).rsqrt()
        system = scale[:, None] * system * scale
        system.diagonal().add_(_JITTER)
        factor, failed = torch.linalg.cholesky_ex(system)
        solved = scale[:, None] * torch.cholesky_solve(scale[:, None] * (weighted.T @ Y_T), factor)
        return torch.where(failed > 0, torch.nan, solved)
