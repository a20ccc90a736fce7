from __future__ import annotations

import sys
import weakref

import pytest

from varsearch.search.interrupt import kept_interrupts


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
