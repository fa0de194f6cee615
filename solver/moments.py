"""Second moments of the training data, as their Gram matrix (n ≥ p) or as the rows themselves (n < p).

Both answer the same questions: the ridge path of all rows or of those not held out, the solution at one λ,
the Gram matrix applied to a few rows, and the products with the targets, which is all that certificates and the
full-data loss of learned points need of the data.
"""

import torch
from torch import Tensor

from .ridge import RidgePath, centred, rank_tolerance
from .statistics import Statistics

Solution = tuple[Tensor, Tensor, tuple[str, ...]]


class GramData:
    """Primal: statistics of the data.

    Attributes
    ----------
    count : int
        Rows.
    weight : float
        Sum of the sample weights.
    means : tuple of Tensor
        Of features (p,) and targets (k,), whether or not there is an intercept.
    cross : Tensor, shape (p, k)
        B, about the means where there is an intercept.
    target_square : Tensor, shape (k,)
        Sums of squares of the targets, about their means where there is an intercept.
    """

    def __init__(self, statistics: Statistics, intercept: bool) -> None:
        self.statistics, self.intercept = statistics, intercept
        self.count, self.weight = statistics.count, statistics.weight
        self.means = statistics.feature_sum / statistics.weight, statistics.target_sum / statistics.weight
        self.cross, self.target_square = statistics.cross, statistics.target_square
        if intercept:
            self.cross = self.cross - torch.outer(statistics.feature_sum, self.means[1])
            self.target_square = self.target_square - statistics.target_sum * self.means[1]

    def path(self) -> RidgePath:
        """Ridge path of all rows: one eigen-decomposition."""
        return RidgePath.from_statistics(self.statistics, intercept=self.intercept)

    def path_without(self, F: Tensor, Y: Tensor, weight: Tensor | None) -> RidgePath:
        """Ridge path of all rows but these, whose sums are taken away."""
        full = self.statistics
        held = Statistics(full.n_features, full.n_outputs, full.encoder, full.targets).add(F, Y, weight)
        return RidgePath.from_statistics(full - held, intercept=self.intercept)

    def solve(self, ridge: float, part: RidgePath) -> Solution:
        """W, bias and notes of all rows at one λ, given the path of a part of them.

        By Cholesky where the spectrum of the part shows that G + λ is far from singular (adding rows only
        raises eigenvalues); by a path of all rows where it does not.
        """
        p = self.statistics.n_features
        smallest = float(part.values[-1]) if part.rank == p else 0.0
        if part.rank and smallest + ridge > 1e3 * rank_tolerance(part.values[0], p):
            G, B, (phi, y), _ = centred(self.statistics, self.intercept)
            system = G.clone()
            system.diagonal().add_(ridge)
            factor, failed = torch.linalg.cholesky_ex(system)
            if not int(failed):
                W = torch.cholesky_solve(B, factor)
                return W, y - phi @ W, part.notes
        path = self.path()
        return *path.weights(ridge), path.notes

    def gram_times(self, F: Tensor) -> Tensor:
        """F G, shape (m, p): the (centred, with an intercept) Gram matrix applied to rows of features."""
        product = F @ self.statistics.gram
        if self.intercept:
            total = self.statistics.feature_sum
            product = product - torch.outer(F @ total, total) / self.weight
        return product


class RowData:
    """Dual: features and targets of every row, for fewer rows than features; attributes as in `GramData`."""

    def __init__(
        self, F: Tensor, Y: Tensor, weight: Tensor | None, intercept: bool, aside: Tensor | None = None
    ) -> None:
        self._F, self._Y, self._weight, self._aside = F, Y, weight, aside
        self.intercept = intercept
        w = torch.ones(len(F), dtype=torch.float64) if weight is None else weight
        self.count, self.weight = len(F), float(w.sum())
        self.means = (w @ F) / self.weight, (w @ Y) / self.weight
        self._root = (F - self.means[0] if intercept else F) * w.sqrt()[:, None]
        rest = (Y - self.means[1] if intercept else Y) * w.sqrt()[:, None]
        self.cross, self.target_square = self._root.T @ rest, rest.square().sum(dim=0)

    def path(self) -> RidgePath:
        """Ridge path of all rows: one thin singular value decomposition."""
        return RidgePath.from_rows(self._F, self._Y, self._weight, intercept=self.intercept)

    def path_without(self, F: Tensor, Y: Tensor, weight: Tensor | None) -> RidgePath:
        """Ridge path of the rows that were not put aside."""
        del F, Y, weight  # the same rows, known here by their positions
        rest = torch.ones(self.count, dtype=torch.bool)
        rest[self._aside] = False
        left = None if self._weight is None else self._weight[rest]
        return RidgePath.from_rows(self._F[rest], self._Y[rest], left, intercept=self.intercept)

    def solve(self, ridge: float, part: RidgePath) -> Solution:
        """W, bias and notes of all rows at one λ."""
        del part
        path = self.path()
        return *path.weights(ridge), path.notes

    def gram_times(self, F: Tensor) -> Tensor:
        """F G, shape (m, p), without making G."""
        return (F @ self._root.T) @ self._root
