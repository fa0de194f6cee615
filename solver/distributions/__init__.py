"""Sets of distributions: Gaussians in the latent space of a decoder (D3), and Gaussians over the inputs."""

import importlib
from typing import Any

from torch import Tensor

from .._check import check_name
from .base import Distribution

_KINDS = {"latent-gaussians": ("latent", "LatentGaussians"), "gaussians": ("gaussians", "Gaussians")}


def restore_distribution(name: str, parameters: dict[str, Any], tensors: dict[str, Tensor]) -> Distribution:
    """Make the distributions that a file describes."""
    module, cls = _KINDS[check_name(name, _KINDS, "kind of distribution")]
    kind = getattr(importlib.import_module(f".{module}", __package__), cls)
    return kind.restore(parameters, tensors)
