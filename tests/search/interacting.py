"""Trials of the synthetic problem, whose units interact, and samplers that know them."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from functools import cache

from tests.search.synthetic import SPEC, Synthetic
from varsearch.db import State, TrialRecord
from varsearch.measurement import Measurement
from varsearch.policy import Policy
from varsearch.search.core.settings import RunSettings
from varsearch.search.sampler.base import (
    BAYESIAN,
    CostFunction,
    LoadedInformation,
    Sampler,
    SideInformation,
)
from varsearch.search.sampler.bayesian import BayesianConfig, BayesianSampler
from varsearch.search.sampler.beat_baseline import BeatBaselineConfig, BeatBaselineSampler
from varsearch.search.sampler.front_posterior import FrontPosterior
from varsearch.search.sampler.mutation import MutationSampler
from varsearch.search.sampler.portfolio import PortfolioSampler
from varsearch.search.sampler.surrogate import SurrogateConfig
from varsearch.search.sampler.variation import VariationConfig


@cache
def problem() -> Synthetic:
    return Synthetic(1)


@cache
def information(profile: bool = True, costs: CostFunction | None = None) -> LoadedInformation:
    known = problem().profile if profile else None
    side = SideInformation(SPEC, (), known, None if costs is None else lambda: costs)
    loaded = LoadedInformation(side, VariationConfig())
    if costs is not None:
        loaded.prior_mean = information(profile).prior_mean
    return loaded


def trial(number: int, policy: Policy, origin: str = BAYESIAN) -> TrialRecord:
    quality, speed = problem().evaluate(policy)
    return TrialRecord(number, policy, origin, State.COMPLETE, attempts=1, quality=quality, speed=speed)


def starts(n: int = 8) -> list[TrialRecord]:
    return [trial(i, policy, origin) for i, (origin, policy) in enumerate(list(problem().warm.items())[:n])]


def portfolio(trials: Iterable[TrialRecord], seed: int = 0, profile: bool = True) -> PortfolioSampler:
    settings = problem().settings.model_copy(update={"seed": seed})
    sampler = PortfolioSampler(settings, problem().space, problem().guide(profile))
    for one in trials:
        sampler.show(one)
    return sampler


def bayesian(
    trials: Iterable[TrialRecord], settings: RunSettings | None = None, costs: CostFunction | None = None
) -> BayesianSampler:
    given = settings or problem().settings, information(costs=costs)
    sampler = BayesianSampler(*given, BayesianConfig())
    for one in trials:
        sampler.show(one)
    return sampler


def beat_baseline(trials: Iterable[TrialRecord]) -> BeatBaselineSampler:
    configs = BayesianConfig(), BeatBaselineConfig()
    sampler = BeatBaselineSampler(problem().settings, information(), *configs)
    for one in trials:
        sampler.show(one)
    return sampler


def mutation(trials: Iterable[TrialRecord]) -> MutationSampler:
    sampler = MutationSampler(problem().settings, information(), attempts=10)
    for one in trials:
        sampler.show(one)
    return sampler


def front_posterior(trials: list[TrialRecord], settings: RunSettings | None = None) -> FrontPosterior:
    return FrontPosterior(settings or problem().settings, information().prior_mean, trials, SurrogateConfig())


def proposed(sampler: Sampler, seed: int, seen: Iterable[str] = ()) -> Policy:
    """What a sampler proposes with random numbers of this seed."""
    proposal = sampler.propose(10**6, {*seen}, random.Random(seed))
    assert proposal is not None
    return proposal.policy


def with_loss(one: TrialRecord, value: float, half: float) -> TrialRecord:
    """The same trial with this ΔFID, give or take `half`."""
    assert one.quality is not None
    measured = Measurement(metric="delta_fid", value=value, low=value - half, high=value + half)
    kept = tuple(m for m in one.quality.measurements if m.metric != "delta_fid")
    return replace(one, quality=one.quality.model_copy(update={"measurements": (*kept, measured)}))
