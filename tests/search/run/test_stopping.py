"""A search ends when patience is spent, and an interrupted one where it would have ended."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.search.support.fakes import SPACE, STARTS, FakeWorker, outcome, settings
from tests.search.support.harness import Open, drain, stored, taken
from varsearch.cli.progress import ProgressLines
from varsearch.errors import UsageError
from varsearch.search.run.driver import run
from varsearch.search.run.stopping import GROWTH, Limits


def noted(patience: int | None, *volumes: float | None, starts: int = 1, cost: float = 1.0) -> Limits:
    limits = Limits(1000, patience=patience)
    for i, volume in enumerate(volumes):
        limits.note(volume, 1 + i * cost, start=i < starts)
    return limits


@pytest.mark.parametrize(
    ("patience", "volumes", "plateau"),
    [
        (2, (0.5, 0.5), False),
        (2, (0.5, 0.5, 0.5), True),
        (2, (0.5, 0.5, 0.5 * (1 + 2 * GROWTH)), False),
        (2, (0.5, 0.5, 0.5 * (1 + GROWTH / 2)), True),
        (3, (0.5, *(0.5 * (1 + GROWTH / 2 * i) for i in range(1, 9))), False),
        (2, (0.0, 0.0, 0.0), True),
        (2, (0.0, 0.0, 1e-9), False),
        (2, (None, None, None), False),
        (None, (0.5,) * 50, False),
    ],
)
def test_a_plateau_is_no_growth_over_so_many_evaluations(
    patience: int | None, volumes: tuple[float | None, ...], plateau: bool
) -> None:
    limits = noted(patience, *volumes)
    assert limits.plateau is plateau and limits.allow(0) is not plateau


def test_what_a_search_starts_from_is_tried_in_any_case() -> None:
    assert not noted(2, *(0.5,) * 9, starts=9).plateau
    assert not noted(2, *(0.5,) * 10, starts=9).plateau
    assert noted(2, *(0.5,) * 11, starts=9).plateau


def test_trials_that_were_stopped_early_count_by_their_share() -> None:
    assert not noted(2, *(0.5,) * 16, cost=1 / 8).plateau
    assert noted(2, *(0.5,) * 17, cost=1 / 8).plateau
    assert not noted(2, *(0.5,) * 9, *(0.6,) * 8, cost=1 / 8).plateau


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": 0}, "the budget must be at least 1 trial, got 0"),
        ({"budget": 1, "minutes": math.nan}, "the time must be a positive number of minutes"),
        ({"budget": 1, "patience": 0}, "the patience must be at least 1 evaluation, got 0"),
    ],
)
def test_limits_that_leave_nothing_are_refused(given: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Limits(**given)


PATIENCE = 6


def end_of(path: Path, **limits: int | None) -> int:
    """The evaluations of a run once it has ended."""
    status = run(settings(), SPACE, STARTS, FakeWorker, storage=path, **limits)
    assert status.plateau is (status.evaluated < limits["budget"])
    return status.evaluated


def test_an_interrupted_run_ends_where_it_would_have_and_a_larger_patience_goes_on(start: Open, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.db", tmp_path / "parts.db"
    end = end_of(whole, budget=80, patience=PATIENCE)
    assert len(STARTS) + PATIENCE <= end < 80
    assert end_of(whole, budget=80, patience=PATIENCE) == end, "the same command again evaluates nothing"

    killed = start(storage=parts, budget=80, patience=PATIENCE)
    for _ in range(end - 2):
        killed.report(outcome(taken(killed.lease("a"))))
    taken(killed.lease("a"))  # and is killed while it is evaluated
    assert len(drain(start(storage=parts, budget=80, patience=PATIENCE))) == 2
    assert [t.policy for t in stored(parts)] == [t.policy for t in stored(whole)]

    assert end_of(parts, budget=end + 5, patience=None) == end + 5
    assert end_of(tmp_path / "without.db", budget=end + 5, patience=None) == end + 5
    assert [t.policy for t in stored(parts)] == [t.policy for t in stored(tmp_path / "without.db")]


def test_the_end_says_that_patience_was_spent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = {"budget": 80, "patience": 1}
    status = run(settings(), SPACE, STARTS, FakeWorker, storage=tmp_path / "runs.db", **limits)
    ProgressLines("x.db", 1, patience=limits["patience"]).on_end(status)
    told = capsys.readouterr().out
    assert status.plateau and "did not grow in the last 1 evaluations; a larger --patience, or none, goes on" in told
    assert f"{status.evaluated} evaluated" in told
