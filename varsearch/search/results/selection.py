"""Ways to choose one policy of a front."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from varsearch.errors import UsageError
from varsearch.measurement import METRICS
from varsearch.search.core.bounds import Bound, Bounded, parse_bound, parse_bounds
from varsearch.search.core.objectives import relative_costs
from varsearch.search.core.pareto import nearest_to_ideal

if TYPE_CHECKING:
    from varsearch.search.results.front import Front, FrontEntry

SELECTIONS = "knee, fastest, smallest, best-quality, " + (
    "max-latency=MILLISECONDS, max-memory=BYTES (or kB, MB, GB), trial=NUMBER"
)

CRITERIA: Mapping[Bounded, str] = {
    "fid": "delta_fid",
    "latency": "speedup",
    "memory": "peak_bytes",
}
"""The metric that decides among entries within limits, by the quantity that has no limit."""


def select(front: Front, how: str) -> FrontEntry:
    """One entry of the front.

    "fastest" has the largest speed-up, "smallest" the least peak memory, "best-quality" the least
    ΔFID; "knee" is `knee`, "max-latency=…" and "max-memory=…" are `best_within`.

    Raises:
        UsageError: unknown selection, empty front, or no entry within the limit.
    """
    require_entries(front)
    if how == "knee":
        return knee(front)
    if how == "fastest":
        return _best_in(front.entries, "speedup")
    if how == "smallest":
        return _best_in(front.entries, "peak_bytes")
    if how == "best-quality":
        if front.settings.quality is None:
            raise UsageError("the run did not evaluate quality: select knee, fastest, smallest, or within a limit")
        return _best_in(front.entries, "delta_fid")
    match = re.fullmatch(r"max-(latency|memory)=(.+)", how)
    unknown = UsageError(f"unknown selection {how!r}: expected one of {SELECTIONS}")
    if match is None:
        raise unknown
    try:
        bound = parse_bound("latency" if match[1] == "latency" else "memory", match[2])
    except UsageError:
        raise unknown from None
    return _within(front, (bound,))


def require_entries(front: Front) -> None:
    """Raises `UsageError` with the reason if the front is empty."""
    if not front.complete:
        raise UsageError("the front is empty: the run has no evaluated trial yet")
    if not front.entries:
        raise UsageError(
            f"the front is empty: none of {front.complete} trials met all bounds; relax them or raise the budget"
        )


def knee(front: Front) -> FrontEntry:
    """The entry with the smallest Euclidean distance to zero relative costs.

    Compromise programming (Zeleny 1973). Costs are relative to dense rather than to the front's
    extremes, so one absurd policy at the end of the front does not move the choice.

    Raises:
        UsageError: the front is empty, or the dense policy has no numbers.
    """
    require_entries(front)
    if front.dense is None:
        raise UsageError("the knee is relative to the dense policy, which has no numbers in this run: select otherwise")
    dense = front.dense.values
    costs = [relative_costs(front.settings, entry.values, dense) for entry in front.entries]
    return front.entries[nearest_to_ideal(costs, [0.0] * len(costs[0]))]


def best_within(
    front: Front, *, latency: str | None = None, memory: str | None = None, fid: str | None = None
) -> FrontEntry:
    """The best entry within limits; see `Front.best`."""
    require_entries(front)
    return _within(front, parse_bounds(latency, memory, fid))


def _within(front: Front, bounds: tuple[Bound, ...]) -> FrontEntry:
    within = front.entries
    for bound in bounds:
        metric, limit = bound.limit(_dense(front, bound))
        sign = 1 if METRICS[metric].direction == "minimize" else -1
        best = _best_in(within, metric).value(metric)
        within = tuple(e for e in within if sign * e.value(metric) <= sign * limit)
        if not within:
            side, least = ("less", "least") if sign > 0 else ("more", "most")
            raise UsageError(f"no policy on the front has {metric} of {limit:g} or {side}: the {least} is {best:g}")
    limited = {bound.bounded for bound in bounds}
    names = [name for name in CRITERIA if name != "fid" or front.settings.quality is not None]
    free = [name for name in names if name not in limited]
    return _best_in(within, CRITERIA[(free or names)[0]])


def _dense(front: Front, bound: Bound) -> dict[str, float]:
    if front.dense is not None:
        return front.dense.values
    if bound.bounded == "memory" and bound.relative:
        raise UsageError(f"{bound.text} is relative to the dense policy, which has no numbers here")
    return {}


def _best_in(entries: tuple[FrontEntry, ...], metric: str) -> FrontEntry:
    better = min if METRICS[metric].direction == "minimize" else max
    return better(entries, key=lambda entry: entry.value(metric))
