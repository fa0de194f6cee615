r"""Differentiable siamese augmentation as published: the same random numbers, far fewer operations to apply them.

The behaviour is that of ``DiffAugment`` and its ``rand_*`` functions in VICO-UoE/DatasetCondensation (``utils.py``), of
the copies in kaiwang960112/CAFE, DataDistillation/DataDAM, uitrbn/IDM and yolky/RFAD (``diffaugment.py``, which never
seeds), and of GeorgeCazenavette/mtt-distillation (``utils.py``) and those that took it from there, which interpolate
between the centres of corner pixels. What the operations are is written down in `kernels.augmentation` and
`kernels._augmentation`, whose definitions of colour and crop run here on the published draws.

* colour is one affine map of the image in place of three functions of it: rounded differently, all else is the same;
* crop and flip read by index along rows and columns, or whole images at once where all are moved alike, where the
  original makes three index arrays of the size of the batch and scatters gradients through them;
* cutout is a product of two vectors for each image, not an assignment through index arrays;
* scale and rotate take their matrices from vectors, where the original makes up to six tensors of one number for each
  image, and add up their grid, of which there is one where all images share it; on a GPU, where these numbers are
  drawn on the host, one kernel makes the grid and reads through it;
* a seed is set on the CPU's generator at every draw, as there, but on those of other devices only at the last.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, pad

from ...kernels import augment_images
from ...kernels._augmentation import AT, IDENTITY, STAGES, Augmentation
from ...kernels._check import is_wrapped

# What the published table of functions holds for each name: as many draws as functions, or two.
_FUNCTIONS = {
    "color": ["rand_brightness", "rand_saturation", "rand_contrast"],
    "crop": ["rand_crop"],
    "cutout": ["rand_cutout"],
    "flip": ["rand_flip"],
    "scale": ["rand_scale"],
    "rotate": ["rand_rotate"],
}
_DRAWS = {"color": 3, "crop": 2, "cutout": 2, "flip": 1, "scale": 2, "rotate": 1}
_AT_LEAST_ZERO = ("ratio_crop_pad", "ratio_cutout")
_NUMBERS = (
    "prob_flip",
    "ratio_scale",
    "ratio_rotate",
    "brightness",
    "saturation",
    "contrast",
    *_AT_LEAST_ZERO,
)
_SEEDS = 1 << 62


def diff_augment(x: Tensor, strategy: str = "", seed: int = -1, param: Any = None) -> Tensor:
    """Images, changed by one operation of a list or by all of them.

    Identical: every random number and what they leave in the generators, `param.Siamese` and `param.latestseed`, and
    every pixel: bit for bit by crop, cutout and flip, to rounding by the others. About one pass over the images for
    each operation.
    """
    return _augment(x, strategy, seed, param, "Siamese", corners=False)


def diff_augment_corners(x: Tensor, strategy: str = "", seed: int = -1, param: Any = None) -> Tensor:
    """`diff_augment`, with `param.batchmode` and coordinates from the centre of one corner pixel to the other's."""
    return _augment(x, strategy, seed, param, "batchmode", corners=True)


def why_not(x: Any, strategy: Any = "", seed: Any = -1, param: Any = None) -> str | None:
    """Why a call is the original's: whatever is not a batch of float32 images and the published settings."""
    if type(x) not in (Tensor, nn.Parameter) or x.ndim != 4 or not x.numel() or x.dtype != torch.float32:
        return "x is not a batch of float32 images"
    if x.device.type not in ("cpu", "cuda") or x.layout != torch.strided or is_wrapped(x):
        return "x is on another kind of device, or within a function transform"
    if torch.get_default_dtype() != torch.float32 or torch.get_default_device().type != "cpu":
        return "the default dtype or device was changed, and random numbers with it"
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return "autocast is on"
    if type(strategy) is not str or strategy in ("", "None", "none"):
        return "there is nothing to do"
    if type(seed) is not int or not -1 <= seed < _SEEDS:
        return "the seed is not a number from 0"
    if seed != -1 and len(x) == 1:
        return "one image with a seed, which newer torch does not allow the original"
    return why_not_settings(strategy.split("_"), param)


def why_not_unseeded(x: Any, strategy: Any = "", seed: Any = -1, param: Any = None) -> str | None:
    """`why_not`, for a copy that draws on without setting a seed."""
    if seed != -1:
        return "this copy does not set seeds"
    return why_not(x, strategy, seed, param)


def why_not_settings(names: list[str], param: Any) -> str | None:
    """Why operations are not the published ones, by the table beside the class of `param`, or `param` is not usable."""
    table = getattr(sys.modules.get(type(param).__module__), "AUGMENT_FNS", None)
    if type(table) is not dict:
        return "param is not of a class beside the published functions"
    for name in names:
        if [getattr(function, "__name__", "") for function in table.get(name, ())] != _FUNCTIONS.get(name):
            return "the strategy names an operation that is not published"
    if getattr(param, "aug_mode", None) not in ("S", "M"):
        return "the mode is neither S nor M"
    for name in _NUMBERS:
        value = getattr(param, name, None)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return "a setting of param is not a number"
    if any(not 0 <= getattr(param, name) <= 1 for name in _AT_LEAST_ZERO) or param.ratio_scale <= 0:
        return "a ratio of param is out of range"
    return None


def _augment(x: Tensor, strategy: str, seed: int, param: Any, attribute: str, *, corners: bool) -> Tensor:
    names = strategy.split("_")
    draws = _Draws(x, seed)
    if param.aug_mode == "S":
        names = [names[draws.choice(len(names))]]
    draws.expect(sum(_DRAWS[name] for name in names))
    for name in names:
        x = _OPERATIONS[name](x, param, draws, corners)
    setattr(param, attribute, seed != -1)
    param.latestseed = draws.seed
    return x.contiguous()


class _Draws:
    """The published random numbers: a vector for the images, or one number for all of them.

    Attributes
    ----------
    seed : int
        Of the next draw; -1 is none.
    """

    def __init__(self, x: Tensor, seed: int) -> None:
        self._device, self._count = x.device, len(x)
        self._shared, self.seed = seed != -1, seed

    def choice(self, count: int) -> int:
        """Which of the operations."""
        # Drawn on the host: other devices are seeded before their first number.
        if self._shared:
            torch.default_generator.manual_seed(self.seed)
            self.seed += 1
        return int(torch.randint(0, count, size=(1,)).item())

    def expect(self, count: int) -> None:
        """Seed all devices as the last of so many draws will."""
        if self._shared:
            torch.random.manual_seed(self.seed + count - 1)

    def uniform(self, *, on_host: bool = False) -> Tensor:
        """In 0 ... 1."""
        self._set_seed()
        return self._of_first(torch.rand(self._count, device="cpu" if on_host else self._device))

    def whole(self, low: int, high: int) -> Tensor:
        """From low to high - 1."""
        self._set_seed()
        return self._of_first(torch.randint(low, high, (self._count,), device=self._device))

    def _set_seed(self) -> None:
        if not self._shared:
            return
        if self._device.type == "cpu":  # setting all devices takes longer than most of the operations
            torch.default_generator.manual_seed(self.seed)
        else:
            torch.random.manual_seed(self.seed)
        self.seed += 1

    def _of_first(self, numbers: Tensor) -> Tensor:
        return numbers[:1] if self._shared else numbers


def _color(x: Tensor, param: Any, draws: _Draws, corners: bool) -> Tensor:
    brightness = (draws.uniform() - 0.5) * param.brightness
    saturation = draws.uniform() * param.saturation
    contrast = draws.uniform() + param.contrast
    return STAGES["color"](x, (brightness, saturation, contrast), False, True)


def _crop(x: Tensor, param: Any, draws: _Draws, corners: bool) -> Tensor:
    reach = [_part(size, param.ratio_crop_pad) for size in x.shape[2:]]
    down, across = (draws.whole(-most, most + 1) for most in reach)
    if len(down) == 1 and x.device.type == "cpu" and max(reach) < min(x.shape[2:]):
        i, j = int(down), int(across)  # on a GPU reading them would wait
        return pad(x, (-j, j, -i, i))
    return STAGES["crop"](x, (down, across), False, True)


def _cutout(x: Tensor, param: Any, draws: _Draws, corners: bool) -> Tensor:
    inside = []
    for size in x.shape[2:]:
        side = _part(size, param.ratio_cutout)
        begin = draws.whole(0, size + (1 - side % 2)) - side // 2
        place = torch.arange(size, device=x.device) - begin[:, None]
        inside.append(((place >= 0) & (place < side)).float())
    rows, columns = inside
    # A factor, as in the original: what is not finite stays so.
    return x * (1 - rows[:, None, :, None] * columns[:, None, None, :])


def _flip(x: Tensor, param: Any, draws: _Draws, corners: bool) -> Tensor:
    flipped = draws.uniform() < param.prob_flip
    if len(flipped) == 1 and x.device.type == "cpu":
        return x.flip(3) if bool(flipped) else x.clone()
    place = torch.arange(x.shape[3], device=x.device)
    columns = torch.where(flipped[:, None], place.flip(0), place)
    return x.gather(3, columns[:, None, None, :].expand(x.shape))


def _scale(x: Tensor, param: Any, draws: _Draws, corners: bool) -> Tensor:
    ratio = param.ratio_scale
    factors = [draws.uniform(on_host=True) * (ratio - 1.0 / ratio) + 1.0 / ratio for _ in range(2)]
    if x.device.type == "cuda":
        return in_one_kernel(x, "scale", factors)
    zero = torch.zeros_like(factors[0])
    return _interpolated(x, (factors[0], zero, zero, factors[1]), corners)


def _rotate(x: Tensor, param: Any, draws: _Draws, corners: bool) -> Tensor:
    angles = (draws.uniform(on_host=True) - 0.5) * 2 * param.ratio_rotate / 180 * math.pi
    cosines, sines = angles.cos(), angles.sin()
    # Between corners, a rotation of an oblong image shears it by another ratio than the kernel's.
    if x.device.type == "cuda" and (not corners or x.shape[2] == x.shape[3]):
        return in_one_kernel(x, "rotate", (cosines, sines))
    return _interpolated(x, (cosines, -sines, sines, cosines), corners)


def in_one_kernel(x: Tensor, name: str, settings: Any) -> Tensor:
    """A scaling or rotation in one kernel, by settings (one or n) on the host."""
    table = np.tile(IDENTITY, (len(x), 1))
    table[:, AT[name]] = torch.stack(list(settings), 1).numpy()
    _, c, h, w = x.shape
    return augment_images(x, Augmentation(table, (name,), (c, h, w)).to(x.device))


def _interpolated(x: Tensor, matrix: tuple[Tensor, Tensor, Tensor, Tensor], corners: bool) -> Tensor:
    across, down = (_coordinates(size, corners) for size in (x.shape[3], x.shape[2]))
    xx, xy, yx, yy = (value[:, None, None] for value in matrix)
    # A plane of each coordinate, from sums of vectors: the numbers that `affine_grid` gets from a matrix product.
    planes = torch.stack([xx, yx], 1) * across + torch.stack([xy, yy], 1) * down[:, None]
    grid = planes.to(x.device).permute(0, 2, 3, 1).expand(len(x), -1, -1, -1)
    return grid_sample(x, grid, align_corners=corners)


def _coordinates(size: int, corners: bool) -> Tensor:
    """Of pixels along a side, whose ends, or the centres of whose end pixels, are at -1 and 1."""
    places = torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1)
    return places if corners else places * (size - 1) / size


def _part(size: int, ratio: float) -> int:
    return int(size * ratio + 0.5)


_OPERATIONS: dict[str, Callable[[Tensor, Any, _Draws, bool], Tensor]] = {
    "color": _color,
    "crop": _crop,
    "cutout": _cutout,
    "flip": _flip,
    "scale": _scale,
    "rotate": _rotate,
}
