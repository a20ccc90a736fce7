"""The entry of the command line: errors as one line, from the first moment on."""

from __future__ import annotations

import sys
from contextlib import suppress

from varsearch.cli.streams import prepare, printable
from varsearch.errors import Interrupted, VarsearchError


def main(arguments: list[str] | None = None) -> int:
    """Runs a command and returns its exit code; deliberate errors are printed as one line on stderr."""
    try:
        from varsearch.cli.app import (
            call,
        )  # importing it takes a while, and Ctrl-C is understood by now

        return call(arguments)
    except VarsearchError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return _fail(Interrupted("interrupted"))


def _fail(error: VarsearchError) -> int:
    with suppress(OSError):  # nobody reads: the exit code still tells
        print(f"error: {printable(' '.join(str(error).splitlines()))}", file=sys.stderr)
    return error.exit_code


def entry() -> None:
    """The installed `varsearch` command."""
    prepare()
    sys.exit(main())
