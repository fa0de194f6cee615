"""What the command line asks of a learned method: options by key, with or without a recipe."""

from collections.abc import Mapping
from typing import Any

from ._methods import FITTED_METHODS, LEARNED, options_class
from ._recipe import merged, validated
from ._recipes import load_recipe
from .solver._check import check_name
from .solver.distillation import METHODS
from .solver.loop import Loop


def learned_options(method: str, changes: Mapping[str, Any], loop: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `distill` for a method by name; nothing for closed forms, which take neither.

    Raises
    ------
    ValueError
        If there is no such method or option, or a closed form is given options of a learned method.
    """
    check_name(method, (*METHODS, *LEARNED), "method")
    changes, loop = _sorted(changes, loop)
    if method not in LEARNED:
        if changes:
            raise ValueError(f"--set is for learned methods ({', '.join(LEARNED)}), not for {method!r}")
        if loop:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in loop)
            raise ValueError(f"{flags}: for learned methods ({', '.join(LEARNED)}), not for {method!r}")
        return {}
    document = merged({"method": method}, nested(changes))
    options = {"method": validated(options_class(method), document, f"method {method!r}")}
    if method in FITTED_METHODS:
        if loop:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in loop)
            raise ValueError(f"{flags}: method {method!r} takes no steps")
        return options
    return {**options, "loop": validated(Loop, loop, "the loop")}


def from_recipe(
    name: str, given: Mapping[str, Any], changes: Mapping[str, Any], loop: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of `distill` for a recipe, with what the user gave in place of its own.

    Raises
    ------
    ValueError
        If there is no such recipe, or it has no such value.
    """
    if "method" in given:
        raise ValueError("a recipe has its method: leave out --method, or --recipe")
    changes, loop = _sorted(changes, loop)
    of_machine = {"device", "executor", "checkpoint", "log", "time_limit"}
    values = {key: value for key, value in given.items() if key not in of_machine}
    values |= {f"method.{key}": value for key, value in changes.items()}
    values |= {f"loop.{key}": value for key, value in loop.items() if key not in of_machine}
    recipe = load_recipe(name).replaced(values) if values else load_recipe(name)
    arguments = recipe.arguments()
    leg = {key: value for key, value in loop.items() if key in of_machine}
    if "loop" in arguments:
        arguments["loop"] = validated(Loop, {**dict(arguments["loop"]), **leg}, "the loop")
    elif leg:
        raise ValueError(f"recipe {name!r} takes no steps: leave out {', '.join(leg)}")
    return arguments | {key: given[key] for key in ("device", "executor") if key in given}


def _sorted(changes: Mapping[str, Any], loop: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Changes of the method, and of the loop, which decides over what a method has a number of its own for."""
    of_loop = {name: changes[name] for name in ("steps", "evaluate_every") if name in changes}
    return {key: value for key, value in changes.items() if key not in of_loop}, {**of_loop, **loop}


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as tables."""
    made: dict[str, Any] = {}
    for key, value in values.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        made = merged(made, value)
    return made
