"""Proposals against a published system: which is one to dominate, and what dominates it."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from tests.search.support.interacting import moves, problem, proposer, starts, trial, with_loss
from varsearch.db import TrialRecord
from varsearch.measurement import Measurement
from varsearch.search.core.objectives import front_trials
from varsearch.search.core.pareto import dominates
from varsearch.search.core.source import SourceKind
from varsearch.search.sampler.bayesian import _Search, promising
from varsearch.space.settings import settings_of


def published_among(trials: list[TrialRecord]) -> tuple[list[TrialRecord], TrialRecord]:
    """The same trials, one of which is a published system now: the mildest member of the front beside dense."""
    front = [t for t in front_trials(problem().settings, trials) if t.number]
    mildest = min(front, key=lambda t: t.values["delta_fid"])
    rival = replace(mildest, origin="preset:x")
    return [rival if t is mildest else t for t in trials], rival


def test_a_published_system_is_dominated_on_purpose() -> None:
    settings, rival = problem().settings, trial(40, problem().published["seed:kv-none"], "preset:x")
    trials = [rival, *(t for t in starts(20) if not dominates(*(settings.losses(x.values) for x in (t, rival))))]

    def dominating(against: bool, seed: int) -> bool:
        found = promising(settings, moves(), trials, random.Random(seed), set(), None, against)
        assert found is not None
        return dominates(*(settings.losses(t.values) for t in (trial(41, found), rival)))

    assert all(dominating(True, seed) for seed in range(3)) and not all(dominating(False, seed) for seed in range(3))


def test_a_rival_that_was_lucky_once_is_not_chased() -> None:
    """Its speed is what the surrogate makes of all trials, as far as it was measured; what is exact stays."""
    settings = problem().settings.model_copy(update={"objectives": ("delta_fid", "speedup", "peak_bytes")})
    trials, honest = starts(30), trial(30, problem().published["seed:kv-none"], "preset:x")
    assert honest.speed is not None
    real = honest.values["speedup"]
    kept = tuple(m for m in honest.speed.measurements if m.metric != "speedup")

    def chased(half: float | None) -> float:
        interval = {} if half is None else {"low": 1.5 * real - half, "high": 1.5 * real + half, "n": 9}
        told = Measurement(metric="speedup", value=1.5 * real, **interval)
        speed = honest.speed and honest.speed.model_copy(update={"measurements": (*kept, told)})
        rival = replace(honest, speed=speed)
        surrogate = _Search(settings, moves(), [*trials, rival]).surrogate
        time_S, memory_S = (known[30] for known in surrogate.known()[1:3])
        assert {*memory_S.tolist()} == {honest.values["peak_bytes"] / trials[0].values["peak_bytes"]}
        return float(trials[0].values["speedup"] / np.median(time_S))

    assert chased(None) == pytest.approx(1.5 * real)
    assert chased(0.01) > 1.15 * real > chased(real)


def test_what_dominates_a_published_system_in_some_worlds_gains_nothing_in_the_others() -> None:
    """A cheaper policy is known to lose about what the system loses, of which little is known."""
    settings, trials = problem().settings, starts(30)
    rival = trial(30, problem().published["seed:kv-none"], "preset:x")
    cheaper = [t for t in trials if all(t.values[m] < rival.values[m] for m in ("latency_ms", "peak_bytes"))]
    other, unsure = cheaper[0], with_loss(rival, rival.values["delta_fid"], 5.0)
    known = [t for t in trials if t not in cheaper]
    loss = float(np.median(_Search(settings, moves(), [*known, unsure])._known[-1, :, 0])) * trials[0].values["fid"]
    search = _Search(settings, moves(), [*known, with_loss(other, loss, 1e-6), unsure])
    assert search.choose_rival(random.Random(0))
    draws = search.surrogate.draws([settings_of(other.policy)])
    in_all_worlds = np.mean(draws[0][0] <= search._known[-1, :, 0, None])
    assert 0.2 < in_all_worlds < 0.9
    assert search.gains(draws)[0] < in_all_worlds / 2


def test_what_is_computed_before_a_choice_need_not_be_certain_before() -> None:
    """Memory a little above the rival's may be no more than wrongly guessed; once it is known it counts as it is."""
    settings, trials = problem().settings, starts(30)
    rival = trial(30, problem().published["seed:kv-none"], "preset:x")
    worse = [t for t in trials if not dominates(*(settings.losses(x.values) for x in (t, rival)))]
    search = _Search(settings, moves(), [*worse, rival])
    assert search.choose_rival(random.Random(0), lambda policy: {"peak_bytes": 1.0})
    memory = settings.objectives.index("peak_bytes")
    drawn = search.surrogate.draws([settings_of(rival.policy)])
    own = search._known[-1, 0, memory]

    def gains(times: float) -> tuple[float, float]:
        draws = [np.full_like(x, times * own) if j == memory else x for j, x in enumerate(drawn)]
        return float(search.gains(draws, guessed=True)[0]), float(search.gains(draws)[0])

    (guessed_less, known_less), (guessed_more, known_more) = gains(0.9), gains(1.01)
    assert guessed_less == guessed_more == known_less > 10 * known_more
    assert gains(1.05)[0] == known_more, "too much for an error"


def test_rivals_are_published_systems_that_may_be_on_the_front() -> None:
    trials, rival = published_among(starts(30))

    def origins(known: list[TrialRecord]) -> list[str]:
        made, seen = proposer(known), {t.policy.digest for t in known}
        found = [made._against_a_rival(random.Random(i), seen) for i in range(40)]
        return [SourceKind.BASELINE for policy in found if policy is not None]

    assert 1 <= len(origins(trials)) <= 14, "a share of RIVALRY"
    beaten = replace(rival, number=30, speed=trials[0].speed, quality=trials[-1].quality)
    assert origins([*starts(30), beaten]) == [], "nobody uses what costs as much as dense and loses quality"
