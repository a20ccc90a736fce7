from __future__ import annotations

import os
import signal
import sys
import threading
import weakref
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from tests.search.support.fakes import outcome
from tests.search.support.harness import Open
from varsearch.db import Store
from varsearch.errors import Interrupted
from varsearch.interrupts import kept_interrupts, postponed_interrupts
from varsearch.measurement import Job, Outcome
from varsearch.search.run.in_process import run_inline


class Target:
    """Something that can be referred to weakly."""


def lose(error: type[BaseException]) -> None:
    """Raises `error` where Python can only print it."""

    def callback(_: object) -> None:
        raise error

    target = Target()
    reference = weakref.ref(target, callback)
    del target
    assert reference() is None


def test_a_lost_interrupt_is_raised_at_the_next_check(capfd: pytest.CaptureFixture[str]) -> None:
    with kept_interrupts() as check:
        check()
        lose(KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            check()
    assert capfd.readouterr().err == ""


def test_other_errors_go_where_they_went(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_type))
    with kept_interrupts() as check:
        lose(ValueError)
        check()
    assert seen == [ValueError]
    lose(KeyboardInterrupt)
    assert seen == [ValueError, KeyboardInterrupt]


def interrupt(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_waits_for_the_end() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), postponed_interrupts():
        interrupt()
        done.append("work")
    assert done == ["work"]
    with pytest.raises(KeyboardInterrupt):
        interrupt()


def test_an_error_inside_comes_first() -> None:
    with pytest.raises(ValueError, match="work"), postponed_interrupts():
        interrupt()
        raise ValueError("work")


def test_who_ignores_the_signal_still_does() -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with postponed_interrupts():
            interrupt()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, previous)


def test_other_threads_get_no_signals() -> None:
    found: list[str] = []

    def work() -> None:
        with postponed_interrupts():
            found.append("work")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["work"]


class Fake:
    def evaluate(self, job: Job) -> Outcome:
        return outcome(job)


@pytest.mark.parametrize("write", [1, 2, 5, 20])
def test_an_interrupt_in_a_transaction_leaves_no_lock(start: Open, tmp_path: Path, write: int) -> None:
    broker, seen = start(), []

    def count(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith(("INSERT", "UPDATE")):
            seen.append(statement)
            if len(seen) == write:
                interrupt()

    event.listen(Engine, "after_cursor_execute", count)
    try:
        with pytest.raises(Interrupted):
            run_inline(lambda: broker, Fake, lambda _: None)
    finally:
        event.remove(Engine, "after_cursor_execute", count)
    with Store(tmp_path / "runs.db") as store:
        assert [run.status for run in store.runs()] == ["interrupted"]
