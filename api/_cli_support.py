"""What the commands share: their common options, parsing of values, and errors as one line."""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NoReturn

import typer

SOURCE = (
    "digits, an .npz file (x_train, y_train, x_test, y_test), a folder of parquet shards, an image folder"
    " train/<class>/*.png, torchvision:<name> or hf:<owner>/<name>"
)
LEARNED_METHODS = (
    "kip, full-kip, rfad or frepo; for networks: dm, dkkt, dkkt+dm, dc, dsa or mtt; distributions: d3 or"
    " class-gaussians"
)
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Executor = Annotated[
    str | None, typer.Option(help="Where the work is done: serial (here) or ray.", show_default=False)
]
Seed = Annotated[int, typer.Option(help="Defines every random choice.")]


def option(text: str) -> Any:
    """Declare an option that shows its default."""
    return typer.Option(help=text, show_default=True)


def user_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a user can cause into one line and an exit status."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # `| head` has read enough: typer ends quietly
        except KeyboardInterrupt:
            kept = kwargs.get("checkpoint")
            more = "" if kept is None else f": the same command goes on from {kept}"
            typer.echo(f"interrupted{more}", err=True)
            raise typer.Exit(130) from None
        except (ValueError, OSError, ImportError) as error:
            _fail(error)
        except RuntimeError as error:
            from .solver.executors import TaskError

            if not isinstance(error, TaskError):
                raise
            _fail(error)

    return run


def _fail(error: Exception) -> NoReturn:
    typer.echo(f"error: {' '.join(str(error).split())}", err=True)
    raise typer.Exit(2) from None


def parameter(text: str, option: str = "--param") -> tuple[str, Any]:
    """Split ``key=value``; a value that is not JSON is a string."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"{option} takes KEY=VALUE, got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def number_or_name(text: str) -> float | str:
    """Read a number, or leave a name as it is."""
    try:
        return float(text)
    except ValueError:
        return text


def spelled_out(context: typer.Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `values` that the user gave on the command line, defaults left out."""
    names = {"feature_params": "param"}
    return {
        name: value
        for name, value in values.items()
        if getattr(context.get_parameter_source(names.get(name, name)), "name", "") == "COMMANDLINE"
    }


def print_evaluation(result: Any) -> None:
    """Print the table of an `Evaluation` and what it has to remark."""
    from ._tables import emit

    emit(result.table())
    for remark in result.remarks():
        typer.echo(remark)
