"""The registry of benchmark cases, in the order in which they run."""

import importlib

from .case import CASES

_FAMILIES = ("dispatch", "pairs", "mmd", "maps", "augmentation", "networks", "scores", "picks", "samples")

for _family in _FAMILIES:
    importlib.import_module(f".{_family}", __package__)

__all__ = ["CASES"]
