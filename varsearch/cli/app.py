"""The commands: one Typer application, one file per group of them."""

from __future__ import annotations

import sys

import typer

import varsearch
from varsearch.cli import (
    calibrate,
    catalogue,
    compare,
    dashboard,
    deploy,
    doctor,
    explain,
    export,
    models,
    presets,
    profile,
    report,
    results,
    run,
)
from varsearch.cli.help import Command, Group
from varsearch.errors import Interrupted, OutputError, UsageError, VarsearchError

app = typer.Typer(
    cls=Group,
    help="Search, inspect and apply compression policies for visual autoregressive image models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for part in (
    run,
    results,
    export,
    report,
    explain,
    deploy,
    compare,
    profile,
    calibrate,
    models,
    presets,
    catalogue,
    doctor,
    dashboard,
):
    part.register(app)
for command in app.registered_commands:
    # Typer's own class is the default of `register`.
    if not issubclass(command.cls or Command, Command):
        command.cls = Command


@app.callback(invoke_without_command=True)
def options(
    version: bool = typer.Option(False, "--version", metavar="", help="Print the version and leave."),
) -> None:
    """Options of every command."""
    if version:
        print(varsearch.__version__)
        raise typer.Exit


def call(arguments: list[str] | None) -> int:
    """Runs a command and returns its exit code.

    Raises:
        VarsearchError: whatever the command line, the machine or the user stopped it with.
    """
    try:
        code = int(typer.main.get_command(app).main(arguments, prog_name="varsearch", standalone_mode=False) or 0)
        sys.stdout.flush()  # a full disk shows here at the latest
    except typer.TyperException as error:
        if not error.format_message():  # without arguments the help was printed, and that says enough
            return error.exit_code
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "varsearch"
        raise UsageError(f"{error.format_message()} (see '{command} --help')") from None
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    except OSError as error:
        raise OutputError(": ".join(str(part) for part in (error.filename, error.strerror or error) if part)) from None
    if code == Interrupted.exit_code:  # how Typer puts Ctrl-C
        raise Interrupted("interrupted")
    return code


def _missing(error: ModuleNotFoundError) -> VarsearchError | ModuleNotFoundError:
    package = (error.name or "").partition(".")[0]
    if package in {
        "optuna",
        "optuna_dashboard",
        "ray",
        "sqlalchemy",
        "alembic",
        "torchmetrics",
        "scipy",
        "matplotlib",
        "jinja2",
    }:
        return UsageError(f"this command needs {package}: pip install 'varsearch[search]'")
    return error
