"""After the search the broker hands out finalists, on Ray to all workers, and an interruption loses nothing of it."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from tests.search.support.fakes import QUALITY, SPEED, STARTS, evidence, outcome, settings
from tests.search.support.harness import Open, taken
from varsearch.db import Store
from varsearch.db.engine import locate
from varsearch.measurement import Job, Origin, Outcome
from varsearch.search.core.optuna_study import open_storage
from varsearch.search.core.protocols import confirming
from varsearch.search.results.front import read_front
from varsearch.search.run.broker import Broker
from varsearch.search.run.events import Confirmed


def is_final(job: Job) -> bool:
    return job.quality is not None and job.quality.seed != QUALITY.seed


def confirmed(broker: Broker, most: int | None = None) -> list[int]:
    """Evaluates until there are no more jobs, or so many finalists; the numbers of these."""
    numbers = []
    while (most is None or len(numbers) < most) and (job := broker.lease("a")) is not None:
        numbers += [job.number] if is_final(job) else []
        assert broker.report(outcome(job))
    return numbers


def test_finalists_come_after_the_last_trial(start: Open, tmp_path: Path) -> None:
    broker = start(budget=4, confirm=True)
    numbers = confirmed(broker)
    assert numbers[0] == 0 and set(broker.status().front) <= set(numbers)
    told = [e for e in broker.events() if isinstance(e, Confirmed)]
    assert [e.trial.number for e in told] == numbers
    assert [(e.done, e.total) for e in told] == [(i + 1, len(numbers)) for i in range(len(numbers))]
    assert all(e.again.quality and e.trial.quality and e.again.quality != e.trial.quality for e in told)
    broker.close("finished")
    with Store(tmp_path / "runs.db") as store:
        front = read_front(store, store.runs()[0])
    assert front.confirmed and front.unconfirmed == 0
    with open_storage(locate(tmp_path / "runs.db")) as backend:
        told = optuna.load_study(study_name=front.settings.default_name, storage=backend).user_attrs
    assert told["hypervolume"] == front.hypervolume and len(told["policies on the front"]) == len(front.entries)


def test_quality_that_is_confirmed_already_is_told_beside_fresh_speed(start: Open, tmp_path: Path) -> None:
    timed = SPEED.model_copy(update={"origin": Origin.MEASURED, "repeats": 5})
    chosen = settings(speed=timed)
    fresh = confirming(chosen).quality
    assert fresh is not None
    broker = start(chosen, budget=2, confirm=True)
    with Store(tmp_path / "runs.db") as store:
        for policy in STARTS.values():
            store.save(evidence("quality", policy, fresh.seed, protocol=fresh.digest))
    confirmed(broker)
    told = [e.again for e in broker.events() if isinstance(e, Confirmed)]
    assert len(told) == 2 and all(t.quality and t.quality.protocol == fresh.digest for t in told)
    broker.close("finished")


def test_a_worker_that_waits_takes_part(start: Open) -> None:
    broker = start(budget=2, confirm=True)
    jobs = [taken(broker.lease(worker)) for worker in "ab"]
    broker.report(outcome(jobs[0]))
    assert broker.lease("a") is None and not broker.is_over
    broker.report(outcome(jobs[1]))
    finals = [taken(broker.lease(worker)) for worker in "ab"]
    assert all(map(is_final, finals)) and finals[0].number != finals[1].number


def test_interrupted_it_goes_on_with_what_is_missing(start: Open) -> None:
    whole = confirmed(start(budget=4, confirm=True))
    assert len(whole) > 2
    again = start(budget=4, confirm=True)
    assert again.lease("a") is None and again.is_over


def test_killed_between_two_finalists_nothing_is_repeated(start: Open) -> None:
    first = start(budget=4, confirm=True)
    seen = confirmed(first, most=2)
    held = taken(first.lease("a"))
    second = start(budget=4, confirm=True)
    rest = confirmed(second)
    assert rest[0] == held.number and not set(rest) & set(seen)


def test_a_lost_worker_s_finalist_is_handed_out_again_and_fails_in_the_end(start: Open) -> None:
    broker = start(budget=2, confirm=True)
    while not is_final(job := taken(broker.lease("a"))):
        broker.report(outcome(job))
    for _ in range(2):
        broker.lost("a")
        assert taken(broker.lease("a")).number == job.number
    broker.lost("a")
    told = [e for e in broker.events() if isinstance(e, Confirmed)]
    assert len(told) == 1 and "lost 3 times" in told[0].error
    assert job.number not in confirmed(broker)


def test_a_late_answer_to_a_final_counts_and_one_of_the_search_does_not(start: Open) -> None:
    broker = start(budget=2, confirm=True)
    searched = []
    while not is_final(job := taken(broker.lease("a"))):
        searched.append(job)
        broker.report(outcome(job))
    broker.lost("a")
    old = next(other for other in searched if other.number == job.number)
    assert not broker.report(outcome(old)), "the trial has its outcome, and this confirms nothing"
    assert broker.report(outcome(job))
    told = [e for e in broker.events() if isinstance(e, Confirmed)]
    assert [(e.trial.number, e.error) for e in told] == [(job.number, "")]
    assert job.number not in confirmed(broker)


@pytest.mark.parametrize("bad", ["error", "missing"])
def test_a_finalist_that_fails_is_told_and_not_repeated(start: Open, bad: str) -> None:
    broker = start(budget=2, confirm=True)
    while not is_final(job := taken(broker.lease("a"))):
        broker.report(outcome(job))
    assert broker.report(Outcome(number=job.number, error="out of memory" if bad == "error" else ""))
    assert job.number not in confirmed(broker)
    first = next(e for e in broker.events() if isinstance(e, Confirmed))
    assert first.error


def test_more_budget_searches_on_and_confirms_what_is_new(start: Open) -> None:
    first = confirmed(start(budget=3, confirm=True))
    second = start(budget=6, confirm=True)
    assert not is_final(taken(second.lease("a")))
    assert not set(confirmed(second)) & set(first)
