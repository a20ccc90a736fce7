"""`varsearch explain`: what each part of a policy saves and costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from varsearch.cli import options as o
from varsearch.cli.render import console, print_json, table
from varsearch.errors import UsageError
from varsearch.files import write_atomically

if TYPE_CHECKING:
    from varsearch.report.explanation import Explanation

KINDS = (".svg", ".png", ".html")


def register(app: typer.Typer) -> None:
    """Adds this file's commands."""
    app.command()(explain)


def explain(
    policy: Annotated[
        str,
        typer.Argument(
            help="Policy file, its name in the library, or a trial of a run: RUN:7, RUN:knee, or :knee of the latest."
        ),
    ],
    measure: Annotated[
        bool,
        o.flag("--measure", help="Also measure what each change costs in quality; takes minutes."),
    ] = False,
    images: Annotated[int, o.option(metavar="N", min=16, help="Images that --measure draws for each change.")] = 128,
    picture: Annotated[
        Path | None,
        o.option(metavar="FILE", help="Also draw it: SVG or PNG, or an HTML page with the table."),
    ] = None,
    model: o.OwnModel = None,
    weights: o.Weights = None,
    prompts: o.Prompts = None,
    storage: o.Storage = o.DEFAULT_STORAGE,
    library_folder: o.LibraryFolder = None,
    json: o.Json = False,
) -> None:
    """Show where a policy differs from dense, and what each change saves and costs."""
    if picture and picture.suffix.lower() not in KINDS:
        raise UsageError(f"--picture {picture}: expected a file that ends in one of {', '.join(KINDS)}")
    from varsearch.explain.api import explain as explained

    with _progress() as advance:
        found = explained(
            policy,
            measure=images if measure else 0,
            storage=storage,
            model=model,
            weights=weights,
            prompts=prompts,
            library=library_folder,
            on_change=advance,
        )
    if picture:
        write_atomically(picture, _drawn(found, picture.suffix.lower()))
    if json:
        print_json(found.as_json())
    else:
        _print(found)


def _drawn(found: Explanation, kind: str) -> str | bytes:
    if kind == ".html":
        return found.html()
    if kind == ".svg":
        return found.chart().svg()
    return found.chart().png()


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar with the time that is left, on stderr.

    It appears with the first change, so that an error before it is one line.
    """
    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task("taking changes back", total=None)

    def advance(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()


def _print(found: Explanation) -> None:
    from varsearch.report.explanation import COLUMNS

    table(found.title, ("<unit", "<technique", "<setting", *COLUMNS.values()), found.cells())
    for note in found.notes:
        console.print(note)
