r"""All of an image's augmentation in one gather, and its transpose in another.

Colour commutes with what moves pixels: interpolation, crop, cutout and flip are one linear map M of the plane, the
same for all channels, and where colour comes first (see `_augmentation` for the letters)

.. math:: M(\text{colour}(x)) = (b + (1-k)\bar x)\,M1 + k(1-s)\,\overline{Mx}_p + ks\,Mx .

So a program gathers Mx for all channels of some pixels, and M1, the weight that was read inside the image, beside it;
the mean of the image it adds up itself, for images whose contrast changes. Of the transpose,
:math:`(1-k)\overline{M^\top g} + k(1-s)\overline{M^\top g}_p + ks\,M^\top g`, the first mean is that of
:math:`g \cdot M1`.

An interpolation reads the four pixels around a point. Its transpose asks instead which points lie within one pixel of
this one: a window around the preimage, as large as the inverse matrix says. Nothing is scattered, so sums are in one
order and repeat to the last bit. Both interpolations nest, as two roundings to the grid do; one that is off has one
tap, so that an image costs what is done to it and no more.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._augmentation import NAMES, Augmentation
from ._resources import Variant

_SETTINGS = tl.constexpr(len(NAMES))


def augment_images(X: Tensor, augmentation: Augmentation, *, adjoint: bool, offset: bool) -> Tensor:
    """See `kernels._augmentation.augmented`."""
    X = X.contiguous()
    n, c, h, w = X.shape
    out = torch.empty_like(X)
    launch = tile(c, h * w)
    _augment_kernel[(n, triton.cdiv(h * w, launch["BP"]))](
        *(X, augmentation.values.contiguous(), out, c, h, w),
        ADJOINT=adjoint,
        OFFSET=offset,
        WIDE=X.dtype == torch.float64,
        enable_fp_fusion=True,
        **launch,
    )
    return out


def tile(channels: int, pixels: int) -> dict[str, int]:
    """All channels of as many pixels as leave a thread four numbers (not measured on a GPU)."""
    side = triton.next_power_of_2(channels)
    wide = min(triton.next_power_of_2(pixels), max(16, 1024 // side))
    return {"BC": side, "BP": wide, "num_warps": 8, "num_stages": 1}


@triton.jit
def _augment_kernel(
    p_x, p_settings, p_out, channels, h, w,
    ADJOINT: tl.constexpr, OFFSET: tl.constexpr, WIDE: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    i_n = tl.program_id(0).to(tl.int64)
    pixels = h * w
    p_image = p_x + i_n * channels * pixels
    p_s = p_settings + i_n * _SETTINGS
    o_p = tl.program_id(1) * BP + tl.arange(0, BP)
    b_moved, b_inside = _moved(p_image, p_s, o_p, channels, h, w, ADJOINT, True, WIDE, BC, BP)
    brightness = _setting(p_s, 0, WIDE)
    saturation = _setting(p_s, 1, WIDE)
    contrast = _setting(p_s, 2, WIDE)
    rest = tl.zeros((), _kind(WIDE))
    if contrast != 1:
        rest = (1 - contrast) * _mean(p_image, p_s, channels, h, w, ADJOINT, WIDE, BC, BP)
    if OFFSET:
        rest += brightness
    b_at_pixel = tl.sum(b_moved, 0) / channels
    b_rest = contrast * (1 - saturation) * b_at_pixel
    b_rest += rest if ADJOINT else rest * b_inside
    b_out = b_rest[None, :] + contrast * saturation * b_moved
    o_c = tl.arange(0, BC)
    p_to = p_out + i_n * channels * pixels + o_c[:, None] * pixels + o_p[None, :]
    tl.store(p_to, b_out, mask=(o_c < channels)[:, None] & (o_p < pixels)[None, :])


@triton.jit
def _mean(
    p_image,
    p_s,
    channels,
    h,
    w,
    ADJOINT: tl.constexpr,
    WIDE: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    """Mean of the image, or of the transpose applied to it."""
    pixels = h * w
    o_c = tl.arange(0, BC)
    b_sum = tl.zeros((BC, BP), _kind(WIDE))
    for start in range(0, pixels, BP):
        o_p = start + tl.arange(0, BP)
        mask = (o_c < channels)[:, None] & (o_p < pixels)[None, :]
        b_x = tl.load(p_image + o_c[:, None] * pixels + o_p[None, :], mask=mask, other=0.0).to(_kind(WIDE))
        if ADJOINT:
            _, b_inside = _moved(p_image, p_s, o_p, channels, h, w, False, False, WIDE, BC, BP)
            b_x = tl.where(b_inside[None, :] > 0, b_x * b_inside[None, :], 0.0)
        b_sum += b_x
    return tl.sum(tl.sum(b_sum, 1), 0) / (channels * pixels)


@triton.jit
def _moved(
    p_image, p_s, o_p, channels, h, w,
    ADJOINT: tl.constexpr, LOAD: tl.constexpr, WIDE: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """What moving pixels, or its transpose, makes of these; and the weight read inside the image."""
    o_c = tl.arange(0, BC)
    down = _setting(p_s, 3, WIDE).to(tl.int32)
    across = _setting(p_s, 4, WIDE).to(tl.int32)
    flip = _setting(p_s, 9, WIDE)
    scale_x = _setting(p_s, 10, WIDE)
    scale_y = _setting(p_s, 11, WIDE)
    cosine = _setting(p_s, 12, WIDE)
    sine = _setting(p_s, 13, WIDE)
    # Coordinates of the operations go from -1 to 1, those here by pixels.
    wide = tl.cast(w, _kind(WIDE)) / h  # a side of 1 is a constant, which has no .to
    scaled = (scale_x != 1) | (scale_y != 1)
    rotated = (cosine != 1) | (sine != 0)
    zero = tl.zeros((), _kind(WIDE))
    if ADJOINT:
        xx, xy, yx, yy, on = scale_x, zero, zero, scale_y, scaled
        zx, zy, vx, vy, then = cosine, -sine * wide, sine / wide, cosine, rotated
    else:
        xx, xy, yx, yy, on = cosine, -sine * wide, sine / wide, cosine, rotated
        zx, zy, vx, vy, then = scale_x, zero, zero, scale_y, scaled
    columns, rows = _taps(xx, xy, yx, yy, on, ADJOINT)
    more_columns, more_rows = _taps(zx, zy, vx, vy, then, ADJOINT)
    o_y = o_p // w
    o_x = o_p % w
    live = o_p < h * w
    if ADJOINT:
        o_y -= down
        o_x -= across
        live = live & _within(o_y, o_x, h, w) & ~_in_box(p_s, o_y, o_x)
        o_x = tl.where(flip != 0, w - 1 - o_x, o_x)
    b_moved = tl.zeros((BC, BP), _kind(WIDE))
    b_inside = tl.zeros((BP,), _kind(WIDE))
    for i in range(rows * columns):
        k_y, k_x, b_weight = _tap(
            o_y, o_x, i // columns, i % columns, xx, xy, yx, yy, on, h, w, ADJOINT, WIDE
        )
        near = live & _within(k_y, k_x, h, w)
        for j in range(more_rows * more_columns):
            l_y, l_x, b_more = _tap(
                k_y, k_x, j // more_columns, j % more_columns, zx, zy, vx, vy, then, h, w, ADJOINT, WIDE
            )
            b_both = b_weight * b_more
            read = near & _within(l_y, l_x, h, w) & (b_both > 0)
            if not ADJOINT:
                l_x = tl.where(flip != 0, w - 1 - l_x, l_x)
                read = read & ~_in_box(p_s, l_y, l_x)
                l_y += down
                l_x += across
                read = read & _within(l_y, l_x, h, w)
                b_inside += tl.where(read, b_both, 0.0)
            if LOAD:
                p_from = p_image + o_c[:, None] * (h * w) + (l_y * w + l_x)[None, :]
                b_x = tl.load(p_from, mask=(o_c < channels)[:, None] & read[None, :], other=0.0)
                b_moved += tl.where(read, b_both, 0.0)[None, :] * b_x.to(_kind(WIDE))
    return b_moved, b_inside


@triton.jit
def _taps(xx, xy, yx, yy, on, ADJOINT: tl.constexpr):
    """Columns and rows of pixels that an interpolation, or its transpose, may have to read."""
    columns = 1
    rows = 1
    if ADJOINT:
        reach_x, reach_y = _reach(xx, xy, yx, yy, on)
        columns += tl.floor(2 * reach_x).to(tl.int32)
        rows += tl.floor(2 * reach_y).to(tl.int32)
    else:
        columns += on.to(tl.int32)
        rows += on.to(tl.int32)
    return columns, rows


@triton.jit
def _reach(xx, xy, yx, yy, on):
    """How far from its preimage a pixel is still read, in x and y."""
    size = tl.abs(xx * yy - xy * yx)
    return tl.where(on, (tl.abs(yy) + tl.abs(xy)) / size, 0.0), tl.where(
        on, (tl.abs(xx) + tl.abs(yx)) / size, 0.0
    )


@triton.jit
def _tap(o_y, o_x, i_row, i_column, xx, xy, yx, yy, on, h, w, ADJOINT: tl.constexpr, WIDE: tl.constexpr):
    """The pixel that is read for this one, and its weight."""
    middle_y = tl.cast(h - 1, _kind(WIDE)) / 2
    middle_x = tl.cast(w - 1, _kind(WIDE)) / 2
    b_y = o_y.to(_kind(WIDE)) - middle_y
    b_x = o_x.to(_kind(WIDE)) - middle_x
    if ADJOINT:
        size = xx * yy - xy * yx
        reach_x, reach_y = _reach(xx, xy, yx, yy, on)
        k_x = tl.ceil((yy * b_x - xy * b_y) / size + middle_x - reach_x) + i_column
        k_y = tl.ceil((xx * b_y - yx * b_x) / size + middle_y - reach_y) + i_row
        to_x = xx * (k_x - middle_x) + xy * (k_y - middle_y) - b_x
        to_y = yx * (k_x - middle_x) + yy * (k_y - middle_y) - b_y
    else:
        at_x = xx * b_x + xy * b_y + middle_x
        at_y = yx * b_x + yy * b_y + middle_y
        k_x = tl.floor(at_x) + i_column
        k_y = tl.floor(at_y) + i_row
        to_x = at_x - k_x
        to_y = at_y - k_y
    b_weight = tl.maximum(1 - tl.abs(to_x), 0.0) * tl.maximum(1 - tl.abs(to_y), 0.0)
    return k_y.to(tl.int32), k_x.to(tl.int32), b_weight


@triton.jit
def _within(o_y, o_x, h, w):
    return (o_y >= 0) & (o_y < h) & (o_x >= 0) & (o_x < w)


@triton.jit
def _in_box(p_s, o_y, o_x):
    top, bottom = tl.load(p_s + 5).to(tl.int32), tl.load(p_s + 6).to(tl.int32)
    left, right = tl.load(p_s + 7).to(tl.int32), tl.load(p_s + 8).to(tl.int32)
    return (o_y >= top) & (o_y < bottom) & (o_x >= left) & (o_x < right)


@triton.jit
def _setting(p_s, NUMBER: tl.constexpr, WIDE: tl.constexpr):
    return tl.load(p_s + NUMBER).to(_kind(WIDE))


@triton.constexpr_function
def _kind(WIDE):
    return tl.float64 if WIDE else tl.float32


def _variant(label: str, shape: tuple[int, int, int], adjoint: bool, offset: bool) -> Variant:
    c, h, w = shape
    launch = tile(c, h * w)
    return Variant(
        label=f"augmentation, {label}, {c}x{h}x{w}",
        kernel=_augment_kernel,
        arguments={
            **{"p_x": "*fp32", "p_settings": "*fp64", "p_out": "*fp32"},
            **dict.fromkeys(("channels", "h", "w"), "i32"),
        },
        constants={
            "ADJOINT": adjoint,
            "OFFSET": offset,
            "WIDE": False,
            **{name: launch[name] for name in ("BC", "BP")},
        },
        warps=launch["num_warps"],
        stages=launch["num_stages"],
        odd=("channels",),
    )


VARIANTS = [
    _variant("forward", (3, 32, 32), False, True),
    _variant("transpose", (3, 32, 32), True, False),
    _variant("transpose", (1, 28, 28), True, False),
]
