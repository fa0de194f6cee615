"""The command `ablate`."""

from pathlib import Path
from typing import Annotated

import typer

from ._cli_support import (
    LEARNED_METHODS,
    SOURCE,
    AsJson,
    Executor,
    option,
    parameter,
    print_evaluation,
    spelled_out,
)


def ablate(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help=SOURCE, show_default=False)],
    recipe: Annotated[
        str | None,
        option("A published run by name (see `recipes`), or a .toml file; what else is given replaces."),
    ] = None,
    method: Annotated[str, option(f"Without a recipe: {LEARNED_METHODS}.")] = "kip",
    init: Annotated[
        list[str] | None,
        typer.Option(
            help="What points start from: random, noise, k-center, ...; repeatable, the first is compared with."
        ),
    ] = None,
    pick: Annotated[
        list[str] | None,
        typer.Option(help="How batches are drawn: uniform, balanced, loss or loss,mixing=0.2; repeatable."),
    ] = None,
    seeds: Annotated[int, option("Runs of each arm.")] = 5,
    time_limit: Annotated[
        float | None, typer.Option("--time", help="Seconds of each run.", show_default=False)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each run instead.", show_default=False)] = None,
    per_class: Annotated[int, option("Points a class (an output, for regression).")] = 1,
    n_points: Annotated[int | None, option("Number of points instead.")] = None,
    transform: Annotated[str, option("auto, none, standardize, zca-kip, zca-rfad or zca-kornia.")] = "auto",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Option of the method, such as labels=learned; repeatable."
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=LIST",
            help="Values of an option of the method, or of an argument such as per_class, as a JSON list; repeatable.",
        ),
    ] = None,
    evaluate: Annotated[
        str, option("ridge: the model of the set itself; or a recipe that networks are trained by.")
    ] = "ridge",
    executor: Executor = None,
    device: Annotated[str, option("auto, cpu, cuda.")] = "auto",
    any_data: Annotated[
        bool, typer.Option("--any-data", help="Use a recipe on other data than it is for.")
    ] = False,
    out: Annotated[
        Path | None, option("Folder for finished runs, which are not repeated when it is given again.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare initialisations, ways to draw batches and options at equal time, over several seeds."""
    varied = dict(parameter(text, "--vary") for text in vary or ())
    given = dict(per_class=per_class, n_points=n_points, transform=transform, device=device)
    given = {name: value for name, value in given.items() if name not in varied}
    changes = dict(parameter(text, "--set") for text in set_ or ())
    from ._ablation import ablate
    from ._recipes import load_recipe
    from ._request import from_recipe, learned_options
    from .solver.data import load_data

    if recipe is None:
        options = {**given, **learned_options(method, changes, {})}
    else:
        named = spelled_out(context, {**given, "method": method})
        options = from_recipe(recipe, named, changes, {})
    options.setdefault("method", method)
    near = options.pop("near", None)
    inits = init or ([near] if near else ("random",))
    data = load_data(source)
    if recipe is not None and not any_data:
        load_recipe(recipe).check(data)
    result = ablate(
        data,
        inits=inits,
        picks=pick or None,
        seeds=seeds,
        time_limit=time_limit,
        steps=steps,
        out=out,
        vary=varied or None,
        evaluate=evaluate,
        executor=executor,
        **options,
    )
    typer.echo(result.to_json()) if as_json else print_evaluation(result)
