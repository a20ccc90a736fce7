"""How likely each trial is on the front, given the errors of its numbers.

Shape suffixes: T trials, R rivals of one, S draws, K objectives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from varsearch.db import TrialRecord
from varsearch.measurement import METRICS, Measurement
from varsearch.search.core.settings import RunSettings

DRAWS = 256

WIDTH_95 = 2 * 1.96
"""Of the interval that holds 95 % of a normal distribution, in standard deviations."""

WIDTH_QUARTILES = 1.349
"""Of the one between its quartiles."""

MEDIAN = math.sqrt(math.pi / 2)
"""How much further a median of normal values scatters than their mean, for many of them."""

Array = NDArray[np.float64]
Numbers = Mapping[str, Measurement]


def half_width(metric: str) -> float:
    """Of a single number's interval, in standard errors. Latency is a median between quartiles, see `Measurement`."""
    return WIDTH_QUARTILES / MEDIAN / 2 if metric == "latency_ms" else WIDTH_95 / 2


def standard_error(m: Measurement) -> float:
    """Of a number, from its interval; 0 without one."""
    if m.low is None or m.high is None:
        return 0.0
    rounds = m.n if m.metric == "latency_ms" else 1
    return (m.high - m.low) / half_width(m.metric) / 2 / math.sqrt(rounds)


def chances(settings: RunSettings, trials: Sequence[TrialRecord]) -> list[float]:
    """The probability of each trial that it meets all bounds and no other one that does dominates it.

    True values are drawn from normal distributions around the measured ones, `DRAWS` times and independently from trial
    to trial. A draw that is lucky in one metric is as lucky in all others of the same kind, as they come from the same
    images or rounds. What has no interval is taken as exact. Later trials do not change the draws of earlier ones.

    Trials of any state count that have a finite number for every objective and bound; others get 0.
    """
    known = [i for i, t in enumerate(trials) if not settings.missing(t.values)]
    found = [0.0] * len(trials)
    if known:
        losses_STK, feasible_ST = _drawn(settings, [trials[i].metrics for i in known])
        for i, share in zip(known, _non_dominated(losses_STK, feasible_ST), strict=True):
            found[i] = float(share)
    return found


def domination(settings: RunSettings, better: Sequence[Numbers], worse: Numbers) -> list[float]:
    """The probability of each that it dominates another one, by metric with intervals; of draws as in `chances`.

    Luck that they share, because they were judged by the same images, is not known: it would make this surer.
    """
    losses_STK, _ = _drawn(settings, [worse, *better])
    return _beat(losses_STK[:, 1:], losses_STK[:, :1])


def dominated(settings: RunSettings, worse: Sequence[Numbers], better: Numbers) -> list[float]:
    """The probability of each that another one dominates it, otherwise as `domination`."""
    losses_STK, _ = _drawn(settings, [better, *worse])
    return _beat(losses_STK[:, :1], losses_STK[:, 1:])


def _beat(a_STK: Array, b_STK: Array) -> list[float]:
    """In which share of the draws each is nowhere worse than the other and somewhere better; one or more of both."""
    return [float(x) for x in ((a_STK <= b_STK).all(axis=2) & (a_STK < b_STK).any(axis=2)).mean(axis=0)]


def _drawn(settings: RunSettings, numbers: Sequence[Numbers]) -> tuple[Array, NDArray[np.bool_]]:
    """What the objectives (S, T, K), to be minimized, might truly be, and which trials are feasible then (S, T)."""
    luck_T2S = np.random.default_rng(0).standard_normal((len(numbers), 2, DRAWS))

    def draws(name: str) -> Array:
        """(S, T), to be minimized."""
        metric = METRICS[name]
        sign = 1.0 if metric.direction == "minimize" else -1.0
        m = [found[name] for found in numbers]
        luck_ST = luck_T2S[:, 0 if metric.kind == "quality" else 1].T
        return sign * np.array([x.value for x in m]) + luck_ST * np.array([standard_error(x) for x in m])

    losses = [np.maximum(draws(n), 0.0) if n == "delta_fid" else draws(n) for n in settings.objectives]
    feasible_ST = np.ones((DRAWS, len(numbers)), dtype=bool)
    for name, limit in settings.bounds.items():
        feasible_ST &= draws(name) <= (limit if METRICS[name].direction == "minimize" else -limit)
    return np.stack(losses, axis=-1), feasible_ST


def _non_dominated(losses_STK: Array, feasible_ST: NDArray[np.bool_]) -> Array:
    """In which share of the draws each trial is feasible and no feasible one dominates it; (T,)."""
    losses_KTS = np.ascontiguousarray(np.where(feasible_ST[..., None], losses_STK, np.inf).transpose(2, 1, 0))
    worst_KT, best_KT = losses_KTS.max(axis=-1), losses_KTS.min(axis=-1)
    # A trial that another one beats in each draw is never on the front, and never the only one to dominate a third.
    hopeless_T = (worst_KT[:, :, None] < best_KT[:, None, :]).all(axis=0).any(axis=0)
    shares_T, kept = np.zeros(losses_KTS.shape[1]), np.flatnonzero(~hopeless_T)
    for i in kept:
        rivals = kept[(best_KT[:, kept] <= worst_KT[:, i, None]).all(axis=0)]
        own_K1S, other_KRS = losses_KTS[:, i, None], losses_KTS[:, rivals]
        dominate_RS = (other_KRS <= own_K1S).all(axis=0) & (other_KRS < own_K1S).any(axis=0)
        shares_T[i] = np.mean(feasible_ST[:, i] & ~dominate_RS.any(axis=0))
    return shares_T
