"""Run a script with its known functions replaced: `python -m kernel_distill.accel script.py arguments`."""

import typer

from .._cli_accel import SETTINGS, accel
from .._cli_support import user_errors

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
app.command(context_settings=SETTINGS, no_args_is_help=True)(user_errors(accel))

if __name__ == "__main__":
    app(prog_name="python -m kernel_distill.accel")
