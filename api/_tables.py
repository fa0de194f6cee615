"""Tables for people, laid out one way: rich on a terminal, plain text elsewhere."""

import io
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None, plain: bool = False
) -> Table:
    """Lay out rows; the first column to the left, numbers to the right.

    Parameters
    ----------
    columns : sequence of str
        Headings; all empty for none.
    rows : iterable of sequences
        Cells, turned into text by `show`; texts are never read as markup.
    title : str, optional
    plain : bool, default False
        Borders of ASCII, which is also Markdown.
    """
    rows = [list(row) for row in rows]
    made = Table(
        title=None if title is None else Text(title, style="bold"),
        title_justify="left",
        box=box.MARKDOWN if plain else box.SIMPLE_HEAD,
        show_header=any(columns),
        pad_edge=plain,
    )
    for index, column in enumerate(columns):
        numeric = all(_is_number(row[index]) for row in rows)
        made.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(show(cell)) for cell in row))
    return made


def emit(renderable: RenderableType) -> None:
    """Print on standard output: to fit a terminal, or on lines as long as they need to be."""
    if sys.stdout.isatty():
        Console().print(renderable)
    else:
        print(as_text(renderable), end="\n\n")


def as_text(renderable: RenderableType) -> str:
    """Render without colour, on lines as long as they need to be."""
    stream = io.StringIO()
    Console(file=stream, width=10_000, color_system=None, legacy_windows=False).print(renderable)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).strip("\n")


def show(value: Any) -> str:
    """Write one value in few characters."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(show, value))
    return str(value)


def percent(share: float) -> str:
    """Write a share as a percentage."""
    return f"{100 * share:.2f} %"


def size(count: int) -> str:
    """Write a number of bytes."""
    if count < 1000:
        return f"{count} B"
    power = min(int(math.log10(count) / 3), 4)
    return f"{count / 1000**power:.1f} {'kMGT'[power - 1]}B"


def shape(sizes: Sequence[int]) -> str:
    """Write a shape as people do: 1x8x8."""
    return "x".join(map(str, sizes))


def jsonable(value: Any) -> Any:
    """Replace what strict JSON lacks: infinities and NaN become null, NumPy scalars numbers."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_number(cell: Any) -> bool:
    return cell is None or isinstance(cell, (int, float)) or str(cell).endswith("%")
