"""The broker hands out every policy once and accepts every outcome once, whatever dies in between."""

from __future__ import annotations

import gc
import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import optuna
import pytest
from sqlalchemy import Engine, event

from tests.search.fakes import DENSE, SEEDS, SPACE, FakeSpace, evidence, outcome, settings
from varsearch.db import State, Store, TrialRecord
from varsearch.db.engine import locate
from varsearch.errors import PolicyError, StoreError, UsageError
from varsearch.measurement import Job, Outcome
from varsearch.policy import Policy
from varsearch.search.broker import Broker
from varsearch.search.settings import RunSettings
from varsearch.search.study import Space, open_storage

Open = Callable[..., Broker]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Open]:
    """Opens brokers on one database; what a test leaves open is dropped without a word, as by kill -9."""
    opened: list[Broker] = []

    def start(
        chosen: RunSettings | None = None,
        space: Space = SPACE,
        seeds: Mapping[str, Policy] = SEEDS,
        *,
        storage: str | Path = tmp_path / "runs.db",
        budget: int = 4,
        name: str | None = None,
        minutes: float | None = None,
    ) -> Broker:
        chosen = chosen or settings()
        opened.append(Broker(chosen, space, seeds, storage=storage, budget=budget, name=name, minutes=minutes))
        return opened[-1]

    yield start
    for broker in opened:
        broker._connections.close()


def drain(broker: Broker, worker: str = "a") -> list[int]:
    """Evaluates until there are no more jobs; the numbers that were evaluated."""
    numbers = []
    while (job := broker.lease(worker)) is not None:
        numbers.append(job.number)
        assert broker.report(outcome(job))
    return numbers


def taken(job: Job | None) -> Job:
    assert job is not None
    return job


def stored(storage: str | Path, name: str | None = None) -> list[TrialRecord]:
    with Store(storage) as store:
        return store.trials(store.run(name) if name else store.runs()[0])


def shown(storage: str | Path) -> list[optuna.trial.FrozenTrial]:
    with open_storage(locate(storage)) as backend:
        (study,) = backend.get_all_studies()
        return optuna.load_study(study_name=study.study_name, storage=backend).trials


def check_consistent(storage: str | Path, n: int) -> None:
    """Store and study hold the same `n` finished trials with the same numbers."""
    ours, theirs = stored(storage), shown(storage)
    assert [t.number for t in ours] == [t.number for t in theirs] == list(range(n))
    assert [t.state.name for t in ours] == [t.state.name for t in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.state.is_final
        assert other.params == SPACE.encode(mine.policy)
        assert other.user_attrs["digest"] == mine.policy.digest
        values = [mine.values[name] for name in settings().objectives] if mine.state is State.COMPLETE else None
        assert other.values == values
        assert {k: other.user_attrs[k] for k in mine.values} == mine.values


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
    broker = start(space=space, seeds={"dense": dense}, budget=1000)
    assert len(drain(broker)) == 5 * (space.scales + 1)
    assert broker.status().exhausted


def test_seeds_that_are_equal_count_once(start: Open) -> None:
    broker = start(seeds={"dense": DENSE, "again": DENSE, **SEEDS}, budget=3)
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
        return Outcome(number=job.number, quality=evidence("quality", job.policy), speed=evidence("speed", SEEDS["w8"]))


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
    assert broker.report(answer(taken(broker.lease("a"))))
    assert drain(broker) == [1, 2]
    status = broker.status()
    assert (status.failed, status.evaluated, status.last_error) == (1, 3, reason)
    broker.close("finished")
    check_consistent(tmp_path / "runs.db", 3)
    first = shown(tmp_path / "runs.db")[0]
    assert (first.state.name, first.user_attrs["error"], first.values) == ("FAIL", reason, None)


def test_evidence_of_half_an_outcome_is_kept(start: Open) -> None:
    first = start(budget=1)
    first.report(Reported.half(taken(first.lease("a"))))
    first.close("finished")
    job = taken(start(settings(seed=1)).lease("a"))
    assert job.policy == DENSE
    assert job.quality == evidence("quality", DENSE)
    assert job.speed is None


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
    broker = start(budget=2)
    assert [taken(broker.lease("a")).number for _ in range(4)] == [0, 0, 0, 1]
    first = stored(tmp_path / "runs.db")[0]
    assert (first.state, first.attempts) == (State.FAIL, 3)
    assert first.error == "the worker was lost 3 times during the evaluation"
    assert broker.status().evaluated == 1


def test_evidence_of_the_last_attempt_counts_even_if_nobody_heard_of_it(start: Open, tmp_path: Path) -> None:
    for _ in range(3):
        assert taken(start(budget=1).lease("a")).number == 0
    with Store(tmp_path / "runs.db") as store:
        store.save(evidence("quality", DENSE))
        store.save(evidence("speed", DENSE))
    broker = start(budget=1)
    assert broker.lease("a") is None
    broker.close("finished")
    check_consistent(tmp_path / "runs.db", 1)
    assert [(t.state, t.attempts) for t in stored(tmp_path / "runs.db")] == [(State.COMPLETE, 3)]


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


def test_ctrl_c_puts_back_without_counting_an_attempt(start: Open, tmp_path: Path) -> None:
    broker = start(budget=3)
    drain_one = taken(broker.lease("a"))
    broker.report(outcome(drain_one))
    held = taken(broker.lease("a"))
    broker.close("interrupted")
    assert [t.state.name for t in shown(tmp_path / "runs.db")] == ["COMPLETE", "WAITING"]
    assert [(t.state, t.attempts) for t in stored(tmp_path / "runs.db")][1] == (State.WAITING, 0)
    with Store(tmp_path / "runs.db") as store:
        assert store.runs()[0].status == "interrupted"
    again = start(budget=3)
    assert taken(again.lease("a")) == held
    again.report(outcome(held))
    assert drain(again) == [2]
    again.close("finished")
    check_consistent(tmp_path / "runs.db", 3)


def test_the_budget_counts_earlier_invocations(start: Open) -> None:
    first = start(budget=2)
    assert drain(first) == [0, 1]
    first.close("finished")
    again = start(budget=5)
    assert drain(again) == [2, 3, 4]
    again.close("finished")
    assert start(budget=3).lease("a") is None


def test_what_other_runs_know_is_told_and_costs_nothing(start: Open, tmp_path: Path) -> None:
    first = start(budget=4)
    drain(first)
    first.close("finished")
    other = start(settings(seed=1), budget=2)
    assert drain(other) == [2, 3]
    status = other.status()
    assert (status.reused, status.evaluated) == (2, 2)
    assert [p.reused for p in other.events()] == [True, True, False, False]
    other.close("finished")
    assert [t.attempts for t in stored(tmp_path / "runs.db", settings(seed=1).default_name)] == [0, 0, 1, 1]


def test_quality_is_reused_on_another_target(start: Open) -> None:
    first = start(budget=1)
    drain(first)
    first.close("finished")
    speed = settings().speed.model_copy(update={"machine": "another"})
    job = taken(start(settings(speed=speed)).lease("a"))
    assert job.quality == evidence("quality", DENSE)
    assert job.speed is None


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


def test_a_name_with_other_settings_is_refused_and_its_driver_undisturbed(start: Open) -> None:
    first = start(name="mine")
    with pytest.raises(UsageError, match=r"run 'mine' has other settings \(seed was 0, is 1\)"):
        start(settings(seed=1), name="mine")
    assert drain(first) == [0, 1, 2, 3]


def test_a_seed_outside_the_space_is_refused_before_anything_is_written(start: Open, tmp_path: Path) -> None:
    class Narrow(FakeSpace):
        def encode(self, policy: Policy) -> dict[str, int]:
            if policy != DENSE:
                raise PolicyError("the policy lies outside the search space")
            return super().encode(policy)

    with pytest.raises(PolicyError, match="outside the search space"):
        start(space=Narrow())
    assert list(tmp_path.iterdir()) == []


def test_a_second_driver_takes_over_and_the_first_one_stops(start: Open, storage: str) -> None:
    first = start(storage=storage)
    job = taken(first.lease("a"))
    second = start(storage=storage)
    with pytest.raises(StoreError, match="continued by another process"):
        first.report(outcome(job))
    # The first driver could not record the outcome, but the evidence itself is shared: it is not evaluated again.
    assert drain(second) == [1, 2, 3]
    second.close("finished")
    check_consistent(storage, 4)


def test_foreign_trials_in_the_study_are_refused(start: Open, tmp_path: Path) -> None:
    start().close("finished")
    with open_storage(locate(tmp_path / "runs.db")) as backend:
        optuna.load_study(study_name=settings().default_name, storage=backend).ask()
    with pytest.raises(UsageError, match="has 1 trials, the run only 0: something else wrote to it"):
        start()


class Crash(BaseException):
    """Ends the process, as far as the broker can tell."""


def crash_at(commit: int) -> Callable[[object], None]:
    """A listener that crashes instead of the given commit, whichever table it is for."""
    count = itertools.count()

    def listen(_: object) -> None:
        if next(count) == commit:
            raise Crash

    return listen


def crashing(start: Open, storage: str, commit: int, budget: int, evaluated: list[int]) -> bool:
    """Runs until the crash or the end of the budget; whether it crashed. The first trial is an error."""
    listener, broker = crash_at(commit), None
    event.listen(Engine, "commit", listener)
    try:
        broker = start(storage=storage, budget=budget)
        while budget > 1 and (job := broker.lease("a")) is not None:
            evaluated.append(job.number)
            broker.report(outcome(job) if job.number else Outcome(number=job.number, error="bad"))
        broker.close("finished")
    except Crash:
        crashed = True
    else:
        crashed = False
    event.remove(Engine, "commit", listener)
    # The locks of a killed process end with it.
    if broker is not None:
        broker._connections.close()
    elif crashed:
        gc.collect()
    return crashed


@pytest.mark.slow
def test_a_crash_before_any_commit_loses_and_repeats_nothing(start: Open, tmp_path: Path) -> None:
    """Kills the broker before its first commit, its second, ... and continues each time as a new process would."""
    empty, reference = tmp_path / "empty.db", str(tmp_path / "reference.db")
    Store(empty).close()
    with open_storage(locate(empty)):
        pass
    assert not crashing(start, reference, -1, 3, [])
    expected = [(t.policy, t.state, t.values) for t in stored(reference)]
    for commit in itertools.count():
        storage, evaluated = str(shutil.copy(empty, tmp_path / f"{commit}.db")), []
        crashed = crashing(start, storage, commit, 3, evaluated)
        with Store(storage) as store:
            accepted = {t.number for run in store.runs() for t in store.trials(run) if t.state.is_final}
        before = len(evaluated)
        assert not crashing(start, storage, -1, 3, evaluated)
        check_consistent(storage, 3)
        assert [(t.policy, t.state, t.values) for t in stored(storage)] == expected
        # What was accepted is not evaluated again, and no more than the one evaluation in flight was in vain.
        assert not accepted & set(evaluated[before:])
        assert len(evaluated) <= 4
        if not crashed:
            break
    assert commit > 20


@pytest.mark.slow
def test_a_crash_while_the_tables_are_made_is_repaired(start: Open, tmp_path: Path) -> None:
    for commit in itertools.count():
        storage = str(tmp_path / f"{commit}.db")
        crashed = crashing(start, storage, commit, 1, [])
        assert not crashing(start, storage, -1, 1, [])
        assert stored(storage) == shown(storage) == []
        if not crashed:
            break
    assert commit > 5
