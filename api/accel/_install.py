"""Installing targets for the process, or for a block of code, and taking them out again."""

import contextlib
import os
import sys
import types
from typing import Any

from ._call import Settings, forget_calls
from ._finder import Finder
from ._log import logger, set_level
from ._patches import Patches
from ._stand_in import ModuleTarget, StandIn
from ._target import Target
from .registry import select

patches = Patches()
active: dict[str, Target] = {}
_stand_ins: dict[str, StandIn] = {}


def adopt(module: types.ModuleType, *, is_complete: bool = True) -> None:
    """Offer a module, which may still be running, to the targets that are installed."""
    patches.adopt(module, _known_by_source(active), is_complete=is_complete)


_finder = Finder(adopt)


def install(*targets: str, verify: int | None = None, tolerance: float | None = None) -> None:
    """Replace what the targets know, in modules that are loaded and in those that will be.

    Parameters
    ----------
    *targets : str
        Names ("mmd.MMD_loss") or groups ("sklearn"); by default those of KERNEL_DISTILL_ACCEL, or else all. Targets
        that correct an error of the original, and `torch.multinomial`, are installed by their full name only.
    verify : int, optional
        Calls of each target for which the original runs too; default KERNEL_DISTILL_ACCEL_VERIFY, or none.
    tolerance : float, optional
        Largest difference that verification accepts, in place of each target's own.

    Raises
    ------
    ValueError
        If a name is not known, or a number is out of range.

    Notes
    -----
    Installing twice changes nothing. With KERNEL_DISTILL_ACCEL=0 nothing is installed, and a line says so. Processes
    that are started afresh (workers that are spawned, not forked) install for themselves.
    """
    from ..solver._check import check_count, check_non_negative

    set_level()
    switch = os.environ.get("KERNEL_DISTILL_ACCEL", "")
    if switch == "0":
        logger.warning("nothing is installed: KERNEL_DISTILL_ACCEL is 0")
        return
    chosen = select(targets or tuple(name.strip() for name in switch.split(",") if name.strip()))
    if verify is None:
        given = os.environ.get("KERNEL_DISTILL_ACCEL_VERIFY")
        if given is not None and not given.isdigit():
            raise ValueError(f"KERNEL_DISTILL_ACCEL_VERIFY must be a number of calls, got {given!r}")
        verify = int(given) if given is not None else Settings.verify
    Settings.verify = check_count(verify, "verify", 0)
    if tolerance is not None:
        Settings.tolerance = check_non_negative(tolerance, "tolerance")
    active.update({target.name: target for target in chosen})
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    for target in chosen:
        if isinstance(target, ModuleTarget) and target.name not in _stand_ins:
            _stand_ins[target.name] = target.finder()
            sys.meta_path.insert(0, _stand_ins[target.name])
    by_source = _known_by_source({target.name: target for target in chosen})
    for module in list(sys.modules.values()):
        if isinstance(module, types.ModuleType):
            patches.adopt(module, by_source)


def uninstall(*targets: str) -> None:
    """Put the originals back, of some targets or of all: every one is the very object that it was.

    Raises
    ------
    ValueError
        If a name is not known.
    """
    from . import _cache

    names = [target.name for target in select(targets)] if targets else list(active)
    patches.remove(names)
    for name in names:
        active.pop(name, None)
        forget_calls(name)
        if name in _stand_ins:
            stand_in = _stand_ins.pop(name)
            if stand_in in sys.meta_path:
                sys.meta_path.remove(stand_in)
            stand_in.forget()
    if not active:
        if _finder in sys.meta_path:
            sys.meta_path.remove(_finder)
        Settings.verify, Settings.tolerance = 0, None
        Settings.failures.clear()
        _cache.clear()


def _known_by_source(targets: dict[str, Target]) -> list[Target]:
    return [target for target in targets.values() if not isinstance(target, ModuleTarget)]


class patched(contextlib.ContextDecorator):
    """Install targets for a block or a function: ``with accel.patched("mmd"): ...`` or ``@accel.patched("mmd")``.

    Parameters and errors as in `install`. Targets that were installed before stay so afterwards.
    """

    def __init__(self, *targets: str, verify: int | None = None, tolerance: float | None = None) -> None:
        select(targets)
        self._targets, self._verify, self._tolerance = targets, verify, tolerance
        self._before: list[tuple[set[str], int, float | None]] = []

    def __enter__(self) -> None:
        self._before.append((set(active), Settings.verify, Settings.tolerance))
        install(*self._targets, verify=self._verify, tolerance=self._tolerance)

    def __exit__(self, *error: Any) -> None:
        before, verify, tolerance = self._before.pop()
        added = [name for name in active if name not in before]
        if added:
            uninstall(*added)
        Settings.verify, Settings.tolerance = verify, tolerance
