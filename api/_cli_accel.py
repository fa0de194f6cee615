"""`kernel-distill accel`, which is also `python -m kernel_distill.accel`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ._cli_support import Force

# Options after the script are the script's.
SETTINGS = {"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]}


def accel(
    script: Annotated[
        str | None, typer.Argument(help="A script, or with -m a module.", show_default=False)
    ] = None,
    arguments: Annotated[list[str] | None, typer.Argument(help="Its arguments.", show_default=False)] = None,
    as_module: Annotated[bool, typer.Option("-m", help="SCRIPT is the name of a module.")] = False,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Targets or groups, all by default; repeatable.", show_default=False
        ),
    ] = None,
    verify: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Run the original too for the first N calls of each.", show_default=False
        ),
    ] = None,
    tol: Annotated[
        float | None, typer.Option(help="Difference that is accepted: each target's own.", show_default=False)
    ] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Print calls and seconds of each target.")
    ] = False,
    list_targets: Annotated[bool, typer.Option("--list", help="List the targets and end.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="--list as the page docs/accel-targets.md.")
    ] = False,
    explain: Annotated[
        str | None, typer.Option(metavar="NAME", help="Say what a target keeps, and end.", show_default=False)
    ] = None,
    show_patch: Annotated[
        bool, typer.Option("--show-patch", help="Print every change as it is made.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write calls and seconds as HTML.", show_default=False)
    ] = None,
    force: Force = False,
) -> None:
    """Run SCRIPT with the functions that are known replaced by faster ones; the files stay as they are."""
    if list_targets or markdown:
        _print_targets(markdown)
    elif explain is not None:
        from .accel._report import explain as explained

        typer.echo(explained(explain))
    elif script is None:
        raise ValueError("give a script to run, or --list")
    else:
        if report is not None:
            from ._export import check_new

            check_new(report, force)
            report = report.absolute()  # the script may go elsewhere
        _run(
            script,
            arguments or [],
            as_module,
            tuple(target or ()),
            verify,
            tol,
            show_patch,
            profile,
            report,
            force,
        )


def _run(
    script: str,
    arguments: list[str],
    as_module: bool,
    targets: tuple[str, ...],
    verify: int | None,
    tolerance: float | None,
    show_patch: bool,
    profile: bool,
    report: Path | None,
    force: bool,
) -> None:
    from .accel import _install, _report, _runner
    from .accel._call import Settings, VerificationError

    if not as_module and not Path(script).is_file():
        raise FileNotFoundError(f"there is no script {script}")
    if show_patch:
        _install.patches.show = lambda text: typer.echo(text, err=True)
    _install.install(*targets, verify=verify, tolerance=tolerance)
    Settings.failures.clear()
    run = _runner.run_module if as_module else _runner.run_script
    try:
        run(script, arguments)
    except VerificationError:
        pass  # told below
    except (Exception, KeyboardInterrupt) as error:  # the script's own, of any kind: told as Python tells it
        frames = _runner.frames_of_the_script(error)
        sys.excepthook(type(error), error.with_traceback(frames), frames)
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
    finally:
        found = _report.report()
        if profile:
            typer.echo(str(found), err=True)
        if report is not None:
            found.html(report, force=force)
            typer.echo(f"wrote {report}", err=True)
    for failure in Settings.failures:  # even where the script has caught the error
        typer.echo(f"error: {failure}", err=True)
    if Settings.failures:
        raise typer.Exit(1)


def _print_targets(markdown: bool) -> None:
    from ._tables import emit, table
    from .accel._report import targets_page
    from .accel.registry import all_targets

    if markdown:
        typer.echo(targets_page(), nl=False)
        return
    rows = [
        (each.name, each.equivalence, "yes" if each.is_default else "by name only", each.summary)
        for each in all_targets()
    ]
    emit(table(("target", "class", "installed", "what it is"), rows))
