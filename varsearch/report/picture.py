"""A picture of a run: every trial, and the front among them."""

from __future__ import annotations

import io
import math
from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from varsearch.db import RunRecord, State, Store
from varsearch.errors import UsageError
from varsearch.measurement import METRICS
from varsearch.search.results.claims import headline
from varsearch.search.results.front import Front, read_front
from varsearch.search.results.selection import require_entries

QUALITY_SPAN = 6.0
"""Trials whose ΔFID is this many times that of the front's median or more would squeeze the rest; they are left out."""

WIDTH = 90
"""Characters of small print that one of two plots is wide."""


def picture(store: Store, run: RunRecord, kind: str = "png") -> bytes:
    """Quality loss against speed-up and against memory relative to dense, as PNG or SVG.

    Where quality was not evaluated, memory against speed-up, with the published systems by name.

    Raises:
        UsageError: the run has no front, or lacks a metric that is drawn.
    """
    front = read_front(store, run)
    require_entries(front)
    if front.dense is None:
        raise UsageError("the dense policy has no numbers in this run: there is nothing to compare with")
    trials = [t.values for t in store.trials(run) if t.state is State.COMPLETE]
    settings, quality = front.settings, front.quality
    if quality is None:
        figure = Figure(figsize=(7, 5), layout="constrained")
        _draw_costs(figure.subplots(), front, trials)
    else:
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        for axes, metric in zip(figure.subplots(1, 2), ("speedup", "peak_bytes"), strict=True):
            _draw(axes, front, trials, metric)
    judged = f"{quality.n_images} images per policy" if quality else "quality NOT evaluated"
    about = f"{settings.model} on {settings.target}: latency and memory {settings.origin.value}"
    figure.suptitle(f"{about}\n{judged}; {headline(front)}")
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=120)
    return file.getvalue()


def _draw(axes: Axes, front: Front, trials: list[dict[str, float]], metric: str) -> None:
    assert front.dense is not None
    dense = front.dense.value(metric)
    ceiling = _ceiling(front)
    shown = [t for t in trials if metric in t and t.get("delta_fid", math.inf) <= ceiling]
    axes.scatter(
        [t[metric] / dense for t in shown],
        [t["delta_fid"] for t in shown],
        s=14,
        color="0.75",
        label="trials, as searched",
    )
    entries = [entry for entry in front.entries if entry.value("delta_fid") <= ceiling]
    x, y = ([entry.value(name) / scale for entry in entries] for name, scale in ((metric, dense), ("delta_fid", 1.0)))
    m = [entry.metrics["delta_fid"] for entry in entries]
    spread = [
        [max(0.0, v.value - (v.value if v.low is None else v.low)) for v in m],
        [max(0.0, (v.value if v.high is None else v.high) - v.value) for v in m],
    ]
    axes.errorbar(
        x, y, yerr=spread, fmt="o", ms=5, lw=0.8, color="tab:blue", ecolor="0.8", label="front, 95 % interval"
    )
    axes.scatter([1], [0], marker="*", s=160, color="tab:red", zorder=3, label="dense")
    axes.axhline(0, color="0.6", lw=0.7)
    better = "more" if METRICS[metric].direction == "maximize" else "less"
    name = {"speedup": "speed-up over dense", "peak_bytes": "peak memory relative to dense"}[metric]
    beyond = [f"{e.number} (ΔFID {e.value('delta_fid'):+.2f})" for e in front.entries if e not in entries]
    if beyond:
        told = f"on the front beyond this axis: trial {', '.join(beyond)}"
        axes.set_title("\n".join(wrap(told, WIDTH)), fontsize=8)
    axes.set_xlabel(f"{name} ({better} is better)")
    axes.set_ylabel("ΔFID to dense (less is better)")
    axes.legend(fontsize=8)


def _draw_costs(axes: Axes, front: Front, trials: list[dict[str, float]]) -> None:
    """Memory against speed-up, both relative to dense."""
    assert front.dense is not None
    dense = front.dense.value("peak_bytes")

    def points(rows: list[dict[str, float]]) -> tuple[list[float], list[float]]:
        return [row["speedup"] for row in rows], [row["peak_bytes"] / dense for row in rows]

    axes.scatter(*points(trials), s=14, color="0.75", label="trials")
    axes.scatter(*points([entry.values for entry in front.entries]), s=25, color="tab:blue", label="front")
    axes.scatter(
        *points([entry.values for entry in front.presets]), s=25, marker="^", color="tab:orange", label="published"
    )
    for entry in front.presets:
        place = entry.value("speedup"), entry.value("peak_bytes") / dense
        axes.annotate(entry.source.name, place, fontsize=7, xytext=(4, 2), textcoords="offset points")
    axes.scatter([1], [1], marker="*", s=160, color="tab:red", zorder=3, label="dense")
    axes.set_xlabel("speed-up over dense (more is better)")
    axes.set_ylabel("peak memory relative to dense (less is better)")
    axes.legend(fontsize=8)


def _ceiling(front: Front) -> float:
    losses = sorted(entry.value("delta_fid") for entry in front.entries)
    return max(1.0, QUALITY_SPAN * losses[len(losses) // 2])
