"""Checks shared by the solvers: every message says what was found and what to do."""

import difflib
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a program that only installs accelerations decides itself when torch is loaded
    from torch import Tensor


def check_name(name: object, known: Iterable[str], what: str) -> str:
    """Return `name` if it is one of `known`; otherwise raise, naming the nearest known one."""
    options = sorted(known)
    if isinstance(name, str) and name in options:
        return name
    near = difflib.get_close_matches(str(name), options, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"unknown {what} {name!r}{hint} Known: {', '.join(options)}")


def check_count(value: Any, name: str, minimum: int = 1) -> int:
    """Return an integer of at least `minimum`; booleans and floats are refused."""
    try:
        if isinstance(value, bool):
            raise TypeError
        count = value.__index__()
    except (AttributeError, TypeError):
        raise ValueError(f"`{name}` must be an integer of at least {minimum}, got {value!r}") from None
    if count < minimum:
        raise ValueError(f"`{name}` must be an integer of at least {minimum}, got {count}")
    return count


def check_non_negative(value: Any, name: str) -> float:
    """Return a finite float that is not negative."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` must be a number, got {value!r}") from None
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"`{name}` must be finite and not negative, got {value!r}")
    return number


def check_finite(values: "Tensor", name: str, first_row: int = 0) -> None:
    """Raise if `values` hold NaN or infinity, naming the first row that does (counted from `first_row`).

    One reduction in the usual case: a sum is finite only if every term is, up to overflow, and only a sum
    that is not finite is looked at again entry by entry.
    """
    import torch

    if not values.is_floating_point() or values.numel() == 0 or torch.isfinite(values.sum()):
        return
    bad = (~torch.isfinite(values.reshape(values.shape[0], -1))).any(dim=1).nonzero().flatten()
    if bad.numel():
        kind = "NaN" if torch.isnan(values[bad[0]]).any() else "infinity"
        raise ValueError(
            f"`{name}` holds {kind} in row {first_row + int(bad[0])}"
            f" ({bad.numel()} bad rows seen so far): remove or impute those rows first"
        )
