"""The front of confirmed numbers, and what is said before there are any."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from scipy.stats import t as student

from tests.search.support.fakes import SPACE, STARTS, FakeWorker, luck, numbers, outcome, settings
from tests.search.support.harness import confirm, forget_confirmation, stored
from varsearch.cli.main import main
from varsearch.db import Store
from varsearch.measurement import Job, Origin, Outcome
from varsearch.search.core.objectives import front_trials, front_volume
from varsearch.search.core.protocols import Protocols, confirming
from varsearch.search.core.settings import RunSettings
from varsearch.search.core.source import DENSE
from varsearch.search.results.baselines import baselines
from varsearch.search.results.claims import confirmation_summary, headline, regression_to_the_mean, shortfall
from varsearch.search.results.finalists import finalists
from varsearch.search.results.front import Front, read_front
from varsearch.search.results.runs import overview, pick
from varsearch.search.results.selection import select
from varsearch.search.run.driver import run

PRESETS = {f"preset:{n}": SPACE.decode(dict.fromkeys(SPACE.knobs, 0) | {"bits3": n}) for n in (1, 3)}


def search(path: Path, chosen: RunSettings) -> Path:
    run(chosen, SPACE, {**STARTS, **PRESETS}, FakeWorker, storage=path, budget=25, name="run")
    forget_confirmation(path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return search(tmp_path_factory.mktemp("front") / "runs.db", settings())


@pytest.fixture
def storage(finished: Path, tmp_path: Path) -> Path:
    path = tmp_path / "runs.db"
    path.write_bytes(finished.read_bytes())
    return path


def front_in(storage: Path) -> Front:
    with Store(storage) as store:
        return read_front(store, store.run("run"))


def test_before_anything_is_confirmed_there_are_candidates(storage: Path) -> None:
    trials = stored(storage)
    for jobs in (0, 1):  # the first is dense
        confirm(storage, jobs=jobs)
        front = front_in(storage)
        assert not front.confirmed and front.optimism is None
        assert front.protocols == Protocols.of(settings()) == front.entries[0].protocols
        assert {e.number for e in front.entries} == {t.number for t in front_trials(settings(), trials)}
        assert headline(front).startswith(f"{len(front.entries)} candidates, NOT confirmed (the same command again")
        assert regression_to_the_mean(front) == "" == shortfall(front)
        assert front.unconfirmed == len(finalists(settings(), trials)) - jobs


def test_a_confirmed_front_is_what_fresh_numbers_leave(storage: Path) -> None:
    before, trials = front_in(storage), stored(storage)
    confirm(storage)
    front, chosen = front_in(storage), settings()
    fresh = {t.number: numbers(t.policy, seed=1) for t in finalists(chosen, trials)}
    assert front.confirmed and front.protocols == confirming(chosen) and not front.unconfirmed
    best = [
        n
        for n, values in fresh.items()
        if not any(_beats(chosen.losses(other), chosen.losses(values)) for other in fresh.values())
    ]
    assert {e.number for e in front.entries} == set(best) != {e.number for e in before.entries}
    for entry in (*front.entries, *front.presets, front.dense):
        assert entry is not None
        assert entry.value("delta_fid") == pytest.approx(fresh[entry.number]["delta_fid"])
        assert entry.is_confirmed
    assert len(front.presets) == len(baselines(front)) == 2
    assert front.dense is not None
    assert front.hypervolume == front_volume(chosen, [fresh[n] for n in best], front.dense.values)
    assert headline(front) == f"{len(best)} confirmed on 8 fresh images"
    assert select(front, "best-quality").value("delta_fid") == min(fresh[n]["delta_fid"] for n in best)


def test_status_and_files_say_what_is_not_confirmed(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def listed() -> str:
        assert main(["status", "--storage", str(storage)]) == 0
        return capsys.readouterr().out

    assert f"{len(front_in(storage).entries)} candidates" in listed()
    confirm(storage)
    assert "candidates" not in listed()


def test_a_bound_on_fid_keeps_its_distance_to_dense(tmp_path: Path) -> None:
    """FID of more images is lower for all policies, and what the bound left out must not come back by that."""
    free = search(tmp_path / "free.db", settings())
    losses = sorted(t.values["fid"] for t in stored(free))
    limit = losses[len(losses) // 2]
    storage = search(tmp_path / "bound.db", settings(bounds={"fid": limit}))

    def lower(job: Job) -> Outcome:
        found = outcome(job)
        assert found.quality is not None
        shifted = (
            m.model_copy(update={"value": m.value / (2 if m.metric == "fid" else 1)})
            for m in found.quality.measurements
        )
        return found.model_copy(update={"quality": found.quality.model_copy(update={"measurements": tuple(shifted)})})

    dense = next(t.values["fid"] for t in stored(storage) if t.origin == DENSE)
    confirm(storage, lower)
    front = front_in(storage)
    assert front.confirmed and front.dense is not None
    assert front.settings.bounds["fid"] == pytest.approx(limit + front.dense.value("fid") - dense)
    assert all(entry.value("fid") <= front.settings.bounds["fid"] for entry in front.entries)


def _beats(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def test_regression_to_the_mean(storage: Path) -> None:
    confirm(storage)
    front, trials = front_in(storage), stored(storage)
    wanted = finalists(settings(), trials)
    members = {t.number for t in front_trials(settings(), trials)}
    changes = [luck(t.policy) for t in trials if t in wanted and t.number in members and t.origin != DENSE]
    assert front.optimism is not None
    (change,) = front.optimism.changes
    half = student.ppf(0.975, len(changes) - 1) * statistics.stdev(changes) / len(changes) ** 0.5
    assert (change.metric, change.n, front.optimism.trials) == ("delta_fid", len(changes), len(changes))
    mean = statistics.fmean(changes)
    assert (change.value, change.low, change.high) == pytest.approx((mean, mean - half, mean + half))
    dense = next(t for t in trials if t.origin == DENSE)
    claimed = front_volume(settings(), [t.values for t in front_trials(settings(), wanted)], dense.values)
    assert front.optimism.claimed == pytest.approx(claimed)
    told = regression_to_the_mean(front)
    assert f"ΔFID changed by {mean:+.2f} [" in told and f"average over {len(changes)} policies of its front" in told
    assert f"hypervolume {claimed:.3f} was claimed by the finalists, {front.hypervolume:.3f} is confirmed" in told


def test_measured_speed_regresses_too(tmp_path: Path) -> None:
    measured = settings().speed.model_copy(update={"origin": Origin.MEASURED, "repeats": 9})
    chosen = settings(speed=measured, quality=None, objectives=("speedup", "peak_bytes"))

    def slower(job: Job) -> Outcome:
        found = outcome(job)
        assert found.speed is not None
        less = (m.model_copy(update={"value": m.value * 0.9}) for m in found.speed.measurements)
        return found.model_copy(update={"speed": found.speed.model_copy(update={"measurements": tuple(less)})})

    storage = search(tmp_path / "runs.db", chosen)
    assert headline(front_in(storage)).endswith("(the same command again confirms, without --no-confirm)")
    confirm(storage, slower)
    front = front_in(storage)
    assert headline(front) == f"{len(front.entries)} confirmed in 27 fresh timed rounds"
    assert front.optimism is not None
    (change,) = front.optimism.changes
    assert change.metric == "speedup" and change.value < -0.1
    assert "speed-up changed by -0." in regression_to_the_mean(front)


def test_part_of_the_finalists_is_a_front_that_says_so(storage: Path) -> None:
    total = confirm(storage, jobs=6).total
    front = front_in(storage)
    assert front.confirmed and front.unconfirmed == total - 6 and len(front.entries) <= 6
    assert shortfall(front).startswith(f"finalists without confirmed numbers, which are left out here: {total - 6}")
    told = regression_to_the_mean(front)
    assert "ΔFID changed by" in told and "hypervolume" not in told


def test_a_finalist_that_fails_is_not_on_the_front(storage: Path) -> None:
    victim = next(e.number for e in front_in(storage).entries if e.origin != DENSE)

    def failing(job: Job) -> Outcome:
        return Outcome(number=job.number, error="no memory") if job.number == victim else outcome(job)

    assert confirm(storage, failing).failed == {victim: "no memory"}
    front = front_in(storage)
    assert front.confirmed and front.unconfirmed == 1 and victim not in {e.number for e in front.entries}
    with Store(storage) as store:
        record = store.run("run")
        entry = pick(store, record, front, f"trial={victim}")
        assert entry.protocols == Protocols.of(settings()) and not entry.is_confirmed
        other = pick(store, record, front, f"trial={front.entries[0].number}")
        assert other == front.entries[0]


def test_bounds_hold_for_confirmed_numbers(tmp_path: Path) -> None:
    chosen = settings(bounds={"delta_fid": 0.3})
    storage = search(tmp_path / "runs.db", chosen)
    candidates = front_in(storage)
    confirm(storage)
    front = front_in(storage)
    assert any(e.value("delta_fid") + luck(e.policy) > 0.3 for e in candidates.entries), "else this says nothing"
    assert front.entries and all(e.value("delta_fid") <= 0.3 for e in front.entries)
    assert front.best_values["delta_fid"] == 0.0


def test_without_dense_what_is_confirmed_is_no_front(storage: Path) -> None:
    def no_dense(job: Job) -> Outcome:
        return Outcome(number=job.number, error="no") if job.number == 0 else outcome(job)

    confirm(storage, no_dense)
    front = front_in(storage)
    assert not front.confirmed and front.unconfirmed == 1 and front.dense is not None


def test_exact_numbers_need_no_confirmation(tmp_path: Path) -> None:
    storage = search(tmp_path / "runs.db", settings(quality=None, objectives=("latency_ms", "peak_bytes")))
    front = front_in(storage)
    assert front.exact and front.confirmed and not front.unconfirmed and front.optimism is None
    assert headline(front) == f"{len(front.entries)} on the front"


def test_a_summary_for_optuna_and_the_list_of_runs(storage: Path) -> None:
    confirm(storage)
    front = front_in(storage)
    summary = confirmation_summary(front)
    assert summary["front"] == headline(front) and summary["hypervolume"] == front.hypervolume
    assert len(summary["policies on the front"]) == len(front.entries)
    assert summary["policies on the front"][0].startswith(f"trial {front.entries[0].number} (")
    assert "regression to the mean: from" in summary["regression to the mean"]
    (row,) = overview(str(storage))
    assert (row["confirmed"], row["front"], row["hypervolume"]) == (True, len(front.entries), front.hypervolume)
