"""The command `estimate`."""

import json
from typing import Annotated, Any

import typer

from ._cli_support import SOURCE, AsJson, option, parameter


def estimate(
    source: Annotated[
        str | None,
        typer.Argument(help=f"Its training rows: {SOURCE}. Or give --rows.", show_default=False),
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Number of rows.", show_default=False)] = None,
    inputs: Annotated[int | None, typer.Option(help="Values of a row.", show_default=False)] = None,
    features: Annotated[
        int | None, typer.Option(help="Features of a row; as many as inputs by default.", show_default=False)
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="Classes, or outputs of a regression.", show_default=False)
    ] = None,
    value_bytes: Annotated[
        int | None, typer.Option(help="Bytes of one stored value: 4 by default.", show_default=False)
    ] = None,
    feature_map: Annotated[str, option("fourier, fcnn (one layer) or identity.")] = "fourier",
    row_flops: Annotated[
        float | None, typer.Option(help="FLOPs of one row in any other map.", show_default=False)
    ] = None,
    transform: Annotated[str, option("none or standardize, already fitted.")] = "none",
    n_points: Annotated[
        int | None, typer.Option(help="Points: one a class by default.", show_default=False)
    ] = None,
    test_rows: Annotated[int | None, typer.Option(help="Rows to be scored.", show_default=False)] = None,
    workers: Annotated[int, option("That run at once.")] = 1,
    cores: Annotated[
        int | None, typer.Option(help="Of each worker; a whole machine by default.", show_default=False)
    ] = None,
    tiles: Annotated[
        int | None,
        typer.Option(help="Parts of the rows; of 32,768 rows each by default.", show_default=False),
    ] = None,
    reduction: Annotated[str, option("How sums of workers meet: tree or all-reduce.")] = "tree",
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this machine, which takes some seconds.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Figure of a machine: cores, or memory, disk, network, storage (bytes, bytes/s), gram, features,"
            " eigen (FLOP/s), start_up (s), ...; repeatable.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate time, memory and traffic of distilling from statistics, stage by stage, and how many workers help."""
    import dataclasses

    from ._estimate import estimate_json, estimate_tables, problem_of
    from ._tables import emit
    from .solver._check import check_name
    from .solver.cost import Machine, Problem, estimate

    given: dict[str, Any] = dict(
        rows=rows,
        inputs=inputs,
        features=features,
        outputs=classes,
        value_bytes=value_bytes,
        row_flops=row_flops,
        points=n_points,
        test_rows=test_rows,
    )
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    changes |= {"feature_map": feature_map, "transform": transform}
    figures = dict(parameter(text, "--set") for text in set_ or ())
    for name in figures:
        check_name(name, _figures(Machine), "figure of a machine")
    if source is not None:
        from .solver.data import load_data

        problem = problem_of(load_data(source), **changes)
    else:
        lacking = [f"--{option}" for option, name in _NEEDED.items() if name not in changes]
        if lacking:
            raise ValueError(f"give a data set, or {', '.join(lacking)}")
        whole: dict[str, Any] = {"features": inputs} | changes
        problem = Problem(**whole)
    machine = Machine.measured(**figures) if measure else dataclasses.replace(Machine(), **figures)
    found = estimate(problem, machine, workers, cores=cores, tiles=tiles, reduction=reduction)
    if as_json:
        typer.echo(json.dumps(estimate_json(found), indent=2, allow_nan=False))
        return
    for part in estimate_tables(found):
        emit(part)
    for note in machine.notes:
        typer.echo(f"measured: {note}")


_NEEDED = {"rows": "rows", "inputs": "inputs", "classes": "outputs"}


def _figures(machine: Any) -> list[str]:
    """Names that --set takes."""
    import dataclasses

    return [field.name for field in dataclasses.fields(machine) if field.name != "notes"]
