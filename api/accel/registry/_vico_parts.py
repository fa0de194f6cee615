"""Functions of VICO-UoE/DatasetCondensation and its copies that are replaced one by one.

Augmentation is in three kinds: as published first, also in CAFE, DataDAM and IDM (some with the shared number copied
before it is spread, which newer torch wants); as in MTT, TESLA, FTD, HaBa, IDM and D3, which name the attribute
`batchmode` and interpolate between corner pixels; and as in RFAD, which never sets a seed.
"""

from collections.abc import Mapping
from typing import Any

from .._target import Target

_SEEDED, _UNSEEDED = "9fdda5f68d8f77c8", "4329808c4804b654"
_PUBLISHED = {
    "rand_scale": ("f3a6c09f4ced8b20", "84fa7e178c13f8fa"),
    "rand_rotate": ("b410b84c7154ef50", "4b17821f333c3742"),
    "rand_flip": ("66e8af2010af3cfd", "0ce7885e049a716d"),
    "rand_brightness": ("bc900c2046acffc0", "d94f9cf1ee10bf62"),
    "rand_saturation": ("717907b5afada756", "8c3c524e545fb72e"),
    "rand_contrast": ("86d404cb540804f5", "2e972d6a7c125e78"),
    "rand_crop": ("ea5e89a757653ade", "454b653a98a95fde"),
    "rand_cutout": ("abc44d8ad232ec49", "45793e437df69062"),
}
_CORNERS = {
    "rand_scale": ("ba7e1896c5dcc2ea",),
    "rand_rotate": ("e556d9894c56d818",),
    "rand_flip": ("eba0877e9436b70a",),
    "rand_brightness": ("41096860deb4c3c7",),
    "rand_saturation": ("c188272699f7a9cb",),
    "rand_contrast": ("8de6bf3ad86f0a46",),
    "rand_crop": ("a41bfad7024e28c3",),
    "rand_cutout": ("88adb2735efdf608",),
}


def _augmentation(
    name: str, hashes: tuple[str, ...], seeding: str, functions: Mapping[str, tuple[str, ...]], **fields: Any
) -> Target:
    return Target(
        name=name,
        qualname="DiffAugment",
        hashes=hashes,
        requires={"set_seed_DiffAug": (seeding,), **functions},
        mutates=("param",),
        equivalence="exact",
        # Colour: a few units in the last place. Where a pixel is read, of up to 256 from the middle: 1e-4 pixels after
        # four roundings on a GPU, times the difference of two pixels, which is at most twice the largest.
        tolerance=2e-4,
        changes="rounding of colour (3e-7), and on a GPU of scale and rotate; torch's warnings about default arguments"
        " do not appear",
        identical="every random number and the state of the generators, attributes of param, crop, cutout and flip bit"
        " for bit; on a CPU scale and rotate too, where its matrix products add in order",
        **fields,
    )


PARTS: tuple[Target, ...] = (
    _augmentation(
        "vico.DiffAugment",
        ("09c5112ec1ce4293", "172da9f92c12ebbb"),
        _SEEDED,
        _PUBLISHED,
        replacement="diff_augment:diff_augment",
        guard="diff_augment:why_not",
        summary="differentiable siamese augmentation of a batch (DC, DSA, DM, CAFE, DataDAM, IDM)",
    ),
    _augmentation(
        "vico.DiffAugment_batchmode",
        ("897c0850a6aaa3ff",),
        _SEEDED,
        _CORNERS,
        replacement="diff_augment:diff_augment_corners",
        guard="diff_augment:why_not",
        summary="differentiable siamese augmentation of a batch (MTT, TESLA, FTD, HaBa, IDM, D3)",
    ),
    _augmentation(
        "rfad.DiffAugment",
        ("172da9f92c12ebbb",),
        _UNSEEDED,
        _PUBLISHED,
        replacement="diff_augment:diff_augment",
        guard="diff_augment:why_not_unseeded",
        summary="differentiable augmentation of a batch, without seeds (RFAD)",
    ),
    Target(
        name="vico.match_loss",
        qualname="match_loss",
        hashes=("0dc6fb354d1117e1",),
        requires={"distance_wb": ("c6a93133b2cd8b19",)},
        replacement="match_loss:match_loss",
        guard="match_loss:why_not",
        equivalence="exact",
        # Sums of squares in two orders: see the module.
        tolerance=1e-5,
        summary="distance of two gradients, layer by layer (DC, DSA, CAFE, IDM)",
        changes='rounding of the derivative, and of the value with dis_metric "mse"; --verify compares values, not'
        " derivatives",
        identical='the value with dis_metric "ours"; what is differentiated, and to any order',
    ),
    Target(
        name="vico.distance_wb",
        qualname="distance_wb",
        hashes=("c6a93133b2cd8b19",),
        replacement="match_loss:distance_wb",
        guard="match_loss:why_not_distance",
        equivalence="exact",
        tolerance=0.0,
        summary="distance of two gradients of one layer, for those who call it themselves",
        changes="rounding of the derivative; --verify compares values, not derivatives",
        identical="the value; what is differentiated, and to any order",
    ),
)
