"""Rows far from each other: farthest-first traversal, whose balls of one radius cover all rows."""

from torch import Tensor

from ...kernels import k_center_greedy
from .choice import Choice, cell_sizes


def k_center(X: Tensor, m: int, seed: int) -> Choice:
    """Choose m rows, the first random and each next the farthest from those before (`kernels.k_center_greedy`)."""
    chosen = k_center_greedy(X, m, seed=seed)
    notes = ()
    if m > 1 and float(chosen.radii[-2]) == 0:
        # The radius after j choices is zero when those are all distinct rows there are.
        different = int((chosen.radii == 0).nonzero()[0]) + 1
        notes = (f"{m} rows were asked for and only {different} are different: equal rows are among them",)
    return Choice(chosen.indices, cell_sizes(X, chosen.indices), None, notes)
