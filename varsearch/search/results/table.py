"""The front as tables of text, for the terminal and for notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from varsearch.errors import StoreError
from varsearch.formatting import bound, interval, quantity, ratio, times
from varsearch.measurement import METRICS, Measurement
from varsearch.policy.summary import summarize
from varsearch.search.results.baselines import Baseline, presets_volume
from varsearch.search.results.claims import headline, regression_to_the_mean, shortfall

if TYPE_CHECKING:
    from varsearch.search.results.front import Front, FrontEntry

BLIND = "quality is NOT evaluated: these numbers say nothing about images"
"""The warning of a run that draws no image."""

LEFT = "<"
"""Names of columns that are aligned to the left begin so."""

COMPARED = ("ΔFID [95 %]", "speed-up", "peak", "KV")
"""Columns of a published system, and again of the policy that beats it."""

SHOWN = {"delta_fid", "latency_ms", "speedup", "peak_bytes", "kv_bytes", "nll", "fid"}
"""Metrics that have a column in every table; `fid` orders policies as ΔFID does."""


@dataclass(frozen=True, slots=True)
class Table:
    """Text cells with a title above and notes below; without rows there are no columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def tables_of(front: Front) -> list[Table]:
    """The front, and the published systems of its run if there are any."""
    return [_entries(front), *([_published(front)] if front.presets else [])]


def _entries(front: Front) -> Table:
    """The front, best quality first, relative to dense."""
    settings, quality = front.settings, front.quality
    volume = "" if front.hypervolume is None else f", hypervolume {front.hypervolume:.3f}"
    about = BLIND
    if quality is not None:
        about = f"quality of {quality.n_images} images in features {quality.extractor}"
    title = (
        f"{front.run}: {headline(front)}{volume}\n{settings.model} on {settings.target}; "
        f"latency and memory are {settings.origin.value.upper()}; {about}"
    )
    rows: list[dict[str, str]] = []
    for entry in front.entries:
        row = {"trial": str(entry.number), "<origin": entry.origin} | _cells(entry, front)
        rows.append(row | {"<policy": summarize(entry.policy)})
    return _table(title, rows, list(_notes(front)))


def _table(title: str, rows: Sequence[Mapping[str, str]], notes: Sequence[str] = ()) -> Table:
    """A table whose columns are the keys of its rows."""
    columns = list(rows[0]) if rows else []
    return Table(title, columns, [list(row.values()) for row in rows], notes)


def _notes(front: Front) -> Iterator[str]:
    yield from filter(None, (regression_to_the_mean(front), shortfall(front)))
    if not front.entries and front.complete:
        yield f"none of {front.complete} trials met all bounds: {_nearest(front)}"
    dense = front.dense
    if dense is not None and dense.number not in {entry.number for entry in front.entries}:
        latency = quantity("latency_ms", known(dense.metrics, "latency_ms").value)
        peak = quantity("peak_bytes", known(dense.metrics, "peak_bytes").value)
        yield f"dense is trial {dense.number}, not on the front: {latency}, {peak}"


def known(metrics: Mapping[str, Measurement], metric: str) -> Measurement:
    """A measurement that every evaluation gives; `StoreError` where the database has lost it."""
    if metric not in metrics:
        rest = ", ".join(metrics) or "nothing"
        raise StoreError(f"the stored evidence is damaged: it has no {metric}, only {rest}")
    return metrics[metric]


def _nearest(front: Front) -> str:
    """Each bound beside the best value that a trial reached."""
    best = front.best_values
    bounds = [(metric, limit) for metric, limit in front.settings.bounds.items() if metric in best]
    return "; ".join(
        f"{bound(metric, limit)}, the best has {quantity(metric, best[metric])}" for metric, limit in bounds
    )


def _published(front: Front) -> Table:
    """Each published system beside the policy that beats it.

    Without quality, which all of them pay with, there is only what each saves.
    """
    if front.settings.quality is None:
        rows = [{"<published": e.name} | _cells(e.entry, front) for e in front.baselines]
        return _table("what the published systems cost, relative to dense", rows)
    alone = presets_volume(front)
    volume = ""
    if alone is not None:
        volume = f": hypervolume {front.hypervolume:.3f}; without the rest of the run {alone:.3f}"
    return Table(
        f"the front against the published systems{volume}",
        ["<published", *COMPARED, "<beaten by: probability", *COMPARED],
        [_against(baseline, front) for baseline in front.baselines],
        ["probability: that it is nowhere worse and somewhere better, given the errors of both"],
    )


def _against(baseline: Baseline, front: Front) -> list[str]:
    own = [baseline.name, *_compared(baseline.entry, front)]
    nearest, better = baseline.nearest, baseline.beaten_by
    sure = f"trial {nearest.number}: {baseline.probability:.0%}" if nearest else ""
    if better:
        return [*own, f"{sure} ({better.origin})", *_compared(better, front)]
    claim = "on the front" if baseline.feasible else "breaks a bound"
    return [*own, f"{claim}, {sure}" if sure else claim, *[""] * len(COMPARED)]


def _compared(entry: FrontEntry, front: Front) -> list[str]:
    cells = _cells(entry, front)
    # The interval of the speed-up would leave no room for the other policy.
    cells["speed-up"] = cells["speed-up"].partition(" ")[0]
    return [cells[column] for column in COMPARED]


def _cells(entry: FrontEntry, front: Front) -> dict[str, str]:
    """Column to cell: the metrics of every table, and all other objectives of the run."""
    m, dense = entry.metrics, front.dense.metrics if front.dense else None
    cells: dict[str, str] = {}
    if front.settings.quality:
        cells["ΔFID [95 %]"] = interval(m["delta_fid"]) if "delta_fid" in m else ""
    cells["latency"] = quantity("latency_ms", m["latency_ms"].value) if "latency_ms" in m else ""
    cells["speed-up"] = times(m["speedup"]) if "speedup" in m else ""
    cells["peak"] = ratio(m, dense, "peak_bytes")
    cells["KV"] = ratio(m, dense, "kv_bytes")
    if front.settings.quality:
        cells["NLL"] = f"{m['nll'].value:.3f}" if "nll" in m else ""
    for name in front.settings.objectives:
        if name not in SHOWN:
            cells[name] = _other(m[name], name, dense)
    return cells


def _other(m: Measurement, name: str, dense: Mapping[str, Measurement] | None) -> str:
    """Costs relative to dense as in the other columns; metrics of quality as they are."""
    if METRICS[name].kind == "speed":
        return ratio({name: m}, dense, name)
    return quantity(name, m.value)


def html(table: Table) -> str:
    """The table as HTML for a notebook."""
    sides = ["left" if column.startswith(LEFT) else "right" for column in table.columns]

    def line(tag: str, cells: Sequence[str]) -> str:
        text = ""
        for side, cell in zip(sides, cells, strict=True):
            text += f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>'
        return f"<tr>{text}</tr>"

    caption = "<br>".join(map(escape, table.title.split("\n")))
    head = line("th", [column.removeprefix(LEFT) for column in table.columns])
    body = "".join(line("td", row) for row in table.rows)
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    return f"<p><b>{caption}</b></p><table><thead>{head}</thead><tbody>{body}</tbody></table>{notes}"
