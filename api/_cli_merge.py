"""The command `merge`."""

from pathlib import Path
from typing import Annotated

import typer

from ._cli_support import Force


def merge(
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", show_default=False)],
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES...",
            help="Two or more: distilled sets with classes of their own, or statistics of rows of their own.",
            show_default=False,
        ),
    ],
    ridge: Annotated[
        float | None,
        typer.Option(
            help="Of the merged set, absolute; by default the share of the trace that the sets have.",
            show_default=False,
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Put subtasks together: distilled sets of disjoint classes, or statistics of disjoint rows."""
    from ._merge import merge as merge_files
    from .solver.statistics import Statistics

    merged = merge_files(files, ridge=ridge)
    merged.save(out, force=force)
    what = f"statistics of {merged.count} rows" if isinstance(merged, Statistics) else repr(merged)
    typer.echo(f"{out}: {what}, merged of {len(files)} files")
