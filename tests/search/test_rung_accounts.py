"""What early looks cost, and what becomes of a trial between two of them."""

from __future__ import annotations

from pathlib import Path

from tests.search.harness import Open, stored
from tests.search.test_fidelity import MANY, RUNGS, WHOLE, climb
from varsearch.db import State

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
