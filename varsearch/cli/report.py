"""`varsearch report`: a run as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from varsearch.cli import options as o
from varsearch.cli.render import console
from varsearch.files import write_atomically


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(report)


def report(
    run: o.RunName = None,
    out: Annotated[Path, o.option(metavar="FILE", help="HTML file to write.")] = Path("report.html"),
    storage: o.Storage = o.DEFAULT_STORAGE,
) -> None:
    """Write a run as one HTML page: front, progress, chosen policies, images, provenance."""
    from varsearch.db import Store
    from varsearch.report.page import report as page
    from varsearch.search.results.runs import find_run

    with Store(storage, create=False) as store:
        record = find_run(store, run)
        with Console(stderr=True).status("drawing pictures and images …"):
            text = page(store, record)
    write_atomically(out, text)
    console.print(f"{out}: report of {record.name}, {len(text.encode()) / 1e6:.1f} MB, needs no network")
