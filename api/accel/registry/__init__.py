"""What is known of other people's code: fingerprints of their functions, and what we say of each; none of their code.

Nothing heavy is imported here: replacements are named, and loaded when one is installed.
"""

import functools
import importlib

from .._target import Target

GROUPS = ("sklearn", "mmd", "krr", "vico", "d3", "deepcore", "rfad", "torchvision", "torch")


@functools.cache
def all_targets() -> tuple[Target, ...]:
    """Every entry, group by group."""
    found = (importlib.import_module(f".{group}", __name__).TARGETS for group in GROUPS)
    return tuple(target for targets in found for target in targets)


def select(names: tuple[str, ...]) -> tuple[Target, ...]:
    """Targets by name or group; of no names, and of a group, those that need not be named.

    Raises
    ------
    ValueError
        If there is no such target or group, with the nearest name.
    """
    from ...solver._check import check_name

    targets = all_targets()
    if not names:
        return tuple(target for target in targets if target.is_default)
    known = {target.name for target in targets} | {target.group for target in targets}
    chosen = {}
    for name in names:
        check_name(name, known, "target")
        for target in targets:
            if target.name == name or (target.group == name and target.is_default):
                chosen[target.name] = target
    return tuple(chosen.values())
