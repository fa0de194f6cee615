"""Weighted means of features over classes, added up piece by piece.

Sums are products with a matrix of k rows, one for each class: on every device the same bits again, which sums by index
on a GPU are not.
"""

import torch
from torch import Tensor


def class_sums(F: Tensor, classes: Tensor, k: int, weights: Tensor | None = None) -> Tensor:
    """Sums over classes, to be added to those of other rows.

    Parameters
    ----------
    F : Tensor, shape (n, p)
        Features; the sums are differentiable in them.
    classes : Tensor, shape (n,), int64
        0 to k - 1, on the device of `F`.
    k : int
    weights : Tensor, shape (n,), optional
        Not negative; 1 by default.

    Returns
    -------
    Tensor, shape (k, p + 1)
        Sums of the weighted features and, in the last column, of the weights. Of the dtype of `F`.
    """
    members = (classes == torch.arange(k, device=F.device)[:, None]).to(F.dtype)
    if weights is not None:
        members = members * weights.to(F.dtype)
    return torch.cat([members @ F, members.sum(1, keepdim=True)], dim=1)


def class_means(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Means (k, p) of `class_sums`, 0 where there is no weight, and for which classes (k,) there is any."""
    totals = sums[:, -1:]
    return sums[:, :-1] / totals.where(totals > 0, 1), totals[:, 0] > 0


def mean_gaps(wanted: Tensor, found: Tensor) -> Tensor:
    """Squared distances (k,) between the means of two `class_sums`; 0 for a class that is missing from either."""
    (means, counted), (others, here) = class_means(wanted), class_means(found)
    return (means - others).square().sum(1) * (counted & here)


def distances_from_means(F: Tensor, classes: Tensor, sums: Tensor) -> Tensor:
    """Squared distances (n,) of features (n, p) from the means of their classes; 0 where those are missing."""
    means, counted = class_means(sums)
    return (F - means[classes]).square().sum(1) * counted[classes]
