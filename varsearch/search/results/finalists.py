"""Which trials of a run are evaluated again on fresh noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from varsearch.db import State, TrialRecord
from varsearch.measurement import METRICS
from varsearch.search.core.dominance import chances, domination, standard_error
from varsearch.search.core.objectives import dense_trial, front_trials
from varsearch.search.core.settings import RunSettings
from varsearch.search.core.source import SourceKind, kind_of

NEAR = 0.1
"""Trials on the front with this probability or more are confirmed with it: one may be better.

Of a crowd of nearly equal policies each has a small probability.
"""

ALIKE = 0.03
"""Relative difference of costs in a crowd, whose quality differs by no more than its error.

One policy of a crowd is confirmed. The images of the others are better spent on more images.
"""

CHALLENGERS = 3
"""Number of policies, most probable to dominate it, that are confirmed with a published system."""


def finalists(settings: RunSettings, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The trials to confirm, each once.

    Dense; the front and the trials that are probably on it (`NEAR`), the most probable first, one
    of each crowd (`ALIKE`) and the best in each objective; published systems, each with its
    `CHALLENGERS`. Everything that this run proposed to dominate a published system stays, because
    a small difference decides whether it does.
    """
    complete = [t for t in trials if t.state is State.COMPLETE]
    dense = dense_trial(trials)
    probability = dict(zip(_numbers(complete), chances(settings, complete), strict=True))
    front = front_trials(settings, complete)
    against = [t for t in complete if kind_of(t.origin) is SourceKind.BASELINE]
    proposed = [t for t in against if settings.is_feasible(t.values)]
    near = [t for t in complete if probability[t.number] >= NEAR]
    # The dictionary keeps the first place of a trial.
    candidates = [t for t in _once((*front, *near, *proposed)) if t is not dense]
    candidates.sort(key=lambda t: -probability[t.number])
    stay = _best_in_each(settings, front) | set(_numbers(against))
    chosen = ([dense] if dense else []) + _thinned(settings, candidates, stay)
    rest: list[TrialRecord] = []
    for preset in complete:
        if kind_of(preset.origin) is SourceKind.PRESET:
            rest += [preset, *_challengers(settings, preset, complete, chosen)]
    return _once((*chosen, *rest))


def _numbers(trials: Iterable[TrialRecord]) -> list[int]:
    return [t.number for t in trials]


def _once(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    return list({t.number: t for t in trials}.values())


def _best_in_each(settings: RunSettings, front: Sequence[TrialRecord]) -> set[int]:
    """Numbers of the trials with the least loss in one objective."""
    losses = {t.number: settings.losses(t.values) for t in front}
    best: set[int] = set()
    for j in range(len(settings.objectives) if losses else 0):
        best.add(min(losses, key=lambda number: losses[number][j]))
    return best


def _thinned(settings: RunSettings, candidates: Sequence[TrialRecord], stay: set[int]) -> list[TrialRecord]:
    """One candidate of each crowd, the first one, and all that are to stay."""
    kept: list[TrialRecord] = []
    for trial in candidates:
        if trial.number in stay or not any(_alike(settings, trial, other) for other in kept):
            kept.append(trial)
    return kept


def _alike(settings: RunSettings, a: TrialRecord, b: TrialRecord) -> bool:
    """Whether costs are about the same, and quality is within the error of its difference."""
    for name in settings.objectives:
        x, y = a.metrics[name], b.metrics[name]
        if METRICS[name].kind == "quality":
            limit = math.hypot(standard_error(x), standard_error(y))
        else:
            limit = ALIKE * max(x.value, y.value)
        if abs(x.value - y.value) > limit:
            return False
    return True


def _challengers(
    settings: RunSettings,
    preset: TrialRecord,
    complete: Sequence[TrialRecord],
    chosen: Sequence[TrialRecord],
) -> list[TrialRecord]:
    """The most probable to dominate a published system.

    Of about equal probabilities, a trial that is confirmed anyway comes first.
    """
    if not settings.is_feasible(preset.values):
        return []
    own = [t for t in complete if kind_of(t.origin) is not SourceKind.PRESET]
    feasible = [t for t in own if settings.is_feasible(t.values)]
    probabilities = domination(settings, [t.metrics for t in feasible], preset.metrics)
    numbers = _numbers(chosen)
    pairs = [pair for pair in zip(probabilities, feasible, strict=True) if pair[0]]
    pairs.sort(key=lambda pair: (-round(pair[0], 1), pair[1].number not in numbers, -pair[0]))
    return [trial for _, trial in pairs[:CHALLENGERS]]
