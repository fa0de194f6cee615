r"""The ridge loss over all n training rows, of any model and of any set of points, at a cost independent of n.

With G = ΦᵀΦ, B = ΦᵀY and M = G + λI (features and targets about their means where there is an intercept), the
loss of a model (W, b) in KIP's units, the mean over rows and over the k outputs (Nguyen et al., ICLR 2021), is

.. math:: L(W, b) = \tfrac{1}{2nk} \bigl(\|Y - \Phi W - 1 b^\top\|^2 + \lambda \|W\|^2\bigr), \qquad
          \|Y - \Phi W\|^2 = \operatorname{tr}(W^\top G W) - 2 \operatorname{tr}(W^\top B) + \|Y\|^2 ,

with the λ of the full model (KIP has λ = 0). The full model W* minimises it, MW* = B, so that

.. math:: L(W, b) - L(W^*, b^*) = \tfrac{1}{2nk} \bigl(\|W - W^*\|_M^2 + n \|b - b^*(W)\|^2\bigr), \qquad
          b^*(W) = \bar y - \bar\varphi W .

Learners minimise the *relative excess*, this difference over :math:`\tfrac{1}{2nk} \|W^*\|_M^2`: 0 where the set
gives the full model, 1 for a set that predicts nothing, the same in any units of targets, and a sum of squares,
so that small values keep their digits.

**Labels eliminated.** For points with (centred) features C (m, p) the best model is W = CᵀA with
:math:`A = (C M C^\top)^{-1} C M W^*`. As A minimises, the derivative with respect to C is that for constant A
(envelope theorem): one product M Cᵀ serves loss and derivative.

**Labels given.** The model is the set's own ridge regression, W = Cᵀ(CCᵀ + λ_S)⁻¹(Y_S - mean) with
λ_S = r tr(CCᵀ)/m, and the derivative goes through it; one product M W.
"""

import torch
from torch import Tensor

from ..fit import FullModel
from .kernel_ridge import absolute_ridge, kernel_ridge

# Added, times m, to the system of A, whose diagonal is scaled to one: points that are copies of each other leave
# it singular, and eigenvalues below zero by rounding (of 2 m eps at most, for 2 to 500 points and 4096 features).
_JITTER = 32 * torch.finfo(torch.float64).eps


class FullLoss:
    """The loss over the data behind a full model.

    Parameters
    ----------
    full : FullModel

    Attributes
    ----------
    unit : float
        Loss of one unit of relative excess.
    least : float
        Loss of the full model.

    Raises
    ------
    ValueError
        If the full model has no weights: there is nothing that points could reproduce.
    """

    def __init__(self, full: FullModel) -> None:
        self._data, self._ridge, self._intercept = full.data, full.ridge, full.intercept
        self._W = full.model.weights
        self._MW = self._metric(self._W.T).T
        self._whole = float((self._W * self._MW).sum())
        if not self._whole > 0:
            raise ValueError(
                "the full model has no weights (targets do not depend on the features): there is nothing to learn"
                " points for"
            )
        self._per_value = 0.5 / (full.data.weight * self._W.shape[1])
        self.unit = self._per_value * self._whole
        self.least = self.of_model(self._W, full.model.bias)

    def of_model(self, W: Tensor, bias: Tensor, *, ridge: float | None = None) -> float:
        """Loss of any model (p, k), (k,), from G, B and the sum of squares; `ridge=0` gives KIP's own loss.

        Notes
        -----
        k p² multiplications. Differs from the sum over all rows by rounding alone, about 1e-16 of the mean
        square of targets and predictions.
        """
        ridge = self._ridge if ridge is None else ridge
        product = self._data.gram_times(W.T).T
        total = (W * (product - 2 * self._data.cross)).sum() + self._data.target_square.sum()
        total = total + self._data.weight * self._offset(W, bias).square().sum() + ridge * W.square().sum()
        return self._per_value * float(total)

    def solved(self, F: Tensor) -> Tensor:
        """Relative excess of points with features F (m, p), float64, under the best labels; differentiable.

        Notes
        -----
        m p² + m² p multiplications. At most the jitter above the exact value, and of the span of F alone.
        """
        C = self._centred(F)
        A, MC, rest = self._best_labels(C.detach())
        return (_square(C.T @ A - self._W, MC.T @ A - self._MW) + rest) / self._whole

    def given(self, F: Tensor, Y: Tensor, ridge: float) -> Tensor:
        """Relative excess of the model trained on features F (m, p) and labels Y (m, k); differentiable in both.

        `ridge` is relative: λ_S is that times the mean of the diagonal of the (centred) kernel matrix.

        Notes
        -----
        k p² + 2 m² p multiplications and a Cholesky factorisation of (m, m).
        """
        W, bias = self.given_model(F, Y, ridge)
        excess = _square(W - self._W, self._metric(W.detach().T).T - self._MW)
        return (excess + self._data.weight * self._offset(W, bias).square().sum()) / self._whole

    def given_model(self, F: Tensor, Y: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """The model (p, k), (k,) trained on features F and labels Y with a relative ridge; differentiable."""
        C, mean = self._centred(F), Y.mean(dim=0) if self._intercept else torch.zeros_like(Y[0])
        W = C.T @ kernel_ridge(C @ C.T, Y - mean, ridge)
        return W, mean - F.mean(dim=0) @ W if self._intercept else mean

    def absolute_ridge(self, F: Tensor, ridge: float) -> Tensor:
        """λ_S of a set with features F and a relative ridge, of the centred kernel matrix with an intercept."""
        C = self._centred(F)
        return absolute_ridge(C @ C.T, ridge)

    def _best_labels(self, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A (m, k), C M (m, p), and what the jitter adds to the excess."""
        MC = self._metric(C)
        system = C @ MC.T
        scale = system.diagonal().clamp_min(torch.finfo(C.dtype).tiny).rsqrt()
        system = scale[:, None] * (system + system.T) / 2 * scale
        jitter = _JITTER * len(C)
        system.diagonal().add_(jitter)
        factor, failed = torch.linalg.cholesky_ex(system)
        scaled = torch.cholesky_solve(scale[:, None] * (C @ self._MW), factor)
        scaled = torch.where(failed > 0, torch.nan, scaled)
        return scale[:, None] * scaled, MC, jitter * scaled.square().sum()

    def _metric(self, rows: Tensor) -> Tensor:
        """M applied to rows (m, p)."""
        return self._data.gram_times(rows) + self._ridge * rows

    def _centred(self, F: Tensor) -> Tensor:
        return F - F.mean(dim=0) if self._intercept else F

    def _offset(self, W: Tensor, bias: Tensor) -> Tensor:
        """How far an intercept is from the best one for W."""
        if not self._intercept:
            return torch.zeros_like(bias)
        feature_mean, target_mean = self._data.means
        return bias - target_mean + feature_mean @ W


def _square(D: Tensor, MD: Tensor) -> Tensor:
    """``tr(D' M D)`` with derivative 2 M D, for M D that carries no derivative itself."""
    return 2 * (D * MD).sum() - (D.detach() * MD).sum()
