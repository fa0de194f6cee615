r"""Squared MMD between features of images and of rows, class by class, in the activations of some classes at a time.

.. math:: L = \sum_c \mathrm{MMD}^2\bigl(f(S_c), f(T_c)\bigr)

with f a network up to its last layer, S_c images of class c and T_c rows of it, and the unbiased estimate of `mmd2`, or
the biased one. Source: the second part of a step of D3 (Qin et al. 2024, ``distill_distribution.py`` and ``mmd.py``),
where the kernel is the plain sum of five Gaussians of widths 1, 2, 4, 8, 16, which `MixtureOfGaussians` is without
weights. The published biased estimate divides all three sums by the square of one size, and is not followed.

Classes share no term of L, so images are embedded with a graph whole classes after one another, each followed by its
backward pass: the gradient is the same, and the published loop keeps the activations of all images of all classes.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..kernels import mmd2
from ..kernels.radial import RadialKernel
from ..solver.learners.class_pieces import Piece, sum_over_pieces

Features = Callable[[Tensor], Tensor]


def feature_mmd(
    features: Features,
    images: Tensor,
    pieces: Sequence[Piece],
    real: Tensor,
    classes: Tensor,
    kernel: RadialKernel,
    *,
    biased: bool = False,
) -> Tensor:
    """L, differentiable once in the images; its gradient is computed with it.

    Parameters
    ----------
    features : callable
        f, of images (n, *input_shape).
    images : Tensor, shape (m, *input_shape)
    pieces : sequence of Piece
        Of the images (`class_pieces`): what is differentiated through together.
    real : Tensor, shape (n, p)
        f of the rows, a constant.
    classes : Tensor, shape (n,), int64, on the CPU
        Of the rows.
    kernel : RadialKernel
        Of features.
    biased : bool, default False

    Returns
    -------
    Tensor, shape (), float64

    Raises
    ------
    ValueError
        As `mmd2`: if a class has too few images or rows for the estimate.

    Notes
    -----
    One pass forward and one backward over the images.
    """

    def loss_of(part: Tensor, piece: Piece) -> Tensor:
        numbers, groups = piece.host_classes.unique(return_inverse=True)
        at = torch.isin(classes, numbers).nonzero().flatten()
        rows = real[at.to(real.device)]
        of_rows = torch.searchsorted(numbers, classes[at])
        return mmd2(features(part), rows, kernel, groups=(groups, of_rows), biased=biased).sum()

    return sum_over_pieces(loss_of, images, pieces)


def class_distance(F: Tensor, classes: Tensor) -> Tensor:
    """Median distance of two rows of one class: what the widths of a kernel are to be compared with.

    Parameters
    ----------
    F : Tensor, shape (n, p)
    classes : Tensor, shape (n,), int64, on the CPU
        Some class must have two rows.

    Returns
    -------
    Tensor, shape ()
        Of half as many pairs as rows, none of which share a row: O(n p).
    """
    order = classes.argsort(stable=True)
    counts = classes.bincount()
    first, halves = (part.repeat_interleave(counts) for part in (counts.cumsum(0) - counts, counts // 2))
    at = torch.arange(len(classes))
    left = (at - first < halves).nonzero().flatten()
    pairs = torch.stack([order[left], order[left + halves[left]]]).to(F.device)
    return (F[pairs[0]] - F[pairs[1]]).norm(dim=1).median()
