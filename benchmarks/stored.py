"""The run that a benchmark reads: `--storage FILE [--run NAME]`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from varsearch.db import RunRecord, Store
from varsearch.search.overview import find_run


@contextmanager
def stored_run(description: str | None, given: Sequence[str] | None) -> Iterator[tuple[Store, RunRecord]]:
    """The database and the run that the arguments name; `description` is for `--help`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", default="varsearch.db")
    parser.add_argument("--run", default=None)
    asked = parser.parse_args(given)
    with Store(asked.storage, create=False) as store:
        yield store, find_run(store, asked.run)
