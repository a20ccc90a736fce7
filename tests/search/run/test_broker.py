"""The broker hands out every policy once, accepts every outcome once, and keeps the budget."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from tests.search.support.fakes import DENSE, SPEED, STARTS, FakeSpace, evidence, outcome, settings
from tests.search.support.harness import Open, check_consistent, drain, shown, stored, taken
from varsearch.db import State
from varsearch.errors import EvaluationError, PolicyError, UsageError
from varsearch.measurement import Job, Outcome
from varsearch.policy import Policy


def test_seeds_come_first_and_the_budget_is_spent_exactly(start: Open, storage: str) -> None:
    broker = start(storage=storage, budget=5)
    assert drain(broker) == [0, 1, 2, 3, 4]
    assert broker.lease("b") is None
    origins = [progress.trial.origin for progress in broker.events()]
    assert origins[:3] == ["seed:dense", "seed:w8", "sampler"]
    broker.close("finished")
    check_consistent(storage, 5)


def test_workers_in_parallel_never_get_the_same_policy_and_share_the_budget(start: Open) -> None:
    broker = start(budget=8)
    jobs = [taken(broker.lease(f"w{i}")) for i in range(8)]
    assert len({job.policy.digest for job in jobs}) == 8
    assert broker.lease("w8") is None
    for job in reversed(jobs):
        broker.report(outcome(job))
    assert broker.lease("w0") is None
    assert broker.status().evaluated == 8


@pytest.mark.parametrize("space", [FakeSpace(1, 1), FakeSpace(1, 2)])
def test_an_exhausted_space_ends_the_run(start: Open, space: FakeSpace) -> None:
    dense = Policy.dense(space.layers, space.scales)
    broker = start(space=space, starts={"seed:dense": dense}, budget=1000)
    assert len(drain(broker)) == 5 * (space.scales + 1)
    assert broker.status().exhausted


def test_seeds_that_are_equal_count_once(start: Open) -> None:
    broker = start(starts={"seed:dense": DENSE, "seed:again": DENSE, **STARTS}, budget=3)
    drain(broker)
    assert [p.trial.origin for p in broker.events()] == ["seed:dense", "seed:w8", "sampler"]


class Reported:
    """Outcomes that a job can come back with, and what becomes of the trial."""

    @staticmethod
    def nan(job: Job) -> Outcome:
        # Copies are not validated, as values that another process sends are not.
        good = outcome(job)
        assert good.speed is not None
        first, *others = good.speed.measurements
        bad = first.model_copy(update={"value": math.nan})
        return good.model_copy(update={"speed": good.speed.model_copy(update={"measurements": (bad, *others)})})

    @staticmethod
    def missing(job: Job) -> Outcome:
        speed = evidence("speed", job.policy)
        return Outcome(number=job.number, quality=evidence("quality", job.policy), speed=speed.model_copy(
            update={"measurements": speed.measurements[:1]}
        ))  # fmt: skip

    @staticmethod
    def half(job: Job) -> Outcome:
        return Outcome(number=job.number, quality=evidence("quality", job.policy))

    @staticmethod
    def error(job: Job) -> Outcome:
        return Outcome(number=job.number, error="out of memory")

    @staticmethod
    def foreign(job: Job) -> Outcome:
        return Outcome(number=job.number, quality=evidence("quality", job.policy), speed=evidence("speed", DENSE))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Reported.nan, "the evaluation gave latency_ms = nan"),
        (Reported.missing, "the evaluation gave no peak_bytes"),
        (Reported.half, "the evaluation gave no latency_ms"),
        (Reported.error, "out of memory"),
        (Reported.foreign, "the worker's speed evidence is for another policy, model or protocol"),
    ],
)
def test_an_outcome_without_usable_numbers_fails_its_trial_and_the_run_goes_on(
    start: Open, tmp_path: Path, answer: Callable[[Job], Outcome], reason: str
) -> None:
    broker = start(budget=3)
    assert broker.report(outcome(taken(broker.lease("a"))))
    assert broker.report(answer(taken(broker.lease("a"))))
    assert drain(broker) == [2]
    status = broker.status()
    assert (status.failed, status.evaluated, status.last_error) == (1, 3, reason)
    broker.close("finished")
    check_consistent(tmp_path / "runs.db", 3)
    second = shown(tmp_path / "runs.db")[1]
    assert (second.state.name, second.user_attrs["error"], second.values) == ("FAIL", reason, None)


def test_a_run_without_quality_takes_what_speed_is_known_and_asks_for_no_more(start: Open, tmp_path: Path) -> None:
    assert drain(start(budget=4)) == [0, 1, 2, 3]
    blind = start(settings(quality=None, objectives=("latency_ms", "peak_bytes")), budget=1, name="blind")
    job = taken(blind.lease("a"))
    assert blind.status().reused >= len(STARTS) and job.quality is None and job.speed == SPEED
    assert blind.report(Outcome(number=job.number, speed=evidence("speed", job.policy)))
    trials = stored(tmp_path / "runs.db", "blind")
    assert all(t.state is State.COMPLETE and t.quality is None and "fid" not in t.values for t in trials)
    assert blind.report(Outcome(number=job.number)) is False and blind.lease("a") is None


def test_an_outcome_is_accepted_once(start: Open, tmp_path: Path) -> None:
    broker = start(budget=1)
    job = taken(broker.lease("a"))
    assert broker.report(outcome(job))
    assert not broker.report(Outcome(number=job.number, error="late"))
    broker.close("finished")
    assert [t.state for t in stored(tmp_path / "runs.db")] == [State.COMPLETE]


def test_a_lost_worker_s_trial_is_evaluated_again_under_its_number(start: Open, tmp_path: Path) -> None:
    broker = start(budget=2)
    lost = taken(broker.lease("a"))
    broker.lost("a")
    assert [t.state for t in stored(tmp_path / "runs.db")] == [State.WAITING]
    assert taken(broker.lease("b")) == lost
    assert stored(tmp_path / "runs.db")[0].attempts == 2


def test_a_worker_that_asks_again_has_lost_what_it_held(start: Open) -> None:
    broker = start(budget=2)
    first = taken(broker.lease("a"))
    assert taken(broker.lease("a")) == first


def test_a_trial_that_kills_three_workers_fails(start: Open, tmp_path: Path) -> None:
    broker = start(budget=3)
    assert broker.report(outcome(taken(broker.lease("a"))))
    assert [taken(broker.lease("a")).number for _ in range(4)] == [1, 1, 1, 2]
    second = stored(tmp_path / "runs.db")[1]
    assert (second.state, second.attempts) == (State.FAIL, 3)
    assert second.error == "the worker was lost 3 times during the evaluation"
    assert broker.status().evaluated == 2


def test_what_killed_the_workers_is_the_trial_s_error(start: Open, tmp_path: Path) -> None:
    broker = start(budget=3)
    assert broker.report(outcome(taken(broker.lease("a"))))
    for _ in range(3):
        job = taken(broker.lease("a"))
        broker.lost("a", f"trial {job.number}: CUDA error")
    assert taken(broker.lease("a")).number == 2, "the run goes on"
    failed = stored(tmp_path / "runs.db")[1]
    assert failed.state is State.FAIL
    assert failed.error == "the worker was lost 3 times during the evaluation: trial 1: CUDA error"


def test_a_dense_policy_that_kills_three_workers_ends_the_run(start: Open, tmp_path: Path) -> None:
    broker = start(budget=2)
    assert [taken(broker.lease("a")).number for _ in range(3)] == [0, 0, 0]
    with pytest.raises(EvaluationError, match=r"dense, .* the worker was lost 3 times"):
        broker.lease("a")
    broker.close("interrupted")
    assert stored(tmp_path / "runs.db")[0].state is State.WAITING


@pytest.mark.parametrize("leased_again", [False, True])
def test_an_outcome_that_was_given_up_is_still_welcome(start: Open, leased_again: bool) -> None:
    broker = start(budget=1)
    job = taken(broker.lease("a"))
    broker.lost("a")
    if leased_again:
        assert broker.lease("b") == job
    assert broker.report(outcome(job))
    assert not broker.report(outcome(job))
    assert broker.lease("c") is None
    assert broker.status().running == broker.status().waiting == 0


def test_no_lease_after_the_deadline_but_outcomes_count(
    start: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    broker = start(budget=9, minutes=1)
    first, second = taken(broker.lease("a")), taken(broker.lease("b"))
    now += 61
    assert broker.lease("c") is None
    assert broker.report(outcome(first))
    assert broker.lease("a") is None
    broker.lost("b")
    assert broker.lease("b") is None
    broker.close("finished")
    assert second.number == 1
    assert [t.state for t in stored(tmp_path / "runs.db")] == [State.COMPLETE, State.WAITING]


def test_the_remaining_time_follows_the_recent_evaluations(start: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=5)
    broker = start(budget=10, minutes=60)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    assert broker.status().seconds_left is None
    for _ in range(4):
        now = next(clock)
        jobs = [taken(broker.lease(worker)) for worker in ("a", "b")]
        now = next(clock)
        for job in jobs:
            broker.report(outcome(job))
    # Two evaluations are left, one per worker, and each took 5 seconds.
    assert broker.status().seconds_left == pytest.approx(5)


def test_hypervolume_grows_and_the_front_is_reported(start: Open) -> None:
    broker = start(budget=20)
    drain(broker)
    events = broker.events()
    volumes = [progress.status.hypervolume for progress in events]
    assert all(a is not None and b is not None and a <= b for a, b in itertools.pairwise(volumes))
    assert volumes[-1] > volumes[0]
    assert events[0].status.front == (0,)
    assert len(events[-1].status.front) > 3
    assert broker.events() == []


@pytest.mark.parametrize("budget", [0, -1])
def test_a_budget_without_trials_is_refused(start: Open, budget: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the budget must be at least 1 trial"):
        start(budget=budget)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("minutes", [0, -1.0, math.nan, math.inf])
def test_senseless_times_are_refused(start: Open, minutes: float) -> None:
    with pytest.raises(UsageError, match="the time must be a positive number of minutes"):
        start(minutes=minutes)


def test_a_start_that_does_not_fit_is_refused_before_anything_is_written(start: Open, tmp_path: Path) -> None:
    class Narrow(FakeSpace):
        def nearest(self, policy: Policy) -> dict[str, int]:
            if policy != DENSE:
                raise PolicyError("the policy is of another model")
            return super().nearest(policy)

    with pytest.raises(PolicyError, match="of another model"):
        start(space=Narrow())
    assert list(tmp_path.iterdir()) == []


def test_a_trial_takes_one_transaction_of_optuna(start: Open, tmp_path: Path) -> None:
    broker, transactions = start(budget=4), [False]

    def note(_: object, __: object, statement: str, *___: object) -> None:
        # The name of our own table of trials is in the singular.
        transactions[-1] |= re.match(r"(INSERT INTO|UPDATE) (trials|trial_)", statement) is not None

    def end(_: object) -> None:
        transactions.append(False)

    for name, listener in (("before_cursor_execute", note), ("commit", end)):
        event.listen(Engine, name, listener)
    try:
        drain(broker)
    finally:
        for name, listener in (("before_cursor_execute", note), ("commit", end)):
            event.remove(Engine, name, listener)
    assert sum(transactions) == 4
    broker.close("finished")
    check_consistent(tmp_path / "runs.db", 4)


def test_optuna_sees_earlier_trials_before_later_ones_and_all_in_the_end(start: Open, tmp_path: Path) -> None:
    broker = start(budget=4)
    jobs = [taken(broker.lease(f"w{i}")) for i in range(3)]
    assert shown(tmp_path / "runs.db") == []
    broker.report(outcome(jobs[1]))
    assert [t.state.name for t in shown(tmp_path / "runs.db")] == ["RUNNING", "COMPLETE"]
    broker.report(outcome(jobs[0]))
    assert [t.state.name for t in shown(tmp_path / "runs.db")] == ["COMPLETE", "COMPLETE"]
    broker.close("interrupted")
    assert [t.state.name for t in shown(tmp_path / "runs.db")] == ["COMPLETE", "COMPLETE", "WAITING"]
