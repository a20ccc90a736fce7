"""Proposals without side information, from a space of few knobs."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search import fakes
from tests.search.fakes import DENSE, SPACE, STARTS, FakeSpace, evidence
from varsearch.db import State, TrialRecord
from varsearch.policy import Policy
from varsearch.search.sampler.portfolio import PortfolioSampler


def shown(number: int, policy: Policy, state: State = State.COMPLETE) -> TrialRecord:
    trial = TrialRecord(number, policy, "sampler", state)
    for kind in ("quality", "speed"):
        trial = trial.with_evidence(evidence(kind, policy))
    return trial


def propose(n: int, *, seed: int = 0, space: FakeSpace = SPACE, restart: bool = False) -> list[Policy]:
    """The policies of `n` trials in a row; `restart` makes a new proposer before each."""
    trials = [shown(i, policy) for i, policy in enumerate(STARTS.values())] if space == SPACE else []
    proposer = PortfolioSampler(fakes.settings(seed=seed), space)
    for trial in trials:
        proposer.show(trial)
    while len(trials) < n:
        if restart:
            proposer = PortfolioSampler(fakes.settings(seed=seed), space)
            for trial in trials:
                proposer.show(trial)
        found = proposer.propose(len(trials), {t.policy.digest for t in trials})
        if found is None:
            break
        trials.append(shown(len(trials), found[1]))
        proposer.show(replace(trials[-1], state=State.RUNNING))
        proposer.show(trials[-1])
    return [trial.policy for trial in trials]


def test_nothing_is_proposed_twice() -> None:
    digests = [policy.digest for policy in propose(60)]
    assert len(digests) == len(set(digests)) == 60


@pytest.mark.parametrize("space", [FakeSpace(1, 1), FakeSpace(1, 2), FakeSpace(2, 1)])
def test_a_tiny_space_is_searched_to_its_end(space: FakeSpace) -> None:
    policies = propose(1000, space=space)
    # Two knobs of guidance make three different policies: what follows the first unguided scale means nothing.
    assert len({policy.digest for policy in policies}) == len(policies) == 5**space.layers * (space.scales + 1)


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_seeds_differ(seed: int) -> None:
    first, second = propose(15, seed=seed), propose(15, seed=seed + 1)
    assert first[:2] == second[:2]
    assert first[2:] != second[2:]


def test_a_restart_proposes_what_would_have_been_proposed() -> None:
    assert propose(30) == propose(30, restart=True)


def test_the_sampler_learns_from_the_trials() -> None:
    """More of the later proposals than of uniform draws keep the quality: delta FID counts twice, others never."""
    chosen = fakes.settings(objectives=("delta_fid",))
    proposer = PortfolioSampler(chosen, SPACE)
    trials = [shown(0, DENSE)]
    proposer.show(trials[0])
    while len(trials) < 60:
        found = proposer.propose(len(trials), {t.policy.digest for t in trials})
        assert found is not None
        trials.append(shown(len(trials), found[1]))
        proposer.show(trials[-1])
    delta = [trial.values["delta_fid"] for trial in trials]
    rng = random.Random(0)
    uniform = [SPACE.decode({knob: rng.randrange(n) for knob, n in SPACE.knobs.items()}) for _ in range(20)]
    assert sum(delta[40:]) < 0.7 * sum(fakes.numbers(policy)["delta_fid"] for policy in uniform)


def test_duplicates_of_the_sampler_become_mutations(monkeypatch: pytest.MonkeyPatch) -> None:
    proposer = PortfolioSampler(fakes.settings(), SPACE)
    dense = SPACE.nearest(DENSE)
    proposer.show(shown(0, DENSE))
    monkeypatch.setattr(optuna.Study, "ask", lambda *_: SimpleNamespace(params=dense))
    found = proposer.propose(1, {DENSE.digest})
    assert found is not None
    origin, policy = found
    changed = [knob for knob, level in SPACE.nearest(policy).items() if level != dense[knob]]
    assert origin == "mutation"
    assert len(changed) == 1
