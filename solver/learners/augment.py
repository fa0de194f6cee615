"""Flips and shifts of batches of images, the same for a row at a step however rows are cut into pieces.

Choices are items of counter-based streams, keyed by seed and step and numbered by row.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ...kernels import uniform
from .._check import check_name

Augmentation = Literal["flip", "shift"]
# Pixels by which an image is shifted at most, either way: the usual padding and cropping of 32 x 32 images.
SHIFT = 4


def augment(
    X: Tensor,
    index: Tensor,
    augmentations: Sequence[Augmentation],
    *,
    seed: int,
    step: int,
    shift: int = SHIFT,
) -> Tensor:
    """Change a batch of images at random.

    Parameters
    ----------
    X : Tensor, shape (b, c, h, w)
    index : Tensor, shape (b,), int64
        Numbers of the rows, from 0.
    augmentations : sequence of {"flip", "shift"}
        "flip": half of the rows are mirrored left to right. "shift": every row is moved by up to `shift` pixels,
        down and right independently and uniformly, with zeros (the mean, after most transforms) moving in.
    seed, step : int
        Key of the choices.
    shift : int, default 4

    Returns
    -------
    Tensor, shape (b, c, h, w)
        `X` itself if there is nothing to do.

    Raises
    ------
    ValueError
        If `X` are not images, or a name is unknown.

    Notes
    -----
    Draws one number for each row up to the largest of `index`, three with "shift".
    """
    for name in augmentations:
        check_name(name, get_args(Augmentation), "augmentation")
    if not augmentations or not len(X):
        return X
    if X.ndim != 4:
        raise ValueError(
            f"augmentation needs images (c, h, w), got rows of shape {tuple(X.shape[1:])}: use augment=()"
        )
    channels, height, width = X.shape[1:]
    index = index.cpu()
    count = int(index.max()) + 1

    def draw(what: str, values: int) -> Tensor:
        """One of 0 ... values - 1 for each row."""
        chances = uniform(seed, f"augment.{what}.{step}", count)[index]
        return (chances * values).long()[:, None].to(X.device)

    down, across = (torch.arange(size, device=X.device)[None] for size in (height, width))
    if "shift" in augmentations:
        down = down + draw("down", 2 * shift + 1) - shift
        across = across + draw("across", 2 * shift + 1) - shift
    if "flip" in augmentations:
        across = torch.where(draw("flip", 2) > 0, width - 1 - across, across)
    inside = ((down >= 0) & (down < height))[:, :, None] & ((across >= 0) & (across < width))[:, None, :]
    pixels = down.clamp(0, height - 1)[:, :, None] * width + across.clamp(0, width - 1)[:, None, :]
    pixels = pixels.flatten(1)[:, None].expand(len(X), channels, -1)
    return X.flatten(2).gather(2, pixels).unflatten(2, (height, width)) * inside[:, None]
