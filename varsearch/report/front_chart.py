"""The front against latency or memory, with every trial, published systems and dense.

Where quality was not evaluated, memory against latency.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from varsearch.formatting import interval
from varsearch.report.charts import COLOURS, Chart, Tips
from varsearch.report.labels import Box, place
from varsearch.search.core.pareto import non_dominated
from varsearch.search.results.front import Front, FrontEntry

WIDTH, HEIGHT = 560.0, 470.0
LEFT, RIGHT, BOTTOM, TOP = 66.0, 14.0, 92.0, 12.0
"""Pixels around the area of the points; the legend is below it."""

LINEAR = 0.25
"""ΔFID up to about this value is drawn to scale, larger values by decades: inverse hyperbolic sine."""

Cost = Literal["latency", "memory"]
COSTS: tuple[Cost, ...] = "latency", "memory"
TITLES = {"latency": "latency relative to dense", "memory": "peak memory relative to dense"}
ROUND = [digit * 10.0**power for power in range(-3, 4) for digit in (1, 2, 5)]
FINE = [*ROUND, *(digit * 10.0**power for power in range(-2, 2) for digit in (1.5, 3, 7))]


@dataclass(frozen=True, slots=True)
class Point:
    """An entry by its places on the horizontal and on the vertical axis."""

    entry: FrontEntry
    cost: float
    loss: float
    name: str = ""


@dataclass(frozen=True, slots=True)
class Points:
    """Everything on one chart."""

    trials: Sequence[Point]
    members: Sequence[Point]
    baselines: Sequence[Point]
    dense: Point

    def __iter__(self) -> Iterator[Point]:
        yield from (*self.trials, *self.members, *self.baselines, self.dense)


def relative_cost(values: Mapping[str, float], dense: Mapping[str, float], cost: Cost) -> float:
    """Latency or peak memory divided by that of dense.

    Latency comes from the speed-up, which does not drift as milliseconds do.
    """
    return 1 / values["speedup"] if cost == "latency" else values["peak_bytes"] / dense["peak_bytes"]


def front_chart(
    front: Front,
    dense: FrontEntry,
    trials: Sequence[FrontEntry],
    chosen: Mapping[int, str],
    cost: Cost,
) -> Chart:
    """ΔFID with its interval against a cost, or peak memory against latency; smaller is better.

    Args:
        front: its entries are drawn with intervals.
        dense: at cost 1 and ΔFID 0.
        trials: all evaluated trials, as dots. A line leads from each to its place on the front.
        chosen: names of some trials of the front, by number.
        cost: the horizontal axis.
    """
    has_quality = front.quality is not None

    def point(entry: FrontEntry, name: str = "") -> Point:
        loss = relative_cost(entry.values, dense.values, "memory")
        if has_quality:
            loss = entry.value("delta_fid")
        return Point(entry, relative_cost(entry.values, dense.values, cost), loss, name)

    points = Points(
        trials=[point(trial) for trial in trials],
        members=[point(entry, chosen.get(entry.number, "")) for entry in front.entries],
        baselines=[point(entry, entry.source.name) for entry in front.presets],
        dense=point(dense, "dense"),
    )

    def draw(figure: FigureBase, tips: Tips) -> None:
        area = (LEFT / WIDTH, BOTTOM / HEIGHT, 1 - (LEFT + RIGHT) / WIDTH, 1 - (BOTTOM + TOP) / HEIGHT)
        axes = figure.add_axes(area)
        _scales(axes, list(points), cost, has_quality=has_quality)
        _trials(axes, points, tips)
        _staircase(axes, points.members)
        _members(axes, points.members, tips)
        _baselines(axes, points, tips)
        _labels(axes, points)
        _legend(figure, has_quality=has_quality, moved=front.confirmed and not front.exact)

    what = "ΔFID" if has_quality else TITLES["memory"]
    label = f"{what} against {TITLES[cost]}: {len(points.members)} policies on the front"
    return Chart(label, WIDTH, HEIGHT, draw)


def _scales(axes: Axes, points: Sequence[Point], cost: Cost, *, has_quality: bool) -> None:
    """Scales, limits, ticks and titles."""
    costs = [p.cost for p in points]
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.12, max(costs) * 1.12)
    axes.set_xlabel(f"{TITLES[cost]} (left is better)")
    if has_quality:
        losses = list(_bounds(points))
        axes.set_yscale("asinh", linear_width=LINEAR)
        axes.set_ylim(min(-LINEAR, *losses) * 1.3, max(4 * LINEAR, *losses) * 1.25)
        axes.set_ylabel("ΔFID to dense (down is better)")
        axes.axhline(0, color=COLOURS["soft"], linewidth=1, linestyle=(0, (5, 4)))
        signed = [sign * value for value in ROUND if value >= 0.1 for sign in (1, -1)]
        _ticks(axes, "y", [0.0, *signed], 22, "{:+g}")
    else:
        losses = [p.loss for p in points]
        axes.set_yscale("log")
        axes.set_ylim(min(losses) / 1.12, max(losses) * 1.12)
        axes.set_ylabel(f"{TITLES['memory']} (down is better)")
        _ticks(axes, "y", [1.0, *FINE], 22, "{:g}×")
    _ticks(axes, "x", [1.0, *FINE], 44, "{:g}×")
    axes.grid(color=COLOURS["rule"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def _bounds(points: Iterable[Point]) -> Iterable[float]:
    """Values of ΔFID and the ends of their intervals."""
    for p in points:
        m = p.entry.metrics["delta_fid"]
        for value in (m.value, m.low, m.high):
            if value is not None:
                yield value


def _ticks(axes: Axes, side: Literal["x", "y"], values: Sequence[float], gap: float, form: str) -> None:
    """Ticks at those of `values` that are `gap` pixels apart; earlier values come first."""
    low, high = axes.get_xlim() if side == "x" else axes.get_ylim()
    kept: list[tuple[float, float]] = []
    for value in values:
        if not low <= value <= high:
            continue
        at = axes.transData.transform((value, value))["xy".index(side)]
        if all(abs(at - other) >= gap for _, other in kept):
            kept.append((value, at))
    axis = axes.xaxis if side == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator([value for value, _ in kept]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: form.format(value) if value else "0")


def _trials(axes: Axes, points: Points, tips: Tips) -> None:
    """Every trial by the search's numbers, with a line to its confirmed numbers."""
    places = {p.entry.number: p for p in points.members}
    for p in points.trials:
        after = places.get(p.entry.number, p)
        if (p.cost, p.loss) != (after.cost, after.loss):
            (line,) = axes.plot([p.cost, after.cost], [p.loss, after.loss], color=COLOURS["soft"], linewidth=0.7)
            line.set_gid("moved")
        (dot,) = axes.plot(p.cost, p.loss, "o", color=COLOURS["dot"], alpha=0.5, markersize=5, mew=0)
        tips.add(dot, tip(p))


def _staircase(axes: Axes, members: Sequence[Point]) -> None:
    """What the front reaches in these two metrics alone."""
    places = [(p.cost, p.loss) for p in members]
    # Less loss than dense is noise, not a gain.
    best = non_dominated([(cost, max(loss, 0.0)) for cost, loss in places])
    corners = sorted(places[i] for i in best)
    right, top = axes.get_xlim()[1], axes.get_ylim()[1]
    x = [corners[0][0], *(cost for cost, _ in corners), right]
    y = [top, *(loss for _, loss in corners), corners[-1][1]]
    axes.step(x, y, where="post", color=COLOURS["front"], linewidth=1.5)


def _members(axes: Axes, members: Sequence[Point], tips: Tips) -> None:
    for p in members:
        m = p.entry.metrics.get("delta_fid")
        if m is not None and m.low is not None and m.high is not None:
            axes.plot([p.cost, p.cost], [m.low, m.high], color=COLOURS["front"], alpha=0.4)
    for p in members:
        if p.name:
            axes.plot(p.cost, p.loss, "o", mfc="none", mec=COLOURS["front"], markersize=17, mew=2)
        (dot,) = axes.plot(p.cost, p.loss, "o", color=COLOURS["front"], mec=COLOURS["paper"], markersize=10)
        tips.add(dot, tip(p), f"#trial-{p.entry.number}")


def _baselines(axes: Axes, points: Points, tips: Tips) -> None:
    """Published systems as diamonds, dense as a star."""
    for p in points.baselines:
        (mark,) = axes.plot(p.cost, p.loss, "D", mfc=COLOURS["paper"], mec=COLOURS["baseline"], markersize=7.5, mew=2)
        tips.add(mark, tip(p))
    star = points.dense
    (mark,) = axes.plot(star.cost, star.loss, "*", color=COLOURS["ink"], mec=COLOURS["paper"], markersize=19)
    tips.add(mark, tip(star))


def _labels(axes: Axes, points: Points) -> None:
    """Names beside dense, the chosen policies and the published systems."""
    members = [p for p in points.members if p.name]
    named = [*members, points.dense, *points.baselines]
    # Labels are placed in pixels from the top left corner, where letters have known sizes.
    spots = [_pixel(axes, p) for p in named]
    sizes = [(0.56 * 12 * len(p.name) + 4, 15.0) for p in named]
    taken = []
    for x, y in [*spots, *(_pixel(axes, p) for p in points.members)]:
        taken.append(Box(x - 6, y - 6, 12, 12))
    area = Box(LEFT, TOP, WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM - TOP)
    colours = {id(p): COLOURS["front"] for p in members} | {id(points.dense): COLOURS["ink"]}
    for p, spot, box in zip(named, spots, place(spots, sizes, area, taken), strict=True):
        centre = (box.left + box.width / 2, box.top + box.height / 2)
        axes.annotate(
            p.name,
            xy=(p.cost, p.loss),
            xytext=(centre[0] - spot[0], spot[1] - centre[1]),
            textcoords="offset points",
            ha="center",
            va="center",
            color=colours.get(id(p), COLOURS["baseline"]),
            weight="bold" if id(p) in colours else "normal",
            bbox={"facecolor": COLOURS["paper"], "alpha": 0.75, "edgecolor": "none", "pad": 0.5},
            arrowprops=_leader(spot, centre),
        )


def _leader(spot: tuple[float, float], centre: tuple[float, float]) -> dict[str, object] | None:
    """A thin line to a label that is not next to its point."""
    if math.dist(spot, centre) < 40:
        return None
    return {"arrowstyle": "-", "color": COLOURS["soft"], "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0}


def _pixel(axes: Axes, p: Point) -> tuple[float, float]:
    """The place of a point relative to the chart's own area, in pixels from its top left corner."""
    x, y = axes.transData.transform((p.cost, p.loss))
    corner = axes.transAxes.transform((0, 1))
    return LEFT + float(x - corner[0]), TOP + float(corner[1] - y)


def _legend(figure: FigureBase, *, has_quality: bool, moved: bool) -> None:
    entries = {
        "front, with 95 % interval" if has_quality else "front": ("o", COLOURS["front"], 8.0),
        "published system": ("D", COLOURS["baseline"], 6.0),
        "dense": ("*", COLOURS["ink"], 12.0),
        "trial, by the search's numbers" if moved else "trial": ("o", COLOURS["dot"], 5.0),
    }
    handles = []
    for name, (marker, colour, size) in entries.items():
        face = COLOURS["paper"] if marker == "D" else colour
        handles.append(Line2D([], [], linestyle="", marker=marker, mec=colour, mfc=face, markersize=size, label=name))
    handles.append(Line2D([], [], color=COLOURS["front"], label="best of these two metrics"))
    figure.legend(handles=handles, loc="lower center", ncols=3, fontsize=10, handletextpad=0.4)


def tip(p: Point) -> str:
    """What a pointer on a point reads."""
    e = p.entry
    delta = f"ΔFID {interval(e.metrics['delta_fid'])}, " if "delta_fid" in e.metrics else ""
    return (
        f"trial {e.number} ({e.origin}): {delta}"
        f"{e.value('speedup'):.2f}× dense's speed, peak {e.value('peak_bytes') / 1e6:.3g} MB"
    )
