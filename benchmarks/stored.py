"""The run that a benchmark reads: `--storage FILE [--run NAME]`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from varsearch.db import RunRecord, Store
from varsearch.search.results.runs import find_run


def parser(description: str | None) -> argparse.ArgumentParser:
    """Takes the arguments that name a run; `description` is for `--help`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--storage", default="varsearch.db")
    made.add_argument("--run", default=None)
    return made


@contextmanager
def stored_run(asked: argparse.Namespace) -> Iterator[tuple[Store, RunRecord]]:
    """The database and the run that the arguments name."""
    with Store(asked.storage, create=False) as store:
        yield store, find_run(store, asked.run)
