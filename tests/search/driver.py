"""Runs a search of fakes in a process of its own, so that tests can kill it.

python driver.py STORAGE LOG WORKERS BUDGET SECONDS
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from fakes import SEEDS, SPACE, FakeWorker, settings

from varsearch.errors import VarsearchError
from varsearch.search.progress import Progress
from varsearch.search.run import run


def show(progress: Progress) -> None:
    print(progress.trial.number, progress.trial.state, flush=True)


def main() -> None:
    storage, log, workers, budget, seconds = sys.argv[1:]
    make_worker = partial(FakeWorker, Path(log), float(seconds))
    try:
        run(
            settings(), SPACE, SEEDS, make_worker,
            storage=storage, budget=int(budget), workers=int(workers), on_event=show,
        )  # fmt: skip
    except VarsearchError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
