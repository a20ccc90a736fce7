"""What early looks cost, and what becomes of a trial between two of them."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.search.support.harness import Open, stored
from tests.search.support.looks import MANY, RUNGS, WHOLE, climb
from varsearch.db import State
from varsearch.search.setup.transfer import transfer

BUDGET = 22


def test_what_was_drawn_before_an_interruption_is_spent(start: Open, tmp_path: Path) -> None:
    whole = start(WHOLE, starts=MANY, budget=BUDGET, rungs=RUNGS, name="whole", storage=tmp_path / "whole.db")
    seen = climb(whole)
    expected = stored(tmp_path / "whole.db")
    stopped = next(t.number for t in expected if t.state is State.STOPPED)
    broker = start(WHOLE, starts=MANY, budget=BUDGET, rungs=RUNGS)
    climb(broker, jobs=1 + max(i for i, (number, _) in enumerate(seen) if number == stopped))
    broker.close("interrupted")  # after the outcome of its last rung, before anything was made of it
    broker = start(WHOLE, starts=MANY, budget=BUDGET, rungs=RUNGS)
    climb(broker)
    assert [(t.policy, t.state, t.cost) for t in stored(tmp_path / "runs.db")] == [
        (t.policy, t.state, t.cost) for t in expected
    ]
    assert broker.status().reused == 0
    assert transfer(WHOLE, WHOLE.default_name, tmp_path / "runs.db").taken == broker.status().spent


def test_a_trial_that_has_begun_climbs_on_after_the_deadline(
    start: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    broker = start(WHOLE, starts=MANY, budget=BUDGET, rungs=RUNGS, minutes=1)
    climb(broker, jobs=5)
    now += 61
    assert [number for number, _ in climb(broker)] == [1, 1, 1]
    broker.close("finished")
    assert [t.state for t in stored(tmp_path / "runs.db")] == [State.COMPLETE] * 2
