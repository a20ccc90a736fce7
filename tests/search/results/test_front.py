from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.search.support.fakes import DENSE, SPACE, STARTS, FakeWorker, settings
from tests.search.support.harness import front_of
from tests.search.support.trials import with_values
from varsearch.db import State, Store, TrialRecord
from varsearch.errors import StoreError, UsageError
from varsearch.measurement import Evidence, Measurement
from varsearch.policy import Policy
from varsearch.search.core.objectives import front_trials, front_volume, relative_costs
from varsearch.search.core.settings import RunSettings
from varsearch.search.results.front import Front, read_front
from varsearch.search.results.selection import select
from varsearch.search.run.driver import run

BASE = {"fid": 4.0, "delta_fid": 0.0, "latency_ms": 100.0, "peak_bytes": 1e6, "speedup": 1.0, "feature_distance": 0.0}


TRIALS = [
    with_values(0, delta_fid=0.0, latency_ms=100.0, peak_bytes=1e6),
    with_values(1, delta_fid=0.5, latency_ms=50.0, peak_bytes=5e5),
    with_values(2, delta_fid=0.6, latency_ms=60.0, peak_bytes=5e5),
    with_values(3, delta_fid=90.0, latency_ms=40.0, peak_bytes=1e5),
]


def numbers(trials: list[TrialRecord]) -> list[int]:
    return [trial.number for trial in trials]


def test_dominated_and_infeasible_and_failed_trials_are_left_out() -> None:
    assert numbers(front_trials(settings(), TRIALS)) == [0, 1, 3]
    assert numbers(front_trials(settings(bounds={"delta_fid": 1.0}), TRIALS)) == [0, 1]
    failed = [*TRIALS[:3], replace(TRIALS[3], state=State.FAIL)]
    assert numbers(front_trials(settings(), failed)) == [0, 1]


def test_a_complete_trial_without_its_numbers_is_damage() -> None:
    with pytest.raises(StoreError, match="trial 9 is stored as complete, but the evaluation gave no peak_bytes"):
        front_trials(settings(), [*TRIALS, with_values(9, delta_fid=0.0, latency_ms=1.0)])


def test_an_infeasible_trial_dominates_nothing() -> None:
    bounded = settings(bounds={"peak_bytes": 2e5}, objectives=("delta_fid", "latency_ms"))
    better = with_values(4, delta_fid=0.0, latency_ms=1.0, peak_bytes=3e5)
    assert numbers(front_trials(bounded, [*TRIALS, better])) == [3]


def test_costs_are_relative_to_dense() -> None:
    objectives = ("latency_ms", "delta_fid", "speedup")
    values = {"latency_ms": 50.0, "delta_fid": 1.0, "speedup": 2.0}
    assert relative_costs(settings(objectives=objectives), values, BASE) == (0.5, 0.25, 0.5)
    assert relative_costs(settings(objectives=objectives), BASE, BASE) == (1.0, 0.0, 1.0)


def test_better_than_dense_by_noise_is_no_gain_and_unscaled_metrics_count_by_one() -> None:
    chosen = settings(objectives=("delta_fid", "feature_distance"))
    assert relative_costs(chosen, {"delta_fid": -0.3, "feature_distance": 0.7}, BASE) == (0.0, 0.7)


def test_less_of_what_is_to_be_maximized_always_costs_more() -> None:
    chosen, dense = settings(objectives=("label_agreement",)), {"label_agreement": 0.99}
    costs = [relative_costs(chosen, {"label_agreement": share}, dense)[0] for share in (0.99, 0.5, 0.1, 0.01, 0.0)]
    assert costs[0] == 1 and costs == sorted(costs) and costs[-1] > costs[-2]
    assert relative_costs(chosen, {"label_agreement": 0.3}, {"label_agreement": 0.0}) == (1.0,)


def test_volume_of_dense_and_of_half_the_cost() -> None:
    chosen = settings(objectives=("latency_ms", "peak_bytes"))
    assert front_volume(chosen, [BASE], BASE) == pytest.approx(0.1 * 0.1 / 1.1**2)
    half = {"latency_ms": 50.0, "peak_bytes": 5e5}
    assert front_volume(chosen, [BASE, half], BASE) == pytest.approx(0.6 * 0.6 / 1.1**2)
    assert front_volume(chosen, [{"latency_ms": 111.0, "peak_bytes": 1.0}], BASE) == 0


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Front:
    path = tmp_path_factory.mktemp("front") / "runs.db"
    status = run(settings(), SPACE, STARTS, FakeWorker, storage=path, budget=20)
    with Store(path) as store:
        found = read_front(store, store.run(status.run))
        trials = {t.number: t for t in store.trials(store.run(status.run))}
    assert tuple(sorted(entry.number for entry in found.entries)) == status.front
    assert all(entry.policy == trials[entry.number].policy for entry in found.entries)
    assert found.hypervolume == status.hypervolume
    return found


def test_entries_have_all_metrics_with_their_intervals(front: Front) -> None:
    assert front.dense is not None
    assert front.dense.policy == DENSE
    assert front.dense.origin == "seed:dense"
    for entry in front.entries:
        assert list(entry.metrics) == ["fid", "delta_fid", "latency_ms", "speedup", "peak_bytes"]
        m = entry.metrics["delta_fid"]
        assert entry == front.dense or (m.value - (m.low or 0.0), m.n) == (pytest.approx(0.1), 2)


def test_selections(front: Front) -> None:
    def values(metric: str) -> list[float]:
        return [entry.value(metric) for entry in front.entries]

    assert select(front, "fastest").value("speedup") == max(values("speedup")) > 1
    assert select(front, "smallest").value("peak_bytes") == min(values("peak_bytes"))
    assert select(front, "best-quality").value("delta_fid") == min(values("delta_fid")) == 0.0
    limit = sorted(values("latency_ms"))[2]
    chosen = select(front, f"max-latency={limit}ms")
    within = [entry for entry in front.entries if entry.value("latency_ms") <= limit]
    assert len(within) > 1
    assert chosen.value("delta_fid") == min(entry.value("delta_fid") for entry in within)


@pytest.mark.parametrize("text", ["max-memory=900000", "max-memory=900000B", "max-memory=900kB", "max-memory=0.9MB"])
def test_memory_takes_units(front: Front, text: str) -> None:
    assert select(front, text).value("peak_bytes") <= 9e5
    assert select(front, text) == select(front, "max-memory=0.0009GB")


def test_knee_does_not_move_with_an_absurd_end_of_the_front() -> None:
    def knee(trials: list[TrialRecord]) -> int:
        with_dense = [replace(trials[0], origin="seed:dense"), *trials[1:]]
        return select(_front(with_dense), "knee").number

    assert knee(TRIALS[:3]) == knee(TRIALS) == 1


def test_selections_of_a_front_of_costs_alone() -> None:
    speeds = ((40.0, 9e5, 2.5), (50.0, 5e5, 2.0), (100.0, 1e5, 1.0))
    made = [with_values(i, latency_ms=ms, peak_bytes=b, speedup=s) for i, (ms, b, s) in enumerate(speeds)]
    trials = [replace(trial, quality=None, speed=trial.quality) for trial in made]
    dense = replace(trials[0], origin="seed:dense")
    front = _front([dense, *trials[1:]], settings(quality=None, objectives=("latency_ms", "peak_bytes")))
    assert [entry.number for entry in front.entries] == [0, 1, 2]

    def chosen(how: str) -> int:
        return select(front, how).number

    assert (chosen("fastest"), chosen("smallest")) == (0, 2)
    assert (chosen("max-latency=60ms"), chosen("max-memory=0.6MB")) == (1, 1), "the least of the other cost"
    assert (chosen("max-latency=1000ms"), chosen("max-memory=1GB")) == (2, 0)
    assert chosen("knee") == 1
    with pytest.raises(UsageError, match="the run did not evaluate quality: select knee"):
        chosen("best-quality")


def _front(trials: list[TrialRecord], chosen: RunSettings | None = None) -> Front:
    fid = Measurement(metric="fid", value=4.0)
    return front_of([replace(t, quality=_add(t.quality, fid)) if t.quality else t for t in trials], chosen)


def _add(quality: Evidence | None, measurement: Measurement) -> Evidence:
    assert quality is not None
    return quality.model_copy(update={"measurements": (*quality.measurements, measurement)})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nicest", "unknown selection 'nicest': expected one of knee, fastest"),
        ("trial", "unknown selection 'trial': .*trial=NUMBER"),
        ("max-latency=", "unknown selection"),
        ("max-latency=-1", "unknown selection"),
        ("max-latency=1GB", "unknown selection"),
        ("max-memory=5ms", "unknown selection"),
        ("max-latency=1", "no policy on the front has latency_ms of 1 or less: the least is"),
    ],
)
def test_senseless_selections_are_refused(front: Front, how: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        select(front, how)


def test_an_empty_front_and_a_missing_metric_say_so(front: Front, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the run has no evaluated trial yet"):
        select(replace(front, entries=(), complete=0), "knee")
    with pytest.raises(UsageError, match=f"the front is empty: none of {front.complete} trials met all bounds"):
        select(replace(front, entries=()), "knee")
    with pytest.raises(UsageError, match="which has no numbers"):
        select(replace(front, dense=None), "knee")
    with pytest.raises(UsageError, match="has no nll: it has fid"):
        front.entries[0].value("nll")


def test_a_run_without_dense_has_no_volume(tmp_path: Path) -> None:
    starts: dict[str, Policy] = {"seed:w8": STARTS["seed:w8"]}
    status = run(settings(), SPACE, starts, FakeWorker, storage=tmp_path / "runs.db", budget=2)
    assert status.hypervolume is None
    assert status.front
