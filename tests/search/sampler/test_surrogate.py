"""The surrogate follows the profile until trials say otherwise, and is as sure as it may be."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest

from tests.search.interacting import with_loss
from tests.search.synthetic import SPEC, Synthetic
from varsearch.db import State, TrialRecord
from varsearch.measurement import Measurement
from varsearch.policy import Policy
from varsearch.profile import Estimate
from varsearch.search.core.objectives import relative_costs
from varsearch.search.sampler.gaussian_process import ScaleGrid, fit
from varsearch.search.sampler.prior_mean import PriorMean
from varsearch.search.sampler.surrogate import Surrogate
from varsearch.search.sampler.variation import Variation, VariationConfig
from varsearch.search.sampler.warping import Warping
from varsearch.search.sensitivity.decomposition import compose, other_fields, settings_of

DENSE = Policy.dense(SPEC.n_layers, len(SPEC.scales))


@cache
def problem() -> Synthetic:
    return Synthetic(3)


@cache
def prior_mean(profile: bool = True) -> PriorMean:
    return PriorMean(SPEC, (), problem().profile if profile else None)


def trials(n: int, seed: int = 0) -> list[TrialRecord]:
    """Dense, and what descends from warm starts."""
    rng = random.Random(seed)
    parents = [settings_of(policy) for policy in problem().warm.values()]
    variation = Variation(prior_mean(), VariationConfig())
    drawn = [compose(SPEC, chosen) for chosen in variation.candidates(parents, rng, n)]
    return [trial(i, policy) for i, policy in enumerate([DENSE, *drawn])]


def trial(number: int, policy: Policy) -> TrialRecord:
    quality, speed = problem().evaluate(policy)
    origin = "sampler" if number else "seed:dense"
    return TrialRecord(number, policy, origin, State.COMPLETE, attempts=1, quality=quality, speed=speed)


def with_error(one: TrialRecord, half: float) -> TrialRecord:
    """The same trial, whose ΔFID has an interval."""
    return with_loss(one, one.values["delta_fid"], half)


def errors(known: list[TrialRecord], fresh: list[TrialRecord], profile: bool = True) -> list[float]:
    """By objective the median error of the predicted median; of the loss on the scale where it is predicted."""
    dense = known[0].values
    surrogate = Surrogate(prior_mean(profile), problem().settings, dense, known)
    draws = surrogate.draws([settings_of(t.policy) for t in fresh])
    truth = np.array([relative_costs(problem().settings, t.values, dense) for t in fresh])
    guess = np.array([np.median(draw, axis=(1, 2)) for draw in draws]).T
    warped = [np.arcsinh(x[:, 0] / 0.02) for x in (truth, guess)]
    return [float(np.median(abs(warped[0] - warped[1]))), *np.median(abs(truth - guess), axis=0)[1:].tolist()]


def test_a_profile_says_more_than_a_guess_and_trials_more_than_either() -> None:
    found, fresh = trials(90), trials(60, seed=1)[1:]
    informed, blind = errors(found[:1], fresh), errors(found[:1], fresh, profile=False)
    learnt, learnt_blind = errors(found, fresh), errors(found, fresh, profile=False)
    assert informed[0] < 0.7 * blind[0]
    for before, after in ((informed, learnt), (blind, learnt_blind)):
        assert after[0] < 0.8 * before[0]
        assert after[1] < before[1]
    assert learnt_blind[2] < blind[2]
    assert learnt[2] < max(informed[2], 0.01), "a profile may know memory to half a percent before"
    assert learnt[1] < 0.03 and learnt[2] < 0.03


def test_intervals_hold_what_they_promise() -> None:
    found, fresh = trials(90), trials(100, seed=2)[1:]
    surrogate = Surrogate(prior_mean(), problem().settings, found[0].values, found)
    draws = surrogate.draws([settings_of(t.policy) for t in fresh])[0]
    loss = np.array([t.values["delta_fid"] / found[0].values["fid"] for t in fresh])
    inside = np.mean((draws.min((1, 2)) <= loss) & (loss <= draws.max((1, 2))))  # 94 % of a normal distribution
    assert 0.75 < inside < 1
    assert np.std(np.arcsinh(draws / 0.02), axis=(1, 2)).mean() < 1


def test_what_was_tried_is_known() -> None:
    found = trials(40)
    tried = errors(found, found[1:])
    fresh = errors(found, trials(40, seed=4)[1:])
    assert tried[0] < 0.5 * fresh[0] and tried[1] < 0.02


def test_pending_trials_are_believed_and_leave_less_to_learn() -> None:
    found, left = trials(40), []
    for other in (t.policy for t in trials(6, seed=5)[1:]):
        surrogates = (
            Surrogate(prior_mean(), problem().settings, found[0].values, found, pending) for pending in ([], [other])
        )
        alone, with_other = (
            surrogate.draws([settings_of(other)], [other_fields(other)])[0][0] for surrogate in surrogates
        )
        assert np.median(with_other) == pytest.approx(np.median(alone), rel=0.05)
        left.append(np.ptp(with_other) / np.ptp(alone))
    assert max(left) < 0.9 and np.median(left) < 0.7


def test_wide_intervals_count_less() -> None:
    """A trial known to 5 % moves the prediction of a policy like it more than one known to a factor of three."""
    found = trials(20)
    odd = trials(1, seed=6)[1]
    assert odd.quality is not None

    def median(half: float) -> float:
        value = 3 * odd.values["delta_fid"] + 1
        told = Measurement(metric="delta_fid", value=value, low=value - half, high=value + half)
        quality = odd.quality and odd.quality.model_copy(update={"measurements": (told,)})
        known = [*found, TrialRecord(99, odd.policy, "sampler", State.COMPLETE, quality=quality, speed=odd.speed)]
        surrogate = Surrogate(prior_mean(), problem().settings, found[0].values, known)
        return float(np.median(surrogate.draws([settings_of(odd.policy)])[0]))

    assert median(0.05) > 1.1 * median(20.0)


def informed(error: float) -> PriorMean:
    """By the problem's profile, with standard errors of this share of each effect."""
    profile = problem().profile
    effects = {
        name: effect.model_copy(update={"shift": Estimate(value=effect.shift.value, error=error * effect.shift.value)})
        for name, effect in profile.sensitivity.effects.items()
    }
    sensitivity = profile.sensitivity.model_copy(update={"effects": effects})
    return PriorMean(SPEC, (), profile.model_copy(update={"sensitivity": sensitivity}))


def test_what_a_profile_does_not_know_of_a_setting_is_open_until_a_trial_shows_it() -> None:
    found = trials(30)
    for i in np.argsort(-informed(0.01).effects.loss_S)[:3]:
        wide, moved = [], []
        for prior in (informed(0.01), informed(2.0)):
            setting = prior.settings[i]
            surrogate = Surrogate(prior, problem().settings, found[0].values, found)
            warped = np.arcsinh(surrogate.draws([(setting,)])[0] / 0.02)
            lost = found[0].values["fid"] * 0.02 * float(np.sinh(np.median(warped) - 1))
            odd = with_loss(trial(99, compose(SPEC, [setting])), lost, lost)
            surrogate = Surrogate(prior, problem().settings, found[0].values, [*found, odd])
            wide.append(np.std(warped))
            moved.append(np.median(warped) - np.median(np.arcsinh(surrogate.draws([(setting,)])[0] / 0.02)))
        assert wide[1] > 1.1 * wide[0] and moved[1] > moved[0]


def test_measured_speed_counts_by_its_interval() -> None:
    """A policy that was timed once as twice as fast as it is, surely or in rounds that scattered."""
    settings = problem().settings.model_copy(update={"objectives": ("delta_fid", "speedup", "peak_bytes")})
    found, odd = trials(30), trials(1, seed=6)[1]
    assert odd.speed is not None
    real = odd.values["speedup"]

    def predicted(half: float) -> float:
        told = Measurement(metric="speedup", value=2 * real, low=2 * real - half, high=2 * real + half, n=9)
        kept = tuple(m for m in odd.speed.measurements if m.metric != "speedup") if odd.speed else ()
        speed = odd.speed and odd.speed.model_copy(update={"measurements": (*kept, told)})
        known = [*found, TrialRecord(99, odd.policy, "sampler", State.COMPLETE, quality=odd.quality, speed=speed)]
        surrogate = Surrogate(prior_mean(), settings, found[0].values, known)
        return float(np.median(surrogate.draws([settings_of(odd.policy)])[1]))

    truth = found[0].values["speedup"] / real
    assert predicted(0.01) < 0.7 * truth, "believed"
    assert predicted(real) > 0.9 * truth, "taken for chance"


def test_regression_finds_a_line_and_its_own_doubt() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((60, 3))
    distances = np.full((60, 60), 10.0)
    np.fill_diagonal(distances, 0)
    fitted = fit(features, distances, features @ [1.0, -0.5, 0.0], np.zeros(60), ScaleGrid())
    asked = np.array([[1.0, 1.0, 1.0], [30.0, 0.0, 0.0]])
    mean, error = fitted.predict(asked, np.full((2, 60), 10.0))
    assert mean[0] == pytest.approx(0.5, abs=0.1)
    assert error[1] > error[0]


def test_a_metric_that_is_a_difference_to_dense_has_no_loss_at_zero() -> None:
    settings = problem().settings.model_copy(update={"objectives": ("feature_distance", "peak_bytes")})

    def seen(one: TrialRecord) -> TrialRecord:
        assert one.quality is not None
        distance = Measurement(metric="feature_distance", value=0.1 * one.values["delta_fid"])
        return one.with_evidence(one.quality.model_copy(update={"measurements": (distance,)}))

    known, fresh = map(seen, trials(40)), [seen(t) for t in trials(60, seed=1)[1:]]
    first, *rest = known
    surrogate = Surrogate(prior_mean(), settings, first.values, [first, *rest])
    guess = np.median(surrogate.draws([settings_of(t.policy) for t in fresh])[0], axis=(1, 2))
    truth = np.array([t.values["feature_distance"] for t in fresh])
    assert np.median(abs(np.arcsinh(guess / 0.02) - np.arcsinh(truth / 0.02))) < 0.5


@pytest.mark.parametrize(("metric", "value"), [("label_agreement", 0.2), ("label_agreement", 0.97), ("nll", 1.9)])
def test_errors_are_those_of_the_warped_cost(metric: str, value: float) -> None:
    settings = problem().settings.model_copy(update={"objectives": (metric, "peak_bytes")})
    (dense,) = trials(0)
    assert dense.quality is not None

    def seen(number: float, half: float) -> TrialRecord:
        told = Measurement(metric=metric, value=number, low=number - half, high=number + half)
        return dense.with_evidence(dense.quality.model_copy(update={"measurements": (told,)}))  # type: ignore[union-attr]

    first = seen(1.4 if metric == "nll" else 0.99, 0.0)
    warping = Warping(settings, first.values, soft=0.02)
    warped = []
    for step in (-1e-5, 1e-5):
        costs = np.array(warping.costs(seen(value + step, 0.0).values)[:1])
        warped.append(warping.warp(metric, costs)[0])
        assert warping.unwarp(metric, warping.warp(metric, costs)) == pytest.approx(costs)
    error = 1.96e-3
    slope = abs(warped[1] - warped[0]) / 2e-5
    assert warping.noise(metric, seen(value, error)) == pytest.approx(1e-3 * slope, rel=1e-3)


def test_policies_that_are_alike_share_their_errors() -> None:
    """A trial and what differs from it in little go up and down together; a stranger goes its own way."""
    dense, *others = trials(30)
    known = [dense, *(with_error(t, 2 * t.values["delta_fid"] + 0.5) for t in others)]
    surrogate = Surrogate(prior_mean(), problem().settings, dense.values, known)
    own, shared, strange = settings_of(others[0].policy), [], []
    samples = surrogate.known_costs()[0][1]
    assert np.std(samples) > 0 and np.ptp(surrogate.known_costs()[1], axis=1).max() == 0, "costs are known"
    for near in (own[1:], own[:-1]):
        paths = np.median(surrogate.draws([near])[0], axis=2)[0]
        shared.append(np.corrcoef(np.arcsinh(samples), np.arcsinh(paths))[0, 1])
    for far in (settings_of(t.policy) for t in trials(6, seed=9)[1:]):
        paths = np.median(surrogate.draws([far])[0], axis=2)[0]
        strange.append(abs(np.corrcoef(np.arcsinh(samples), np.arcsinh(paths))[0, 1]))
    assert min(shared) > 0.9 and np.median(strange) < min(shared)


def test_each_posterior_sample_agrees_with_what_is_known() -> None:
    dense, *others = trials(60)
    known = [dense, *(with_error(t, 1e-3 * (t.values["delta_fid"] + 0.02)) for t in others)]
    surrogate = Surrogate(prior_mean(), problem().settings, dense.values, known)
    told = np.arcsinh(surrogate.known_costs()[0] / 0.02)
    truth = np.arcsinh(np.array([max(t.values["delta_fid"], 0) / dense.values["fid"] for t in known]) / 0.02)
    assert np.median(abs(told - truth[:, None])) < 0.1
    again = [np.median(d, axis=2) for d in surrogate.draws([settings_of(t.policy) for t in others])]
    assert np.median(abs(np.arcsinh(again[0] / 0.02) - told[1:])) < 0.05, "what is tried again is what it was"
