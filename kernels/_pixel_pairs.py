r"""Covariances between the pixels of two images, and what the layers of a convolutional network do to them.

A covariance of every pixel s of one image with every pixel t of another is stored by offset, ``cells[..., o, s]`` with
:math:`t = s + o`, for the offsets :math:`|o_h| \le r_h,\ |o_w| \le r_w`: the last four axes are
:math:`(o_h, o_w, s_h, s_w)`. Then

- a convolution shifts s and t together, so it is a box filter over s for each offset alone;
- the activation acts on each cell;
- a 2 x 2 average pooling makes the offset O and position S of :math:`o = 2O + j - i,\ s = 2S + i`, i and j in {0, 1}
  on each axis, so that reach r needs reach 2r + 1 before it;
- a flattening readout needs offset 0 alone, and a global average all of them.

So only the offsets that the readout will see are ever computed: with three blocks of convolution and pooling on 32 x 32
images 15² of 63², 0.2 of the :math:`(hw)^2` cells of a pair; without pooling just the variances. Cells whose t lies
outside the image hold anything; `inside` tells them.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

Pair = tuple[int, int]  # (height, width), of an image or of a reach


def windows(images: Tensor, reach: Pair, circular: bool) -> Tensor:
    """The value at s + o for every offset o and position s: (..., h, w) to (..., 2r+1, 2r+1, h, w), a view.

    Outside an image there are zeros or, if `circular`, the image again.
    """
    height, width = images.shape[-2:]
    return _Windows.apply(_padded(images, reach, circular), height, width)  # type: ignore[return-value]


def inside(size: Pair, reach: Pair, like: Tensor) -> Tensor:
    """One where s + o lies inside an image, else zero: shape (2r+1, 2r+1, h, w)."""
    return windows(like.new_ones(size), reach, circular=False)


def pixel_covariance(x: Tensor, y: Tensor, reach: Pair, circular: bool) -> Tensor:
    """Mean over channels of x[s] y[s + o], for images (..., c, h, w) whose leading axes broadcast."""
    channels = x.shape[-3]
    x, ahead = x / channels, windows(y, reach, circular)
    products = (x[..., k, None, None, :, :] * ahead[..., k, :, :, :, :] for k in range(channels))
    return functools.reduce(torch.add, products)


def convolved(cells: Tensor, filter_size: int, circular: bool) -> Tensor:
    """Mean over the filter of cells with s shifted, s and t together."""
    if not circular:
        size, reach = cells.shape[-2:], (cells.shape[-4] // 2, cells.shape[-3] // 2)
        cells = cells * inside((size[0], size[1]), reach, cells)
    height, width = cells.shape[-2:]
    cells = _padded(cells, (filter_size // 2, filter_size // 2), circular)
    cells = functools.reduce(torch.add, (cells.narrow(-2, k, height) for k in range(filter_size)))
    cells = functools.reduce(torch.add, (cells.narrow(-1, k, width) for k in range(filter_size)))
    return cells / filter_size**2


def pooled(cells: Tensor) -> Tensor:
    """2 x 2 average pooling of both images; an odd last row or column is dropped."""
    for offset, position in ((-4, -2), (-3, -1)):
        reach, size = (cells.shape[offset] - 3) // 4, cells.shape[position] // 2
        below, level, above = (_every_other(cells, offset, start, 2 * reach + 1) for start in (0, 1, 2))
        cells = (
            _every_other(level, position, 0, size)
            + _every_other(level, position, 1, size)
            + _every_other(above, position, 0, size)
            + _every_other(below, position, 1, size)
        ) / 4
    return cells


def _every_other(cells: Tensor, dim: int, start: int, count: int) -> Tensor:
    index = [slice(None)] * cells.ndim
    index[dim] = slice(start, start + 2 * count - 1, 2)
    return cells[tuple(index)]


def _padded(images: Tensor, by: Pair, circular: bool) -> Tensor:
    if not circular:
        return F.pad(images, (by[1], by[1], by[0], by[0]))
    for dim, extra in zip((-2, -1), by, strict=True):
        size = images.shape[dim]
        images = images.index_select(dim, torch.arange(-extra, size + extra, device=images.device) % size)
    return images


class _Windows(Function):
    """Two calls of ``unfold``, whose own backward cannot be batched by ``torch.vmap``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(padded: Tensor, height: int, width: int) -> Tensor:
        return padded.unfold(-2, height, 1).unfold(-2, width, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.height, ctx.width = inputs

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        windows = grads[0]
        down, across = windows.shape[-4] - 1, windows.shape[-3] - 1
        strips = (F.pad(windows.select(-4, o), (0, 0, o, down - o)) for o in range(down + 1))
        padded = functools.reduce(torch.add, strips)
        strips = (F.pad(padded.select(-3, o), (o, across - o)) for o in range(across + 1))
        return functools.reduce(torch.add, strips), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0].unfold(-2, ctx.height, 1).unfold(-2, ctx.width, 1)
