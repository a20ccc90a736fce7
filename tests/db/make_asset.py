"""Dumps a small database of the current schema, for the tests of later ones.

PYTHONPATH=. python tests/db/make_asset.py > tests/db/assets/NUMBER.sql, once per schema, before it is released.
"""

from __future__ import annotations

import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

from samples import CALIBRATION, COSTS, QUALITY, RUN, SENSITIVITY, SPEED, W8, trial

from varsearch.db import State, Store


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.db"
        with Store(path) as store:
            run = store.claim(RUN)
            store.save(QUALITY)
            store.save(SPEED)
            store.save_calibration(CALIBRATION)
            store.save_profile(SENSITIVITY)
            store.save_profile(COSTS)
            store.write(run, replace(trial(0), state=State.COMPLETE, attempts=1, cost=1.0, worker="a"))
            store.write(
                run, replace(trial(1, W8), origin="sampler", state=State.FAIL, error="why", attempts=3, cost=1.0)
            )
            store.leave(run, "interrupted")
        for line in sqlite3.connect(path).iterdump():
            print(line)


if __name__ == "__main__":
    main()
