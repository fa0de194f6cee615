"""What a set says of where it came from: plain JSON that its file keeps."""

import math
import platform
from collections.abc import Mapping
from typing import Any

import torch


def provenance(
    origin: Mapping[str, Any],
    options: Mapping[str, Any],
    seed: int,
    data_range: tuple[float, float] = (-math.inf, math.inf),
    **more: Any,
) -> dict[str, Any]:
    """Origin of the rows, options, seed and versions; and the range of raw values where it is known."""
    from . import __version__

    versions = {
        "kernel-distill": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    known = math.isfinite(data_range[1] - data_range[0])
    extent = {"data_range": list(data_range)} if known else {}
    return {**origin, "options": dict(options), "seed": seed, "versions": versions, **extent, **more}
