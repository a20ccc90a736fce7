"""What the rungs of stopped and of running trials say, number by number."""

from __future__ import annotations

import pytest

from tests.search.support.fakes import SPACE, SPEED, STARTS, evidence
from tests.search.support.looks import MANY, RUNGS, WHOLE, known
from varsearch.db import State, TrialRecord
from varsearch.measurement import Evidence, Measurement
from varsearch.policy import Policy
from varsearch.search.core.dominance import standard_error
from varsearch.search.core.settings import RunSettings
from varsearch.search.run.pruner import PAIRS, Link, Pruner, final_number
from varsearch.search.run.rungs import rungs_of


def early(policy: Policy, delta: float, rung: int = 1) -> Evidence:
    return known("quality", policy, protocol=RUNGS[rung].protocol.digest).model_copy(
        update={"measurements": (Measurement(metric="delta_fid", value=delta, n=64),)}
    )


def pruner_of(chosen: RunSettings = WHOLE, noise: float = 0.0) -> tuple[Pruner, list[TrialRecord]]:
    """Whole trials that climbed two rungs, and a stopped one that did, whose ΔFID looked like 3."""
    pruner, trials = Pruner(chosen, rungs_of(chosen, SPEED, 64)), []
    for number, (origin, policy) in enumerate(MANY.items()):
        quality, speed = known("quality", policy), known("speed", policy)
        trials.append(TrialRecord(number, policy, origin, State.COMPLETE, quality=quality, speed=speed))
        pruner.learn(number, speed)
        delta = quality.values["delta_fid"]
        pruner.learn(number, early(policy, -delta if noise else delta))
    policy = SPACE.decode(dict.fromkeys(SPACE.knobs, 1))
    pruner.learn(len(trials), known("speed", policy))
    pruner.learn(len(trials), early(policy, 3.0))
    stopped = TrialRecord(len(trials), policy, "sampler", State.STOPPED, "", 1, speed=known("speed", policy))
    return pruner, [*trials, stopped]


def test_what_a_useless_rung_said_is_taken_back() -> None:
    """Or a run that is continued, which never heard it, would propose something else."""
    pruner, trials = pruner_of()
    (estimate,) = pruner.estimates(trials)
    assert estimate.values["delta_fid"] == pytest.approx(3.0)
    pruner, trials = pruner_of(noise=1.0)
    assert pruner.estimates(trials) == [trials[-1]]


def test_a_run_that_is_continued_without_rungs_keeps_what_was_stopped() -> None:
    _, trials = pruner_of()
    pruner = Pruner(WHOLE, ())
    assert (pruner.standing(trials), pruner.estimates(trials)) == ((), [])


def reach(pruner: Pruner, trials: list[TrialRecord], policy: Policy, speed: Evidence) -> list[TrialRecord]:
    """The trials, with a running one that climbed the rung of costs."""
    pruner.learn(len(trials), speed)
    return [*trials, TrialRecord(len(trials), policy, "sampler", State.RUNNING, speed=speed)]


def test_costs_that_are_known_are_not_rounded() -> None:
    """What is slower than dense and needs the very same memory saves nothing."""
    policy, dense = SPACE.decode(dict.fromkeys(SPACE.knobs, 1)), STARTS["seed:dense"]

    def costs(of: Policy, latency: float, peak: float) -> Evidence:
        values = {"latency_ms": latency, "peak_bytes": peak}
        return known("speed", of, measurements=[Measurement(metric=m, value=v) for m, v in values.items()])

    for peak in (1e6 + i for i in range(20)):
        quality, speed = evidence("quality", dense), costs(dense, 100.0, peak)
        trials = [TrialRecord(0, dense, "seed:dense", State.COMPLETE, quality=quality, speed=speed)]
        pruner = Pruner(WHOLE, RUNGS)
        reason = pruner.reason_to_stop(1, reach(pruner, trials, policy, costs(policy, 101.0, peak)))
        assert "0% probability" in reason


def test_the_error_of_measured_latency_is_that_of_its_link() -> None:
    link = Link(1.0, 0.0, 0.01, 1.0, PAIRS)
    dense = TrialRecord(0, STARTS["seed:dense"], "seed:dense", quality=known("quality", STARTS["seed:dense"]))
    for metric in ("latency_ms", "peak_bytes"):
        assert standard_error(final_number(metric, link, 100.0, dense)) == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("objectives", [("delta_fid", "latency_ms"), ("fid", "latency_ms")])
def test_no_trial_is_given_up_for_its_quality_before_any_image(objectives: tuple[str, ...]) -> None:
    """Even where dense breaks the bound: what is cheapest may be within it."""
    pruner, trials = pruner_of(WHOLE.model_copy(update={"bounds": {"fid": 3.9}, "objectives": objectives}))
    policy = SPACE.decode(dict.fromkeys(SPACE.knobs, 1) | {"bits0": 4})
    fast = known("speed", policy, measurements=[Measurement(metric=m, value=1.0) for m in ("latency_ms", "peak_bytes")])
    trials = reach(pruner, trials, policy, fast)
    assert pruner.reason_to_stop(len(trials) - 1, trials) == ""


def test_a_dense_model_at_no_distance_stops_nothing_by_mistake() -> None:
    pruner, trials = pruner_of()
    exact = [Measurement(metric="fid", value=0.0), Measurement(metric="delta_fid", value=0.0)]
    trials[0] = trials[0].with_evidence(known("quality", trials[0].policy, measurements=exact))
    (estimate,) = pruner.estimates(trials)
    assert estimate.values["delta_fid"] == pytest.approx(3.0)
