"""Feature maps: what a model is linear in. `make_feature_map` makes one by name, `restore_feature_map` again."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .._check import check_name
from .base import FeatureMap
from .conv import ConvNet
from .conv_network import ConvNetworkFeatures
from .coupling import Coupling
from .dense import DeepLinear, Dense
from .fourier import RandomFourier
from .identity import Identity
from .module import ModuleFeatures
from .patches import RandomPatches
from .random_conv import RandomConv

__all__ = [
    "FEATURE_MAPS",
    "ConvNet",
    "ConvNetworkFeatures",
    "Coupling",
    "DeepLinear",
    "Dense",
    "FeatureMap",
    "Identity",
    "ModuleFeatures",
    "RandomConv",
    "RandomFourier",
    "RandomPatches",
    "feature_map_names",
    "make_feature_map",
    "restore_feature_map",
]

FEATURE_MAPS: dict[str, type[FeatureMap]] = {
    cls.name: cls
    for cls in (
        Identity,
        Dense,
        DeepLinear,
        RandomFourier,
        ConvNet,
        Coupling,
        RandomPatches,
        RandomConv,
        ConvNetworkFeatures,
        ModuleFeatures,
    )
}
_ALIASES = {"linear": "identity", "rff": "fourier"}


def make_feature_map(
    spec: "str | FeatureMap | torch.nn.Module",
    input_shape: tuple[int, ...],
    *,
    seed: int = 0,
    sample: Callable[[], Tensor] | None = None,
    params: Mapping[str, Any] | None = None,
) -> FeatureMap:
    """Make a feature map for inputs of `input_shape`.

    Parameters
    ----------
    spec : str, FeatureMap or torch.nn.Module
        A name ("identity" or "linear", "fourier" or "rff", "fcnn", "deep-linear", "conv", "coupling",
        "patches", "random-conv"), a map that is already made, or a module whose flattened output is the feature
        vector.
    input_shape : tuple of int
    seed : int, default 0
    sample : callable, optional
        Gives transformed training rows (n, *input_shape); called only for maps that set a length scale or
        take filters from data.
    params : mapping, optional
        Further arguments of the map's constructor.

    Raises
    ------
    ValueError
        For an unknown name (with the nearest known one), arguments the map does not take, or a map that
        was made for inputs of another shape.
    """
    params = dict(params or {})
    if isinstance(spec, FeatureMap):
        if params:
            raise ValueError(f"the feature map is already made: drop its parameters {sorted(params)}")
        if spec.input_shape != tuple(input_shape):
            raise ValueError(
                f"the feature map takes {spec.input_shape}, the data have shape {tuple(input_shape)}"
            )
        return spec
    if isinstance(spec, torch.nn.Module):
        return ModuleFeatures(spec, tuple(input_shape), **params)
    name = check_name(spec, feature_map_names(), "feature map")
    cls = FEATURE_MAPS[_ALIASES.get(name, name)]
    rows = sample() if sample is not None and cls.needs_sample(params) else None
    try:
        return cls.build(tuple(input_shape), seed=seed, sample=rows, **params)
    except TypeError as error:
        raise ValueError(f"the {cls.name!r} map cannot be made with {params}: {error}") from error


def feature_map_names() -> list[str]:
    """Names that `make_feature_map` knows."""
    given = (ModuleFeatures.name, ConvNetworkFeatures.name)  # trained elsewhere: no name and seed make them
    return [name for name in (*FEATURE_MAPS, *_ALIASES) if name not in given]


def restore_feature_map(
    name: str,
    parameters: dict[str, Any],
    tensors: dict[str, Tensor],
    module: "torch.nn.Module | None" = None,
) -> FeatureMap:
    """Make the map that a file describes; a frozen module must be given again, because code is not stored."""
    cls = FEATURE_MAPS[check_name(name, FEATURE_MAPS, "feature map")]
    if cls is ModuleFeatures:
        return ModuleFeatures.restore(parameters, tensors, module=module)
    return cls.restore(parameters, tensors)
