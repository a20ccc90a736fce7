"""`varsearch dashboard`: the Optuna dashboard on the same database, with sample grids."""

from __future__ import annotations

from typing import Annotated

import typer

from varsearch.cli import options as o
from varsearch.cli.render import console


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(dashboard)


def dashboard(
    storage: o.Storage = o.DEFAULT_STORAGE,
    host: Annotated[str, o.option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, o.option(metavar="N", min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8080,
) -> None:
    """Open the Optuna dashboard; finalists without a sample grid get theirs first."""
    from varsearch.report.dashboard import attach_to_all, serve

    drawn = attach_to_all(storage, lambda line: console.print(f"warning: {line}"))
    if drawn:
        console.print(f"{drawn} sample grids drawn")
    serve(
        storage,
        host,
        port,
        lambda url: console.print(f"Optuna dashboard on {url} (Ctrl-C ends it)"),
    )
