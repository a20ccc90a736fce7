"""Objectives of a run: relative costs, the front of trials, and its hypervolume."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from varsearch.db import State, TrialRecord
from varsearch.measurement import METRICS
from varsearch.search.core.pareto import hypervolume, non_dominated
from varsearch.search.core.settings import RunSettings
from varsearch.search.core.source import DENSE

WORST = 1.1
"""Relative costs from here on add nothing to the hypervolume."""

LEAST = 1e-3
"""Of a metric to maximize counts no less than this share of dense's."""


def relative_costs(settings: RunSettings, values: Mapping[str, float], dense: Mapping[str, float]) -> tuple[float, ...]:
    """Each objective relative to the dense policy: dense costs 1, half the latency 0.5, nothing 0.

    Metrics to maximize count by their inverse ratio, so twice the speed costs 0.5. A metric that is a difference to
    dense costs 0 there: ΔFID is divided by the dense FID, and any other one by 1. Negative ΔFID is noise, not
    a gain, and costs 0 too.
    """

    def cost(metric: str) -> float:
        scale = dense["fid"] if metric == "delta_fid" and "fid" in dense else dense[metric]
        if METRICS[metric].direction == "maximize":
            return abs(scale) / max(abs(values[metric]), LEAST * abs(scale)) if scale else 1.0
        return max(values[metric], 0.0) / (abs(scale) or 1.0)

    return tuple(cost(metric) for metric in settings.objectives)


def front_volume(settings: RunSettings, front: Iterable[Mapping[str, float]], dense: Mapping[str, float]) -> float:
    """Hypervolume of a front in relative costs, as a share of the box from 0 to `WORST`: 0 nothing, 1 unreachable.

    The reference point depends on dense alone, so values of one run can be compared from its first trial to its last.
    """
    reference = (WORST,) * len(settings.objectives)
    points = [relative_costs(settings, values, dense) for values in front]
    return hypervolume(points, reference) / WORST ** len(reference)


def front_trials(settings: RunSettings, trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The feasible trials that no other feasible one dominates."""
    complete = [t for t in trials if t.state is State.COMPLETE]
    for trial in complete:
        settings.require(trial.values, trial.number)
    feasible = [t for t in complete if settings.is_feasible(t.values)]
    return [feasible[i] for i in non_dominated([settings.losses(t.values) for t in feasible])]


def dense_trial(trials: Iterable[TrialRecord]) -> TrialRecord | None:
    """The evaluated dense policy among `trials`, if there is one."""
    return next((t for t in trials if t.origin == DENSE and t.state is State.COMPLETE), None)


def volume_of(settings: RunSettings, trials: Sequence[TrialRecord]) -> float | None:
    """Hypervolume of the front of these trials, see `front_volume`; None without dense."""
    dense = dense_trial(trials)
    return front_volume(settings, [t.values for t in front_trials(settings, trials)], dense.values) if dense else None
