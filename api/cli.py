"""The command line: `kernel-distill distill | evaluate | inspect | convert | recipes | ablate | demo | ...`.

Everything heavy is imported inside the commands, so that help comes at once. What a user can cause (a wrong
name, a file that is there or is not, a damaged file) is one line on standard error and exit status 2; an
interruption is 130; a benchmark that finds a wrong result ends with 1; anything else is a bug and keeps its traceback.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ._cli_evaluate import evaluate
from ._cli_support import (
    SOURCE,
    AsJson,
    Force,
    Seed,
    number_or_name,
    option,
    parameter,
    print_evaluation,
    spelled_out,
    user_errors,
)

_LEARNED = "kip, full-kip, rfad or frepo; for networks: dm, dkkt, dkkt+dm, dc, dsa or mtt"

app = typer.Typer(
    help="Distil a training set into a handful of points on which the same model is trained.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
@user_errors
def distill(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help=SOURCE, show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", show_default=False)],
    method: Annotated[
        str,
        option(f"closed-form, theorem, all-ridges or label-solve; learned: {_LEARNED}."),
    ] = "closed-form",
    recipe: Annotated[
        str | None,
        option("A published run by name (see `recipes`), or a .toml file; what else is given replaces."),
    ] = None,
    per_class: Annotated[int, option("Points a class (an output, for regression).")] = 1,
    n_points: Annotated[int | None, option("Number of points instead.")] = None,
    feature_map: Annotated[
        str, option("identity, fourier, fcnn, deep-linear, conv, coupling or patches.")
    ] = "fcnn",
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Argument of the map, its value as JSON; repeatable."),
    ] = None,
    transform: Annotated[str, option("auto, none, standardize, zca-kip, zca-rfad or zca-kornia.")] = "auto",
    ridge: Annotated[str, option("Of the full model: auto, holdout, loo, gcv, or a number.")] = "auto",
    distilled_ridge: Annotated[float, option("With which the set is to be trained, absolute.")] = 0.0,
    near: Annotated[
        str, option("Where points are placed, or start: auto, noise, data, or a coreset (k-center, ...).")
    ] = "auto",
    labels: Annotated[str, option("Of closed forms: auto, one-hot or solved.")] = "auto",
    space: Annotated[str, option("auto, input or features.")] = "auto",
    bounds: Annotated[str, option("free, or data: stay in the range of the data.")] = "free",
    storage: Annotated[str, option("float64, float32, float16 or uint8.")] = "float64",
    targets: Annotated[str, option("auto, one-hot or centred.")] = "auto",
    intercept: Annotated[bool, typer.Option("--intercept", help="Unpenalised intercept.")] = False,
    precision: Annotated[str, option("auto, high (float32 features) or exact (float64).")] = "auto",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Option of a learned method, such as pick.kind=loss; repeatable.",
        ),
    ] = None,
    holdout: Annotated[float, option("Share of the rows that a learned method chooses by.")] = 0.05,
    steps: Annotated[int | None, option("Of a learned method; its own number by default.")] = None,
    time_limit: Annotated[float | None, option("Seconds, after which it ends with the best set.")] = None,
    checkpoint: Annotated[
        Path | None, option("File to go on from, if it is there, and to write on the way.")
    ] = None,
    log: Annotated[Path | None, option("File of JSON lines about its steps.")] = None,
    device: Annotated[str, option("Of learned methods: auto, cpu, cuda.")] = "auto",
    any_data: Annotated[
        bool, typer.Option("--any-data", help="Use a recipe on other data than it is for.")
    ] = False,
    seed: Seed = 0,
    force: Force = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Distil the training split of SOURCE and write the set to OUT."""
    from ._export import check_new

    if out.suffix != ".safetensors":
        raise ValueError(f"the name of the set must end in .safetensors, got {str(out)!r}")
    check_new(out, force)
    given: dict[str, Any] = dict(
        method=method,
        per_class=per_class,
        n_points=n_points,
        feature_map=feature_map,
        feature_params=dict(parameter(text) for text in param or ()) or None,
        transform=transform,
        ridge=number_or_name(ridge),
        distilled_ridge=distilled_ridge,
        near=near,
        labels=labels,
        space=space,
        bounds=bounds,
        storage=storage,
        targets=targets,
        intercept=intercept,
        precision=precision,
        holdout=holdout,
        device=device,
    )
    loop = {"steps": steps, "time_limit": time_limit, "checkpoint": checkpoint, "log": log}
    from ._request import from_recipe, learned_options

    changes = dict(parameter(text, "--set") for text in set_ or ())
    wanted = {name: value for name, value in loop.items() if value is not None}
    if recipe is None:
        options = {**given, **learned_options(method, changes, wanted)}
    else:
        options = from_recipe(recipe, spelled_out(context, given), changes, wanted)
    from ._describe import certificate_table
    from ._distill import distill
    from ._evaluate import evaluate
    from ._tables import emit, shape, size
    from .solver.data import load_data

    data = load_data(source)
    if recipe is not None and not any_data:
        from ._recipes import load_recipe

        load_recipe(recipe).check(data)
    task = "classification" if data.class_names else "regression"
    ds = distill(data, task=task, seed=seed, progress=False if quiet else None, **options)
    ds.save(out, force=force)
    if quiet:
        return
    kind = str(ds.x.dtype).removeprefix("torch.")
    values = shape(tuple(ds.x.shape[1:]))
    typer.echo(
        f"wrote {out}: {len(ds)} points of {values} {kind} ({ds.space} space), {size(out.stat().st_size)}"
    )
    emit(certificate_table(ds.certificate))
    if data.x_test is not None:
        print_evaluation(evaluate({out.name: ds}, data))


app.command()(user_errors(evaluate))


@app.command()
@user_errors
def inspect(
    file: Annotated[Path, typer.Argument(help="A distilled set.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show everything that a distilled set's file holds."""
    from ._describe import describe_file, description_tables
    from ._tables import emit

    found = describe_file(file)
    if as_json:
        typer.echo(json.dumps(found, indent=2, allow_nan=False))
        return
    for part in description_tables(found):
        emit(part)


@app.command()
@user_errors
def convert(
    file: Annotated[Path, typer.Argument(help="A distilled set.", show_default=False)],
    out: Annotated[
        Path,
        typer.Argument(
            help="NAME.npz (arrays), NAME.png (one picture) or a folder (PNG images).", show_default=False
        ),
    ],
    force: Force = False,
) -> None:
    """Write a distilled set as NumPy arrays or as images."""
    from ._export import convert

    typer.echo(f"wrote {out}: {convert(file, out, force=force)}")


@app.command()
@user_errors
def demo(out: Annotated[Path, option("Folder for sets and pictures.")] = Path("demo")) -> None:
    """Distil scikit-learn's digits for three feature maps; write sets and pictures."""
    from ._demo import COLUMNS, MAPS, SETTINGS, run_demo
    from ._tables import emit, table
    from .solver.progress import track

    results = [result.cells() for result in track(run_demo(out), "distilled sets", len(MAPS) * len(SETTINGS))]
    emit(table(COLUMNS, results, title="digits, 10 classes, test accuracy"))
    typer.echo(f"wrote {out / 'digits.png'}, a picture and two sets for each map beside it")


@app.command()
@user_errors
def bench(
    device: Annotated[str, option("auto, cpu or cuda.")] = "auto",
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Benchmarks to run: all by default; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, and no rival that compiles.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write JSON.")] = None,
    force: Force = False,
) -> None:
    """Time the kernels on this machine, beside their rivals and the floor of their arithmetic."""
    from ._export import check_new

    if json_file is not None:
        check_new(json_file, force)
    from ._bench.run import run_bench
    from ._tables import emit
    from .solver.store import write_bytes

    document, right = run_bench(device, only or (), quick, emit)
    if json_file is not None:
        write_bytes(json_file, document.encode(), force=force)
        typer.echo(f"wrote {json_file}")
    if not right:
        typer.echo("error: a result is wrong or could not be computed: see the table", err=True)
        raise typer.Exit(1)


@app.command()
@user_errors
def doctor(as_json: AsJson = False) -> None:
    """Print versions, threads and which optional packages are there."""
    from ._doctor import diagnose
    from ._tables import emit, table

    found = diagnose()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for title, values in found.items():
        emit(table(("", ""), values.items(), title=title))


@app.command()
@user_errors
def recipes(
    name: Annotated[
        str | None, typer.Argument(help="One to show as JSON; a table of all by default.", show_default=False)
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Write the page docs/recipes.md.")] = False,
) -> None:
    """List the recipes of published runs, with what was published and what was measured."""
    from ._recipe_docs import recipe_table, render_recipes
    from ._recipes import load_recipe
    from ._tables import emit

    if markdown:
        typer.echo(render_recipes(), nl=False)
    elif name is not None:
        typer.echo(load_recipe(name).model_dump_json(indent=2, exclude_none=True))
    else:
        emit(recipe_table())


@app.command()
@user_errors
def ablate(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help=SOURCE, show_default=False)],
    recipe: Annotated[
        str | None,
        option("A published run by name (see `recipes`), or a .toml file; what else is given replaces."),
    ] = None,
    method: Annotated[str, option(f"Without a recipe: {_LEARNED}.")] = "kip",
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
    device: Annotated[str, option("auto, cpu, cuda.")] = "auto",
    any_data: Annotated[
        bool, typer.Option("--any-data", help="Use a recipe on other data than it is for.")
    ] = False,
    out: Annotated[
        Path | None, option("Folder for finished runs, which are not repeated when it is given again.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare initialisations and ways to draw batches at equal time, over several seeds."""
    given = dict(per_class=per_class, n_points=n_points, transform=transform, device=device)
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
    near = options.pop("near", "random")
    data = load_data(source)
    if recipe is not None and not any_data:
        load_recipe(recipe).check(data)
    result = ablate(
        data,
        inits=init or [near],
        picks=pick or None,
        seeds=seeds,
        time_limit=time_limit,
        steps=steps,
        out=out,
        **options,
    )
    typer.echo(result.to_json()) if as_json else print_evaluation(result)


def _print_version(wanted: bool) -> None:
    if wanted:
        from . import __version__

        typer.echo(f"kernel-distill {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        # A class name that the terminal's encoding lacks must not end the work.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        app(prog_name="kernel-distill")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
