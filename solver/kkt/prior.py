"""Priors of images: how much neighbouring pixels differ, and how large an image is.

Means, so that a weight says the same for images of every size. Lee et al. ("Deep Support Vectors", NeurIPS 2024) do not
say how theirs are normalised.
"""

from torch import Tensor


def total_variation(X: Tensor) -> Tensor:
    """Mean absolute difference of neighbours down and across, of images (m, c, h, w); 0 for constant images."""
    down, across = X.diff(dim=-2).abs(), X.diff(dim=-1).abs()
    return (down.sum() + across.sum()) / max(1, down.numel() + across.numel())


def mean_norm(X: Tensor) -> Tensor:
    """Mean square of the pixels, so that its gradient exists at 0 too."""
    return X.square().mean()
