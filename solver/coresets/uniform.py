"""Random rows, all alike: what every other choice has to beat."""

import torch
from torch import Tensor

from .choice import Choice, drawn


def random_rows(X: Tensor, m: int, seed: int) -> Choice:
    """Choose m random rows; every row has the probability m/n, whatever the others."""
    indices = drawn(torch.ones(len(X), dtype=torch.float64, device=X.device), m, seed).indices
    chance = torch.full((m,), m / len(X), dtype=torch.float64, device=X.device)
    return Choice(indices, 1 / chance, chance)
