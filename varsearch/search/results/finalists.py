"""Which trials of a run are evaluated again on fresh noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

from varsearch.db import State, TrialRecord
from varsearch.measurement import METRICS
from varsearch.search.core.dominance import chances, domination, standard_error
from varsearch.search.core.objectives import dense_trial, front_trials
from varsearch.search.core.settings import RunSettings
from varsearch.search.core.source import SourceKind, kind_of

NEAR = 0.1
"""Trials that are on the front with this probability or more are confirmed with it: one of them may be better. Of a
crowd of nearly the same policies each has a small one."""

ALIKE = 0.03
"""Policies whose costs differ by no more than this share of them, and whose quality differs by no more than its error,
are a crowd, of which one is confirmed: what the others would take is better spent on more images."""

CHALLENGERS = 3
"""So many of the likeliest to dominate it are confirmed with each published system."""


def finalists(settings: RunSettings, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """What is to be confirmed, each once: dense, what may be on the front, published systems, what may dominate them.

    The front and what may well be on it (`NEAR`), the likeliest first, are thinned: of a crowd (`ALIKE`) one is left,
    and the best in each objective. All that this run proposed to dominate a published system is confirmed with it:
    whether it does a small difference decides.
    """
    complete, dense = [t for t in trials if t.state is State.COMPLETE], dense_trial(trials)
    chance = {t.number: share for t, share in zip(complete, chances(settings, complete), strict=True)}
    front = front_trials(settings, complete)
    rivals = (t for t in complete if kind_of(t.origin) is SourceKind.BASELINE and settings.is_feasible(t.values))
    may = {t.number: t for t in (*front, *(t for t in complete if chance[t.number] >= NEAR), *rivals)}
    losses = {t.number: settings.losses(t.values) for t in front}
    ends = {min(losses, key=lambda number: losses[number][j]) for j in range(len(settings.objectives)) if losses}
    thinned: list[TrialRecord] = []
    for trial in sorted((t for t in may.values() if t is not dense), key=lambda t: -chance[t.number]):
        stays = trial.number in ends or kind_of(trial.origin) is SourceKind.BASELINE
        if stays or not any(_alike(settings, trial, other) for other in thinned):
            thinned.append(trial)
    chosen = [dense, *thinned] if dense else thinned
    presets = [t for t in complete if kind_of(t.origin) is SourceKind.PRESET]
    rest = (t for preset in presets for t in (preset, *_challengers(settings, preset, complete, chosen)))
    return list({t.number: t for t in (*chosen, *rest)}.values())


def _alike(settings: RunSettings, a: TrialRecord, b: TrialRecord) -> bool:
    """Whether their costs are about the same, and their quality is within the error of its difference."""
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
    settings: RunSettings, preset: TrialRecord, complete: Sequence[TrialRecord], preferred: Sequence[TrialRecord]
) -> list[TrialRecord]:
    """The likeliest to dominate a published system; of those about as likely, what is confirmed anyway comes first."""
    if not settings.is_feasible(preset.values):
        return []
    rest = [t for t in complete if kind_of(t.origin) is not SourceKind.PRESET and settings.is_feasible(t.values)]
    numbers = {t.number for t in preferred}
    shares = domination(settings, [t.metrics for t in rest], preset.metrics)
    able = [(share, t) for share, t in zip(shares, rest, strict=True) if share]
    able.sort(key=lambda pair: (-round(pair[0], 1), pair[1].number not in numbers, -pair[0]))
    return [t for _, t in able[:CHALLENGERS]]
