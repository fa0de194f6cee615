"""Progress of long work: a bar on a terminal, plain lines elsewhere, nothing when asked."""

import sys
import time
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")

# Work shorter than this shows nothing, so that small jobs and tests stay quiet.
_QUIET_SECONDS = 2.0
_LINE_SECONDS = 10.0


def track(
    items: Iterable[T],
    label: str,
    total: int | None = None,
    *,
    show: bool | None = None,
    done: int = 0,
    status: Callable[[], str] = str,
) -> Generator[T, None, None]:
    """Yield `items`, showing progress on standard error.

    Parameters
    ----------
    items : iterable
    label : str
        What is being done.
    total : int, optional
        Number of items, where it is known; with those done before.
    show : bool, optional
        False for silence, True to show from the first item; by default after two seconds of work.
    done : int, default 0
        Items done before, which are not among `items`.
    status : callable, optional
        Called for a word on how it goes (a loss), when progress is shown.
    """
    if show is False:
        yield from items
        return
    started = time.monotonic()
    delay = 0.0 if show else _QUIET_SECONDS
    if not sys.stderr.isatty():
        last = started + delay - _LINE_SECONDS
        for count, item in enumerate(items, start=done + 1):
            yield item
            if (now := time.monotonic()) - last >= _LINE_SECONDS:
                last = now
                of = f"/{total}" if total else ""
                words = f"{label}: {count}{of}", status(), f"{now - started:.0f} s"
                print(", ".join(filter(None, words)), file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=False) as progress:
        task = progress.add_task(label, total=total, completed=done, visible=delay == 0, status="")
        for item in items:
            yield item
            progress.update(task, advance=1, visible=time.monotonic() - started >= delay, status=status())
