"""Ways to choose one policy of a front."""

from __future__ import annotations

import re
from collections.abc import Sequence

from varsearch.errors import UsageError
from varsearch.measurement import METRICS
from varsearch.search.core.objectives import relative_costs
from varsearch.search.core.pareto import nearest_to_ideal
from varsearch.search.results.front import Front, FrontEntry

SELECTIONS = (
    "knee, fastest, smallest, best-quality, max-latency=MILLISECONDS, max-memory=BYTES (or kB, MB, GB), trial=NUMBER"
)


def select(front: Front, how: str) -> FrontEntry:
    """One entry of the front.

    "knee" is the entry with the smallest distance to zero relative costs (compromise programming, Zeleny 1973): costs
    relative to dense rather than to the front's own extremes, so that one absurd policy at the end of the
    front does not move the choice. "fastest" has the largest speed-up, "smallest" the least peak memory,
    "best-quality" the least ΔFID. "max-latency=…" and "max-memory=…" give the best quality within the limit; where
    quality was not evaluated, the least of the other one.

    Raises:
        UsageError: unknown selection, empty front, or no entry within the limit.
    """
    require_entries(front)
    if how == "knee":
        return _knee(front)
    if how == "fastest":
        return max(front.entries, key=lambda entry: entry.value("speedup"))
    if how == "best-quality" and front.settings.quality is None:
        raise UsageError("the run did not evaluate quality: select knee, fastest, smallest, or within a limit")
    single = {"smallest": "peak_bytes", "best-quality": "delta_fid"}.get(how)
    if single:
        return min(front.entries, key=lambda entry: entry.value(single))
    return _best_within(front.entries, how, front.settings.quality is not None)


def require_entries(front: Front) -> None:
    """Raises `UsageError` if there is nothing on the front, and says why."""
    if not front.complete:
        raise UsageError("the front is empty: the run has no evaluated trial yet")
    if not front.entries:
        raise UsageError(
            f"the front is empty: none of {front.complete} trials met all bounds; relax them or raise the budget"
        )


def _knee(front: Front) -> FrontEntry:
    if front.dense is None:
        raise UsageError("the knee is relative to the dense policy, which has no numbers in this run: select otherwise")
    dense = front.dense.values
    costs = [relative_costs(front.settings, entry.values, dense) for entry in front.entries]
    return front.entries[nearest_to_ideal(costs, [0.0] * len(costs[0]))]


def _best_within(entries: Sequence[FrontEntry], how: str, judged: bool) -> FrontEntry:
    found = re.fullmatch(r"max-(latency|memory)=(\d+(?:\.\d+)?)\s*(ms|B|kB|MB|GB)?", how)
    metric = {"latency": "latency_ms", "memory": "peak_bytes"}[found[1]] if found else ""
    if found is None or (found[3] or METRICS[metric].unit).endswith("B") != (metric == "peak_bytes"):
        raise UsageError(f"unknown selection {how!r}: expected one of {SELECTIONS}")
    limit = float(found[2]) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}.get(found[3] or "", 1.0)
    within = [entry for entry in entries if entry.value(metric) <= limit]
    if not within:
        least = min(entry.value(metric) for entry in entries)
        raise UsageError(f"no policy on the front has {metric} of {limit:g} or less: the least is {least:g}")
    best = "delta_fid" if judged else {"latency_ms": "peak_bytes", "peak_bytes": "latency_ms"}[metric]
    return min(within, key=lambda entry: entry.value(best))
