"""Standard output and error as every command finds them: open, and at odds with no character."""

from __future__ import annotations

import io
import os
import sys
from typing import TextIO


class Output(io.TextIOWrapper):
    """Standard output that may lose its reader, as to `head`: the command goes on, and the rest is thrown away.

    Any other failure, such as a full disk, is raised once.
    """

    def write(self, text: str) -> int:
        """Writes `text`."""
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Writes what is buffered."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        # What is still buffered would fail again when the interpreter ends, and change the exit code.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        if not isinstance(error, BrokenPipeError):
            raise error


def prepare() -> None:
    """Opens what the shell closed (`>&-`); standard output becomes an `Output` that replaces what it cannot encode."""
    old = sys.stdout
    if old is None:
        sys.stdout = _nowhere()
    elif isinstance(old, io.TextIOWrapper):
        sys.stdout = Output(old.buffer, old.encoding, "replace", None, old.line_buffering, old.write_through)
    if sys.stderr is None:
        sys.stderr = _nowhere()


def _nowhere() -> TextIO:
    # Takes the number that the shell closed, which would go to the database otherwise.
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def printable(text: str) -> str:
    """`text` with control characters as escapes: names that come from files must not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
