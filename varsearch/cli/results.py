"""`varsearch front`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from varsearch.cli import options as o
from varsearch.cli.render import console, measurements_json, print_json, table
from varsearch.errors import UsageError
from varsearch.files import write_atomically

if TYPE_CHECKING:
    from varsearch.search.results.front import Front
    from varsearch.search.results.optimism import Optimism


def register(app: typer.Typer) -> None:
    """Adds this file's command."""
    app.command()(front)


def front(
    run: o.RunName = None,
    storage: o.Storage = o.DEFAULT_STORAGE,
    picture: Annotated[Path | None, o.option(metavar="FILE", help="Also draw it to this PNG or SVG file.")] = None,
    json: o.Json = False,
) -> None:
    """Show the best trade-offs of a run."""
    from varsearch.db import Store
    from varsearch.search.results.front import read_front
    from varsearch.search.results.runs import find_run

    with Store(storage, create=False) as store:
        found = read_front(store, find_run(store, run))
    if picture:
        _draw(found, picture)
    if json:
        print_json(front_json(found))
    else:
        print_front(found)


def _draw(found: Front, path: Path) -> None:
    from varsearch.report.page import front_picture

    kind = path.suffix.removeprefix(".").lower()
    if kind not in ("png", "svg"):
        raise UsageError(f"--picture {path}: expected a file that ends in .png or .svg")
    chart = front_picture(found)
    write_atomically(path, chart.png() if kind == "png" else chart.svg())


def front_json(found: Front) -> dict[str, object]:
    """Everything known about a front."""
    return {
        "run": found.run,
        "model": found.settings.model,
        "target": found.settings.target.model_dump(mode="json"),
        "origin": found.settings.origin.value,
        "objectives": list(found.settings.objectives),
        "images": found.quality.n_images if found.quality else 0,
        "confirmed": found.confirmed,
        "unconfirmed_finalists": found.unconfirmed,
        "hypervolume": found.hypervolume,
        "regression_to_the_mean": _optimism_json(found.optimism),
        "entries": [
            {
                "trial": entry.number,
                "origin": entry.origin,
                "digest": entry.policy.digest,
                "metrics": measurements_json(entry.metrics),
                "policy": entry.policy.model_dump(mode="json", exclude_defaults=True),
            }
            for entry in found.entries
        ],
        "presets": [
            {
                "name": baseline.name,
                "trial": baseline.entry.number,
                "feasible": baseline.feasible,
                "metrics": measurements_json(baseline.entry.metrics),
                "beaten_by": baseline.beaten_by.number if baseline.beaten_by else None,
                "nearest": baseline.nearest.number if baseline.nearest else None,
                "chance": baseline.probability,
            }
            for baseline in found.baselines
        ],
    }


def _optimism_json(found: Optimism | None) -> dict[str, object] | None:
    if found is None:
        return None
    changes = measurements_json({m.metric: m for m in found.changes})
    return {"policies": found.trials, "mean_changes": changes, "claimed_hypervolume": found.claimed}


def print_front(found: Front) -> None:
    """The front as a table, best quality first, and the published systems beside it."""
    from varsearch.search.results.table import tables_of

    for part in tables_of(found):
        if part.rows:
            table(part.title, part.columns, part.rows)
        else:
            console.print(part.title)
        for note in part.notes:
            console.print(note)
