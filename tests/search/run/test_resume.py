"""A run goes on where it stopped, with what is known already, whatever died in between."""

from __future__ import annotations

import gc
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from sqlalchemy import Engine, event

from tests.search.support.fakes import DENSE, evidence, outcome, settings
from tests.search.support.harness import Open, check_consistent, drain, shown, stored, taken
from varsearch.db import State, Store
from varsearch.db.engine import locate
from varsearch.errors import EvaluationError, StoreError, UsageError
from varsearch.measurement import Outcome
from varsearch.search.core.optuna_study import open_storage


def test_evidence_of_half_an_outcome_is_kept(start: Open) -> None:
    first = start(budget=1)
    half = taken(first.lease("a"))
    with pytest.raises(EvaluationError, match="dense"):
        first.report(Outcome(number=half.number, quality=evidence("quality", half.policy)))
    first.close("interrupted")
    job = taken(start(settings(seed=1)).lease("a"))
    assert job.policy == DENSE
    assert job.quality is None and job.speed == settings().speed


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


def test_deaths_of_the_run_fail_no_trial(start: Open, tmp_path: Path) -> None:
    for _ in range(5):
        assert taken(start(budget=1).lease("a")).number == 0
    broker = start(budget=1)
    assert drain(broker) == [0]
    broker.close("finished")
    check_consistent(tmp_path / "runs.db", 1)
    assert stored(tmp_path / "runs.db")[0].state is State.COMPLETE


def test_a_lowered_budget_holds_for_interrupted_trials_too(start: Open, tmp_path: Path) -> None:
    first = start(budget=4)
    first.report(outcome(taken(first.lease("a"))))
    taken(first.lease("a"))
    first.close("interrupted")
    broker = start(budget=1)
    assert broker.lease("a") is None
    broker.close("finished")
    assert [t.state for t in stored(tmp_path / "runs.db")] == [State.COMPLETE, State.WAITING]


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
    leased = taken(again.lease("a"))
    # Its limit follows from the durations that this process has seen.
    assert leased.model_copy(update={"seconds": held.seconds}) == held
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
    assert job.quality is None and job.speed == speed


def test_a_name_with_other_settings_is_refused_and_its_driver_undisturbed(start: Open) -> None:
    first = start(name="mine")
    with pytest.raises(UsageError, match=r"run 'mine' has other settings \(seed was 0, is 1\)"):
        start(settings(seed=1), name="mine")
    assert drain(first) == [0, 1, 2, 3]


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


def extra(study: optuna.Study) -> None:
    study.ask()


def finished_twice(study: optuna.Study) -> None:
    """As a process does that slept between its write to the store and the one to the study."""
    study.add_trial(study.trials[-1])


def failed_meanwhile(study: optuna.Study) -> None:
    (trial_id,) = [t._trial_id for t in study.trials if t.state.name == "WAITING"]
    study._storage.set_trial_state_values(trial_id, optuna.trial.TrialState.FAIL)


def numbered_twice(study: optuna.Study) -> None:
    study.add_trial(study.trials[0])
    with study._storage._backend.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE trials SET number = 0")


@pytest.mark.parametrize("spoil", [extra, finished_twice, failed_meanwhile, numbered_twice])
def test_a_study_that_something_else_wrote_to_is_made_anew(
    start: Open, tmp_path: Path, spoil: Callable[[optuna.Study], None]
) -> None:
    broker = start(budget=2)
    broker.report(outcome(taken(broker.lease("a"))))
    assert taken(broker.lease("a")).number == 1
    broker.close("interrupted")
    with open_storage(locate(tmp_path / "runs.db")) as backend:
        study = optuna.load_study(study_name=settings().default_name, storage=backend)
        study.set_user_attr("note", "of the dashboard")
        spoil(study)
    broker = start(budget=3)
    assert drain(broker) == [1, 2]
    broker.close("finished")
    check_consistent(tmp_path / "runs.db", 3)
    with open_storage(locate(tmp_path / "runs.db")) as backend:
        study = optuna.load_study(study_name=settings().default_name, storage=backend)
        assert study.user_attrs == {"note": "of the dashboard"}
        assert study.metric_names == list(settings().objectives)


def test_a_study_that_is_lost_is_made_anew(start: Open, tmp_path: Path) -> None:
    broker = start(budget=2)
    drain(broker)
    broker.close("finished")
    with open_storage(locate(tmp_path / "runs.db")) as backend:
        optuna.delete_study(study_name=settings().default_name, storage=backend)
    start(budget=2).close("finished")
    check_consistent(tmp_path / "runs.db", 2)


def test_a_study_that_is_not_ours_is_left_alone(start: Open, tmp_path: Path) -> None:
    start(name="other").close("finished")
    with open_storage(locate(tmp_path / "runs.db")) as backend:
        optuna.create_study(study_name="mine", storage=backend).ask()
        with pytest.raises(UsageError, match="the database has an Optuna study 'mine' of something else"):
            start(name="mine")
        assert len(optuna.load_study(study_name="mine", storage=backend).trials) == 1
    with Store(tmp_path / "runs.db") as store:
        assert [run.name for run in store.runs()] == ["other"]


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
    """Runs until the crash or the end of the budget; whether it crashed. The second trial is an error."""
    listener, broker = crash_at(commit), None
    event.listen(Engine, "commit", listener)
    try:
        broker = start(storage=storage, budget=budget)
        while budget > 1 and (job := broker.lease("a")) is not None:
            evaluated.append(job.number)
            broker.report(Outcome(number=job.number, error="bad") if job.number == 1 else outcome(job))
        broker.close("finished")
    except Crash:
        crashed = True
    else:
        crashed = False
    event.remove(Engine, "commit", listener)
    # The locks of a killed process end with it.
    if broker is not None:
        broker.abandon()
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


def test_a_database_without_the_index_of_its_studies_is_repaired(start: Open, tmp_path: Path) -> None:
    """As `kill -9` leaves it between two statements of Optuna, and two continuations after that."""
    start(budget=1).close("interrupted")
    with open_storage(locate(tmp_path / "runs.db")) as backend, backend.engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX ix_studies_study_name")
        connection.exec_driver_sql("INSERT INTO studies (study_name) SELECT study_name FROM studies")
    for budget in (1, 2):
        broker = start(budget=budget)
        drain(broker)
        broker.close("finished")
    check_consistent(tmp_path / "runs.db", 2)


@pytest.mark.slow
def test_a_kill_at_any_statement_that_makes_tables_is_repaired(start: Open, tmp_path: Path) -> None:
    for statement in itertools.count():
        storage, count = str(tmp_path / f"{statement}.db"), itertools.count()

        def crash(
            _: object, __: object, text: str, *___: object, n: int = statement, count: itertools.count[int] = count
        ) -> None:
            if text.lstrip().startswith("CREATE") and next(count) == n:
                raise Crash

        event.listen(Engine, "before_cursor_execute", crash)
        try:
            start(storage=storage, budget=1).close("finished")
        except Crash:
            crashed = True
            gc.collect()
        else:
            crashed = False
        event.remove(Engine, "before_cursor_execute", crash)
        for _ in range(2):
            start(storage=storage, budget=1).close("finished")
        assert len(stored(storage)) == 0 == len(shown(storage))
        if not crashed:
            break
    assert statement > 20


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
