r"""Ridge regression for every :math:`\lambda` from one factorisation.

With G = ΦᵀΦ = Q Λ Qᵀ and B = ΦᵀY (features centred first where there is an intercept),

.. math:: W(\lambda) = Q\,(\Lambda + \lambda)^{-1} Q^\top B, \qquad
          \mathrm{df}(\lambda) = \sum_j \Lambda_j / (\Lambda_j + \lambda).

The same form serves the dual: for n < p the thin SVD Φ = U S Qᵀ gives Λ = S² and r ≤ n columns of Q, and no
p x p matrix is made. λ is a sum, not a mean (Chen et al. 2024, section 3); `Ridge` names the other scales.

**Rank.** Directions with Λ_j ≤ max(p, n) ε Λ_max (from G) or S_j ≤ max(n, p) ε S_max (from the SVD) hold no
data: B vanishes there exactly, so they are dropped for every λ, and λ = 0 is the pseudo-inverse.

**Choosing λ.** Generalised cross-validation (Golub, Heath and Wahba 1979) needs the statistics alone:
GCV(λ) = n⁻¹ RSS / (1 - df/n)². Leave-one-out is exact, without refitting, from a second pass over the
features: the residual is r_i / (1 - h_i) with h_i = w_i (φ_iᵀ Q (Λ + λ)⁻¹ Qᵀ φ_i + 1/Σw).
"""

import dataclasses
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from ._check import check_name, check_non_negative
from .statistics import Statistics

SCALES = ("absolute", "trace", "per-sample")
_EPS = torch.finfo(torch.float64).eps


@dataclasses.dataclass(frozen=True)
class Ridge:
    """A ridge parameter with its scale, because the published codes disagree.

    Attributes
    ----------
    value : float
        Not negative. Zero means the pseudo-inverse.
    scale : {"absolute", "trace", "per-sample"}
        What is added to G: ``value`` (Chen et al.), ``value * tr(K) / n`` (KIP, RFAD, FRePo, with
        ``K = Phi Phi'``), or ``value * n`` (a mean loss).
    """

    value: float
    scale: str = "absolute"

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", check_non_negative(self.value, "ridge"))
        check_name(self.scale, SCALES, "ridge scale")

    def absolute(self, trace: float, n: float) -> float:
        """λ for features with ``tr(Phi Phi') = trace`` over n rows."""
        return self.value * {"absolute": 1.0, "trace": trace / n, "per-sample": n}[self.scale]


class RidgePath:
    """Ridge models for every λ.

    Attributes
    ----------
    vectors : Tensor, shape (p, r)
        Q: orthonormal directions that hold data.
    values : Tensor, shape (r,)
        Λ, descending, positive.
    coefficients : Tensor, shape (r, k)
        QᵀB.
    feature_mean, target_mean : Tensor
        Zero without an intercept.
    rank : int
        r.
    notes : tuple of str
        What was left out, in words.

    Notes
    -----
    One symmetric eigen-decomposition of G (about 9 p³ multiplications) or one thin SVD of Φ; then each
    λ costs p r k.
    """

    def __init__(
        self,
        vectors: Tensor,
        values: Tensor,
        coefficients: Tensor,
        *,
        means: tuple[Tensor, Tensor],
        target_square: Tensor,
        weight: float,
        count: int,
        intercept: bool,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.vectors, self.values, self.coefficients = vectors, values, coefficients
        self.feature_mean, self.target_mean = means
        self.weight, self.count, self.intercept, self.notes = weight, count, intercept, notes
        self._target_square = target_square  # of centred targets, by output

    @classmethod
    def from_statistics(cls, statistics: Statistics, *, intercept: bool = False) -> Self:
        """Factor G of the statistics (primal)."""
        G, B, means, target_square = centred(statistics, intercept)
        if not torch.isfinite(G.diagonal().sum()):
            raise ValueError("the sums of squares of the features overflow float64: rescale the inputs first")
        values, vectors = torch.linalg.eigh(G)
        values, vectors = values.flip(0), vectors.flip(1)
        # Centring leaves the rounding of the squared means that it takes away.
        removed = statistics.weight * float(means[0].square().sum())
        tolerance = rank_tolerance(float(values[0]) + removed, statistics.n_features)
        rank = int((values > tolerance).sum())
        note = _rank_note(rank, min(statistics.count - intercept, statistics.n_features))
        return cls(
            vectors[:, :rank],
            values[:rank],
            vectors[:, :rank].T @ B,
            means=means,
            target_square=target_square,
            weight=statistics.weight,
            count=statistics.count,
            intercept=intercept,
            notes=note,
        )

    @classmethod
    def from_rows(
        cls, F: Tensor, Y: Tensor, weight: Tensor | None = None, *, intercept: bool = False
    ) -> Self:
        """Factor the features (n, p) themselves by a thin SVD: the dual for n < p, exact for tiny λ."""
        F, Y = F.double(), Y.double()
        w = torch.ones(len(F), dtype=torch.float64) if weight is None else weight.double()
        total = float(w.sum())
        zero = torch.zeros(1, dtype=torch.float64)
        means = (
            ((w @ F) / total, (w @ Y) / total)
            if intercept
            else (zero.expand(F.shape[1]), zero.expand(Y.shape[1]))
        )
        root = w.sqrt()[:, None]
        removed = total**0.5 * float(means[0].norm())
        F, Y = (F - means[0]) * root, (Y - means[1]) * root
        U, S, Vh = torch.linalg.svd(F, full_matrices=False)
        rank = int(((S[0] + removed) * max(F.shape) * _EPS < S).sum())
        return cls(
            Vh[:rank].T,
            S[:rank].square(),
            S[:rank, None] * (U[:, :rank].T @ Y),
            means=means,
            target_square=Y.square().sum(dim=0),
            weight=total,
            count=len(F),
            intercept=intercept,
            notes=_rank_note(rank, min(len(F) - intercept, F.shape[1])),
        )

    @property
    def rank(self) -> int:
        """r, the number of directions that hold data."""
        return len(self.values)

    @property
    def trace(self) -> float:
        """tr(G), after centring where there is an intercept."""
        return float(self.values.sum())

    def grid(self, size: int = 24) -> list[float]:
        """Half-decade λ values from 1e-11 of the mean eigenvalue upwards: the same at every data scale."""
        mean = self.trace / max(len(self.feature_mean), 1)
        return [mean * 10 ** (-11 + step / 2) for step in range(size)] if mean > 0 else [1.0]

    def weights(self, ridge: float) -> tuple[Tensor, Tensor]:
        """W (p, k) and the intercept (k,) at one λ."""
        W = self.vectors @ (self.coefficients / (self.values + ridge)[:, None])
        return W, self.target_mean - self.feature_mean @ W

    def scores(self, F: Tensor, ridges: Sequence[float]) -> Tensor:
        """Predictions for features F (b, p) at every λ, float64 (len(ridges), b, k).

        All weights are put side by side, so that the features meet one matrix product.
        """
        shrunk = torch.cat([self.coefficients / (self.values + ridge)[:, None] for ridge in ridges], dim=1)
        W = self.vectors @ shrunk
        bias = self.target_mean.repeat(len(ridges)) - self.feature_mean @ W
        out = torch.addmm(bias, F.double(), W)
        return out.reshape(len(F), len(ridges), -1).permute(1, 0, 2)

    def degrees_of_freedom(self, ridge: float) -> float:
        """Trace of the hat matrix, with one for the intercept."""
        return float((self.values / (self.values + ridge)).sum()) + self.intercept

    def gcv(self, ridges: Sequence[float]) -> list[float]:
        """Generalised cross-validation score of each λ, summed over outputs; smaller is better."""
        scores = []
        for ridge in ridges:
            shrunk = self.coefficients / (self.values + ridge)[:, None]
            explained = (shrunk * (2 * self.coefficients - self.values[:, None] * shrunk)).sum(dim=0)
            rss = float((self._target_square - explained).clamp_min(0).sum())
            rest = 1 - self.degrees_of_freedom(ridge) / self.count
            scores.append(rss / self.count / rest**2 if rest > 1e-12 else float("inf"))
        return scores

    def leave_one_out(
        self, F: Tensor, Y: Tensor, ridges: Sequence[float], weight: Tensor | None = None
    ) -> Tensor:
        """Predictions for each row by the model fitted without it.

        Parameters
        ----------
        F, Y : Tensor, shape (b, p) and (b, k)
            Rows that the path was fitted on (any part of them).
        ridges : sequence of float
        weight : Tensor, shape (b,), optional
            Their sample weights.

        Returns
        -------
        Tensor, shape (len(ridges), b, k)
            Not finite where a row decides its own prediction (leverage one): it has no leave-one-out.
        """
        F, Y = F.double(), Y.double()
        projected = (F - self.feature_mean) @ self.vectors
        w = torch.ones(len(F), dtype=torch.float64) if weight is None else weight
        out = []
        for ridge in ridges:
            shrink = 1 / (self.values + ridge)
            leverage = w * (projected.square() @ shrink + (1 / self.weight if self.intercept else 0.0))
            prediction = self.target_mean + projected @ (self.coefficients * shrink[:, None])
            rest = 1 - leverage
            rest = torch.where(rest > 1e-10, rest, torch.nan)
            out.append(Y - (Y - prediction) / rest[:, None])
        return torch.stack(out)


def centred(statistics: Statistics, intercept: bool) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor]:
    """G, B, (feature mean, target mean) and target squares, about the means where there is an intercept.

    The means are divided out of the sums, which loses ``mean² / variance`` relative digits: standardise
    features whose mean is far larger than their spread.
    """
    if not intercept:
        zeros = torch.zeros_like(statistics.feature_sum), torch.zeros_like(statistics.target_sum)
        return statistics.gram, statistics.cross, zeros, statistics.target_square
    phi, y = statistics.feature_sum / statistics.weight, statistics.target_sum / statistics.weight
    G = statistics.gram - torch.outer(statistics.feature_sum, phi)
    B = statistics.cross - torch.outer(statistics.feature_sum, y)
    if statistics.targets is not None and statistics.targets.is_classes:
        # Class targets sum to a constant, which centring removes: exactly zero, not its rounding.
        B = B - B.mean(dim=1, keepdim=True)
    return G, B, (phi, y), statistics.target_square - statistics.target_sum * y


def rank_tolerance(largest: Tensor | float, size: int) -> float:
    """Eigenvalues of a Gram matrix at or below this are rounding."""
    return float(max(float(largest), 0.0)) * size * _EPS


def singular_rank(S: Tensor, shape: Sequence[int]) -> int:
    """Number of singular values (descending) above ``max(shape) * eps * S[0]``."""
    return int((S[0] * max(shape) * _EPS < S).sum()) if len(S) else 0


def _rank_note(rank: int, full: int) -> tuple[str, ...]:
    if rank >= full:
        return ()
    return (f"features have rank {rank} of {full}: {full - rank} directions without data were left out",)
