"""By how much a front beats the published systems that its run evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from varsearch.search.core.dominance import domination
from varsearch.search.core.objectives import front_volume, relative_costs
from varsearch.search.core.pareto import dominates, nearest_to_ideal
from varsearch.search.core.source import SourceKind

if TYPE_CHECKING:
    from varsearch.search.results.front import Front, FrontEntry

ALIKE = 0.03
"""A difference of two probabilities that is within the error of 256 posterior samples."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """A published system in a run.

    Attributes:
        entry: its trial.
        feasible: whether it is within the run's bounds.
        beaten_by: the member of the front that is nowhere worse and somewhere better; None if there
            is none, or the system is not feasible. Of several: not a published system itself, then
            the most probable to dominate, then of about equal ones the one of least relative costs.
        nearest: `beaten_by`; where nothing beats the system, the most probable to dominate it.
        probability: of `nearest` to dominate the system; see `domination`.
    """

    entry: FrontEntry
    feasible: bool
    beaten_by: FrontEntry | None
    nearest: FrontEntry | None
    probability: float

    @property
    def name(self) -> str:
        """Name of the published system."""
        return self.entry.source.name


def baselines(front: Front) -> list[Baseline]:
    """Every published system that the run evaluated, in the order of its trials."""
    return [_baseline(front, entry) for entry in front.presets]


def _baseline(front: Front, entry: FrontEntry) -> Baseline:
    if not front.settings.is_feasible(entry.values):
        return Baseline(entry, feasible=False, beaten_by=None, nearest=None, probability=0.0)
    others = [e for e in front.entries if e.number != entry.number]
    better = _dominating(front, others, entry)
    candidates = better or others
    probabilities = domination(front.settings, [e.metrics for e in candidates], entry.metrics)
    if not better and not any(probabilities):
        return Baseline(entry, feasible=True, beaten_by=None, nearest=None, probability=0.0)
    most = max(probabilities)
    likely = [i for i, probability in enumerate(probabilities) if probability >= most - ALIKE]
    nearest = likely[_cheapest(front, [candidates[i] for i in likely])]
    return Baseline(
        entry,
        feasible=True,
        beaten_by=candidates[nearest] if better else None,
        nearest=candidates[nearest],
        probability=probabilities[nearest],
    )


def _dominating(front: Front, others: Sequence[FrontEntry], entry: FrontEntry) -> Sequence[FrontEntry]:
    """The entries that dominate one; published systems among them only if there is no other."""
    losses = front.settings.losses
    better = [e for e in others if dominates(losses(e.values), losses(entry.values))]
    return [e for e in better if e.source.kind is not SourceKind.PRESET] or better


def _cheapest(front: Front, entries: Sequence[FrontEntry]) -> int:
    """Index of the entry that is nearest to zero relative costs; 0 without dense."""
    if front.dense is None:
        return 0
    dense = front.dense.values
    costs = [relative_costs(front.settings, e.values, dense) for e in entries]
    return nearest_to_ideal(costs, [0.0] * len(costs[0]))


def presets_volume(front: Front) -> float | None:
    """Hypervolume of published systems and dense alone; see `front_volume`. None without dense."""
    if front.dense is None:
        return None
    settings = front.settings
    values = [e.values for e in (front.dense, *front.presets)]
    feasible = filter(settings.is_feasible, values)
    return front_volume(settings, feasible, front.dense.values)
