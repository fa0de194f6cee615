r"""Gaussians fitted to the rows of each class: one to all of them, or one to each of their clusters.

Mean and covariance are those of the rows (divided by n, not n - 1), so that n times :math:`\Sigma + \mu\mu^\top` is
their sum of products exactly. Two passes in float64: the mean, then the QR decomposition of the centred rows piece by
piece, whose R satisfies :math:`R^\top R = n \Sigma` without the square of a condition number and is trapezoidal as
`Gaussians` wants it. Fewer rows than values give an R of as many rows, and no d x d matrix.

* "full": :math:`L = R^\top / \sqrt n`.
* "low-rank": the largest eigenvectors of :math:`R R^\top` give the principal axes; the variances keep the rest of the
  diagonal, so that every value has the variance that it has in the rows.
* "diagonal": the variances alone; no QR.

Classes do not look at each other, so that any block of them may be fitted anywhere.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...kernels import k_means_plus_plus, random_bits
from .._check import check_count, check_name
from ..learners.rows import TrainingRows
from .gaussians import Gaussians, trapezoid

COVARIANCES = ("low-rank", "full", "diagonal")
_EPS = torch.finfo(torch.float64).eps
# Iterations of k-means; its clusters need not be a minimum to be described by their moments.
_ITERATIONS = 100

# Starts a pass over some rows: pieces (b, d), float64.
Pieces = Callable[[], Iterable[Tensor]]


def fit_gaussians(
    rows: TrainingRows,
    counts: Sequence[int],
    covariance: str,
    rank: int,
    seed: int,
    dtype: torch.dtype,
    classes: Sequence[int],
) -> Gaussians:
    """Gaussians of some classes, in their order.

    Parameters
    ----------
    rows : TrainingRows
        In float64, with classes.
    counts : sequence of int, one for each class of the targets
        Gaussians of each class: with more than one, k-means finds as many clusters of its rows first.
    covariance : {"low-rank", "full", "diagonal"}
    rank : int
        Principal axes of "low-rank"; clusters of fewer rows have fewer.
    seed : int
        Of k-means, together with the class.
    dtype : torch.dtype
        float64 or float32, to which the results are rounded.
    classes : sequence of int

    Returns
    -------
    Gaussians
        Of sum(counts[c] for c in classes).

    Raises
    ------
    ValueError
        If a class has no rows, or fewer different rows than Gaussians.

    Notes
    -----
    Of a class of n rows: 2 n d min(n, d) multiplications for the QR decomposition, min(n, d)³ for the eigenvectors of
    "low-rank", and n d for each Gaussian and iteration of k-means, which needs its rows at once, n d float64 values.
    """
    check_name(covariance, COVARIANCES, "covariance")
    check_count(rank, "rank")
    parts = []
    for c in classes:
        assert rows.classes is not None
        assert rows.targets.classes is not None
        members = (rows.classes == c).nonzero()[:, 0]
        label = rows.targets.classes[c]
        if len(members) < counts[c]:
            raise ValueError(
                f"class {label!r} has {len(members)} training rows, {counts[c]} Gaussians need as many at least: lower"
                " per_class, or leave the class out"
            )
        for cluster in _clusters(rows, members, counts[c], seed, f"class {label!r}"):
            parts.append(_one(rows, cluster, covariance, rank))
    means, weights, roots, variances = zip(*parts, strict=True)
    return Gaussians(
        torch.stack(means).reshape(-1, *rows.transform.input_shape).to(dtype),
        torch.tensor(weights, dtype=torch.float64),
        [root.to(dtype) for root in roots],
        None if covariance == "full" else torch.stack(variances).to(dtype),
    )


def _one(rows: TrainingRows, index: Tensor, covariance: str, rank: int) -> tuple[Tensor, int, Tensor, Tensor]:
    """Mean, number of rows, root and remaining variances of the rows of this index."""

    def pieces() -> Iterable[Tensor]:
        return (rows.inputs(part).flatten(1) for part in index.split(rows.chunk))

    mean = torch.stack([piece.sum(dim=0) for piece in pieces()]).sum(dim=0) / len(index)
    if covariance == "diagonal":
        squares = torch.stack([(piece - mean).square().sum(dim=0) for piece in pieces()]).sum(dim=0)
        return mean, len(index), mean.new_zeros(len(mean), 0), squares / len(index)
    R = _triangle((piece - mean for piece in pieces()), len(index) * float(mean.square().sum()))
    R /= len(index) ** 0.5
    if covariance == "low-rank":
        root = trapezoid(_principal_root(R, rank))
        # What the axes leave is not negative but for rounding.
        rest = (R.square().sum(dim=0) - root.square().sum(dim=1)).clamp_min(0)
        return mean, len(index), root, rest
    return mean, len(index), R.T.contiguous(), torch.zeros_like(mean)


def _triangle(pieces: Iterable[Tensor], removed: float) -> Tensor:
    """R of the QR decomposition of all rows, without rows that are rounding: trapezoidal, (r, d).

    `removed` is the sum of squares that centring took away, whose rounding it left.
    """
    R: Tensor | None = None
    n = 0
    for piece in pieces:
        n += len(piece)
        R = torch.linalg.qr(piece if R is None else torch.cat([R, piece]), mode="r").R
    assert R is not None
    # Rows about their mean span a dimension less than they are. A row of R that is zero can be left out.
    squares = R.square().sum(dim=1)
    return R[squares.sqrt() > max(n, R.shape[1]) * _EPS * (squares.sum() + removed).sqrt()]


def _principal_root(R: Tensor, rank: int) -> Tensor:
    """Principal axes (d, r) of R'R, each as long as its standard deviation, by the smaller matrix RR'."""
    from scipy.linalg import eigh

    size = len(R)
    if size <= rank:
        return R.T
    # Only as many vectors as are asked for: a fraction of the work of all.
    _, vectors = eigh((R @ R.T).numpy(), subset_by_index=(size - rank, size - 1))
    return R.T @ torch.from_numpy(vectors).flip(1)


def _clusters(rows: TrainingRows, members: Tensor, k: int, seed: int, name: str) -> list[Tensor]:
    """Index of the rows of each of k clusters, by Lloyd's iterations from k-means++ seeds."""
    if k == 1:
        return [members]
    from sklearn.cluster import KMeans

    X = rows.inputs(members).flatten(1)
    of_class = int(random_bits(seed, f"gaussians.clusters.{name}", 1)[0])
    try:
        start = k_means_plus_plus(X, k, seed=of_class).indices
    except ValueError as error:
        raise ValueError(f"{name} cannot have {k} Gaussians: {error}") from None
    options: dict[str, Any] = {"init": X[start].numpy(), "n_init": 1, "max_iter": _ITERATIONS}
    fitted = KMeans(k, **options).fit(X.numpy())
    labels = torch.from_numpy(np.asarray(fitted.labels_))
    return [members[labels == cluster] for cluster in range(k)]
