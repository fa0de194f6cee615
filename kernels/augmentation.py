r"""Differentiable siamese augmentation (DSA) of images: random parameters, and one fused operation that applies them.

Zhao and Bilen, "Dataset condensation with differentiable siamese augmentation" (ICML 2021), as in their published code:
``ParamDiffAug`` and ``DiffAugment`` in ``utils.py`` of github.com/VICO-UoE/DatasetCondensation, whose constants are the
ones here. What it really draws, found by reading it:

* mode "S" draws one operation of the list for the whole batch, mode "M" does all in the order of the list; "color"
  is brightness, saturation and contrast, in this order, together in both modes;
* without a seed every image has parameters of its own; with one ("siamese") all images of the batch have those that
  the first would have, so that real and synthetic batches of one seed agree;
* the seed grows by one at every draw: the two scales, shifts and offsets of an image are independent, siamese or not;
* factors are uniform: brightness adds -0.5 ... 0.5, saturation 0 ... 2, contrast 0.5 ... 1.5, both scales
  1/1.2 ... 1.2, the angle -15 ... 15 degrees;
* a crop moves by up to round(size / 8) pixels either way, all whole shifts alike; the box of cutout is round(size / 2)
  pixels high and wide around a pixel drawn uniformly from 0 ... size (size - 1 if the box is odd), cut off at edges.

The operations themselves are in `_augmentation`.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor
from torch.autograd import Function

from ._augmentation import AT, COLUMNS, IDENTITY, OPERATIONS, Augmentation, augmented
from ._check import as_tensor, is_wrapped
from ._dispatch import choose, implement
from .random import uniform

FLIP = 0.5
SCALE = 1.2
ROTATE = 15.0  # degrees
CROP = 0.125
CUTOUT = 0.5
BRIGHTNESS = 1.0
SATURATION = 2.0
CONTRAST = 0.5
_NUMBERS = (
    12  # drawn for each image: the uniforms of all operations, so that no list of them changes another's
)
_GROUP = 1 << 44  # numbers set apart for each group


def draw_augmentation(
    strategy: str,
    groups: Any,
    image_shape: tuple[int, int, int],
    *,
    seed: int,
    stream: str,
    siamese: bool = False,
    single: bool = True,
) -> Augmentation:
    """Random augmentation of n images.

    Parameters
    ----------
    strategy : str
        Names of operations joined by "_": the published "color_crop_cutout_flip_scale_rotate", or some of these; ""
        and "none" are none.
    groups : integer array of shape (n,)
        Which batch each image belongs to, from 0, in any order; on the host (labels on a GPU are waited for).
    image_shape : tuple of int
        (c, h, w).
    seed : int
    stream : str
        Name of the use, such as "dm.augment.17" for step 17.
    siamese : bool, default False
        All images of a group are treated alike.
    single : bool, default True
        One operation for each group (published mode "S"); False: all, one after the other in the order of the list
        ("M").

    Returns
    -------
    Augmentation
        On the CPU. The operation of group g depends on (seed, stream, g) and nothing else; an image's parameters also
        on its number within the group, unless siamese: then equal groups of two calls are treated alike.

    Raises
    ------
    ValueError
        If the strategy names an unknown operation, or one twice, or the groups are not numbers from 0.

    Notes
    -----
    Twelve random numbers for each image, or for each group if siamese.
    """
    wanted = _operations(strategy)
    groups = _numbers(groups)
    image_shape = _shape(image_shape)
    _, h, w = image_shape
    table = np.tile(IDENTITY, (len(groups), 1))
    if not wanted or not len(groups):
        return Augmentation(table, wanted, image_shape)
    order = np.argsort(groups, kind="stable")
    present, sizes = _runs(groups[order])
    draws = np.empty((len(groups), _NUMBERS))
    chosen = np.empty(len(groups), np.int64)
    start = 0
    for group, size in zip(present.tolist(), sizes.tolist(), strict=True):
        count = 1 if siamese else size
        # The first row of numbers is the group's, the others are its images'.
        numbers = uniform(seed, stream, (1 + count, _NUMBERS), group * _GROUP).numpy()
        rows = order[start : start + size]
        draws[rows] = numbers[1:]
        chosen[rows] = int(numbers[0, 0] * len(wanted))
        start += size
    for i, name in enumerate(wanted):
        rows = np.flatnonzero(chosen == i) if single else np.arange(len(groups))
        if len(rows):
            table[rows, AT[name]] = _settings(name, draws[rows].T, h, w)
    return Augmentation(table, OPERATIONS if single else wanted, image_shape)


def augment_images(X: Any, augmentation: Augmentation, *, backend: str | None = None) -> Tensor:
    """Images, augmented.

    Parameters
    ----------
    X : array of shape (n, c, h, w)
    augmentation : Augmentation
        Of n images of this shape, on the same device.
    backend : {"torch", "triton"}, optional

    Returns
    -------
    Tensor, shape (n, c, h, w)
        In the dtype of X, and X itself if nothing changes it. Differentiable in X, exactly, by the transposed operation
        of the same cost: backward, forward mode, derivatives of them, and vmap. Float16 is computed in float32.

    Raises
    ------
    ValueError
        If shapes or devices do not agree, or the named backend cannot do it.

    Notes
    -----
    One pass over X on a GPU. What is moved in from outside an image is zero whatever memory holds.
    """
    X = as_tensor(X, "X")
    if not isinstance(augmentation, Augmentation):
        raise ValueError(f"`augmentation` must be drawn by draw_augmentation, got {augmentation!r}")
    expected = (len(augmentation), *augmentation.image_shape)
    if tuple(X.shape) != expected:
        raise ValueError(f"`X` must have shape {expected}, as its augmentation, got {tuple(X.shape)}")
    if X.device != augmentation.values.device:
        raise ValueError(
            f"`X` is on {X.device} but its augmentation on {augmentation.values.device}: use augmentation.to(X.device)"
        )
    run = choose("augment_images", X, augmentation, backend=backend)
    if not augmentation.used:
        return X
    return _Augmented.apply(X, augmentation, run, False, True)


class _Augmented(Function):
    """An affine map, its linear part, and the transpose of that: each is the derivative of another."""

    @staticmethod
    def forward(X: Any, augmentation: Any, run: Any, adjoint: bool, offset: bool) -> Any:
        # A tensor that a function transform holds has no memory of its own for a GPU kernel to read.
        carry_out = augmented if is_wrapped(X) or is_wrapped(augmentation.values) else run
        return carry_out(X, augmentation, adjoint=adjoint, offset=offset)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.augmentation, ctx.run, ctx.adjoint, _ = inputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (G,) = grad_outputs
        return _Augmented.apply(G, ctx.augmentation, ctx.run, not ctx.adjoint, False), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> Any:
        return _Augmented.apply(grad_inputs[0], ctx.augmentation, ctx.run, ctx.adjoint, False)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        X, augmentation, *others = args
        X = X.movedim(in_dims[0], 0)
        repeated = augmentation[np.tile(np.arange(len(augmentation)), len(X))]
        return _Augmented.apply(X.flatten(0, 1), repeated, *others).unflatten(0, X.shape[:2]), 0


def _settings(name: str, draws: np.ndarray, h: int, w: int) -> np.ndarray:
    """Columns of the table for rows with these uniforms, shape (12, rows)."""
    brightness, saturation, contrast, down, across, y, x, flip, scale_x, scale_y, angle, _ = draws
    if name == "color":
        columns = [(brightness - 0.5) * BRIGHTNESS, saturation * SATURATION, contrast + CONTRAST]
    elif name == "crop":
        columns = [
            _one_of(u, 2 * reach + 1) - reach
            for u, reach in ((down, _part(h, CROP)), (across, _part(w, CROP)))
        ]
    elif name == "cutout":
        columns = []
        for u, size in ((y, h), (x, w)):
            side = _part(size, CUTOUT)
            begin = _one_of(u, size + 1 - side % 2) - side // 2
            columns += [np.maximum(begin, 0), np.minimum(begin + side, size)]
    elif name == "flip":
        columns = [flip < FLIP]
    elif name == "scale":
        columns = [u * (SCALE - 1 / SCALE) + 1 / SCALE for u in (scale_x, scale_y)]
    else:
        radians = (angle - 0.5) * 2 * np.deg2rad(ROTATE)
        columns = [np.cos(radians), np.sin(radians)]
    return np.stack(columns, 1)


def _one_of(u: np.ndarray, count: int) -> np.ndarray:
    return np.floor(u * count)


def _part(size: int, ratio: float) -> int:
    return int(size * ratio + 0.5)


def _operations(strategy: str) -> tuple[str, ...]:
    if not isinstance(strategy, str):
        raise ValueError(f"`strategy` must be names joined by '_', got {strategy!r}")
    if strategy.lower() in ("", "none"):
        return ()
    names = tuple(strategy.split("_"))
    for name in names:
        if name not in COLUMNS:
            raise ValueError(
                f"unknown augmentation {name!r} in {strategy!r}; known are {', '.join(OPERATIONS)}, joined by '_'"
            )
        if names.count(name) > 1:
            raise ValueError(f"{strategy!r} names {name!r} twice: once is enough")
    return names


def _numbers(groups: Any) -> np.ndarray:
    groups = groups.cpu().numpy() if isinstance(groups, Tensor) else np.asarray(groups)
    if groups.ndim != 1 or (groups.dtype.kind not in "iu" and groups.size):
        raise ValueError(
            f"`groups` must be integers, one for each image, got {groups.dtype} of shape {groups.shape}"
        )
    if groups.size and int(groups.min()) < 0:
        raise ValueError(f"`groups` must be numbered from 0, got {int(groups.min())}")
    return groups.astype(np.int64)


def _shape(image_shape: Any) -> tuple[int, int, int]:
    shape = tuple(image_shape) if isinstance(image_shape, Iterable) else (image_shape,)
    if len(shape) != 3 or not all(isinstance(size, (int, np.integer)) and size > 0 for size in shape):
        raise ValueError(f"augmentation needs images of shape (c, h, w), got {shape}")
    return shape


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values of a sorted array, and how often each stands there."""
    starts = np.flatnonzero(np.diff(values, prepend=values[0] - 1))
    return values[starts], np.diff(starts, append=len(values))


def _rejects(X: Tensor, augmentation: Augmentation) -> str | None:
    if list(augmentation.operations) != sorted(augmentation.operations, key=OPERATIONS.index):
        return f"in another order than {', '.join(OPERATIONS)} runs in torch"
    return None


implement("augment_images", "torch", augmented)
implement("augment_images", "triton", "_triton.augmentation:augment_images", rejects=_rejects)
