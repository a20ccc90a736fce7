"""Bounds that a user sets: from text to numbers, and whether any policy can meet them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from varsearch.errors import EvaluationError, UsageError
from varsearch.evaluators.cost_model import CostModel, predicted_protocol
from varsearch.evaluators.workload import zoo_skeleton
from varsearch.measurement import Origin, SpeedProtocol
from varsearch.policy import Policy
from varsearch.space import SearchSpace

UNITS = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "ms": 1.0, "s": 1e3, "": 1.0}

MARGIN = 2.0
"""Where latency is measured, a bound counts as impossible if predictions miss it by this factor."""

ACCEPTED = {
    "--max-latency": "milliseconds as in 12ms, or a share of dense as in 0.7x",
    "--max-memory": "bytes as in 8GB (B, kB, MB), or a share of dense as in 0.5x",
    "--max-fid": "a distance above 0 as in 1.9, or one on top of dense as in +0.5",
}


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound as it was asked for.

    Attributes:
        option: where it was given.
        text: what was given.
        amount: milliseconds, bytes, a distance, or relative to dense.
        relative: whether dense is 1 (latency, memory) or 0 (FID).
    """

    option: str
    text: str
    amount: float
    relative: bool


def parse_goals(latency: str | None, memory: str | None, fid: str | None) -> tuple[Goal, ...]:
    """The bounds that were given; `UsageError` with what is accepted for a text that is none."""
    given = {"--max-latency": latency, "--max-memory": memory, "--max-fid": fid}
    return tuple(_parse(option, text.strip()) for option, text in given.items() if text is not None)


def _parse(option: str, text: str) -> Goal:
    number = r"(\d+(?:\.\d*)?|\.\d+)"
    forms = {
        "--max-latency": rf"{number}\s*(ms|s|x)?",
        "--max-memory": rf"{number}\s*(B|kB|MB|GB|x)?",
        "--max-fid": rf"\+?{number}()",
    }
    found = re.fullmatch(forms[option], text)
    on_top = text.startswith("+")
    # A policy may lose nothing at all, but not take no time, no memory, or be at no distance.
    if found is None or not (float(found[1]) > 0 or on_top) or not math.isfinite(float(found[1])):
        raise UsageError(f"{option} {text!r}: expected a number: {ACCEPTED[option]}")
    relative = found[2] == "x"
    return Goal(option, text, float(found[1]) * (1.0 if relative else UNITS[found[2] or ""]), relative or on_top)


def resolve(goals: tuple[Goal, ...], space: SearchSpace, model: str, speed: SpeedProtocol) -> dict[str, float]:
    """Metrics with the worst values that are feasible.

    Args:
        goals: what was asked for.
        space: the search space.
        model: name or folder of the model.
        speed: how latency and memory are evaluated.

    Raises:
        UsageError: a bound on latency or memory that no policy of the space meets, by prediction; it says what is
            reachable.
    """
    bounds: dict[str, float] = {}
    costs = Costs(space, model, speed)
    for goal in goals:
        if goal.option == "--max-fid":
            bounds["delta_fid" if goal.relative else "fid"] = goal.amount
            continue
        metric = "latency_ms" if goal.option == "--max-latency" else "peak_bytes"
        limit = goal.amount * costs.dense[metric] if goal.relative else goal.amount
        costs.require(metric, limit, goal)
        # Relative to dense is a bound on the speed-up: it is measured side by side, and stays the same on a rerun.
        bounds |= {"speedup": 1 / goal.amount} if metric == "latency_ms" and goal.relative else {metric: limit}
    return bounds


@dataclass
class Costs:
    """Predicted latency and memory of policies: the dense one's, and the least there are."""

    space: SearchSpace
    model: str
    speed: SpeedProtocol
    known: dict[str, dict[str, float]] = field(default_factory=dict)

    @cached_property
    def cost_model(self) -> CostModel:
        """Predicts for the target, measured or not."""
        return CostModel(zoo_skeleton(self.model), predicted_protocol(self.speed.target))

    @cached_property
    def dense(self) -> dict[str, float]:
        """Figures of the unmodified model; `EvaluationError` if the target has no room for it."""
        return self.cost_model.evaluate(self.space.decode({})).values

    def require(self, metric: str, limit: float, goal: Goal) -> None:
        """Raises `UsageError` if even the cheapest policy exceeds `limit`."""
        margin = MARGIN if metric == "latency_ms" and self.speed.origin is Origin.MEASURED else 1.0
        least = math.inf
        for value in self._descent(metric):
            least = min(least, value)
            if least <= limit * margin:
                return
        share = f" ({least / self.dense[metric]:.3g}x of dense)" if goal.relative else ""
        unit, scale = ("MB", 1e6) if metric == "peak_bytes" else ("ms", 1.0)
        raise UsageError(
            f"{goal.option} {goal.text}: no policy has {metric} of {limit / scale:.4g} {unit}; the least reachable is "
            f"{least / scale:.4g} {unit}{share}, predicted for {self.speed.target}"
        )

    def _descent(self, metric: str) -> Iterator[float]:
        """Costs of ever cheaper policies, to the end of a descent from the strongest one.

        What hand-made policies and presets do less of, that one does not do at all. Yet not every technique saves
        (low-bit weights cost time), so each kind of knob is set to each of its levels in turn.
        """
        own = self.space.own
        levels = {name: n - 1 for name, n in own.items()}
        best = self._cost(self.space.decode(levels), metric)
        yield best
        kinds = sorted({_kind(name) for name in own})
        improved = True
        while improved:
            improved = False
            for changed in (change for kind in kinds for change in _changes(kind, own)):
                cost = self._cost(self.space.decode(levels | changed), metric)
                if cost < best:
                    levels, best, improved = levels | changed, cost, True
                    yield best

    def _cost(self, policy: Policy, metric: str) -> float:
        if policy.digest not in self.known:
            try:
                self.known[policy.digest] = self.cost_model.evaluate(policy).values
            except EvaluationError:  # the target has no room for it
                self.known[policy.digest] = {}
        return self.known[policy.digest].get(metric, math.inf)


def _kind(knob: str) -> str:
    """What a knob sets, whatever layer, head or scale it belongs to."""
    return knob.rpartition(".")[2]


def _changes(kind: str, own: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """All knobs of a kind at the same level, for each level."""
    knobs = {name: n for name, n in own.items() if _kind(name) == kind}
    for level in range(max(knobs.values())):
        yield {name: min(level, n - 1) for name, n in knobs.items()}
