"""Recipes by name: files of `bench/recipes`, which are the package `kernel_distill.recipes`, or files of your own.

A file holds the fields of `Recipe` in TOML. One with ``[variants.<variant>]`` tables is a family: a recipe called
``<file>-<variant>`` for each of them, whose values replace those of the file, tables key by key.
"""

import importlib.resources
import os
import tomllib
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ._recipe import Recipe, overlaid, validated
from .solver._check import check_name


def list_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with the package, file by file."""
    return tuple(name for stem, document in _documents().items() for name in _names(stem, document))


def load_recipe(name: str | os.PathLike[str]) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    name : str or path
        One of `list_recipes`, or a .toml file; a variant in it as ``mine.toml:variant``.

    Raises
    ------
    ValueError
        If there is no such recipe (the nearest name is given), or the file does not hold one.
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> load_recipe("kip-fc1-cifar10-100").points
    100
    """
    text = os.fspath(name)
    head, _, variant = text.rpartition(":")
    if head.endswith(".toml"):
        return _from_file(Path(head), variant)
    if text.endswith(".toml"):
        return _from_file(Path(text), None)
    documents = _documents()
    if text in documents and "variants" in documents[text]:
        names = ", ".join(_names(text, documents[text]))
        raise ValueError(f"{text!r} is a family of recipes, choose one of them: {names}")
    stems = {made: stem for stem, document in documents.items() for made in _names(stem, document)}
    stem = stems[check_name(text, stems, "recipe")]
    return _recipe(text, documents[stem], text.removeprefix(stem).removeprefix("-") or None)


def _from_file(path: Path, variant: str | None) -> Recipe:
    document = _read(path)
    variants = document.get("variants", {})
    if variant is not None:
        check_name(variant, variants, f"variant of {path}")
    elif variants:
        raise ValueError(
            f"{path} is a family of recipes, choose one: {', '.join(f'{path}:{v}' for v in variants)}"
        )
    return _recipe(path.stem if variant is None else f"{path.stem}-{variant}", document, variant)


def _documents() -> dict[str, dict[str, Any]]:
    """Recipe files of the package by name, in order."""
    folder = importlib.resources.files(f"{__package__}.recipes")
    found = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name
    )
    return {file.name.removesuffix(".toml"): _read(file) for file in found}


def _read(file: Traversable) -> dict[str, Any]:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not a recipe: {error}") from None
    variants = document.get("variants", {})
    if not isinstance(variants, dict) or not all(isinstance(values, dict) for values in variants.values()):
        raise ValueError(f"{file} is not a recipe: its variants must be tables, [variants.<name>]")
    return document


def _names(stem: str, document: Mapping[str, Any]) -> list[str]:
    return [f"{stem}-{variant}" for variant in document["variants"]] if "variants" in document else [stem]


def _recipe(name: str, document: dict[str, Any], variant: str | None) -> Recipe:
    common = {key: value for key, value in document.items() if key != "variants"}
    values = common if variant is None else overlaid(common, document["variants"][variant])
    if given := {"name", "changed"} & values.keys():
        raise ValueError(
            f"recipe {name!r} sets {', '.join(sorted(given))}: leave that out, it follows by itself"
        )
    return validated(Recipe, {**values, "name": name}, f"recipe {name!r}")
