"""Optuna and its dashboard show what our tables say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import optuna_dashboard
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import Engine, event

from tests.search.support.fakes import DENSE, SPACE, STARTS, evidence, settings
from varsearch.db import State, TrialRecord
from varsearch.db.engine import locate
from varsearch.errors import StoreError
from varsearch.models import zoo
from varsearch.policy import Quantization
from varsearch.search.core.optuna_study import StudyView, open_storage
from varsearch.space import SearchSpace
from varsearch.space.settings import Setting, compose

BOUNDED = settings(bounds={"delta_fid": 0.1, "latency_ms": 99.0})
W8 = STARTS["seed:w8"]


def complete(number: int, **changes: Any) -> TrialRecord:
    policy = (DENSE, W8)[number]
    quality, speed = (evidence(kind, policy) for kind in ("quality", "speed"))
    trial = TrialRecord(number, policy, "seed:dense", State.COMPLETE, attempts=1, quality=quality, speed=speed)
    return replace(trial, **changes)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[RDBStorage]:
    with open_storage(locate(tmp_path / "runs.db")) as opened:
        yield opened


@pytest.fixture
def view(storage: RDBStorage) -> StudyView:
    return StudyView("run", storage, BOUNDED, SPACE)


def test_a_trial_is_shown_through_all_its_states(view: StudyView) -> None:
    trial = replace(complete(0), quality=None, speed=None)
    for state in (State.WAITING, State.RUNNING, State.WAITING, State.RUNNING, State.FAIL):
        view.show(replace(trial, state=state, error="no memory" if state is State.FAIL else ""))
        (shown,) = view.study.get_trials()
        assert shown.state.name == state.name
    assert shown.user_attrs["error"] == "no memory"
    assert shown.values is None
    assert shown.datetime_start is not None and shown.datetime_complete is not None


def test_a_complete_trial_shows_all_there_is_to_know(view: StudyView) -> None:
    view.show(complete(0))
    view.show(replace(complete(1), state=State.RUNNING))
    view.show(complete(1))
    dense, w8 = view.study.get_trials()
    assert view.study.metric_names == ["delta_fid", "latency_ms", "peak_bytes"]
    assert [direction.name for direction in view.study.directions] == ["MINIMIZE"] * 3
    assert dense.values == [0.0, 100.0, 1e6]
    assert w8.values == [0.32, 98.4, 840_000.0]
    assert w8.params == SPACE.nearest(W8)
    assert w8.user_attrs == {
        "origin": "seed:dense",
        "policy": "weights 8-bit x2",
        "digest": W8.digest,
        "speed": "predicted",
        "fid": 4.32,
        "delta_fid": 0.32,
        "latency_ms": 98.4,
        "speedup": 100.0 / 98.4,
        "peak_bytes": 840_000.0,
    }


@pytest.mark.parametrize("through_running", [False, True])
def test_optuna_knows_what_is_feasible(view: StudyView, through_running: bool) -> None:
    feasible = settings(bounds={"delta_fid": 0.1})
    view._settings = feasible
    for number in (0, 1):
        if through_running:
            view.show(replace(complete(number), state=State.RUNNING))
        view.show(complete(number))
    dense, w8 = view.study.get_trials()
    assert dense.constraints == {"0": -1.0}
    assert w8.constraints == {"0": pytest.approx(2.2)}
    # W8 is smaller and faster than dense, so only its infeasibility keeps it out.
    assert [trial.number for trial in view.study.best_trials] == [0]


def test_the_dashboard_reports_the_infeasible_trial(view: StudyView, storage: RDBStorage) -> None:
    for number in (0, 1):
        view.show(complete(number))
    app = optuna_dashboard.wsgi(storage)
    environ: dict[str, Any] = {"PATH_INFO": f"/api/studies/{view._study_id}", "QUERY_STRING": "after=0"}
    setup_testing_defaults(environ)
    answers: list[str] = []
    body = json.loads(b"".join(app(environ, lambda status, headers, error=None: answers.append(status))))
    assert answers == ["200 OK"]
    dense, w8 = body["trials"]
    assert dense["constraints"] == pytest.approx([-1.0, 1 / 99])
    assert w8["constraints"] == pytest.approx([2.2, -0.6 / 99])
    assert body["objective_names"] == ["delta_fid", "latency_ms", "peak_bytes"]
    attributes = {attr["key"]: attr["value"] for attr in w8["user_attrs"]}
    assert attributes["policy"] == "weights 8-bit x2"


def test_without_bounds_there_are_no_constraints(storage: RDBStorage) -> None:
    view = StudyView("free", storage, settings(), SPACE)
    view.show(complete(0))
    assert view.study.get_trials()[0].constraints == {}


def test_many_knobs_cost_one_transaction(view: StudyView) -> None:
    commits: list[object] = []
    count = commits.append
    event.listen(Engine, "commit", count)
    try:
        view.show(replace(complete(0), state=State.RUNNING))
    finally:
        event.remove(Engine, "commit", count)
    assert len(commits) == 1


def test_showing_again_changes_nothing_and_continues_in_another_process(storage: RDBStorage, view: StudyView) -> None:
    view.show(complete(0))
    view.show(replace(complete(1), state=State.RUNNING))
    again = StudyView("run", storage, BOUNDED, SPACE)
    assert again.size == 2
    again.show(replace(complete(0), state=State.FAIL, error="late"))
    again.show(complete(1))
    assert [trial.state for trial in again.study.get_trials()] == [TrialState.COMPLETE] * 2
    assert "error" not in again.study.get_trials()[0].user_attrs


def test_optuna_tables_of_another_version_are_one_line(tmp_path: Path) -> None:
    url = locate(tmp_path / "runs.db")
    with open_storage(url) as storage, storage.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v0.9.0.a'")
    with pytest.raises(StoreError, match=r"runs\.db: The runtime optuna version") as caught, open_storage(url):
        pass
    assert "\n" not in str(caught.value)


def test_optuna_stays_silent(view: StudyView) -> None:
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING


def test_a_policy_that_no_knobs_say_is_shown_with_what_differs(storage: RDBStorage) -> None:
    spec = zoo.manifest("mnist").spec()
    space = SearchSpace(spec)
    view = StudyView("edited", storage, settings(), space)
    chosen = [Setting("bits", Quantization(bits=4), layer=2, part="proj"), Setting("guidance", 4)]
    for number, policy in enumerate((compose(spec, chosen), compose(spec, chosen[1:]))):
        view.show(TrialRecord(number, policy, "surrogate", State.RUNNING))
    edited, plain = view.study.get_trials()
    assert edited.user_attrs["edited"] == "L2.proj"
    assert edited.params["unguided_scales"] == 2
    assert "edited" not in plain.user_attrs and space.decode(plain.params) == compose(spec, chosen[1:])
