"""By how much a front beats the published systems that its run evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from varsearch.search.front import Front, FrontEntry, front_volume, relative_costs
from varsearch.search.pareto import dominates, nearest_to_ideal


@dataclass(frozen=True, slots=True)
class Rival:
    """A published system in a run.

    Attributes:
        preset: its trial.
        feasible: whether it is within the run's bounds.
        beaten_by: the member of the front that is nowhere worse than it and somewhere better, the one with the least
            relative costs of several; None if it is on the front or not feasible.
    """

    preset: FrontEntry
    feasible: bool
    beaten_by: FrontEntry | None


def rivals(front: Front) -> list[Rival]:
    """Every published system that the run evaluated, in the order of its trials."""
    return [_rival(front, preset) for preset in front.presets]


def _rival(front: Front, preset: FrontEntry) -> Rival:
    settings, own = front.settings, preset.values
    if not settings.is_feasible(own):
        return Rival(preset, False, None)
    better = [e for e in front.entries if dominates(settings.losses(e.values), settings.losses(own))]
    if not better or front.dense is None:
        return Rival(preset, True, better[0] if better else None)
    costs = [relative_costs(settings, entry.values, front.dense.values) for entry in better]
    return Rival(preset, True, better[nearest_to_ideal(costs, [0.0] * len(costs[0]))])


def presets_volume(front: Front) -> float | None:
    """Hypervolume that the published systems and dense reach alone; see `front_volume`. None without dense."""
    if front.dense is None:
        return None
    settings = front.settings
    alone = [e.values for e in (front.dense, *front.presets) if settings.is_feasible(e.values)]
    return front_volume(settings, alone, front.dense.values)
