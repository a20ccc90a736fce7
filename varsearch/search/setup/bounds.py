"""Refuses bounds on latency and memory that no policy of the space can meet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from varsearch.errors import EvaluationError, UsageError
from varsearch.evaluators.cost_model import CostModel, predicted_protocol
from varsearch.evaluators.workload import zoo_skeleton
from varsearch.measurement import Origin, SpeedProtocol
from varsearch.policy import Policy
from varsearch.search.core.bounds import Bound
from varsearch.space import SearchSpace

MARGIN = 2.0
"""A bound on measured latency is impossible if predictions miss it by this factor."""


def resolve(bounds: tuple[Bound, ...], space: SearchSpace, model: str, speed: SpeedProtocol) -> dict[str, float]:
    """Metrics with the worst values that are feasible.

    Args:
        bounds: what the user asks for.
        space: the search space.
        model: name or folder of the model.
        speed: how latency and memory are evaluated.

    Raises:
        UsageError: no policy of the space meets a bound, by prediction. The message has the least
            reachable value.
    """
    limits: dict[str, float] = {}
    costs = PredictedCosts(space, model, speed)
    for bound in bounds:
        if bound.bounded == "fid":
            metric, limit = bound.limit({})
        else:
            costs.require(bound)
            metric, limit = bound.limit(costs.dense if bound.relative else {})
        limits[metric] = limit
    return limits


@dataclass
class PredictedCosts:
    """Predicted latency and memory of the dense policy and of the cheapest ones."""

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
        """Metrics of the dense policy; `EvaluationError` if the target has no room for it."""
        return self.cost_model.evaluate(self.space.decode({})).values

    def require(self, bound: Bound) -> None:
        """Raises `UsageError` if even the cheapest policy exceeds the bound."""
        metric = "latency_ms" if bound.bounded == "latency" else "peak_bytes"
        limit = bound.amount * self.dense[metric] if bound.relative else bound.amount
        measured = metric == "latency_ms" and self.speed.origin is Origin.MEASURED
        least = math.inf
        for value in self._descent(metric):
            least = min(least, value)
            if least <= limit * (MARGIN if measured else 1.0):
                return
        share = f" ({least / self.dense[metric]:.3g}x of dense)" if bound.relative else ""
        unit, scale = ("MB", 1e6) if metric == "peak_bytes" else ("ms", 1.0)
        raise UsageError(
            f"{bound.option} {bound.text}: no policy has {metric} of {limit / scale:.4g} {unit}; "
            f"the least reachable is {least / scale:.4g} {unit}{share}, "
            f"predicted for {self.speed.target}"
        )

    def _descent(self, metric: str) -> Iterator[float]:
        """Costs of ever cheaper policies: coordinate descent from the strongest policy.

        The strongest policy is not always the cheapest: low-bit weights cost time. So each kind of
        knob is set to each of its levels in turn.
        """
        own = self.space.own
        levels = {name: n - 1 for name, n in own.items()}
        best = self._cost(self.space.decode(levels), metric)
        yield best
        kinds = sorted(set(map(_kind, own)))
        improved = True
        while improved:
            improved = False
            for kind in kinds:
                for change in _changes(kind, own):
                    cost = self._cost(self.space.decode(levels | change), metric)
                    if cost < best:
                        levels, best, improved = levels | change, cost, True
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
