"""A run begins with what others know, and draws nothing before all of it is costed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.db.samples import execute
from tests.search.support.fakes import (
    DENSE,
    OTHER,
    QUALITY,
    SPACE,
    SPEED,
    STARTS,
    FakeWorker,
    evidence,
    outcome,
    settings,
)
from tests.search.support.harness import Open, drain, stored, taken
from tests.search.support.process import Search
from varsearch.db import Store, TrialRecord
from varsearch.measurement import Job, Outcome, SpeedProtocol
from varsearch.policy import Policy
from varsearch.search.core.objectives import front_trials
from varsearch.search.core.settings import RunSettings
from varsearch.search.run.broker import Broker
from varsearch.search.run.driver import run
from varsearch.search.setup.initial_design import initial_design
from varsearch.search.setup.transfer import Transfer, transfer

THIRD = OTHER.model_copy(update={"machine": "third"})
W3 = SPACE.decode(dict.fromkeys(SPACE.knobs, 0) | {"bits0": 4})
NEW: dict[str, Policy] = {**STARTS, "warm:0": W3}
FIRST, N = settings(objectives=("delta_fid", "latency_ms")), 20
"""The first run, and its evaluations."""


def evaluated(broker: Broker, protocol: SpeedProtocol, n: int = 1000) -> list[Job]:
    """At most `n` jobs of a broker, done."""
    jobs: list[Job] = []
    while len(jobs) < n and (job := broker.lease("a")) is not None:
        assert broker.report(outcome(job))
        jobs.append(job)
    return jobs


def finished(start: Open, chosen: RunSettings, name: str, starts: Mapping[str, Policy], **given: object) -> list[Job]:
    """The evaluations of a run."""
    broker = start(chosen, starts=starts, name=name, **given)
    jobs = evaluated(broker, chosen.speed)
    broker.close("finished")
    return jobs


def on_front(storage: str | Path, name: str, chosen: RunSettings = FIRST) -> list[TrialRecord]:
    return front_trials(chosen, stored(storage, name))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a run of so many evaluations."""
    path = tmp_path_factory.mktemp("first") / "runs.db"
    run(FIRST, SPACE, STARTS, FakeWorker, storage=path, budget=N, name="first")
    return path


@pytest.fixture
def first(made: Path, tmp_path: Path) -> str:
    """A copy of it."""
    return str(shutil.copy(made, tmp_path / "runs.db"))


def test_another_target_costs_what_is_known_and_draws_nothing(start: Open, first: str) -> None:
    other = settings(speed=OTHER)
    known = transfer(other, "second", first)
    assert (known.fresh, known.taken, known.runs, known.unread) == (N, N, ("first",), {})
    assert known.has_quality == {trial.policy.digest for trial in stored(first)}
    jobs = finished(start, other, "second", initial_design(NEW, known.policies), storage=first, budget=N)
    assert len(jobs) == N and all(job.quality is None and job.speed is not None for job in jobs)
    trials = stored(first, "second")
    assert {t.policy.digest for t in trials} == {t.policy.digest for t in stored(first, "first")}
    assert all(t.attempts == 1 for t in trials)
    more = transfer(other, "second", first)
    (job,) = finished(start, other, "second", initial_design(NEW, more.policies), storage=first, budget=N + 1)
    assert job.policy == W3 and job.quality is not None, "what is new comes after what is known"


def test_dense_comes_first_then_the_front_then_the_rest(first: str) -> None:
    starts = initial_design(NEW, transfer(settings(speed=OTHER), "second", first).policies)
    best = [t for t in on_front(first, "first") if t.policy not in STARTS.values()]
    rest = [t for t in stored(first) if t.number not in {t.number for t in on_front(first, "first")}]
    order = [origin for origin in starts if origin not in NEW]
    assert len(best) > 5 and len(rest) > 2
    assert order == [f"known:first/{t.number}" for t in [*best, *rest] if t.policy not in STARTS.values()]
    assert next(iter(starts)) == "seed:dense" and list(starts)[-1] == "warm:0" and len(starts) == N + 1
    assert starts["seed:w8"] == STARTS["seed:w8"], "what the run itself starts from keeps its name"


def test_the_latest_front_comes_first_and_origins_name_who_evaluated_a_policy(start: Open, first: str) -> None:
    other, third = settings(speed=OTHER), settings(speed=THIRD)
    known = transfer(other, "second", first)
    finished(start, other, "second", initial_design(STARTS, known.policies), storage=first, budget=N + 5)
    found = transfer(third, "third", first)
    assert (found.fresh, found.taken, found.runs) == (N + 5, N + 5, ("second", "first"))
    own = {t.policy.digest: f"known:first/{t.number}" for t in stored(first, "first")}
    names = {t.policy.digest: f"known:second/{t.number}" for t in stored(first, "second")} | own
    latest = [names[t.policy.digest] for t in on_front(first, "second", other)]
    assert list(found.policies)[: len(latest)] == latest
    assert {o: p.digest for o, p in found.policies.items()} == {o: digest for digest, o in names.items()}


def test_the_same_target_takes_all_for_nothing_and_spends_its_budget_on_new_policies(start: Open, first: str) -> None:
    bounded = settings(bounds={"peak_bytes": 9e5})
    known = transfer(bounded, "bounded", first)
    assert (known.fresh, known.taken) == (N, 0)
    jobs = finished(start, bounded, "bounded", initial_design(STARTS, known.policies), storage=first, budget=7)
    assert len(jobs) == 7 and all(job.quality is not None for job in jobs)
    trials = stored(first, "bounded")
    assert [t.attempts for t in trials] == [0] * N + [1] * 7
    assert {t.policy.digest for t in on_front(first, "first") if t.values["peak_bytes"] <= 9e5} <= {
        t.policy.digest for t in trials
    }


def test_a_run_that_goes_on_takes_up_what_was_learnt_meanwhile_and_tries_nothing_twice(start: Open, first: str) -> None:
    other, third = settings(speed=OTHER), settings(speed=THIRD)

    def starts() -> dict[str, Policy]:
        return initial_design(STARTS, transfer(other, "second", first).policies)

    begun = start(other, starts=starts(), storage=first, name="second", budget=N + 10)
    assert len(evaluated(begun, OTHER, 12)) == 12
    taken(begun.lease("a"))
    begun.close("interrupted")
    known = transfer(other, "second", first)
    assert (known.fresh, known.taken) == (N - 13, N - 1), "the interrupted trial waits under its number"
    finished(
        start,
        third,
        "third",
        initial_design(STARTS, transfer(third, "third", first).policies),
        storage=first,
        budget=N + 5,
    )
    assert transfer(other, "second", first).fresh == N - 13 + 5
    jobs = finished(start, other, "second", starts(), storage=first, budget=N + 10)
    assert [job.number for job in jobs] == list(range(12, N + 10))
    assert sum(job.quality is not None for job in jobs) == 5, "five of ten are known by then"
    trials = stored(first, "second")
    assert len({t.policy.digest for t in trials}) == len(trials) == N + 10
    again = transfer(other, "second", first)
    assert (again.fresh, again.runs, again.taken) == (0, (), N + 10)
    assert finished(start, other, "second", starts(), storage=first, budget=N + 10) == []


def test_patience_counts_known_policies_as_starts_when_the_run_goes_on(start: Open, first: str) -> None:
    other, patience = settings(speed=OTHER, objectives=FIRST.objectives), 2

    def opened() -> Broker:
        starts = initial_design(STARTS, transfer(other, "second", first).policies)
        return start(other, starts=starts, storage=first, name="second", budget=80, patience=patience)

    assert N - 1 - len(on_front(first, "first")) > patience, "the last of the known policies add nothing"
    begun = opened()
    assert len(evaluated(begun, OTHER, N - 1)) == N - 1
    begun.close("interrupted")
    assert len(evaluated(opened(), OTHER)) >= 1 + patience


def test_a_failed_trial_knows_nothing(start: Open, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    broker = start(budget=4, name="first")
    dense, other, failed = (taken(broker.lease(worker)) for worker in ("a", "b", "c"))
    broker.report(Outcome(number=failed.number, quality=evidence("quality", failed.policy), error="no memory"))
    assert all(broker.report(outcome(job)) for job in (dense, other))
    known = transfer(settings(speed=OTHER), "second", path)
    assert "known:first/1" in known.policies and "known:first/2" not in known.policies
    assert failed.policy.digest in known.has_quality, "yet its images are drawn"


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": "e" * 64},
        {"quality": QUALITY.model_copy(update={"n_images": 3})},
        {"quality": None, "objectives": ("latency_ms", "peak_bytes")},
    ],
)
def test_nothing_is_known_of_other_weights_or_images_or_without_images(
    start: Open, tmp_path: Path, changes: dict[str, object]
) -> None:
    drain(start(budget=4))
    assert transfer(settings(speed=OTHER, **changes), "second", tmp_path / "runs.db") == Transfer()


def test_on_both_databases_origins_of_long_names_are_short_and_differ(start: Open, storage: str) -> None:
    names = ["x" * 199 + end for end in "ab"]
    finished(start, settings(), names[0], STARTS, storage=storage, budget=3)
    finished(start, settings(seed=1), names[1], {"seed:dense": DENSE, "seed:w3": W3}, storage=storage, budget=3)
    other = settings(speed=OTHER)
    known = transfer(other, "second", storage)
    digests = {t.policy.digest for name in names for t in stored(storage, name)}
    assert {policy.digest for policy in known.policies.values()} == digests and len(digests) > 3
    assert max(map(len, known.policies)) < 60
    finished(start, other, "second", initial_design(STARTS, known.policies), storage=storage, budget=len(digests))
    assert {t.policy.digest for t in stored(storage, "second")} == digests


def test_a_run_that_cannot_be_read_is_left_out_and_named(start: Open, tmp_path: Path) -> None:
    path = str(tmp_path / "runs.db")
    finished(start, settings(), "newer", STARTS, budget=4)
    finished(start, settings(seed=1), "first", {"seed:dense": DENSE, "seed:w3": W3}, budget=2)
    execute(path, "update run set settings = '{\"version\": 9}' where name = 'newer'")
    known = transfer(settings(speed=OTHER), "second", path)
    assert known.runs == ("first",) and [*known.unread] == ["newer"]
    assert "damaged or of a newer version" in known.unread["newer"]
    assert {p.digest for p in known.policies.values()} == {t.policy.digest for t in stored(path, "first")}


def test_what_is_known_in_half_is_no_start_but_needs_no_images(start: Open, tmp_path: Path) -> None:
    with Store(tmp_path / "runs.db") as store:
        store.save(evidence("quality", W3))
    known = transfer(settings(), "first", tmp_path / "runs.db")
    assert known.policies == {} and known.has_quality == {W3.digest}


def test_costs_that_another_run_knows_are_not_spent(start: Open, first: str) -> None:
    other = settings(speed=OTHER)
    with Store(first) as store:
        store.save(evidence("speed", DENSE, protocol=OTHER.digest))
    assert transfer(other, "second", first).taken == N - 1
    assert transfer(settings(speed=SPEED, seed=1), "second", first).taken == 0


@pytest.mark.slow
def test_on_ray_nothing_is_drawn_either(search: Search) -> None:
    run(settings(), SPACE, STARTS, partial(FakeWorker, search.log), storage=search.storage, budget=8)
    assert len(search.events("draw")) == 8
    search.start(workers=2, budget=8, kind="other")
    assert search.wait()[0] == 0
    assert len(search.events("end")) == 16 and len(search.events("draw")) == 8
    second = stored(search.storage, settings(speed=OTHER).default_name)
    assert {t.policy.digest for t in second} == {t.policy.digest for t in stored(search.storage)}
    assert sum(t.origin.startswith("known:fake-4090-") for t in second) == 8 - len(STARTS)
