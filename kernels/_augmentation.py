r"""What is done to each image of a batch, and the torch definition of doing it.

The published operations (``DiffAugment`` in ``utils.py`` of github.com/VICO-UoE/DatasetCondensation) on one image x of
c channels, h rows and w columns, where :math:`\bar x` is the mean of all its numbers and :math:`\bar x_p` that of the
channels at a pixel:

* colour: brightness :math:`x + b`, then saturation :math:`\bar x_p + s(x - \bar x_p)`, then contrast
  :math:`\bar x + k(x - \bar x)`, each mean taken of what came before it. Saturation keeps :math:`\bar x_p`, so all
  three are :math:`b + (1-k)\bar x + k(1-s)\bar x_p + ks\,x`, with the means of the image itself;
* crop: pixel (i, j) takes the value at (i + dy, j + dx), zero outside;
* cutout: zero in a box;
* flip: left to right;
* scale, rotate: pixel p, in coordinates of -1 ... 1 from edge to edge, takes the value at Ap, by bilinear interpolation
  of pixels that are zero outside the image. In these coordinates a rotation of an oblong image also shears it.

Every one is affine in x. But for the interpolations each is, without b, its own transpose (colour, cutout, flip) or of
its own kind (crop by the opposite shift); that of an interpolation adds each value to the four pixels it was read from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

# Columns of the table of parameters, and their values where the operation is off.
COLUMNS = {
    "color": ("brightness", "saturation", "contrast"),
    "crop": ("down", "across"),
    "cutout": ("top", "bottom", "left", "right"),
    "flip": ("flip",),
    "scale": ("scale_x", "scale_y"),
    "rotate": ("cosine", "sine"),
}
OPERATIONS = tuple(COLUMNS)  # in the published order
NAMES = tuple(name for names in COLUMNS.values() for name in names)
_ONES = ("saturation", "contrast", "scale_x", "scale_y", "cosine")
IDENTITY = np.array([float(name in _ONES) for name in NAMES])
AT = {name: slice(NAMES.index(names[0]), NAMES.index(names[-1]) + 1) for name, names in COLUMNS.items()}


@dataclass(frozen=True, eq=False)
class Augmentation:
    """What happens to each of n images.

    Parameters
    ----------
    table : ndarray of float64, shape (n, 14)
        On the host. Columns: brightness (added), saturation and contrast (factors); crop down and across (pixels, whole
        numbers, at which the image is read); cutout top, bottom, left, right (pixels, ends excluded); flip (0 or 1);
        scale of x and y (above 1 shows the image smaller); cosine and sine of the rotation.
    operations : tuple of str
        The order in which operations are carried out. One that changes no image costs nothing.
    image_shape : tuple of int
        (c, h, w) of the images.
    values : Tensor of float64, shape (n, 14), optional
        The table, on the device of the images; default a view of it on the CPU.
    """

    table: np.ndarray
    operations: tuple[str, ...]
    image_shape: tuple[int, int, int]
    values: Tensor = None  # type: ignore[assignment]  # never None after __post_init__

    def __post_init__(self) -> None:
        if self.table.dtype != np.float64 or self.table.ndim != 2 or self.table.shape[1] != len(NAMES):
            raise ValueError(
                f"`table` must be float64 of shape (n, {len(NAMES)}), got {self.table.dtype} of shape"
                f" {self.table.shape}"
            )
        if self.values is None:
            object.__setattr__(self, "values", torch.from_numpy(self.table))

    def __len__(self) -> int:
        return len(self.table)

    def to(self, device: Any) -> "Augmentation":
        """The same, for images on `device`: one small copy."""
        return replace(self, values=self.values.to(device))

    def __getitem__(self, rows: Any) -> "Augmentation":
        """That of some images: a slice, or an array of numbers or booleans."""
        if isinstance(rows, slice):
            return replace(self, table=self.table[rows], values=self.values[rows])
        numbers = np.arange(len(self))[rows.cpu().numpy() if isinstance(rows, Tensor) else rows]
        if numbers.ndim != 1:
            raise ValueError(f"an augmentation is indexed by a slice or by an array, got {rows!r}")
        index = torch.from_numpy(numbers).to(self.values.device)
        return replace(self, table=self.table[numbers], values=self.values.index_select(0, index))

    @staticmethod
    def cat(parts: Sequence["Augmentation"]) -> "Augmentation":
        """Those of several batches, one after the other; their operations and shapes must be the same."""
        if not parts:
            raise ValueError("there is no augmentation to put together")
        first = parts[0]
        for other in parts[1:]:
            if (other.operations, other.image_shape) != (first.operations, first.image_shape):
                raise ValueError(
                    f"augmentations of different kinds cannot be put together: {first.operations} of"
                    f" {first.image_shape} and {other.operations} of {other.image_shape}"
                )
        table = np.concatenate([part.table for part in parts])
        return replace(first, table=table, values=torch.cat([part.values for part in parts]))

    @cached_property
    def used(self) -> dict[str, np.ndarray]:
        """Numbers of the images that an operation changes, for operations that change any, in their order."""
        changed = {
            name: np.flatnonzero((self.table[:, AT[name]] != IDENTITY[AT[name]]).any(1))
            for name in self.operations
        }
        return {name: numbers for name, numbers in changed.items() if len(numbers)}


def augmented(X: Tensor, augmentation: Augmentation, *, adjoint: bool, offset: bool) -> Tensor:
    """The definition: one operation after the other, each on the images that it changes.

    Parameters
    ----------
    X : Tensor, shape (n, c, h, w)
    augmentation : Augmentation
    adjoint : bool
        Apply the transpose of the linear part instead.
    offset : bool
        Add brightness; without it the map is linear.
    """
    Z = X.float() if X.dtype in (torch.float16, torch.bfloat16) else X
    fresh = Z is not X
    used = list(augmentation.used.items())
    for name, numbers in reversed(used) if adjoint else used:
        rows = torch.from_numpy(numbers).to(X.device)
        everything = len(numbers) == len(Z)
        settings, here = augmentation.values[:, AT[name]], augmentation.table[numbers, AT[name]]
        if (here == here[0]).all():  # one row does for all
            settings = settings[numbers[0], None]
        elif not everything:
            settings = settings.index_select(0, rows)
        part = Z if everything else Z.index_select(0, rows)
        part = STAGES[name](part, settings.unbind(1), adjoint, offset)
        Z = part if everything else (Z if fresh else Z.clone()).index_copy_(0, rows, part)
        fresh = True
    return Z.to(X.dtype)


def _color(X: Tensor, settings: Sequence[Tensor], adjoint: bool, offset: bool) -> Tensor:
    brightness, saturation, contrast = (value.to(X.dtype)[:, None, None, None] for value in settings)
    at_pixel = X.mean(1, keepdim=True)
    rest = (1 - contrast) * at_pixel.mean((2, 3), keepdim=True)
    if offset:
        rest = rest + brightness
    return torch.addcmul(
        contrast * (1 - saturation) * at_pixel + rest, (contrast * saturation).expand(len(X), 1, 1, 1), X
    )


def _crop(X: Tensor, settings: Sequence[Tensor], adjoint: bool, offset: bool) -> Tensor:
    h, w = X.shape[2:]
    sign = -1 if adjoint else 1
    # Where to read in an image with an edge of zeros around it.
    down, across = (
        (torch.arange(size, device=X.device) + (1 + sign * shift.long())[:, None]).clamp(0, size + 1)
        for size, shift in zip((h, w), settings, strict=True)
    )
    pixels = ((w + 2) * down[:, None, :, None] + across[:, None, None, :]).flatten(2)
    padded = pad(X, (1, 1, 1, 1)).view(*X.shape[:2], -1)
    return padded.gather(2, pixels.expand(len(X), X.shape[1], -1)).view(X.shape)


def _cutout(X: Tensor, settings: Sequence[Tensor], adjoint: bool, offset: bool) -> Tensor:
    top, bottom, left, right = (value[:, None] for value in settings)
    down, across = (torch.arange(size, device=X.device) for size in X.shape[2:])
    rows, columns = (down >= top) & (down < bottom), (across >= left) & (across < right)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], 0.0, X)  # of NaN as well


def _flip(X: Tensor, settings: Sequence[Tensor], adjoint: bool, offset: bool) -> Tensor:
    return X.flip(3)


def _scale(X: Tensor, settings: Sequence[Tensor], adjoint: bool, offset: bool) -> Tensor:
    x, y = settings
    zero = torch.zeros_like(x)
    return _interpolated(X, (x, zero, zero, y), adjoint)


def _rotate(X: Tensor, settings: Sequence[Tensor], adjoint: bool, offset: bool) -> Tensor:
    cosine, sine = settings
    return _interpolated(X, (cosine, -sine, sine, cosine), adjoint)


def _interpolated(X: Tensor, matrix: Sequence[Tensor], adjoint: bool) -> Tensor:
    h, w = X.shape[2:]
    xx, xy, yx, yy = (value.to(X.dtype)[:, None, None] for value in matrix)
    x, y = ((2 * torch.arange(size, dtype=X.dtype, device=X.device) + 1) / size - 1 for size in (w, h))
    y = y[:, None]
    grid = torch.stack([xx * x + xy * y, yx * x + yy * y], dim=3).expand(len(X), h, w, 2)
    if not adjoint:
        return grid_sample(X, grid, align_corners=False)
    backward = torch.ops.aten.grid_sampler_2d_backward
    return backward(X.contiguous(), X, grid, 0, 0, False, [True, False])[0]  # bilinear, zeros; of X alone


STAGES: dict[str, Any] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
