"""`varsearch front`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from varsearch.cli import options as o
from varsearch.cli.render import (
    BLIND,
    bound,
    console,
    interval,
    known,
    measurements_json,
    print_json,
    quantity,
    ratio,
    table,
    times,
)
from varsearch.errors import UsageError
from varsearch.files import write_atomically

if TYPE_CHECKING:
    from varsearch.db import RunRecord, Store
    from varsearch.search.results.baselines import Rival
    from varsearch.search.results.front import Front, FrontEntry
    from varsearch.search.results.optimism import Optimism


def register(app: typer.Typer) -> None:
    """Adds this file's command."""
    app.command()(front)


def front(
    run: o.RunName = None,
    storage: o.Storage = o.DEFAULT_STORAGE,
    picture: Annotated[Path | None, typer.Option(help="Also draw it to this PNG or SVG file.")] = None,
    json: o.Json = False,
) -> None:
    """Show the best trade-offs of a run."""
    from varsearch.db import Store
    from varsearch.search.results.front import read_front
    from varsearch.search.results.runs import find_run

    with Store(storage, create=False) as store:
        record = find_run(store, run)
        if picture:
            _draw(store, record, picture)
        if json:
            print_json(front_json(record.name, read_front(store, record)))
        else:
            print_front(storage, record.name)


def _draw(store: Store, record: RunRecord, path: Path) -> None:
    from varsearch.report.page import front_picture

    kind = path.suffix.removeprefix(".").lower()
    if kind not in ("png", "svg"):
        raise UsageError(f"--picture {path}: expected a file that ends in .png or .svg")
    chart = front_picture(store, record)
    write_atomically(path, chart.png() if kind == "png" else chart.svg())


def front_json(name: str, found: Front) -> dict[str, object]:
    """Everything known about a front."""
    from varsearch.search.results.baselines import rivals

    return {
        "run": name,
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
                "name": rival.preset.source.name,
                "trial": rival.preset.number,
                "feasible": rival.feasible,
                "metrics": measurements_json(rival.preset.metrics),
                "beaten_by": rival.beaten_by.number if rival.beaten_by else None,
                "nearest": rival.nearest.number if rival.nearest else None,
                "chance": rival.chance,
            }
            for rival in rivals(found)
        ],
    }


def _optimism_json(found: Optimism | None) -> dict[str, object] | None:
    if found is None:
        return None
    changes = measurements_json({m.metric: m for m in found.changes})
    return {"policies": found.trials, "mean_changes": changes, "claimed_hypervolume": found.claimed}


def print_front(storage: str, name: str) -> None:
    """The front as a table, best quality first, relative to dense."""
    from varsearch.db import Store
    from varsearch.policy.summary import summarize
    from varsearch.search.results.claims import headline, regression_to_the_mean, shortfall
    from varsearch.search.results.front import read_front
    from varsearch.search.results.runs import find_run

    with Store(storage, create=False) as store:
        found = read_front(store, find_run(store, name))
    settings, quality = found.settings, found.quality
    volume = "" if found.hypervolume is None else f", hypervolume {found.hypervolume:.3f}"
    judged = f"quality of {quality.n_images} images in features {quality.extractor}" if quality else BLIND
    title = (
        f"{name}: {headline(found)}{volume}\n"
        f"{settings.model} on {settings.target}; latency and memory are {settings.origin.value.upper()}; {judged}"
    )
    rows = [{"trial": str(e.number), "<origin": e.origin} | _cells(e, found) for e in found.entries]
    _table(title, [row | {"<policy": summarize(e.policy)} for row, e in zip(rows, found.entries, strict=True)])
    for line in filter(None, (regression_to_the_mean(found), shortfall(found))):
        console.print(line)
    if not found.entries and found.complete:
        console.print(f"none of {found.complete} trials met all bounds: {_nearest(found)}")
    if found.dense and found.dense.number not in {entry.number for entry in found.entries}:
        dense = found.dense.metrics
        latency, peak = (quantity(m, known(dense, m).value) for m in ("latency_ms", "peak_bytes"))
        console.print(f"dense is trial {found.dense.number}, not on the front: {latency}, {peak}")
    if found.presets:
        _print_rivals(found)


def _nearest(found: Front) -> str:
    """Each bound beside the best that a trial reached."""
    return "; ".join(
        f"{bound(metric, limit)}, the best has {quantity(metric, found.best[metric])}"
        for metric, limit in found.settings.bounds.items()
        if metric in found.best
    )


def _table(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """A table whose columns are the keys of its rows; without rows only the title."""
    if rows:
        table(title, list(rows[0]), (list(row.values()) for row in rows))
    else:
        console.print(title)


def _print_rivals(found: Front) -> None:
    """Each published system beside what beats it; without quality, which all pay with, only what it saves."""
    from varsearch.search.results.baselines import presets_volume, rivals

    if found.settings.quality is None:
        rows = [{"<published": e.source.name} | _cells(e, found) for e in found.presets]
        _table("what the published systems cost, relative to dense", rows)
        return
    alone = presets_volume(found)
    volume = "" if alone is None else f": hypervolume {found.hypervolume:.3f}; without the rest of the run {alone:.3f}"
    compared = ("ΔFID [95 %]", "speed-up", "peak", "KV")
    columns = ("<published", *compared, "<beaten by: chance", *compared)
    table(f"the front against the published systems{volume}", columns, (_rival_cells(r, found) for r in rivals(found)))
    console.print("chance: that it is nowhere worse and somewhere better, given the errors of both")


def _rival_cells(rival: Rival, found: Front) -> list[str]:
    def cells(entry: FrontEntry) -> list[str]:
        shown = _cells(entry, found)
        shown["speed-up"] = shown["speed-up"].partition(" ")[0]  # its interval would leave no room for the other
        return [shown[column] for column in ("ΔFID [95 %]", "speed-up", "peak", "KV")]

    name, best = rival.preset.source.name, rival.beaten_by
    sure = f"trial {rival.nearest.number}: {rival.chance:.0%}" if rival.nearest else ""
    if best:
        return [name, *cells(rival.preset), f"{sure} ({best.origin})", *cells(best)]
    told = "on the front" if rival.feasible else "breaks a bound"
    return [name, *cells(rival.preset), f"{told}, {sure}" if sure else told, "", "", "", ""]


def _cells(entry: FrontEntry, found: Front) -> dict[str, str]:
    """Column to what an entry has there; no columns of quality where it was not evaluated."""
    m, dense = entry.metrics, found.dense.metrics if found.dense else None
    cells = {
        "ΔFID [95 %]": interval(m["delta_fid"]) if "delta_fid" in m else "",
        "latency": quantity("latency_ms", m["latency_ms"].value) if "latency_ms" in m else "",
        "speed-up": times(m["speedup"]) if "speedup" in m else "",
        "peak": ratio(m, dense, "peak_bytes"),
        "KV": ratio(m, dense, "kv_bytes"),
        "NLL": f"{m['nll'].value:.3f}" if "nll" in m else "",
    }
    unknown = () if found.settings.quality else ("ΔFID [95 %]", "NLL")
    return {column: cell for column, cell in cells.items() if column not in unknown}
