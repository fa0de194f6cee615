"""What a method says about the rows of one class, and the weights that several methods give in the same way."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import squared_distances, weighted_sample

# Bytes of a block of distances between rows and chosen rows.
_BLOCK_BYTES = 32 * 2**20


class Choice(NamedTuple):
    """Chosen rows (m,), their weights, inclusion probabilities or None, and notes."""

    indices: Tensor
    weights: Tensor
    inclusion_probabilities: Tensor | None = None
    notes: tuple[str, ...] = ()


def drawn(scores: Tensor, m: int, seed: int, *notes: str) -> Choice:
    """Draw m distinct rows in proportion to `scores` (n,); weights are one over their inclusion probabilities."""
    sample = weighted_sample(scores, m, seed=seed, stream="coreset")
    return Choice(sample.indices, sample.weights, sample.inclusion_probabilities, notes)


def cell_sizes(X: Tensor, chosen: Tensor) -> Tensor:
    """Number of rows nearest to each chosen one, float64; of equally near ones the first counts."""
    centres = X[chosen]
    step = max(1, _BLOCK_BYTES // (3 * centres.element_size() * max(len(chosen), X.shape[1])))
    sizes = torch.zeros(len(chosen), dtype=torch.int64, device=X.device)
    for rows in X.split(step):
        nearest = squared_distances(rows, centres).argmin(dim=1)
        sizes += nearest.bincount(minlength=len(chosen))
    return sizes.double()
