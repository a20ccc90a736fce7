"""Proposals with side information: which sampler proposes, its credit, and exact costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from tests.search.interacting import (
    bayesian,
    front_posterior,
    information,
    mutation,
    portfolio,
    problem,
    proposed,
    starts,
    trial,
    with_loss,
)
from tests.search.synthetic import DENSE_BYTES, DENSE_FID, DENSE_MS, SPEC
from varsearch.db import State, TrialRecord
from varsearch.errors import EvaluationError
from varsearch.policy import Policy
from varsearch.search.core.objectives import WORST, front_trials, front_volume
from varsearch.search.core.settings import RunSettings
from varsearch.search.sampler.base import BAYESIAN, EVOLUTIONARY, MUTATION, SideInformation
from varsearch.search.sampler.optimize_acquisition import OptimizerConfig
from varsearch.search.sampler.portfolio import ARMS, PortfolioConfig, PortfolioSampler
from varsearch.search.sensitivity.decomposition import compose, settings_of

DENSE = Policy.dense(SPEC.n_layers, len(SPEC.scales))


def more(n: int, *, restart: bool, profile: bool = True) -> list[TrialRecord]:
    trials = starts()
    made = portfolio(trials, profile=profile)
    while len(trials) < 8 + n:
        made = portfolio(trials, profile=profile) if restart else made
        found = made.propose(len(trials), {t.policy.digest for t in trials})
        assert found is not None
        origin, policy = found
        made.show(TrialRecord(len(trials), policy, origin, State.RUNNING))
        trials.append(trial(len(trials), policy, origin))
        made.show(trials[-1])
    return trials


@pytest.mark.parametrize("profile", [True, False])
def test_a_restart_proposes_what_would_have_been_proposed(profile: bool) -> None:
    known = more(4, restart=False, profile=profile)
    assert known == more(4, restart=True, profile=profile)
    assert len({t.policy.digest for t in known}) == len(known)


def test_workers_are_given_different_policies_that_nobody_tried() -> None:
    trials = starts()
    made, seen = portfolio(trials), {t.policy.digest for t in trials}
    pending = []
    for number in range(8, 12):
        found = made.propose(number, seen)
        assert found is not None and found[1].digest not in seen
        seen.add(found[1].digest)
        pending.append(TrialRecord(number, found[1], found[0], State.RUNNING))
        made.show(pending[-1])
    again = portfolio([*trials, *pending])
    assert again.propose(12, seen) == made.propose(12, seen)


def test_what_others_evaluate_is_not_searched_for_again() -> None:
    """Beside a pending policy as good as predicted, another one is the most promising."""
    trials = starts()
    first = proposed(bayesian(trials), 0)
    pending = TrialRecord(8, first, BAYESIAN, State.RUNNING)
    assert proposed(bayesian([*trials, pending]), 0) != first
    assert proposed(bayesian(trials), 0, {first.digest}) != first


def test_the_surrogate_proposes_better_than_changes_of_the_front() -> None:
    trials, settings = starts(30), problem().settings
    dense = trials[0].values

    def gain(policy: Policy) -> float:
        volumes = [
            front_volume(settings, [t.values for t in front_trials(settings, known)], dense)
            for known in (trials, [*trials, trial(30, policy)])
        ]
        return volumes[1] - volumes[0]

    best = [gain(proposed(bayesian(trials), seed)) for seed in range(6)]
    changed = [gain(proposed(mutation(trials), seed)) for seed in range(12)]
    assert sum(best) / 6 > 2 * sum(changed) / 12


def test_luck_on_the_front_hides_no_proposal() -> None:
    """A lucky member of the front leaves more to gain where its error is known."""
    settings, trials = problem().settings, starts(30)
    member = max((t for t in front_trials(settings, trials) if t.number), key=lambda t: t.values["delta_fid"])
    dense, value = trials[0].values, member.values["delta_fid"]

    def volume_left(half: float) -> float:
        lucky = with_loss(member, 0.0, half)
        front = front_posterior([lucky if t is member else t for t in trials])
        return float(np.mean([np.prod(high - low, axis=1).sum() for low, high in front.boxes]))

    honest = front_volume(settings, [t.values for t in front_trials(settings, trials)], dense)
    box = WORST ** len(settings.objectives)
    assert value > 0 and volume_left(1e-6) < volume_left(2 * value) <= 1.02 * box * (1 - honest)


def test_all_arms_are_used_and_no_proposal_is_without_origin() -> None:
    shares = portfolio(starts()).shares(8)
    assert set(shares) == {BAYESIAN, EVOLUTIONARY, MUTATION}
    assert sum(shares.values()) == pytest.approx(1)
    assert all(shares[arm] >= least for arm, least in zip(ARMS, PortfolioConfig().least, strict=True))


def test_an_arm_that_gains_is_used_more_and_old_gains_are_forgotten() -> None:
    warm = starts()
    dense, good = warm[:1], max(warm[1:], key=lambda t: len(settings_of(t.policy)))
    useless = [trial(i, compose(SPEC, information().prior_mean.settings[i : i + 1]), BAYESIAN) for i in (2, 3, 4)]
    gained = replace(good, number=1, origin=MUTATION)
    before = portfolio([*dense, replace(good, number=1, origin=BAYESIAN)]).shares(5)
    after = portfolio([*dense, gained, *useless]).shares(5)
    late = portfolio([*dense, gained, *useless]).shares(120)
    assert after[MUTATION] > before[MUTATION] + 0.1
    assert after[MUTATION] > late[MUTATION] > PortfolioConfig().least[ARMS.index(MUTATION)]


def test_credit_does_not_depend_on_the_order_of_outcomes() -> None:
    trials = more(3, restart=False)
    backwards = portfolio(trials[:1] + trials[:0:-1])
    for way, share in portfolio(trials).shares(20).items():
        assert backwards.shares(20)[way] == pytest.approx(share)


def test_exact_costs_decide_among_the_best() -> None:
    asked: list[Policy] = []

    def costs(policy: Policy) -> Mapping[str, float]:
        asked.append(policy)
        if len(asked) != 3:
            raise EvaluationError("no such memory")
        return {"latency_ms": 1.0, "peak_bytes": 1e6}

    found = proposed(bayesian(starts(), costs=costs), 0)
    assert len(asked) == 3 and found == asked[2], "no other could be better"


def test_where_time_is_not_known_memory_alone_decides() -> None:
    asked: list[Policy] = []

    def costs(policy: Policy) -> Mapping[str, float]:
        asked.append(policy)
        return {"peak_bytes": 1e3 if len(asked) == 3 else 1e12}

    found = proposed(bayesian(starts(), costs=costs), 0)
    assert len(asked) == 3 and found == asked[2]


def test_only_a_few_exact_costs_are_asked_for() -> None:
    asked: list[Policy] = []

    def costs(policy: Policy) -> Mapping[str, float]:
        asked.append(policy)
        raise EvaluationError("no such memory")

    assert proposed(bayesian(starts(), costs=costs), 0) in asked
    assert len(set(asked)) == len(asked) == OptimizerConfig().exact


@pytest.mark.parametrize(
    ("metric", "limit", "clearly_beyond", "objectives"),
    [
        ("delta_fid", 0.1, 0.2, ("delta_fid", "latency_ms", "peak_bytes")),
        ("fid", DENSE_FID + 0.1, DENSE_FID + 0.2, ("delta_fid", "latency_ms", "peak_bytes")),
        ("latency_ms", 2.6, 2.7, ("delta_fid", "latency_ms", "peak_bytes")),
        ("speedup", DENSE_MS / 2.6, DENSE_MS / 2.7, ("delta_fid", "latency_ms", "peak_bytes")),
        ("latency_ms", 2.6, 2.7, ("delta_fid", "speedup", "peak_bytes")),
        ("peak_bytes", 0.3 * DENSE_BYTES, 0.33 * DENSE_BYTES, ("delta_fid", "latency_ms")),
    ],
)
def test_bounds_are_met_by_prediction(
    metric: str, limit: float, clearly_beyond: float, objectives: tuple[str, ...]
) -> None:
    """Also those on what is no objective. Without a bound the most is gained by policies that exceed it."""
    given = {**dict(problem().settings), "objectives": objectives}
    sign = -1 if metric == "speedup" else 1
    surrogate = front_posterior(starts(30)).surrogate

    def predicted(policy: Policy) -> float:
        """Costs are known, and a loss has even chances to be less than this."""
        loss = DENSE_FID * float(np.median(surrogate.draws([settings_of(policy)])[0]))
        return sign * {**problem().values(policy), "delta_fid": loss, "fid": DENSE_FID + loss}[metric]

    for seed in range(2):
        free, found = (
            proposed(bayesian(starts(30), RunSettings.model_validate(settings), problem().values), seed)
            for settings in (given, {**given, "bounds": {metric: limit}})
        )
        assert predicted(found) < sign * clearly_beyond < predicted(free)


def test_without_dense_or_side_information_the_evolutionary_sampler_proposes() -> None:
    made = portfolio(starts()[1:3])
    found = made.propose(3, set())
    assert found is not None and found[0] == EVOLUTIONARY
    blind = PortfolioSampler(problem().settings, problem().space)
    blind.show(starts()[0])
    found = blind.propose(1, set())
    assert found is not None and found[0] == EVOLUTIONARY


def test_side_information_travels() -> None:
    import pickle

    guide = SideInformation(SPEC, (), problem().profile)
    assert pickle.loads(pickle.dumps(guide)) == guide


def test_a_stopped_trial_whose_quality_another_run_found_out_has_no_costs() -> None:
    trials = starts(9)
    trials[8] = replace(trials[8], state=State.STOPPED, speed=None)
    assert proposed(bayesian(trials), 0, {t.policy.digest for t in trials})
