"""Finalists on fresh noise: who they are, what is asked for, what an interruption leaves, what counts as an answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.search.support.fakes import (
    DENSE,
    QUALITY,
    SPACE,
    SPEED,
    STARTS,
    FakeWorker,
    luck,
    numbers,
    outcome,
    settings,
)
from tests.search.support.harness import confirm, forget_confirmation, stored, taken
from tests.search.support.trials import COSTS, judged
from varsearch.db import RunRecord, State, Store, TrialRecord
from varsearch.measurement import Job, Origin, Outcome
from varsearch.policy import Policy
from varsearch.search.core.dominance import chances, domination
from varsearch.search.core.objectives import front_trials
from varsearch.search.core.protocols import Protocols, answered, confirming, under
from varsearch.search.core.settings import RunSettings
from varsearch.search.core.source import SourceKind
from varsearch.search.results.finalists import ALIKE, CHALLENGERS, NEAR, finalists
from varsearch.search.run.driver import run
from varsearch.search.run.queue import ATTEMPTS
from varsearch.search.run.reevaluation import Reevaluation

MEASURED = SPEED.model_copy(update={"origin": Origin.MEASURED, "repeats": 9})
PRESETS = {f"preset:{n}": SPACE.decode(dict.fromkeys(SPACE.knobs, 0) | {"bits3": n}) for n in (1, 3)}


def searched(storage: Path, chosen: RunSettings | None = None, budget: int = 14, name: str = "run") -> RunSettings:
    """A finished search, of which nothing is confirmed."""
    chosen = chosen or settings()
    run(chosen, SPACE, {**STARTS, **PRESETS}, FakeWorker, storage=storage, budget=budget, name=name)
    forget_confirmation(storage)
    return chosen


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("confirm") / "runs.db"
    searched(path)
    return path


@pytest.fixture
def storage(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished search of its own."""
    path = tmp_path / "runs.db"
    path.write_bytes(finished.read_bytes())
    return path


@pytest.fixture
def begun(storage: Path) -> Iterator[Reevaluation]:
    """The confirmation of that search, at its start."""
    with Store(storage) as store:
        found = Reevaluation(settings(), store, store.run("run"))
        found.start(store.trials(store.run("run")))
        yield found


def answer(finals: Reevaluation) -> list[int]:
    """Evaluates until nothing is left; the trials' numbers."""
    done = []
    while (job := finals.lease("a")) is not None:
        assert finals.report(outcome(job)) and job.number not in finals.failed
        done.append(job.number)
    return done


def test_fresh_protocols() -> None:
    quality, speed = confirming(settings(speed=MEASURED))
    assert quality is not None
    assert (quality.n_images, speed.repeats) == (4 * QUALITY.n_images, 27)
    assert quality.seed != QUALITY.seed and quality.model_copy(update={"seed": 0, "n_images": 2}) == QUALITY
    assert speed.model_copy(update={"repeats": 9}) == MEASURED
    assert confirming(settings()).speed == SPEED, "a prediction has no noise"
    costs = settings(quality=None, objectives=("latency_ms", "peak_bytes"))
    assert confirming(costs) == Protocols.of(costs) and confirming(settings()) != Protocols.of(settings())


def test_finalists_are_dense_the_front_what_is_near_it_and_published_systems() -> None:
    dense = replace(judged(0, 0.0, 0.0, 100.0), origin="seed:dense")
    preset = replace(judged(1, 9.0, 0.1, 99.0), origin="preset:worse")
    better, cheaper, near, far = judged(2, 1.0, 0.1, 60.0), judged(3, 2.0, 0.1, 50.0), judged(4, 1.02, 0.1, 62.5), 5
    trials = [dense, preset, better, cheaper, near, judged(far, 2.0, 0.1, 63.0)]
    failed = replace(judged(6, 0.5, 0.1, 10.0), state=State.FAIL)
    assert [t.number for t in finalists(COSTS, [*trials, failed])] == [0, 2, 3, 4, 1]
    assert [t.number for t in front_trials(COSTS, [*trials, failed])] == [0, 2, 3]
    assert chances(COSTS, trials)[4] >= NEAR > chances(COSTS, trials)[far]
    assert finalists(COSTS, []) == []


def test_of_a_crowd_the_likeliest_on_the_front_is_confirmed_and_what_aims_at_a_published_system() -> None:
    dense = replace(judged(0, 0.0, 0.0, 100.0), origin="seed:dense")
    crowd = [judged(i, 1.0 + 0.001 * i, 0.1, 50.0 + 0.1 * i) for i in (3, 1, 2)]
    apart = judged(4, 1.0, 0.1, 50.0 - 101 * ALIKE)
    trials = [dense, *crowd, apart]
    found = {t.number for t in finalists(COSTS, trials)}
    chance = dict(zip([t.number for t in trials], chances(COSTS, trials), strict=True))
    best = max((1, 2, 3), key=lambda number: chance[number])
    assert sum(chance[number] >= NEAR for number in (1, 2, 3)) >= 2, "otherwise the crowd is thinned by its chances"
    assert found == {0, best, 4}
    fastest = judged(5, 1.0, 0.1, 49.9 - 0.4)
    assert 5 in {t.number for t in finalists(COSTS, [*trials[:-1], fastest])}, "the end of the front stays"
    aimed = [replace(t, origin=SourceKind.BASELINE) if t in crowd else t for t in trials]
    missed = replace(judged(6, 3.0, 0.1, 90.0), origin=SourceKind.BASELINE)
    expected = {t.number for t in trials if chance[t.number] >= NEAR} | {1, 2, 3, 6}
    assert {t.number for t in finalists(COSTS, [*aimed, missed])} == expected
    bounded = COSTS.model_copy(update={"bounds": {"delta_fid": 2.0}})
    assert 6 not in {t.number for t in finalists(bounded, [*aimed, missed])}


def test_with_each_published_system_what_may_dominate_it_is_confirmed() -> None:
    """Even where something else leaves no chance to be on the front."""
    dense = replace(judged(0, 0.0, 0.0, 100.0), origin="seed:dense")
    preset = replace(judged(1, 1.0, 0.1, 80.0), origin="preset:one")
    hidden = [judged(i, 0.9 + 0.01 * i, 0.1, 79.0) for i in range(2, 2 + CHALLENGERS + 2)]
    best = judged(9, 0.2, 0.0, 20.0)
    trials = [dense, preset, *hidden, best, judged(10, 5.0, 0.1, 79.0)]
    chance = dict(zip([t.number for t in trials], chances(COSTS, trials), strict=True))
    assert max(chance[t.number] for t in hidden) < NEAR
    found = [t.number for t in finalists(COSTS, trials)]
    assert found[:3] == [0, 9, 1] and set(found[3:]) == {2, 3}, "the best counts as one of the challengers"
    strong = replace(judged(1, 0.5, 0.05, 20.5), origin="preset:one")
    cheap, able = judged(9, 5.0, 0.0, 10.0), judged(11, 0.65, 0.05, 20.2)
    challenged = [dense, strong, *hidden, cheap, able, judged(12, 0.55, 0.0, 20.1)]
    shares = domination(COSTS, [t.metrics for t in challenged], strong.metrics)
    assert shares[-3] == 0 < shares[-2] < 0.05 < shares[-1]
    assert chances(COSTS, challenged)[-2] < NEAR
    assert 11 in {t.number for t in finalists(COSTS, challenged)}, "what cannot dominate it takes no one's place"
    bounded = COSTS.model_copy(update={"bounds": {"delta_fid": 0.5}})
    assert [t.number for t in finalists(bounded, trials)] == [0, 9, 1]


def test_every_finalist_is_evaluated_once_under_the_fresh_protocols(begun: Reevaluation, storage: Path) -> None:
    trials = stored(storage)
    wanted = [t.number for t in finalists(settings(), trials)]
    assert begun.left == begun.total == len(wanted)
    jobs = [taken(begun.lease(f"w{i}")) for i in range(len(wanted))]
    assert begun.lease("late") is None and begun.left == len(wanted)
    assert [job.number for job in jobs] == wanted
    fresh = confirming(settings())
    for job in jobs:
        assert (job.policy, job.quality, job.speed) == (trials[job.number].policy, fresh.quality, None)
        assert begun.report(outcome(job)) and not begun.report(outcome(job))
    assert (begun.left, begun.total, begun.failed) == (0, len(wanted), {})
    for trial in known(storage):
        assert trial.values["delta_fid"] == numbers(trial.policy)["delta_fid"] + luck(trial.policy)
    assert [t.number for t in known(storage)] == sorted(wanted)


def known(storage: Path, chosen: RunSettings | None = None) -> list[TrialRecord]:
    fresh = confirming(chosen or settings())
    with Store(storage) as store:
        return [t for t in under(store, store.run("run"), fresh) if answered(t, fresh)]


def test_an_interrupted_confirmation_asks_only_for_the_rest(storage: Path) -> None:
    first = confirm(storage, jobs=4)
    assert first.left == first.total - 4
    second = confirm(storage)
    assert (second.total, second.left, len(known(storage))) == (first.total, 0, first.total)
    with Store(storage) as store:
        third = Reevaluation(settings(), store, store.run("run"))
        third.start(stored(storage))
        assert (third.lease("a"), third.left, third.total) == (None, 0, first.total)


def test_what_another_run_confirmed_counts(storage: Path) -> None:
    searched(storage, settings(seed=7), name="other")
    confirm(storage)
    with Store(storage) as store:
        other = Reevaluation(settings(seed=7), store, store.run("other"))
        trials = store.trials(store.run("other"))
        other.start(trials)
        both = {t.policy for t in known(storage)} & {t.policy for t in finalists(settings(seed=7), trials)}
        assert len(both) >= 4 and other.left == other.total - len(both)


def test_measured_speed_is_measured_again(storage: Path) -> None:
    chosen = settings(speed=MEASURED, objectives=("delta_fid", "speedup", "peak_bytes"))
    blind = settings(speed=MEASURED, quality=None, objectives=("speedup", "peak_bytes"))
    for name, settled in (("both", chosen), ("speed", blind)):
        searched(storage, settled, name=name, budget=4)
        with Store(storage) as store:
            found = Reevaluation(settled, store, store.run(name))
            found.start(store.trials(store.run(name)))
            job = taken(found.lease("a"))
            assert (job.quality, job.speed) == confirming(settled)
            assert found.report(outcome(job)) and found.failed == {}


def test_predicted_costs_alone_leave_nothing_to_confirm(storage: Path) -> None:
    costs = settings(quality=None, objectives=("latency_ms", "peak_bytes"))
    searched(storage, costs, name="costs", budget=6)
    with Store(storage) as store:
        found = Reevaluation(costs, store, store.run("costs"))
        found.start(store.trials(store.run("costs")))
        assert found.total > 0 == found.left and found.lease("a") is None


def test_a_lost_worker_puts_its_job_back_and_three_are_too_many(begun: Reevaluation) -> None:
    job = taken(begun.lease("a"))
    for _ in range(ATTEMPTS - 1):
        begun.lost("a")
        begun.lost("a")
        assert begun.lease("a") == job
    assert begun.failed == {}
    begun.lost("a")
    assert "lost 3 times" in begun.failed[job.number] and job.number not in answer(begun)
    assert (begun.left, begun.lease("a")) == (0, None)


def test_an_answer_that_comes_late_is_taken_once(begun: Reevaluation) -> None:
    job = taken(begun.lease("a"))
    begun.lost("a")
    assert begun.waits_for(outcome(job)) and begun.report(outcome(job))
    assert not begun.waits_for(outcome(job)) and not begun.report(outcome(job))
    assert job.number not in answer(begun)


def other_protocol(job: Job) -> Outcome:
    return outcome(job.model_copy(update={"quality": QUALITY}))


def other_policy(job: Job) -> Outcome:
    return outcome(job.model_copy(update={"policy": Policy.dense(3, 3)}))


def not_finite(job: Job) -> Outcome:
    found = outcome(job)
    assert found.quality is not None
    odd = found.quality.measurements[0].model_copy(update={"value": float("inf")})
    return found.model_copy(update={"quality": found.quality.model_copy(update={"measurements": (odd,)})})


def without_the_objective(job: Job) -> Outcome:
    found = outcome(job)
    assert found.quality is not None
    return found.model_copy(
        update={"quality": found.quality.model_copy(update={"measurements": found.quality.measurements[:1]})}
    )


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda job: Outcome(number=job.number, error="no memory"), "no memory"),
        (lambda job: Outcome(number=job.number), "gave no delta_fid"),
        (other_protocol, "another policy, model or protocol"),
        (other_policy, "another policy, model or protocol"),
        (not_finite, "fid = inf"),
        (without_the_objective, "gave no delta_fid"),
    ],
)
def test_an_answer_that_confirms_nothing(wrong: object, words: str, begun: Reevaluation, storage: Path) -> None:
    first, second = taken(begun.lease("a")), taken(begun.lease("b"))
    assert begun.report(wrong(second))  # type: ignore[operator]
    assert words in begun.failed[second.number]
    assert begun.report(outcome(first)) and first.number not in begun.failed
    assert [t.number for t in known(storage)] == [first.number], "nothing of it is stored"
    trials = stored(storage)
    begun.start(trials)
    assert second.number not in answer(begun), "not again in this invocation"
    assert second.number not in {t.number for t in known(storage)}
    again = confirm(storage)
    assert (again.failed, again.left, len(known(storage))) == ({}, 0, again.total)


def test_nothing_is_confirmed_of_a_run_without_numbers(storage: Path) -> None:
    with Store(storage) as store:
        found = Reevaluation(settings(), store, RunRecord("run", "fake", "f" * 64, "", "", ""))
        found.start([TrialRecord(0, DENSE, "seed:dense", State.FAIL)])
        assert (found.total, found.left, found.lease("a")) == (0, 0, None)
