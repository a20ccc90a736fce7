"""By how much a front beats the published systems that its run evaluated."""

from __future__ import annotations

from dataclasses import dataclass

from varsearch.search.core.dominance import domination
from varsearch.search.core.objectives import front_volume, relative_costs
from varsearch.search.core.pareto import dominates, nearest_to_ideal
from varsearch.search.core.source import SourceKind
from varsearch.search.results.front import Front, FrontEntry

ALIKE = 0.03
"""Difference of two probabilities that is within the error of 256 draws."""


@dataclass(frozen=True, slots=True)
class Rival:
    """A published system in a run.

    Attributes:
        preset: its trial.
        feasible: whether it is within the run's bounds.
        beaten_by: the member of the front that is nowhere worse than it and somewhere better, of several one that is
            not a published system itself, the one that is most surely so, by the errors of both, or, of those about as
            sure, has the least relative costs; None if it is on the front or not feasible.
        nearest: what beats it; where nothing does, the member of the front that is likeliest to.
        chance: its probability to dominate the system; see `domination`.
    """

    preset: FrontEntry
    feasible: bool
    beaten_by: FrontEntry | None
    nearest: FrontEntry | None
    chance: float


def rivals(front: Front) -> list[Rival]:
    """Every published system that the run evaluated, in the order of its trials."""
    return [_rival(front, preset) for preset in front.presets]


def _rival(front: Front, preset: FrontEntry) -> Rival:
    settings, own = front.settings, preset.values
    if not settings.is_feasible(own):
        return Rival(preset, False, None, None, 0.0)
    others = [e for e in front.entries if e.number != preset.number]
    better = [e for e in others if dominates(settings.losses(e.values), settings.losses(own))]
    better = [e for e in better if e.source.kind is not SourceKind.PRESET] or better
    likely = better or others
    chances = list(zip(domination(settings, [e.metrics for e in likely], preset.metrics), likely, strict=True))
    if not better and not any(chance for chance, _ in chances):
        return Rival(preset, True, None, None, 0.0)
    most = max(chance for chance, _ in chances)
    likeliest = [(chance, e) for chance, e in chances if chance >= most - ALIKE]
    best = 0
    if front.dense is not None:
        costs = [relative_costs(settings, e.values, front.dense.values) for _, e in likeliest]
        best = nearest_to_ideal(costs, [0.0] * len(costs[0]))
    chance, nearest = likeliest[best]
    return Rival(preset, True, nearest if better else None, nearest, chance)


def presets_volume(front: Front) -> float | None:
    """Hypervolume that the published systems and dense reach alone; see `front_volume`. None without dense."""
    if front.dense is None:
        return None
    settings = front.settings
    alone = [e.values for e in (front.dense, *front.presets) if settings.is_feasible(e.values)]
    return front_volume(settings, alone, front.dense.values)
