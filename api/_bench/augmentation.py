"""Benchmark cases of siamese augmentation."""

import torch
from torch import Tensor

from ..kernels.augmentation import augment_images, draw_augmentation
from .case import Bench, Problem, Work, case, largest_error, some_rows

_STRATEGY = "color_crop_cutout_flip_scale_rotate"
# Weights of the bilinear interpolation: coordinates up to 64 pixels in float32, times what pixels differ by.
_TOLERANCE = 1e-4


@case(
    "augment",
    ("augment_images", "draw_augmentation"),
    "all six operations of DSA on every image, with their draws",
    quick=[dict(n=20, c=3, side=9)],
    cpu=[dict(n=2560, c=3, side=32)],
    cuda=[dict(n=2560, c=3, side=32), dict(n=12_800, c=3, side=64)],
)
def _augment(bench: Bench, n: int, c: int, side: int) -> Problem:
    X, groups = bench.normal(n, c, side, side), torch.arange(n) % 10
    rows = some_rows(n)

    def drawn():
        made = draw_augmentation(_STRATEGY, groups, (c, side, side), seed=0, stream="bench", single=False)
        return made.to(bench.device)

    def exact() -> Tensor:
        return augment_images(X[rows].double(), drawn()[rows], backend="torch")

    return Problem(
        ours=lambda: augment_images(X, drawn()),
        error=lambda found: largest_error(found[rows], exact()),
        tolerance=_TOLERANCE,
        rivals={"torch definition": lambda: augment_images(X, drawn(), backend="torch")},
        work=Work(bytes=2 * 4.0 * n * c * side * side),
    )
