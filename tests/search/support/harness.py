"""Driving a broker, and reading what it left."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna

from tests.search.support.fakes import SPACE, outcome, settings
from varsearch.db import RunRecord, State, Store, TrialRecord
from varsearch.db.engine import locate
from varsearch.measurement import Job, Outcome
from varsearch.search.core.optuna_study import open_storage
from varsearch.search.core.settings import RunSettings
from varsearch.search.results.front import Front, read_front
from varsearch.search.run.broker import Broker
from varsearch.search.run.reevaluation import Reevaluation

Open = Callable[..., Broker]


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
        assert other.params == SPACE.nearest(mine.policy)
        assert other.user_attrs["digest"] == mine.policy.digest
        values = [mine.values[name] for name in settings().objectives] if mine.state is State.COMPLETE else None
        assert other.values == values
        assert {k: other.user_attrs[k] for k in mine.values} == mine.values


def front_of(trials: Sequence[TrialRecord], chosen: RunSettings | None = None) -> Front:
    """The front of a run with these trials, of which no finalist was confirmed."""

    class Kept:
        def trials(self, run: RunRecord) -> list[TrialRecord]:
            # The record names no protocol; that of confirmed quality is asked for by its own.
            return [replace(t, quality=None, speed=None) if run.quality_protocol else t for t in trials]

    return read_front(Kept(), RunRecord("r", "m", "f", "", "", (chosen or settings()).model_dump_json()))  # type: ignore[arg-type]


def forget_confirmation(storage: Path) -> None:
    """Leaves only evidence under the protocols that the runs searched under."""
    own = "select quality_protocol from run union select speed_protocol from run"
    with closing(sqlite3.connect(storage)) as connection:
        connection.execute("pragma foreign_keys = on")
        connection.execute(f"delete from evidence where protocol not in ({own})")
        connection.commit()


def confirm(storage: str | Path, evaluate: Callable[[Job], Outcome] = outcome, jobs: int = 10**9) -> Reevaluation:
    """Confirms the finalists of the oldest run, at most so many of them."""
    with Store(storage) as store:
        run = store.runs()[0]
        finals = Reevaluation(RunSettings.parse(run.settings), store, run)
        finals.start(store.trials(run))
        while jobs and (job := finals.lease("a")) is not None:
            finals.report(evaluate(job))
            jobs -= 1
    return finals
