"""How much better a search's front looked than it is: the best of many noisy numbers are in part lucky ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from varsearch.db import TrialRecord
from varsearch.measurement import Measurement, Origin
from varsearch.search.core.settings import RunSettings


@dataclass(frozen=True, slots=True)
class Optimism:
    """Regression to the mean, from the search's numbers to confirmed ones.

    Attributes:
        trials: how many of the search's front, dense left out, have confirmed numbers.
        changes: mean change of ΔFID, and of the speed-up where it is measured, over these; `n` counts them.
        claimed: hypervolume of what is confirmed, by the search's own numbers; None without dense.
    """

    trials: int
    changes: tuple[Measurement, ...]
    claimed: float | None


def optimism(
    settings: RunSettings,
    members: Sequence[TrialRecord],
    confirmed: Sequence[TrialRecord],
    claimed: float | None,
) -> Optimism:
    """What became of the numbers of `members`, where `confirmed` has other ones for them."""
    fresh = {t.number: t.values for t in confirmed}
    pairs = [(t.values, fresh[t.number]) for t in members if t.number in fresh]
    noisy = ["delta_fid"] * (settings.quality is not None) + ["speedup"] * (settings.origin is Origin.MEASURED)
    changes = {name: [b[name] - a[name] for a, b in pairs if name in a and name in b] for name in noisy}
    return Optimism(
        len(pairs),
        tuple(_mean(name, values) for name, values in changes.items() if values),
        claimed,
    )


def _mean(metric: str, changes: Sequence[float]) -> Measurement:
    """Their mean with Student's interval; without one of a single change."""
    mean, n = statistics.fmean(changes), len(changes)
    if n < 2:
        return Measurement(metric=metric, value=mean)
    from scipy.special import stdtrit  # importing it takes half a second

    half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(changes) / math.sqrt(n)
    return Measurement(metric=metric, value=mean, low=mean - half, high=mean + half, n=n)
