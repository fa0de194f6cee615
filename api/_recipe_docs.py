"""The page of recipes, `docs/recipes.md`, written from the recipe files: `kernel-distill recipes --markdown`."""

import os
from collections.abc import Iterable

from rich.table import Table

from ._recipe import Measured, Published, Recipe
from ._recipes import list_recipes, load_recipe
from ._tables import as_text, table

_INTRODUCTION = """\
# Recipes

Settings of published runs, by name. This page is written from the files in `bench/recipes`:
`kernel-distill recipes --markdown > docs/recipes.md`.

    kernel-distill distill SOURCE OUT.safetensors --recipe rfad-cifar10-ipc1
    kernel-distill distill SOURCE OUT.safetensors --recipe kip-fc1-cifar10-100 --steps 50 --set pick.kind=loss
    kernel-distill distill SOURCE OUT.safetensors --recipe mine.toml

Other options in place of a recipe's own are named in the set's file. A recipe refuses data of another shape or with
other classes than it is for; `--any-data` lets them through. A path reads a file of your own: copy one of the files to
begin with.

Figures are test accuracies in percent. *Published* is what others printed, with the source as a number: see below.
*Unconfirmed* stands at figures that were written down from memory and found in no source: look them up before
you quote them. *Measured* is this library with the recipe, on the machine named; *not run* means that nobody has
run it here. Published sets of FRePo were chosen by their accuracy on the test split, those of RFAD on rows that they
were trained on; ours are chosen on rows held out of training, and the test split is looked at once.
"""


def recipe_table(*, plain: bool = False) -> Table:
    """Lay out all recipes with their figures; `plain` borders are Markdown, with the numbers of `render_recipes`."""
    recipes = _all()
    sources = _sources(recipes) if plain else {}
    columns = ("recipe", "data", "points", "published, %", "measured, %")
    rows = [
        (
            f"`{recipe.name}`" if plain else recipe.name,
            recipe.data,
            recipe.points,
            _join(published_text(figure, sources.get(figure.source)) for figure in recipe.published),
            _join(map(measured_text, recipe.measured)) if recipe.measured else "not run",
        )
        for recipe in recipes
    ]
    return table(columns, rows, plain=plain)


def render_recipes() -> str:
    """Write the page: all recipes, then what each one is, what was measured, and sources."""
    recipes = _all()
    runs = [
        f"- `{recipe.name}`: {figure.data}; {figure.machine}; {figure.date}; `{figure.command}`"
        + (f"; {figure.note}" if figure.note else "")
        for recipe in recipes
        for figure in recipe.measured
    ]
    notes = [f"- {name}: {text}" for text, name in _notes(recipes).items()]
    sources = [f"{number}. {source}" for source, number in _sources(recipes).items()]
    parts = [_INTRODUCTION, as_text(recipe_table(plain=True)), ""]
    for title, lines in {"What each one is": notes, "Measurements": runs, "Sources": sources}.items():
        if lines:
            parts += [f"## {title}", "", *lines, ""]
    return "\n".join(parts)


def published_text(figure: Published, number: int | None = None) -> str:
    """Write a published figure; one from memory says so."""
    text = _figure(figure) + ("" if number is None else f" [{number}]")
    return f"{text} (unconfirmed)" if figure.recalled else text


def measured_text(figure: Measured) -> str:
    """Write a measured figure with what it took."""
    seeds = f"{figure.seeds} seeds, " if figure.seeds > 1 else ""
    return f"{_figure(figure)} ({seeds}{figure.machine}, {figure.seconds:.0f} s)"


def _all() -> list[Recipe]:
    return [load_recipe(name) for name in list_recipes()]


def _sources(recipes: Iterable[Recipe]) -> dict[str, int]:
    """Sources of published figures, numbered as they come."""
    found = dict.fromkeys(figure.source for recipe in recipes for figure in recipe.published)
    return {source: number for number, source in enumerate(found, start=1)}


def _figure(figure: Published | Measured) -> str:
    spread = "" if figure.deviation is None else f" ± {figure.deviation}"
    metric = "" if figure.metric == "accuracy" else f"{figure.metric} "
    return f"{metric}{figure.value}{spread}"


def _notes(recipes: Iterable[Recipe]) -> dict[str, str]:
    """Title and note of each recipe, once for those that share them, with what their names have in common."""
    found: dict[str, list[str]] = {}
    for recipe in recipes:
        text = f"{recipe.title}." + (f" {' '.join(recipe.note.split())}" if recipe.note else "")
        found.setdefault(text, []).append(recipe.name)
    # Names share letters, not folders.
    common = {text: os.path.commonprefix(names) for text, names in found.items()}  # noqa: RUF071
    return {text: f"`{common[text]}{'*' if len(names) > 1 else ''}`" for text, names in found.items()}


def _join(cells: Iterable[str]) -> str:
    return "; ".join(cells) or "none"
