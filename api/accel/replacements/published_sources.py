"""Whether a function that a region is given is one that a target knows."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

from .._fingerprint import fingerprint_of


def is_known(name: str, function: Callable[..., Any]) -> bool:
    """Whether the source of a function, and of what it depends on in its module, is that of a target.

    Parameters
    ----------
    name : str
        Of the target.
    function : callable
        The original, or what stands for it.
    """
    from ..registry import all_targets

    target = next(each for each in all_targets() if each.name == name)
    original = inspect.unwrap(function)
    module = sys.modules.get(getattr(original, "__module__", ""))
    return fingerprint_of(original) in target.hashes and all(
        fingerprint_of(getattr(module, other, None)) in hashes for other, hashes in target.requires.items()
    )
