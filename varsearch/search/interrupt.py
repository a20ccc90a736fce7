"""Ctrl-C that cannot get lost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
