"""The front against latency or memory, with every trial, published systems and dense.

Where quality was not evaluated, memory against latency.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from varsearch.formatting import interval
from varsearch.report.labels import Box, place
from varsearch.report.svg import Axis, Picture, text_width
from varsearch.search.core.pareto import non_dominated
from varsearch.search.results.front import Front, FrontEntry

WIDTH, HEIGHT = 560.0, 470.0
AREA = Box(66, 12, WIDTH - 82, HEIGHT - 64)
LINEAR = 0.25
"""ΔFID up to about this is drawn to scale, and beyond it in decades: the inverse hyperbolic sine."""

Cost = Literal["latency", "memory"]
COSTS: tuple[Cost, ...] = "latency", "memory"
TITLES = {"latency": "latency relative to dense", "memory": "peak memory relative to dense"}
ROUND = [digit * 10.0**power for power in range(-3, 4) for digit in (1, 2, 5)]
FINE = [*ROUND, *(digit * 10.0**power for power in range(-2, 2) for digit in (1.5, 3, 7))]


@dataclass(frozen=True, slots=True)
class Point:
    """An entry by what lies on the horizontal and on the vertical axis."""

    entry: FrontEntry
    cost: float
    loss: float
    name: str = ""


def relative_cost(values: Mapping[str, float], dense: Mapping[str, float], cost: Cost) -> float:
    """Latency or peak memory over that of dense. Latency from the speed-up, which does not drift as milliseconds do."""
    return 1 / values["speedup"] if cost == "latency" else values["peak_bytes"] / dense["peak_bytes"]


def front_chart(
    front: Front, dense: FrontEntry, trials: Sequence[FrontEntry], chosen: Mapping[int, str], cost: Cost
) -> Picture:
    """ΔFID with its interval against a cost, both better when smaller; peak memory in its place without quality.

    Args:
        front: whose entries are drawn with intervals.
        dense: at cost 1 and ΔFID 0.
        trials: everything evaluated, drawn as dots, with a line from each to the place that it has on the front.
        chosen: names of some of the front's trials, by number.
        cost: what lies on the horizontal axis.
    """
    judged = front.quality is not None

    def point(entry: FrontEntry, name: str = "") -> Point:
        values = entry.values
        loss = entry.value("delta_fid") if judged else relative_cost(values, dense.values, "memory")
        return Point(entry, relative_cost(values, dense.values, cost), loss, name)

    every = [point(trial) for trial in trials]
    members = [point(entry, chosen.get(entry.number, "")) for entry in front.entries]
    presets = [point(entry, entry.source.name) for entry in front.presets]
    star, what = point(dense, "dense"), "ΔFID" if judged else TITLES["memory"]
    picture = Picture(
        WIDTH, HEIGHT, f"{what} against {TITLES[cost]}: {len(members)} policies on the front", linked=True
    )
    x, y = _axes([*every, *members, *presets, star], judged)
    _frame(picture, x, y, cost, judged)
    found = {p.entry.number: p for p in members}
    for p in every:
        _moved(picture, p, found.get(p.entry.number, p), x, y)
        picture.add("circle", "trial", _tip(p), cx=x(p.cost), cy=y(p.loss), r=3)
    _stairs(picture, members, x, y)
    _front(picture, members, x, y)
    for p in presets:
        picture.add("path", "preset", _tip(p), d=_diamond(x(p.cost), y(p.loss)))
    picture.add("path", "dense", _tip(star), d=_star(x(star.cost), y(star.loss)))
    _label(picture, [*(p for p in members if p.name), star, *presets], members, x, y)
    return picture


def _axes(points: Sequence[Point], judged: bool) -> tuple[Axis, Axis]:
    costs = [p.cost for p in points]
    x = Axis(min(costs) / 1.12, max(costs) * 1.12, AREA.left, AREA.left + AREA.width, math.log)
    if not judged:
        losses = [p.loss for p in points]
        return x, Axis(min(losses) / 1.12, max(losses) * 1.12, AREA.top + AREA.height, AREA.top, math.log)
    bounds = [v for p in points for m in [p.entry.metrics["delta_fid"]] for v in (m.value, m.low, m.high)]
    deltas = [v for v in bounds if v is not None]
    low, high = min(-LINEAR, *deltas) * 1.3, max(4 * LINEAR, *deltas) * 1.25
    return x, Axis(low, high, AREA.top + AREA.height, AREA.top, lambda v: math.asinh(v / LINEAR))


def _frame(picture: Picture, x: Axis, y: Axis, cost: Cost, judged: bool) -> None:
    bottom, right = AREA.top + AREA.height, AREA.left + AREA.width
    for value in x.ticks([1.0, *FINE], 40):
        picture.add("line", "rule", x1=x(value), y1=AREA.top, x2=x(value), y2=bottom)
        picture.text(x(value), bottom + 18, f"{value:g}×", "soft", "middle")
    differences = [0.0, *(sign * tick for tick in ROUND if tick >= 0.1 for sign in (1, -1))]
    for value in y.ticks(differences if judged else [1.0, *FINE], 22):
        told = f"{value:g}×" if not judged else f"{value:+g}" if value else "0"
        picture.add("line", "zero" if value == 0 else "rule", x1=AREA.left, y1=y(value), x2=right, y2=y(value))
        picture.text(AREA.left - 8, y(value) + 4, told, "soft", "end")
    picture.text((AREA.left + right) / 2, HEIGHT - 8, f"{TITLES[cost]} (left is better)", "", "middle")
    turned = f"rotate(-90 14 {HEIGHT / 2 - 26:.0f})"
    name = "ΔFID to dense" if judged else TITLES["memory"]
    picture.add(
        "text", text=f"{name} (down is better)", x=14, y=HEIGHT / 2 - 26, text_anchor="middle", transform=turned
    )


def _moved(picture: Picture, before: Point, after: Point, x: Axis, y: Axis) -> None:
    """A line from the numbers of the search to confirmed ones."""
    start, end = (x(before.cost), y(before.loss)), (x(after.cost), y(after.loss))
    if math.dist(start, end) > 1:
        picture.add("line", "leader", x1=start[0], y1=start[1], x2=end[0], y2=end[1])


def _stairs(picture: Picture, members: Sequence[Point], x: Axis, y: Axis) -> None:
    """What the front reaches in these two metrics alone."""
    corners = sorted(
        (members[i].cost, members[i].loss) for i in non_dominated([(p.cost, max(p.loss, 0.0)) for p in members])
    )
    path = f"M{x(corners[0][0]):.1f} {AREA.top}"
    for cost, delta in corners:
        path += f"H{x(cost):.1f}V{y(delta):.1f}"
    picture.add("path", "stairs", d=f"{path}H{AREA.left + AREA.width}")


def _front(picture: Picture, members: Sequence[Point], x: Axis, y: Axis) -> None:
    for p in members:
        m = p.entry.metrics.get("delta_fid")
        if m is not None and m.low is not None and m.high is not None:
            picture.add("line", "spread", x1=x(p.cost), x2=x(p.cost), y1=y(m.low), y2=y(m.high))
    for p in members:
        link = picture.add("a", href=f"#trial-{p.entry.number}", aria_label=_tip(p))
        picture.add("circle", "front", _tip(p), cx=x(p.cost), cy=y(p.loss), r=5, within=link)
        if p.name:
            picture.add("circle", "ring", cx=x(p.cost), cy=y(p.loss), r=8.5)


def _label(picture: Picture, named: Sequence[Point], members: Sequence[Point], x: Axis, y: Axis) -> None:
    """Names beside points: of dense, of the chosen policies, and of published systems off the front."""
    points = [(x(p.cost), y(p.loss)) for p in named]
    sizes = [(text_width(p.name, 12) + 2, 14.0) for p in named]
    taken = [Box(x(p.cost) - 6, y(p.loss) - 6, 12, 12) for p in (*members, *named)]
    numbers = {p.entry.number for p in members if p.name}
    for p, spot, box in zip(named, points, place(points, sizes, AREA, taken), strict=True):
        centre = box.left + box.width / 2, box.top + box.height / 2
        edge = min(max(spot[0], box.left), box.left + box.width), min(max(spot[1], box.top), box.top + box.height)
        if math.dist(spot, edge) > 11:
            picture.add("line", "leader", x1=spot[0], y1=spot[1], x2=edge[0], y2=edge[1])
        style = "strong" if p.name == "dense" else "chosen-name" if p.entry.number in numbers else "preset-name"
        picture.text(centre[0], box.top + 11, p.name, f"{style} small halo", "middle")


def _tip(p: Point) -> str:
    e = p.entry
    delta = f"ΔFID {interval(e.metrics['delta_fid'])}, " if "delta_fid" in e.metrics else ""
    return (
        f"trial {e.number} ({e.origin}): {delta}"
        f"{e.value('speedup'):.2f}× dense's speed, peak {e.value('peak_bytes') / 1e6:.3g} MB"
    )


def _diamond(x: float, y: float, r: float = 5.5) -> str:
    return f"M{x:.1f} {y - r:.1f}L{x + r:.1f} {y:.1f}L{x:.1f} {y + r:.1f}L{x - r:.1f} {y:.1f}Z"


def _star(x: float, y: float, r: float = 10.0) -> str:
    angles = [math.radians(36 * i - 90) for i in range(10)]
    radii = [r if i % 2 == 0 else 0.42 * r for i in range(10)]
    corners = (f"{x + q * math.cos(a):.1f} {y + q * math.sin(a):.1f}" for a, q in zip(angles, radii, strict=True))
    return f"M{'L'.join(corners)}Z"
