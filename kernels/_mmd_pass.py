r"""Weighted sums of kernel values over pairs of rows, and their gradient, in one pass over tiles.

With weights :math:`C_{ij}` and squared distances :math:`s_{ij}`, the sum :math:`\sum C_{ij}\,k(s_{ij})` has the
gradient

.. math:: \frac{\partial}{\partial a_i} = 2\Bigl(a_i\sum_j W_{ij} - \sum_j W_{ij}\,b_j\Bigr), \qquad
          W_{ij} = C_{ij}\,k'(s_{ij}),

a matrix product with the rows of the tile, whose W comes from the distances that the value has just used.

**Half the tiles.** Where both sides are the same rows, one of tiles (i, j) and (j, i) is formed. On the diagonal the
gradient in the left rows is taken and doubled: that in the right rows is the same.

**Equal sets.** In tiles on the diagonal rows of one index are compared by their difference, and operands stand in
the order of their tiles. Where Y equals X, the sums over (X, X), (Y, Y) and (X, Y) are then one computation, which
finds every row at distance zero from itself, and they cancel to the last bit.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .radial import RadialKernel

_LEAST = 64  # rows of a tile: below it, calls cost more than arithmetic
USUAL = 256  # rows of a tile up to which it is not cut to save half


@dataclass
class Rows:
    """Some rows of every group, and the gradient that gathers in them.

    Parameters
    ----------
    points : Tensor, shape (G, n, d)
    weights : Tensor, shape (G, n)
    norms : Tensor, shape (G, n)
        Squared.
    mass : Tensor, shape (G, n), or None
        Sums of W over the other side; None if no gradient is wanted.
    pull : Tensor, shape (G, n, d), or None
        Minus sums of W times the rows of the other side; of 1-norms, the gradient itself.
    """

    points: Tensor
    weights: Tensor
    norms: Tensor
    mass: Tensor | None = None
    pull: Tensor | None = None

    @classmethod
    def of(cls, points: Tensor, weights: Tensor, wanted: bool) -> "Rows":
        """All rows, without any gradient yet."""
        norms = points.square().sum(2)
        if not wanted:
            return cls(points, weights, norms)
        return cls(points, weights, norms, torch.zeros_like(norms), torch.zeros_like(points))

    def __getitem__(self, some: slice) -> "Rows":
        """Views of some rows."""
        return Rows(*(None if t is None else t[:, some] for t in vars(self).values()))  # type: ignore[arg-type]

    def add(self, other: "Rows", W: Tensor, factor: int, metric: str) -> None:
        """Add `factor` times the gradient of a tile, if it is wanted."""
        if self.pull is None or self.mass is None:
            return
        if metric == "manhattan":
            for k in range(self.points.shape[2]):
                signs = torch.sign(self.points[:, :, None, k] - other.points[:, None, :, k])
                self.pull[:, :, k].add_(signs.mul_(W).sum(2), alpha=factor)
        else:
            self.mass.add_(W.sum(2), alpha=factor)
            self.pull.baddbmm_(W, other.points, alpha=-factor)

    def gradient(self, metric: str) -> Tensor | None:
        if self.pull is None or self.mass is None or metric == "manhattan":
            return self.pull
        return self.pull.addcmul_(self.mass[:, :, None], self.points).mul_(2)


class Pass:
    """Sums of kernel values over (X, X), (Y, Y) and (X, Y) of every group, and the gradient of a combination of them.

    Parameters
    ----------
    kernel : RadialKernel
    parameters : tuple of Tensor
        Its numbers, 0-d.
    wanted : tuple of bool
        In which of the parameters a gradient is wanted.
    left_out : bool
        Leave out the pairs of a row with itself.
    pairs : int
        Pairs of rows that a tile of each group may have.
    groups : int
    """

    def __init__(
        self,
        kernel: RadialKernel,
        parameters: tuple[Tensor, ...],
        wanted: tuple[bool, ...],
        left_out: bool,
        pairs: int,
        groups: int,
    ) -> None:
        self.kernel, self.left_out, self.pairs = kernel, left_out, pairs
        self.parameters = [
            p.detach().expand(groups, 1, 1).clone().requires_grad_() if w else p.detach()
            for p, w in zip(parameters, wanted, strict=True)
        ]
        self.gradients = [
            torch.zeros_like(p) if w else None for p, w in zip(self.parameters, wanted, strict=True)
        ]

    def sum(self, left: Rows, right: Rows, divisor: Tensor) -> Tensor:
        """Sums over all pairs of `left` and `right`, divided; shape (G,), float64. Gradients are added to the rows."""
        same = left is right
        rows, columns = (_cuts(side.points.shape[1], self.pairs) for side in (left, right))
        sums = divisor.new_zeros(len(rows), len(columns), len(divisor))
        for (i, a), (j, b) in itertools.product(enumerate(rows), enumerate(columns)):
            if same and i > j:
                sums[i, j] = sums[j, i]
                continue
            first, second = (left[a], right[b]) if i <= j else (right[b], left[a])
            weight = (2 if same and i < j else 1) / divisor
            sums[i, j] = self._tile(first, second, weight, aligned=i == j, folded=same and i == j)
        return sums.sum((0, 1)) / divisor

    def _tile(self, a: Rows, b: Rows, weight: Tensor, aligned: bool, folded: bool) -> Tensor:
        s = self._distances(a, b, aligned)
        if a.pull is None and b.pull is None and not any(p.requires_grad for p in self.parameters):
            k = self.kernel.profile_(s, *self.parameters)
        else:
            k = self._differentiated(a, b, s, weight, folded)
        if folded and self.left_out:
            k.diagonal(0, 1, 2).zero_()
        return (a.weights * (k @ b.weights[:, :, None])[:, :, 0]).sum(1, dtype=torch.float64)

    def _differentiated(self, a: Rows, b: Rows, s: Tensor, weight: Tensor, folded: bool) -> Tensor:
        """Kernel values; adds the gradients of their sum times the weight."""
        C = (weight.to(s.dtype)[:, None] * a.weights)[:, :, None] * b.weights[:, None, :]
        with torch.enable_grad():
            k = self.kernel.profile(s.requires_grad_(), *self.parameters)
        W, *parts = torch.autograd.grad(k, [s, *(p for p in self.parameters if p.requires_grad)], C)
        for total, part in zip((g for g in self.gradients if g is not None), parts, strict=True):
            total.add_(part)
        if folded:
            # A row has no distance from itself to change; rounding would give it one.
            W.diagonal(0, 1, 2).zero_()
        a.add(b, W, 2 if folded else 1, self.kernel.metric)
        if not folded:
            b.add(a, W.mT, 1, self.kernel.metric)
        return k.detach()

    def _distances(self, a: Rows, b: Rows, aligned: bool) -> Tensor:
        if self.kernel.metric == "manhattan":
            return torch.cdist(a.points, b.points, p=1)
        s = torch.baddbmm(b.norms[:, None, :], a.points, b.points.mT, alpha=-2)
        s.add_(a.norms[:, :, None]).clamp_(min=0)
        if aligned:
            length = min(s.shape[1:])
            difference = a.points[:, :length] - b.points[:, :length]
            s.diagonal(0, 1, 2).copy_(difference.square_().sum(2))
        return s


def _cuts(length: int, pairs: int) -> list[slice]:
    """Rows of the tiles: as many as the pairs allow; four tiles, which leave out 3/8 of all, if they are not small."""
    side = max(_LEAST, min(math.isqrt(pairs), max(USUAL, -(-length // 4))))
    step = -(-length // -(-length // side))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
