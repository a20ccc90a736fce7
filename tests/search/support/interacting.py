"""Trials of the synthetic problem of `benchmarks.search`, whose units interact."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from benchmarks.search_synthetic import SPEC, Synthetic
from varsearch.db import State, TrialRecord
from varsearch.measurement import Measurement
from varsearch.policy import Policy
from varsearch.search.sampler.mutation import Moves
from varsearch.search.sampler.portfolio import SURROGATE, Proposer
from varsearch.search.sampler.prior_mean import Outlook


@cache
def problem() -> Synthetic:
    return Synthetic(1)


@cache
def moves(profile: bool = True) -> Moves:
    return Moves(Outlook(SPEC, (), problem().profile if profile else None))


def trial(number: int, policy: Policy, origin: str = SURROGATE) -> TrialRecord:
    quality, speed = problem().evaluate(policy)
    return TrialRecord(number, policy, origin, State.COMPLETE, attempts=1, quality=quality, speed=speed)


def starts(n: int = 8) -> list[TrialRecord]:
    return [trial(i, policy, origin) for i, (origin, policy) in enumerate(list(problem().warm.items())[:n])]


def proposer(trials: list[TrialRecord], seed: int = 0, profile: bool = True) -> Proposer:
    made = Proposer(problem().settings.model_copy(update={"seed": seed}), problem().space, problem().guide(profile))
    for one in trials:
        made.show(one)
    return made


def with_loss(one: TrialRecord, value: float, half: float) -> TrialRecord:
    """The same trial with this ΔFID, give or take `half`."""
    assert one.quality is not None
    told = Measurement(metric="delta_fid", value=value, low=value - half, high=value + half)
    kept = tuple(m for m in one.quality.measurements if m.metric != "delta_fid")
    return replace(one, quality=one.quality.model_copy(update={"measurements": (*kept, told)}))
