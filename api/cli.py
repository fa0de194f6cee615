"""The command line: `kernel-distill distill | evaluate | inspect | convert | recipes | ablate | demo | ...`.

Everything heavy is imported inside the commands, so that help comes at once. What a user can cause (a wrong
name, a file that is there or is not, a damaged file) is one line on standard error and exit status 2; an
interruption is 130; a benchmark that finds a wrong result ends with 1; anything else is a bug and keeps its traceback.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from ._cli_ablate import ablate
from ._cli_accel import SETTINGS as ACCEL_SETTINGS, accel
from ._cli_distill import distill
from ._cli_estimate import estimate
from ._cli_evaluate import evaluate
from ._cli_merge import merge
from ._cli_support import AsJson, Force, option, user_errors
from ._cli_sweep import sweep

app = typer.Typer(
    help="Distil a training set into a handful of points on which the same model is trained.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


for command in (distill, evaluate, ablate, sweep, merge, estimate):
    app.command()(user_errors(command))
app.command(context_settings=ACCEL_SETTINGS, no_args_is_help=True)(user_errors(accel))


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
