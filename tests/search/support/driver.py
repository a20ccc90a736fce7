"""Runs a search of fakes in a process of its own, so that tests can kill it.

python driver.py STORAGE LOG WORKERS BUDGET HOLD [broken|deadly|full|hangs|other|HOST:PORT]
"""

from __future__ import annotations

import resource
import sys
from functools import partial
from pathlib import Path

from tests.search.support.fakes import OTHER, SPACE, STARTS, FakeWorker, Hanging, broken, deadly, settings
from varsearch.errors import VarsearchError
from varsearch.search.run.driver import run
from varsearch.search.run.events import Progress
from varsearch.search.setup.initial_design import initial_design
from varsearch.search.setup.transfer import transfer


def show(progress: Progress) -> None:
    print(progress.trial.number, progress.trial.state, flush=True)


def main() -> None:
    storage, log, workers, budget, hold, *kind = sys.argv[1:]
    address = kind[0] if kind and ":" in kind[0] else None
    fake = partial(FakeWorker, Path(log), int(hold), int(workers))
    hanging = partial(Hanging, Path(log))
    make_worker = {"broken": broken, "deadly": deadly, "hangs": hanging}.get("".join(kind), fake)
    chosen, starts = settings(), STARTS
    if kind == ["other"]:
        chosen = settings(speed=OTHER)
        starts = initial_design(STARTS, transfer(chosen, chosen.default_name, storage).policies)
    if kind == ["full"]:
        # Larger files cannot be written, as on a full disk. Python ignores the signal that would end the process.
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))
    try:
        run(
            chosen, SPACE, starts, make_worker,
            storage=storage, budget=int(budget), workers=int(workers), on_event=show,
            ray_address=address, max_seconds=5.0 if kind == ["hangs"] else None,
        )  # fmt: skip
    except VarsearchError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
