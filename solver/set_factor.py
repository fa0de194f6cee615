r"""A distilled set's own ridge problem, factored once: labels to weights, and weights to labels.

With the thin SVD Φ_S = U S Vᵀ of the set's features (m, p), centred where there is an intercept,

.. math:: W_S(Y) = V \frac{S}{S^2 + \lambda_S} U^\top Y, \qquad
          Y(W) = U \frac{S^2 + \lambda_S}{S} V^\top W .

The second undoes the first: it gives the labels for which the set's model is the orthogonal projection of W
on the row space of Φ_S, for any λ_S ≥ 0. The model is W itself iff the columns of W lie in that row space
(Chen et al. 2024, Theorem 4.2 is the case m ≥ p; for λ_S = 0 the labels are simply Φ_S W, the full model's
own predictions). Solving for labels removes the bound λ_S ≤ 1/(4 σ²) of Theorem 4.1.
"""

import torch
from torch import Tensor


def storage_tolerance(dtype: torch.dtype) -> float:
    """Share of the largest singular value below which a set stored in `dtype` holds rounding only."""
    return 1e-9 if dtype == torch.float64 else 1e-6


class SetFactor:
    """Factorisation of a set's features.

    Parameters
    ----------
    F : Tensor, shape (m, p), float64
    ridge : float
        λ_S, absolute.
    intercept : bool
    tolerance : float, default 1e-9
        Singular values at or below this share of the largest are zero. Points that are exactly collinear in
        some direction (dead pixels) are so only up to the rounding of their storage, and a set trained on that
        rounding would answer with noise where it has nothing to say; see `storage_tolerance`.

    Attributes
    ----------
    rank : int
    condition : float
        Ratio of the largest to the smallest kept singular value of the (centred) features.
    """

    def __init__(
        self, F: Tensor, ridge: float = 0.0, *, intercept: bool = False, tolerance: float = 1e-9
    ) -> None:
        self.mean = F.mean(dim=0) if intercept else torch.zeros(F.shape[1], dtype=F.dtype)
        C = F - self.mean
        if intercept:  # once more: the mean of large features is only as good as their last digit
            rest = C.mean(dim=0)
            C, self.mean = C - rest, self.mean + rest
        U, S, Vh = torch.linalg.svd(C, full_matrices=False)
        self.rank = min(int((S[0] * tolerance < S).sum()), len(F) - intercept) if len(S) else 0
        self._U, self._S, self._Vh = U[:, : self.rank], S[: self.rank], Vh[: self.rank]
        self._ridge, self._intercept = ridge, intercept
        self.condition = float(self._S[0] / self._S[-1]) if self.rank else 1.0

    def weights(self, Y: Tensor) -> tuple[Tensor, Tensor]:
        """W_S (p, k) and intercept (k,) of the ridge model trained on the set with labels Y (m, k)."""
        mean = Y.mean(dim=0) if self._intercept else torch.zeros(Y.shape[1], dtype=Y.dtype)
        filtered = (self._S / (self._S.square() + self._ridge))[:, None]
        W = self._Vh.T @ (filtered * (self._U.T @ (Y - mean)))
        return W, mean - self.mean @ W

    def labels(self, W: Tensor, bias: Tensor | None = None) -> Tensor:
        """Labels (m, k) whose ridge model is the projection of W, with intercept `bias`."""
        filtered = ((self._S.square() + self._ridge) / self._S)[:, None]
        Y = self._U @ (filtered * (self._Vh @ W))
        if not self._intercept:
            return Y
        projected = self._Vh.T @ (self._Vh @ W)
        return Y + (self.mean @ projected if bias is None else bias + self.mean @ projected)

    def residual(self, W: Tensor) -> float:
        """``||W - projection of W|| / ||W||``: what no labels can give."""
        return float((W - self._Vh.T @ (self._Vh @ W)).norm() / W.norm()) if W.norm() > 0 else 0.0
