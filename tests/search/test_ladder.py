"""What the rungs of stopped and of running trials say, number by number."""

from __future__ import annotations

import pytest

from tests.search.fakes import SPACE, SPEED
from tests.search.test_fidelity import MANY, RUNGS, WHOLE, known
from varsearch.db import State, TrialRecord
from varsearch.measurement import Evidence, Measurement
from varsearch.policy import Policy
from varsearch.search.fidelity import Ladder
from varsearch.search.rungs import rungs_of
from varsearch.search.settings import RunSettings


def early(policy: Policy, delta: float, rung: int = 1) -> Evidence:
    return known("quality", policy, protocol=RUNGS[rung].protocol.digest).model_copy(
        update={"measurements": (Measurement(metric="delta_fid", value=delta, n=64),)}
    )


def ladder_of(chosen: RunSettings = WHOLE, noise: float = 0.0) -> tuple[Ladder, list[TrialRecord]]:
    """Whole trials that climbed two rungs, and a stopped one that did, whose ΔFID looked like 3."""
    ladder, trials = Ladder(chosen, rungs_of(chosen, SPEED, 64)), []
    for number, (origin, policy) in enumerate(MANY.items()):
        quality, speed = known("quality", policy), known("speed", policy)
        trials.append(TrialRecord(number, policy, origin, State.COMPLETE, quality=quality, speed=speed))
        ladder.note(number, 0, speed)
        delta = quality.values["delta_fid"]
        ladder.note(number, 1, early(policy, -delta if noise else delta))
    policy = SPACE.decode(dict.fromkeys(SPACE.knobs, 1))
    ladder.note(len(trials), 0, known("speed", policy))
    ladder.note(len(trials), 1, early(policy, 3.0))
    stopped = TrialRecord(len(trials), policy, "sampler", State.STOPPED, "", 1, speed=known("speed", policy))
    return ladder, [*trials, stopped]


def test_what_a_useless_rung_said_is_taken_back() -> None:
    """Or a run that is continued, which never heard it, would propose something else."""
    ladder, trials = ladder_of()
    (estimate,) = ladder.estimates(trials)
    assert estimate.values["delta_fid"] == pytest.approx(3.0)
    ladder, trials = ladder_of(noise=1.0)
    assert ladder.estimates(trials) == [trials[-1]]


def test_a_run_that_is_continued_without_rungs_keeps_what_was_stopped() -> None:
    _, trials = ladder_of()
    ladder = Ladder(WHOLE, ())
    assert (ladder.standing(trials), ladder.estimates(trials)) == ((), [])
