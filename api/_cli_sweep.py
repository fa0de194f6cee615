"""The command `sweep`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ._cli_support import SOURCE, AsJson, Executor, option, parameter, print_evaluation


def sweep(
    source: Annotated[str, typer.Argument(help=SOURCE, show_default=False)],
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE...",
            help="Published runs by name (see `recipes`), or .toml files.",
            show_default=False,
        ),
    ],
    seeds: Annotated[int, option("Sets of each recipe, with seeds 0, 1, ...")] = 1,
    executor: Executor = None,
    out: Annotated[
        Path | None, option("Folder for the sets; those that are there are not made again.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Value of every recipe, such as per_class=10, loop.steps=100 or method.pick.kind=loss; repeatable.",
        ),
    ] = None,
    evaluate: Annotated[
        str,
        option("How sets are scored: ridge, a recipe for networks (dc-bench, dsa, ...), or none."),
    ] = "ridge",
    device: Annotated[str, option("auto, cpu, cuda.")] = "auto",
    any_data: Annotated[
        bool, typer.Option("--any-data", help="Use recipes on other data than they are for.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Distil the training split of SOURCE by several recipes, with several seeds, and compare on its test split."""
    changes: dict[str, Any] = dict(parameter(text, "--set") for text in set_ or ())
    from ._recipes import load_recipe
    from ._sweep import sweep
    from .solver.data import load_data

    # Recipes first: they are read in no time, the data may take minutes.
    named = [load_recipe(name) for name in recipes]
    result = sweep(
        named,
        load_data(source),
        seeds=seeds,
        executor=executor,
        out=out,
        changes=changes,
        evaluate=None if evaluate == "none" else evaluate,
        any_data=any_data,
        device=device,
    )
    typer.echo(result.to_json()) if as_json else print_evaluation(result)
