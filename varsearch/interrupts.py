"""Ctrl-C that neither gets lost nor comes at a bad moment."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def kept_interrupts() -> Iterator[Callable[[], None]]:
    """Yields a function that raises `KeyboardInterrupt` if Python has dropped one.

    An exception in a finalizer or in a weak reference's callback is printed and forgotten; where it is Ctrl-C, the
    programme would go on.
    """
    lost = False
    previous = sys.unraisablehook

    def keep(unraisable: Any) -> None:
        nonlocal lost
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            lost = True
        else:
            previous(unraisable)

    def check() -> None:
        if lost:
            raise KeyboardInterrupt

    sys.unraisablehook = keep
    try:
        yield check
    finally:
        sys.unraisablehook = previous


@contextmanager
def postponed_interrupts() -> Iterator[None]:
    """Ctrl-C inside is raised at the end.

    In the middle of a transaction its traceback would hold cursors, and through them the lock on an SQLite database.
    Whoever has other plans for the signal, or ignores it, keeps them.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came = False

    def note(_: int, __: FrameType | None) -> None:
        nonlocal came
        came = True

    try:
        previous = signal.signal(signal.SIGINT, note)
    except ValueError:  # another thread than the main one gets no signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if came:
        raise KeyboardInterrupt
