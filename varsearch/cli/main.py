"""The command line: one Typer application, one file per group of commands, errors as one line."""

from __future__ import annotations

import errno
import sys

import typer

import varsearch
from varsearch.cli import catalogue, compare, dashboard, deploy, results, run
from varsearch.errors import Interrupted, OutputError, UsageError, VarsearchError

app = typer.Typer(
    help="Search, inspect and apply compression policies for visual autoregressive image models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for part in (run, results, deploy, compare, catalogue, dashboard):
    part.register(app)


@app.callback(invoke_without_command=True)
def options(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    """Options of every command."""
    if version:
        print(varsearch.__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code; deliberate errors are printed as one line on stderr."""
    try:
        code = typer.main.get_command(app).main(arguments, prog_name="varsearch", standalone_mode=False)
        return int(code or 0)
    except VarsearchError as error:
        return _fail(error)
    except typer.TyperException as error:
        if error.format_message():  # without arguments the help was printed, and that says enough
            print(f"error: {error.format_message()} (see 'varsearch --help')", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _fail(Interrupted("interrupted"))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left, as `head` does
        return 0
    except ModuleNotFoundError as error:
        return _fail(_missing(error))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _fail(OutputError(f"cannot write: {error.strerror}"))


def _fail(error: VarsearchError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _missing(error: ModuleNotFoundError) -> VarsearchError:
    package = (error.name or "").partition(".")[0]
    if package in {"optuna", "optuna_dashboard", "ray", "sqlalchemy", "alembic", "torchmetrics", "scipy", "matplotlib"}:
        return UsageError(f"this command needs {package}: pip install 'varsearch[search]'")
    raise error


def entry() -> None:
    """The installed `varsearch` command."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
