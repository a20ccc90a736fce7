"""Proposals against a published system: which one counts, and which policies dominate it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from tests.search.interacting import (
    bayesian,
    beat_baseline,
    front_posterior,
    information,
    portfolio,
    problem,
    proposed,
    starts,
    trial,
    with_loss,
)
from varsearch.db import TrialRecord
from varsearch.errors import PolicyError
from varsearch.measurement import Measurement
from varsearch.policy import Policy
from varsearch.search.core.objectives import front_trials
from varsearch.search.core.pareto import dominates
from varsearch.search.core.source import RIVAL
from varsearch.search.sampler.beat_baseline import Baseline, BeatBaselineConfig, standing_baseline
from varsearch.search.sensitivity.decomposition import settings_of

CONFIG = BeatBaselineConfig()


def baseline_among(trials: list[TrialRecord]) -> list[TrialRecord]:
    """The same trials; the mildest member of the front beside dense is a published system now."""
    front = [t for t in front_trials(problem().settings, trials) if t.number]
    mildest = min(front, key=lambda t: t.values["delta_fid"])
    return [replace(t, origin="preset:x") if t is mildest else t for t in trials]


def test_a_published_system_is_dominated_on_purpose() -> None:
    losses = problem().settings.losses
    system = trial(40, problem().published["seed:kv-none"], "preset:x")
    trials = [system]
    for one in starts(20):
        if not dominates(losses(one.values), losses(system.values)):
            trials.append(one)

    def is_dominating(policy: Policy) -> bool:
        return dominates(losses(trial(41, policy).values), losses(system.values))

    seeds = range(3)
    assert all(is_dominating(proposed(beat_baseline(trials), seed)) for seed in seeds)
    assert not all(is_dominating(proposed(bayesian(trials), seed)) for seed in seeds)


def test_a_baseline_that_was_lucky_once_is_not_chased() -> None:
    """Its measured speed is what the surrogate makes of all trials; what is exact stays."""
    objectives = ("delta_fid", "speedup", "peak_bytes")
    settings = problem().settings.model_copy(update={"objectives": objectives})
    trials, honest = starts(30), trial(30, problem().published["seed:kv-none"], "preset:x")
    assert honest.speed is not None
    real = honest.values["speedup"]
    kept = tuple(m for m in honest.speed.measurements if m.metric != "speedup")

    def chased(half: float | None) -> float:
        interval = {} if half is None else {"low": 1.5 * real - half, "high": 1.5 * real + half, "n": 9}
        measured = Measurement(metric="speedup", value=1.5 * real, **interval)
        speed = honest.speed and honest.speed.model_copy(update={"measurements": (*kept, measured)})
        front = front_posterior([*trials, replace(honest, speed=speed)], settings)
        time_P, memory_P = front.costs_NPD[30, :, 1], front.costs_NPD[30, :, 2]
        assert {*memory_P.tolist()} == {honest.values["peak_bytes"] / trials[0].values["peak_bytes"]}
        return float(trials[0].values["speedup"] / np.median(time_P))

    assert chased(None) == pytest.approx(1.5 * real)
    assert chased(0.01) > 1.15 * real > chased(real)


def test_policies_that_dominate_in_some_posterior_samples_gain_nothing_in_the_others() -> None:
    """A cheaper policy is known to lose about as much as the system, of which little is known."""
    trials = starts(30)
    system = trial(30, problem().published["seed:kv-none"], "preset:x")
    cheaper, others = [], []
    for one in trials:
        saves = all(one.values[m] < system.values[m] for m in ("latency_ms", "peak_bytes"))
        (cheaper if saves else others).append(one)
    unsure = with_loss(system, system.values["delta_fid"], 5.0)
    costs_NPD = front_posterior([*others, unsure]).costs_NPD
    loss = float(np.median(costs_NPD[-1, :, 0])) * trials[0].values["fid"]
    front = front_posterior([*others, with_loss(cheaper[0], loss, 1e-6), unsure])
    index = standing_baseline(front, CONFIG, random.Random(0))
    assert index is not None
    baseline = Baseline(front, index, information(), CONFIG)
    draws = front.surrogate.draws([settings_of(cheaper[0].policy)])
    in_all_samples = np.mean(draws[0][0] <= front.costs_NPD[-1, :, 0, None])
    assert 0.2 < in_all_samples < 0.9
    assert baseline.domination.exact(draws)[0] < in_all_samples / 2


def one_byte(policy: Policy) -> Mapping[str, float]:
    return {"peak_bytes": 1.0}


def test_costs_that_are_computed_before_a_choice_need_not_be_certain_before() -> None:
    """Memory a little above the system's may be wrongly guessed; once known it counts as it is."""
    settings, trials = problem().settings, starts(30)
    system = trial(30, problem().published["seed:kv-none"], "preset:x")
    worse = [t for t in trials if not dominates(*(settings.losses(x.values) for x in (t, system)))]
    front = front_posterior([*worse, system])
    index = standing_baseline(front, CONFIG, random.Random(0))
    assert index == len(worse)
    baseline = Baseline(front, index, information(costs=one_byte), CONFIG)
    memory = settings.objectives.index("peak_bytes")
    drawn = front.surrogate.draws([settings_of(system.policy)])
    own = front.costs_NPD[-1, 0, memory]

    def scores(times: float) -> tuple[float, float]:
        draws = [np.full_like(x, times * own) if j == memory else x for j, x in enumerate(drawn)]
        return float(baseline.domination.predicted(draws)[0]), float(baseline.domination.exact(draws)[0])

    (guessed_less, known_less), (guessed_more, known_more) = scores(0.9), scores(1.01)
    assert guessed_less == guessed_more == known_less > 10 * known_more
    assert scores(1.05)[0] == known_more, "too much for an error"


def test_a_policy_that_cannot_run_does_not_fit() -> None:
    """Of the system only memory is known beforehand, of such a policy nothing."""
    trials = baseline_among(starts(12))
    system = next(t for t in trials if t.origin == "preset:x")

    def costs(policy: Policy) -> Mapping[str, float]:
        if policy != system.policy:
            raise PolicyError("no such kernel")
        return {"peak_bytes": 1e7}

    front = front_posterior(trials)
    baseline = Baseline(front, trials.index(system), information(costs=costs), CONFIG)
    assert not baseline.fits(trials[0].policy)


def test_baselines_are_published_systems_that_may_be_on_the_front() -> None:
    trials = baseline_among(starts(30))

    sampler, seen = portfolio(trials), {t.policy.digest for t in trials}
    origins = []
    for number in range(100, 112):
        proposal = sampler.propose(number, seen)
        assert proposal is not None
        origins.append(proposal.origin)
    assert 1 <= origins.count(RIVAL) <= 5, "a share of `beat_baseline_share`"
    beaten = replace(trials[1], number=30, origin="preset:x", speed=trials[0].speed, quality=trials[-1].quality)
    unused = beat_baseline([*starts(30), beaten])
    assert unused.has_baseline
    assert unused.propose(31, set()) is None, "nobody uses what costs as much as dense and loses quality"
