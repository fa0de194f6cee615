r"""Kernel ridge regression on a distilled set, as a loss: what KIP, RFAD and FRePo differentiate.

.. math:: f(x) = K(x, X_S)\,\alpha,\qquad (K_{SS} + \lambda_S I)\,\alpha = Y_S,\qquad
          \lambda_S = r\,\frac{\operatorname{tr} K_{SS}}{m},\qquad
          L = \tfrac12 \sum_i w_i\, \frac1k \|f(x_i) - y_i\|^2

with :math:`\sum_i w_i = 1`, so that uniform weights give half the mean over rows *and* outputs (Nguyen, Chen and Lee,
ICLR 2021; the normalisation and the trace-scaled r = 1e-6 are those of the published notebook and of RFAD).

**Precision.** :math:`\alpha` is solved in float64. Where :math:`K_{TS}` comes in float32 it is widened before it meets
:math:`\alpha` (that product is k/d of the work of forming the kernel), so that the one error left is the rounding of
its entries: at most :math:`2^{-24} \sum_j |K_{ij}| |\alpha_j|` in :math:`f(x_i)`.

**Derivative.** With :math:`\alpha_0` the solution held constant, :math:`\alpha = \alpha_0 + A^{-1}(Y_S - A \alpha_0)`
is one step of iterative refinement, and its derivative is that of the solution,
:math:`A^{-1}(dY_S - dA\,\alpha_0)`: 2 m² k multiplications, where differentiating the factorisation takes 2 m³.
"""

import torch
from torch import Tensor

from ..targets import Targets


def kernel_ridge(K_SS: Tensor, Y_S: Tensor, ridge: float) -> Tensor:
    """The α of a set with a relative ridge.

    Parameters
    ----------
    K_SS : Tensor, shape (..., m, m), float64
        Symmetric.
    Y_S : Tensor, shape (..., m, k), float64
    ridge : float
        r, relative.

    Returns
    -------
    Tensor, shape (..., m, k), float64
        Differentiable once in both. NaN where the matrix is not positive definite up to rounding: a loop then ends,
        and nothing has been repaired in silence.
    """
    eye = torch.eye(K_SS.shape[-1], dtype=K_SS.dtype, device=K_SS.device)
    system = K_SS + absolute_ridge(K_SS, ridge)[..., None, None] * eye
    with torch.no_grad():
        factor, failed = torch.linalg.cholesky_ex(system)
        first = torch.cholesky_solve(Y_S, factor)
    solved = first + torch.cholesky_solve(Y_S - system @ first, factor)
    return torch.where(failed[..., None, None] > 0, torch.nan, solved)


def absolute_ridge(K_SS: Tensor, ridge: float) -> Tensor:
    """λ_S of a set with this kernel matrix (..., m, m): `ridge` times the mean of its diagonal."""
    return ridge * K_SS.diagonal(dim1=-2, dim2=-1).mean(dim=-1)


def row_losses(predictions: Tensor, Y_T: Tensor) -> Tensor:
    """Half the mean square over outputs of each row's residual, shape (b,)."""
    return (predictions - Y_T).square().mean(dim=-1) / 2


def prediction_figures(targets: Targets, predictions: Tensor, Y_T: Tensor) -> dict[str, float]:
    """What a set's predictions on rows amount to.

    Parameters
    ----------
    targets : Targets
    predictions, Y_T : Tensor, shape (n, k), float64

    Returns
    -------
    dict
        "loss", and "score": the accuracy, or R² (averaged over outputs) for regression, NaN where an output
        is the same in all rows.
    """
    loss = float(row_losses(predictions, Y_T).mean())
    if targets.is_classes:
        return {
            "loss": loss,
            "score": float((predictions.argmax(dim=1) == Y_T.argmax(dim=1)).double().mean()),
        }
    rest = (predictions - Y_T).square().sum(dim=0)
    spread = (Y_T - Y_T.mean(dim=0)).square().sum(dim=0)
    return {
        "loss": loss,
        "score": float((1 - rest / torch.where(spread > 0, spread, torch.nan)).mean()),
    }
