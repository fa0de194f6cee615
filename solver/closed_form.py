r"""Points, in feature space, on which ridge regression gives a given model exactly.

Rows are samples; the papers' column matrices are our transposes. W is (p, k), a set is Φ_S (m, p), Y_S (m, k).

`theorem_features`: Chen, Huang and Weng (NeurIPS 2024), Theorems 4.1 and 5.1. For labels of full column rank
and any Z (m, p), with :math:`D = (Y_S^{+})^\top W^\top + (I - Y_S Y_S^{+}) Z = V\,\mathrm{diag}(s)\,U^\top`,

.. math:: \Phi_S = V \mathrm{diag}(\sigma) U^\top, \qquad
          \sigma = \frac{1 \pm \sqrt{1 - 4 \lambda_S s^2}}{2 s} \;\; (\text{"+"; } 1/s \text{ for } \lambda_S = 0)

gives W_S = W, for λ_S ≤ 1/(4 s_max²). Labels times c turn s into s/c and the bound into c² times itself, so
any λ_S is reached by scaling labels. The "+" root is taken always: mixed signs are as exact and up to 1e8
times worse conditioned.

`nearest_features` (ours): at λ_S = 0 a set with labels Φ_S W is exact iff the columns of W lie in the row
space of Φ_S. With Q an orthonormal basis of those columns and F any reference features,

.. math:: \min \|\Phi_S - F\|_F \;\text{ subject to }\; \mathrm{col}(Q) \subseteq \mathrm{row}(\Phi_S)
          \quad\text{is}\quad \Phi_S = F - U U^\top F (I - Q Q^\top),

U being the r left singular vectors of F(I - QQᵀ) with the smallest singular values: rotating the points by U,
r of them are projected on col(Q) and the rest stay as they are; the distance is the root of the sum of those
r singular values squared. (Proof: some r combinations UᵀΦ_S of the points must lie in col(Q), which costs at
least ‖UᵀF(I - QQᵀ)‖; Ky Fan's theorem minimises that over U.) For m = r all points are projected. Unlike the
choice of Z in the theorem, which is nearest in the space of pseudo-inverses, this is nearest in the space of
points, stays bounded, and its conditioning can be chosen.
"""

import dataclasses

import torch
from torch import Tensor

from .ridge import RidgePath, singular_rank

# The component of the set inside col(W) is kept at least this share of its own root mean square, which
# bounds the condition number that one unlucky direction would otherwise decide.
_CONDITION_FLOOR = 0.25
# Points that span col(Q) already, within this ratio of singular values, are left where they are.
_SPANNING = 1e-3
_ROUNDING = 1e-10


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """A set in feature space: features (m, p), labels (m, k), and what was done to reach them."""

    features: Tensor
    labels: Tensor
    notes: tuple[str, ...] = ()


def best_rank(W: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The model of at most `rank` nearest to W, an orthonormal basis of its columns, and what is lost.

    Returns
    -------
    W_r : Tensor, shape (p, k)
        W itself where its rank (`model_rank`) does not exceed `rank`.
    Q : Tensor, shape (p, r)
    lost : float
        ``||W_r - W||_F / ||W||_F``, the root of the tail of squared singular values (Eckart and Young).
    """
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    full = model_rank(S)
    kept = min(rank, full)
    lost = float(S[kept:].norm() / S.norm()) if rank < full else 0.0
    if lost:
        W = U[:, :kept] @ (S[:kept, None] * Vh[:kept])
    return W, U[:, :kept], lost


def model_rank(S: Tensor) -> int:
    """Rank of a model from its singular values, descending.

    A tail below 1e-10 of the largest is the rounding of the solve that made the model, not a direction of it:
    targets that sum to a constant leave W one rank short of k, but only up to that rounding.
    """
    return int((S[0] * _ROUNDING < S).sum()) if len(S) else 0


def theorem_features(W: Tensor, Y: Tensor, Z: Tensor | None = None, ridge: float = 0.0) -> FeatureSet:
    """Features that give W with labels Y at λ_S = `ridge` (Theorems 4.1 and 5.1, "+" root).

    Parameters
    ----------
    W : Tensor, shape (p, k)
    Y : Tensor, shape (m, k)
        Labels of full column rank, or at least such that W = W Y⁺Y (its row space holds W's rows).
    Z : Tensor, shape (m, p), optional
        The free choice; default zero.
    ridge : float
        λ_S. Above the bound 1/(4 s_max²), labels are scaled up just enough, and a note says by how much.

    Returns
    -------
    FeatureSet

    Raises
    ------
    ValueError
        If no features can give W with these labels (Theorem 4.1, m < k).
    """
    pinv = torch.linalg.pinv(Y)  # (k, m)
    if (W @ (pinv @ Y) - W).norm() > 1e-8 * W.norm():
        raise ValueError(
            f"labels of rank {int(torch.linalg.matrix_rank(Y))} cannot carry a model of rank"
            f" {int(torch.linalg.matrix_rank(W))}: use more points, or solved labels"
        )
    D = pinv.T @ W.T
    if Z is not None:
        D = D + Z - Y @ (pinv @ Z)
    V, s, Uh = torch.linalg.svd(D, full_matrices=False)
    rank = singular_rank(s, D.shape)
    V, s, Uh = V[:, :rank], s[:rank], Uh[:rank]
    scale, notes = 1.0, ()
    if rank and ridge > (bound := 1 / (4 * float(s[0]) ** 2)):
        scale = (ridge / bound) ** 0.5 * (1 + 1e-6)
        notes = (f"labels were scaled by {scale:.6g}: distilled_ridge {ridge:.3g} is above {bound:.3g}",)
    s = s / scale
    root = (1 - 4 * ridge * s.square()).clamp_min(0).sqrt()
    return FeatureSet(V @ (((1 + root) / (2 * s))[:, None] * Uh), Y * scale, notes)


def theorem_noise(W: Tensor, Y: Tensor, noise: Tensor) -> Tensor:
    """Z from standard normal `noise` (m, p), at the published scale 0.1 std((Y⁺)ᵀ Wᵀ)."""
    return 0.1 * float((torch.linalg.pinv(Y).T @ W.T).std()) * noise


def theorem_reference(W: Tensor, Y: Tensor, F: Tensor, ridge: float = 0.0) -> Tensor:
    """Z for which D is nearest to the pseudo-inverse of reference features F (Corollary 4.1.1)."""
    V, s, Uh = torch.linalg.svd(F, full_matrices=False)
    rank = singular_rank(s, F.shape)
    V, s, Uh = V[:, :rank], s[:rank], Uh[:rank]
    return V @ ((s / (s.square() + ridge))[:, None] * Uh) - torch.linalg.pinv(Y).T @ W.T


def nearest_features(
    W: Tensor, F: Tensor, *, rank: int | None = None, labels: Tensor | None = None, intercept: bool = False
) -> Tensor:
    """The exact set nearest to reference features.

    Parameters
    ----------
    W : Tensor, shape (p, k)
        Model of rank at most m (m - 1 with an intercept); see `best_rank`.
    F : Tensor, shape (m, p)
        Features of the reference points.
    rank : int, optional
        Rank of W where the caller knows it (`best_rank`); found from the singular values otherwise.
    labels : Tensor, shape (m, k), optional
        Predictions Φ_S W that the points shall have, for instance one-hot rows. U then spans the labels (for
        repeated one-hot rows: class means), which keeps the condition near that of W at a larger distance.
        By default points keep the predictions of the reference, up to the conditioning floor.
    intercept : bool
        Whether the set's model will have an unpenalised intercept: the condition is then on the centred
        features, and the mean of F is kept.

    Returns
    -------
    Tensor, shape (m, p)

    Notes
    -----
    One thin SVD of (m, p), 2 m p k products.
    """
    mean = F.mean(dim=0) if intercept else torch.zeros(F.shape[1], dtype=F.dtype)
    basis = _centred_basis(len(F)) if intercept else None
    G = F if basis is None else basis.T @ F
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    rank = model_rank(S) if rank is None else rank
    if rank > len(G):
        raise ValueError(f"a model of rank {rank} needs at least {rank + intercept} points, got {len(F)}")
    Q = U[:, :rank]
    outside = G - (G @ Q) @ Q.T
    if labels is None:
        inside = G @ Q
        left, exact = _least_directions(outside, inside, rank)
        if not exact:
            inside = inside + left @ (_raise_floor(left.T @ inside) - left.T @ inside)
    else:
        wanted = labels if basis is None else basis.T @ labels
        inside = (wanted @ Vh[:rank].T) / S[:rank]
        left = torch.linalg.svd(inside, full_matrices=False)[0]
    result = outside - left @ (left.T @ outside) + inside @ Q.T
    return mean + (result if basis is None else basis @ result)


def gram_set(path: RidgePath) -> FeatureSet:
    """One set that gives the same ridge solution as the full data for every λ (Izzo and Zou 2023).

    Φ_S = Λ^{1/2} Qᵀ and Y_S = Λ^{-1/2} QᵀB have the Gram matrix and the cross products of the full data;
    rank(Φ) points. Without intercept.
    """
    if path.intercept:
        raise ValueError("a set that is exact for every ridge has no intercept: centre the targets instead")
    root = path.values.sqrt()[:, None]
    return FeatureSet(root * path.vectors.T, path.coefficients / root)


def _centred_basis(m: int) -> Tensor:
    """Orthonormal columns (m, m - 1) orthogonal to the vector of ones (Helmert)."""
    basis = torch.triu(torch.ones(m, m - 1, dtype=torch.float64))
    basis[torch.arange(1, m), torch.arange(m - 1)] = -torch.arange(1, m, dtype=torch.float64)
    return basis / basis.norm(dim=0)


def _least_directions(outside: Tensor, inside: Tensor, rank: int) -> tuple[Tensor, bool]:
    """The `rank` orthonormal combinations (m, rank) of the points that lie least outside col(Q).

    More points than features leave many combinations that lie inside exactly; among those, the ones with the
    largest part inside are taken, and the set is exact already and can stay where it is (second value).
    """
    if rank == 0:
        return outside.new_zeros(len(outside), 0), True
    values, vectors = torch.linalg.eigh(outside @ outside.T)  # ascending
    free = int((values <= values[-1] * len(values) * 1e-14).sum())
    if free <= rank:
        return vectors[:, :rank], False
    null = vectors[:, :free]
    U, S, _ = torch.linalg.svd(null.T @ inside, full_matrices=False)
    # Points that happen to lack a direction (a pixel that is dark in all of them) do not span col(Q) after all.
    return null @ U[:, :rank], bool(S[rank - 1] > _SPANNING * S[0])


def _raise_floor(C: Tensor) -> Tensor:
    """Raise small singular values to a share of their root mean square."""
    if C.numel() == 0:
        return C
    U, S, Vh = torch.linalg.svd(C)
    floor = _CONDITION_FLOOR * float(S.square().mean().sqrt())
    return U @ (S.clamp_min(floor)[:, None] * Vh) if floor > 0 else C
