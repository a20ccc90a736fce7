"""What every sampler promises, whatever its method."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache

import pytest

from tests.search.synthetic import SPEC, Synthetic
from varsearch.db import State, TrialRecord
from varsearch.measurement import Measurement
from varsearch.policy import Policy
from varsearch.search.core.settings import RunSettings
from varsearch.search.sampler.base import LoadedInformation, Sampler, SideInformation
from varsearch.search.sampler.bayesian import BayesianConfig, BayesianSampler
from varsearch.search.sampler.beat_baseline import BeatBaselineSampler
from varsearch.search.sampler.evolutionary import EvolutionarySampler
from varsearch.search.sampler.mutation import MutationSampler
from varsearch.search.sampler.optimize_acquisition import OptimizerConfig
from varsearch.search.sampler.portfolio import PortfolioConfig, PortfolioSampler
from varsearch.search.sampler.random_search import RandomSampler

PROBLEM = Synthetic(2)
CONFIG = PortfolioConfig(bayesian=BayesianConfig(optimizer=OptimizerConfig(rounds=(60, 30))))
OBJECTIVES = (
    ("delta_fid",),
    ("speedup", "peak_bytes"),
    ("delta_fid", "latency_ms", "peak_bytes"),
    ("delta_fid", "latency_ms", "peak_bytes", "kv_bytes"),
)
COSTS = ("latency_ms", "speedup", "peak_bytes", "kv_bytes")


def values(policy: Policy) -> Mapping[str, float]:
    return {**PROBLEM.values(policy), "kv_bytes": PROBLEM.cost(policy).kv_bytes}


def costs(policy: Policy) -> Mapping[str, float]:
    return {name: value for name, value in values(policy).items() if name in COSTS}


@cache
def information(profile: bool) -> SideInformation:
    return SideInformation(SPEC, (), PROBLEM.profile if profile else None, lambda: costs)


@cache
def loaded(profile: bool) -> LoadedInformation:
    return LoadedInformation(information(profile), CONFIG.variation)


MAKE: dict[str, Callable[[RunSettings, bool], Sampler]] = {
    "bayesian": lambda s, p: BayesianSampler(s, loaded(p), CONFIG.bayesian),
    "beat_baseline": lambda s, p: BeatBaselineSampler(s, loaded(p), CONFIG.bayesian, CONFIG.beat_baseline),
    "evolutionary": lambda s, p: EvolutionarySampler(s, PROBLEM.space, CONFIG.evolutionary),
    "mutation": lambda s, p: MutationSampler(s, loaded(p), attempts=10),
    "random": lambda s, p: RandomSampler(s, PROBLEM.space, attempts=100),
    "portfolio": lambda s, p: PortfolioSampler(s, PROBLEM.space, information(p), CONFIG),
}
NEEDS_DENSE = {"bayesian", "beat_baseline", "mutation"}


@pytest.fixture(params=sorted(MAKE))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def settings(objectives: tuple[str, ...] = OBJECTIVES[2], **changes: object) -> RunSettings:
    # A copy: settings with four objectives may be refused elsewhere.
    return PROBLEM.settings.model_copy(update={"objectives": objectives, **changes})


def complete(number: int, policy: Policy, origin: str = "surrogate") -> TrialRecord:
    """A trial whose loss is known up to a third."""
    quality, speed = PROBLEM.evaluate(policy)
    known = values(policy)
    trial = TrialRecord(number, policy, origin, State.COMPLETE, attempts=1)
    measured = []
    for name in ("fid", "delta_fid"):
        half = known["delta_fid"] / 3
        measured.append(Measurement(metric=name, value=known[name], low=known[name] - half, high=known[name] + half))
    exact = tuple(Measurement(metric=name, value=known[name]) for name in COSTS)
    trial = trial.with_evidence(quality.model_copy(update={"measurements": tuple(measured)}))
    return trial.with_evidence(speed.model_copy(update={"measurements": exact}))


@cache
def trials() -> tuple[TrialRecord, ...]:
    """Dense, published systems (a mild one and a cheap one), and trials of every state."""
    known = []
    for number, (origin, policy) in enumerate(list(PROBLEM.warm.items())[:16]):
        known.append(complete(number, policy, origin))
    published = []
    for counted in (OBJECTIVES[2], OBJECTIVES[2][1:]):
        best = min(known[1:], key=lambda trial: math.prod(trial.values[m] for m in counted))
        known[best.number] = replace(best, origin=f"preset:{best.number}")
        published.append(best.number)
    others = [trial.number for trial in known[1:] if trial.number not in published]
    known[others[0]] = replace(known[others[0]], state=State.FAIL, quality=None, speed=None, error="killed")
    known[others[1]] = replace(known[others[1]], state=State.STOPPED, error="a rung")
    known[others[2]] = replace(known[others[2]], state=State.STOPPED, quality=None, error="a rung")
    known[others[3]] = replace(known[others[3]], state=State.RUNNING, quality=None, speed=None)
    known[others[4]] = replace(known[others[4]], state=State.WAITING, quality=None, speed=None)
    return tuple(known)


def sampler(
    kind: str, given: RunSettings, *, profile: bool = True, known: Iterable[TrialRecord] | None = None
) -> Sampler:
    made = MAKE[kind](given, profile)
    for trial in trials() if known is None else known:
        made.show(trial)
    return made


@cache
def known_digests() -> frozenset[str]:
    return frozenset(trial.policy.digest for trial in trials())


def proposals(made: Sampler, n: int = 3) -> Iterator[Policy]:
    """Different policies; what is proposed runs from then on."""
    seen, first = set(known_digests()), len(trials())
    for number in range(first, first + n):
        proposal = made.propose(number, seen)
        if proposal is None:
            return
        assert proposal.policy.digest not in seen
        seen.add(proposal.policy.digest)
        made.show(TrialRecord(number, proposal.policy, proposal.origin, State.RUNNING))
        yield proposal.policy


@pytest.mark.parametrize("profile", [True, False], ids=["profile", "no profile"])
@pytest.mark.parametrize("objectives", OBJECTIVES, ids=len)
def test_new_valid_policies(kind: str, objectives: tuple[str, ...], profile: bool) -> None:
    found = list(proposals(sampler(kind, settings(objectives), profile=profile)))
    # A baseline that a running policy is predicted to dominate counts as beaten.
    least = 1 if kind == "beat_baseline" else 3
    assert least <= len(found) == len({policy.digest for policy in found})
    for policy in found:
        policy.check(SPEC)


def test_the_same_trials_give_the_same_proposal(kind: str) -> None:
    """Also those that another process was shown, in the states that they had before."""
    given = settings()
    first = list(proposals(sampler(kind, given)))
    assert first
    assert first == list(proposals(sampler(kind, given)))
    before = [trial if trial.state.is_final else replace(trial, state=State.WAITING) for trial in trials()]
    later = sampler(kind, given, known=before)
    for trial in trials():
        later.show(trial)
    assert first == list(proposals(later))
    assert first != list(proposals(sampler(kind, settings(seed=1))))


def test_a_given_generator_decides(kind: str) -> None:
    made = sampler(kind, settings())
    proposed = [made.propose(99, known_digests(), random.Random(seed)) for seed in (0, 0, 1)]
    assert None not in proposed and proposed[0] == proposed[1] != proposed[2]


@pytest.mark.parametrize(
    ("objectives", "metric"),
    [(OBJECTIVES[2], "peak_bytes"), (OBJECTIVES[0], "peak_bytes"), (OBJECTIVES[3], "latency_ms")],
)
def test_bounds_are_kept_where_costs_are_exact(objectives: tuple[str, ...], metric: str) -> None:
    """By the samplers that have a model of costs."""
    bound = 0.6 * dict(PROBLEM.values(trials()[0].policy))[metric]
    for kind in ("bayesian", "beat_baseline"):
        made = sampler(kind, settings(objectives, bounds={metric: bound}))
        proposal = made.propose(len(trials()), known_digests())
        if proposal is not None:
            assert costs(proposal.policy)[metric] <= bound
        assert proposal is not None or kind == "beat_baseline", "its baseline exceeds the bound"


def test_without_dense(kind: str) -> None:
    """Samplers with a model wait for dense."""
    made = sampler(kind, settings(), known=trials()[1:4])
    proposal = made.propose(4, known_digests())
    assert (proposal is None) == (kind in NEEDS_DENSE)


def test_known_policies_are_not_proposed_and_asking_changes_nothing(kind: str) -> None:
    made = sampler(kind, settings())
    first = made.propose(50, known_digests())
    assert first is not None
    again = made.propose(50, {*known_digests(), first.policy.digest})
    assert again is None or again.policy != first.policy
    assert made.propose(50, known_digests()) == first, "asking changes nothing"


def test_configs_travel() -> None:
    assert pickle.loads(pickle.dumps(CONFIG)) == CONFIG
    assert PortfolioConfig() != CONFIG and hash(PortfolioConfig()) == hash(PortfolioConfig())
