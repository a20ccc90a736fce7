from __future__ import annotations

import random
from statistics import NormalDist

import pytest

from tests.search.support.fakes import DENSE, settings
from tests.search.support.trials import COSTS, Z_95, between, judged, trial
from varsearch.db import TrialRecord
from varsearch.measurement import Measurement
from varsearch.search.core.dominance import chances
from varsearch.search.core.objectives import front_trials


def test_without_errors_it_is_the_front() -> None:
    rng = random.Random(0)
    chosen = settings(bounds={"peak_bytes": 0.8})
    trials = []
    for i in range(60):
        values = {"delta_fid": rng.random(), "latency_ms": rng.random(), "peak_bytes": rng.random()}
        trials.append(trial(i, *(Measurement(metric=name, value=value) for name, value in values.items())))
    trials.append(trial(60, *trials[0].quality.measurements, *trials[0].speed.measurements))  # type: ignore[union-attr]
    on_front = {t.number for t in front_trials(chosen, trials)}
    assert chances(chosen, trials) == [float(t.number in on_front) for t in trials]
    assert 5 < len(on_front) < 40


def test_two_policies_a_standard_deviation_apart() -> None:
    """The cheaper one is on the front for certain; the other one if it is truly better in quality."""
    found = chances(COSTS, [judged(0, 5.0, 0.3, 60.0), judged(1, 5.5, 0.4, 50.0), judged(2, 6.0, 0.4, 61.0)])
    expected = NormalDist().cdf(0.5 / (0.3**2 + 0.4**2) ** 0.5)
    assert found == pytest.approx([expected, 1.0, 0.0], abs=0.08)


def test_a_loss_that_may_be_none_ties_with_dense() -> None:
    dense = trial(0, between("delta_fid", 0.0, 0.0), Measurement(metric="latency_ms", value=100.0))
    assert chances(COSTS, [dense, judged(1, 0.0, 0.3, 90.0)]) == pytest.approx([0.5, 1.0], abs=0.08)
    # Losses below 0 count as none: of the two, the dearer one is better only where the other one loses something.
    found = chances(COSTS, [dense, judged(1, 0.0, 0.3, 90.0), judged(2, 0.0, 0.3, 80.0)])
    assert found == pytest.approx([1 / 4, 3 / 8, 1.0], abs=0.07)


def test_bounds_count() -> None:
    bounded = settings(objectives=("delta_fid", "latency_ms"), bounds={"delta_fid": 1.0})
    near, far = judged(0, 1.3, 0.3, 50.0), judged(1, 0.4, 0.1, 60.0)
    expected = NormalDist().cdf(-1)
    assert chances(bounded, [near, far]) == pytest.approx([expected, 1.0], abs=0.06)


def test_what_breaks_a_bound_dominates_nothing() -> None:
    bounded = settings(objectives=("delta_fid", "latency_ms"), bounds={"speedup": 2.0})

    def timed(number: int, latency: float, speedup: float, error: float) -> TrialRecord:
        exact = (Measurement(metric=name, value=latency) for name in ("delta_fid", "latency_ms"))
        return trial(number, *exact, between("speedup", speedup, Z_95 * error))

    # The first is better in everything, and half of the time out of bounds.
    assert chances(bounded, [timed(0, 50.0, 2.0, 0.1), timed(1, 60.0, 2.5, 0.0)]) == pytest.approx([0.5, 0.5], abs=0.08)


def test_quartiles_of_a_latency_are_no_interval() -> None:
    """A median of 100 rounds is known about ten times as well as one round."""

    def timed(number: int, latency: float) -> TrialRecord:
        exact = Measurement(metric="delta_fid", value=1.0)
        return trial(number, exact, between("latency_ms", latency, 6.745, n=100))  # a standard deviation of 10 ms

    found = chances(COSTS, [timed(0, 50.0), timed(1, 52.0)])
    expected = NormalDist().cdf(2 / (2 * 1.2533**2) ** 0.5)
    assert found == pytest.approx([expected, 1 - expected], abs=0.06)


def test_metrics_of_the_same_images_are_lucky_together() -> None:
    chosen = settings(objectives=("delta_fid", "label_agreement"))

    def lucky(number: int, delta: float, agreement: float) -> TrialRecord:
        return trial(number, between("delta_fid", delta, 1.96), between("label_agreement", agreement, 0.0196))

    # Where the draw gives the first a loss 1.5 higher, it gives it a share 0.015 lower.
    found = chances(chosen, [lucky(0, 5.0, 0.95), lucky(1, 5.0, 0.95)])
    assert found == pytest.approx([0.5, 0.5], abs=0.08), (
        "independent metrics would leave both on the front half of the time"
    )


def test_what_lacks_a_number_has_no_chance_and_later_trials_change_no_draw() -> None:
    some = [judged(0, 5.0, 0.3, 60.0), judged(1, 5.5, 0.4, 50.0)]
    more = [*some, TrialRecord(2, DENSE, "sampler"), judged(3, 9.0, 0.1, 70.0)]
    assert chances(COSTS, more) == [*chances(COSTS, some), 0.0, 0.0]
    assert chances(COSTS, []) == []
