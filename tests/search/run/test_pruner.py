"""Policies are given up after an early look that leaves little hope; what a rung says is learnt from whole trials."""

from __future__ import annotations

import random
from collections.abc import Container
from pathlib import Path

import numpy as np
import pytest

from benchmarks import rungs as told_by_rungs
from tests.search.fakes import QUALITY, SPACE, SPEED, STARTS, evidence, settings
from tests.search.harness import Open, shown, stored, taken
from varsearch.cli.run import conclude
from varsearch.db import State, TrialRecord
from varsearch.measurement import Evidence, Job, Measurement, Origin, Outcome, QualityProtocol
from varsearch.policy import Policy
from varsearch.search.core.source import RIVAL
from varsearch.search.run.broker import Broker
from varsearch.search.run.pruner import ENOUGH, Ladder
from varsearch.search.run.rungs import PAIRS, RANK, fit_link, rungs_of
from varsearch.search.sampler.portfolio import PortfolioSampler

WHOLE = settings(quality=QUALITY.model_copy(update={"n_images": 512}))
MEASURED = SPEED.model_copy(update={"origin": Origin.MEASURED, "machine": "here"})
RUNGS = rungs_of(WHOLE, SPEED, 64)
DRAWN = ({k: random.Random(f"{i}{k}").randrange(n) for k, n in SPACE.knobs.items()} for i in range(PAIRS + 3))
MANY = {**STARTS, **{f"seed:{i}": SPACE.decode(levels) for i, levels in enumerate(DRAWN)}}


def known(kind: str, policy: Policy, **changes: object) -> Evidence:
    """Exact costs, and quality with a small error."""
    found = evidence(kind, policy, **changes)
    error = 0.02 if kind == "quality" else 0.0
    exact = (Measurement(metric=n, value=v, low=v - error, high=v + error, n=512) for n, v in found.values.items())
    return found.model_copy(update={"measurements": tuple(exact)})


def answer(job: Job, noise: float = 0.05) -> Outcome:
    """ΔFID of few images has noise that the policy decides, that of all next to none."""
    found = {}
    for kind, protocol in (("quality", job.quality), ("speed", job.speed)):
        if protocol is None:
            continue
        found[kind] = known(kind, job.policy, protocol=protocol.digest)
        if isinstance(protocol, QualityProtocol) and protocol.n_images < 512:
            delta = found[kind].values["delta_fid"]
            delta += random.Random(f"{job.policy.digest}{protocol.n_images}").gauss(0, noise)
            early = {"delta_fid": delta, "fid": 4.0 + delta, "kid": delta / 10, "feature_distance": abs(delta)}
            measurements = tuple(Measurement(metric=name, value=value, n=64) for name, value in early.items())
            found[kind] = found[kind].model_copy(update={"measurements": measurements})
    return Outcome(number=job.number, **found)


def asked(job: Job) -> str:
    return f"{job.quality.n_images} images" if job.quality else "costs"


def climb(broker: Broker, noise: float = 0.05, jobs: int | None = None) -> list[tuple[int, str]]:
    """Evaluates until there are no more jobs, or so many; number and rung of each."""
    seen = []
    while (jobs is None or len(seen) < jobs) and (job := broker.lease("a")) is not None:
        seen.append((job.number, asked(job)))
        broker.report(answer(job, noise))
    return seen


def test_rungs_are_whole_batches_and_fewer_than_all_images() -> None:
    assert [(r.name, r.share) for r in RUNGS] == [
        ("predicted costs", 0.0625),
        ("64 images", 0.125),
        ("192 images", 0.375),
    ]
    assert all(r.protocol.nll_images == 0 for r in RUNGS[1:] if r.asks[0])
    few = settings(quality=QUALITY.model_copy(update={"n_images": 128}))
    assert [r.name for r in rungs_of(few, SPEED, 64)] == ["predicted costs", "64 images"]
    assert rungs_of(settings(), SPEED, 64) == ()
    assert rungs_of(settings(quality=WHOLE.quality, objectives=("kid", "latency_ms")), SPEED, 64) == ()
    assert rungs_of(settings(quality=None, objectives=("latency_ms",)), SPEED, 64) == ()
    blind = settings(quality=WHOLE.quality, objectives=("fid",))
    assert [r.name for r in rungs_of(blind, SPEED, 64)] == ["64 images", "192 images"], "costs do not count"


def test_without_costs_images_alone_stop_trials(start: Open) -> None:
    chosen = settings(quality=WHOLE.quality, objectives=("fid",))
    broker = start(chosen, starts=MANY, budget=30, rungs=rungs_of(chosen, SPEED, 64))
    climb(broker, noise=0.0)
    status = broker.status()
    assert status.stopped == sum(rung.stopped for rung in status.rungs) > 5


def test_a_trial_climbs_and_starts_are_never_given_up(start: Open, tmp_path: Path) -> None:
    broker = start(WHOLE, starts=MANY, budget=25, rungs=RUNGS)
    seen = climb(broker)
    first = [rung for number, rung in seen if number == 0]
    assert first == ["costs", "64 images", "192 images", "512 images"]
    trials = stored(tmp_path / "runs.db")
    assert {t.state for t in trials[: len(MANY)]} == {State.COMPLETE}
    stopped = [t for t in trials if t.state is State.STOPPED]
    assert stopped and all("% chance to be on the front" in t.error for t in stopped)
    status = broker.status()
    assert status.stopped == len(stopped) == sum(rung.stopped for rung in status.rungs)
    whole = sum(t.state is State.COMPLETE for t in trials)
    share = sum(0.375 if "192" in t.error else 0.125 if "64" in t.error else 0.0625 for t in stopped)
    assert status.spent == pytest.approx(whole + share) and 24 < status.spent <= 25


def test_what_is_to_dominate_a_published_system_is_not_given_up(
    start: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    propose = PortfolioSampler.propose

    def every_other(self: PortfolioSampler, number: int, seen: Container[str]) -> tuple[str, Policy] | None:
        found = propose(self, number, seen)
        return found and (RIVAL if number % 2 else found[0], found[1])

    monkeypatch.setattr(PortfolioSampler, "propose", every_other)
    climb(start(WHOLE, starts=MANY, budget=30, rungs=RUNGS))
    proposed = stored(tmp_path / "runs.db")[len(MANY) :]
    assert {t.state for t in proposed if t.origin == RIVAL} == {State.COMPLETE}
    assert State.STOPPED in {t.state for t in proposed if t.origin != RIVAL}


def test_stopped_trials_are_pruned_in_the_study_with_the_reason(start: Open, tmp_path: Path) -> None:
    climb(start(WHOLE, starts=MANY, budget=25, rungs=RUNGS))
    ours, theirs = stored(tmp_path / "runs.db"), shown(tmp_path / "runs.db")
    pairs = [(mine, other) for mine, other in zip(ours, theirs, strict=True) if mine.state is State.STOPPED]
    assert pairs
    for mine, other in pairs:
        assert other.state.name == "PRUNED" and other.user_attrs["stopped"] == mine.error and other.values is None


def test_the_benchmark_reads_what_rungs_tell(start: Open, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broker = start(WHOLE, starts=MANY, budget=len(MANY), rungs=RUNGS)
    climb(broker, noise=0.0)
    broker.close("finished")
    told_by_rungs.main(["--storage", str(tmp_path / "runs.db")])
    told = capsys.readouterr().out
    (exact,) = [line for line in told.splitlines() if line.startswith("64 images: delta_fid")]
    assert exact.split()[3:] == [str(len(MANY) - 1), "1.000", "1.000", "0.000", "0%"]
    assert "192 images: kid" in told and "192 images: feature_distance" in told


def test_no_trial_is_stopped_that_would_be_on_the_front(start: Open, tmp_path: Path) -> None:
    broker = start(WHOLE, starts=MANY, budget=30, rungs=RUNGS)
    climb(broker, noise=0.0)
    trials = stored(tmp_path / "runs.db")
    front = [t for t in trials if t.number in broker.status().front]
    for trial in (t for t in trials if t.state is State.STOPPED):
        losses = WHOLE.losses({**evidence("quality", trial.policy).values, **evidence("speed", trial.policy).values})
        rivals = [WHOLE.losses(t.values) for t in front]
        assert any(all(r <= c + 0.02 for r, c in zip(rival, losses, strict=True)) for rival in rivals)


def test_a_late_answer_to_an_earlier_rung_is_kept_and_the_present_job_goes_on(start: Open, tmp_path: Path) -> None:
    broker = start(WHOLE, starts=MANY, budget=25, rungs=RUNGS)
    climb(broker, jobs=4)  # dense
    slow = {asked(job): job for _ in range(2) if (job := broker.lease("slow")) and broker.report(answer(job))}
    assert list(slow) == ["costs", "64 images"]
    assert asked(present := taken(broker.lease("slow"))) == "192 images"
    assert broker.report(answer(slow["64 images"])), "another worker had been given it too"
    assert broker.status().running == 1 and not stored(tmp_path / "runs.db")[1].state.is_final
    assert broker.report(answer(present))
    climb(broker, jobs=1)
    assert stored(tmp_path / "runs.db")[1].state is State.COMPLETE


def test_a_worker_that_finds_nothing_has_failed(start: Open, tmp_path: Path) -> None:
    broker = start(WHOLE, starts=MANY, budget=25, rungs=RUNGS)
    jobs = [taken(broker.lease(worker)) for worker in ("a", "b")]
    assert broker.report(Outcome(number=jobs[1].number))
    trial = stored(tmp_path / "runs.db")[1]
    assert (trial.state, trial.error) == (State.FAIL, "the worker found nothing")


@pytest.mark.parametrize("every", [1, 2])
def test_interrupted_at_any_rung_a_run_ends_as_if_it_had_not_been(start: Open, tmp_path: Path, every: int) -> None:
    whole = start(WHOLE, starts=MANY, budget=20, rungs=RUNGS, name="whole", storage=tmp_path / "whole.db")
    expected = climb(whole)
    whole.close("finished")
    seen: list[tuple[int, str]] = []
    while True:
        broker = start(WHOLE, starts=MANY, budget=20, rungs=RUNGS)
        found = climb(broker, jobs=every)
        seen += found
        if len(found) < every:
            break
        held = broker.lease("a")  # dies with a job in hand
        if every == 2:
            broker.close("interrupted")
        assert held is None or (held.number, asked(held)) not in seen
    assert seen == expected

    def told(trials: list[TrialRecord]) -> list[object]:
        return [(t.policy, t.origin, t.state, t.error, t.values) for t in trials]

    assert told(stored(tmp_path / "runs.db")) == told(stored(tmp_path / "whole.db"))


def test_a_rung_that_tells_nothing_is_switched_off_with_a_message(start: Open) -> None:
    broker = start(WHOLE, starts=MANY, budget=30, rungs=RUNGS)
    seen = climb(broker, noise=50.0)
    news = [event.news for event in broker.events() if event.news]
    assert any("64 images switched off" in line and f"{RANK} is needed" in line for line in news)
    off = {rung.name: rung.is_off for rung in broker.status().rungs}
    assert off["64 images"] and off["192 images"] and not off["predicted costs"]
    assert [rung for number, rung in seen if number == seen[-1][0]] == ["costs", "512 images"]
    assert all(rung.stopped == 0 for rung in broker.status().rungs[1:])


def test_of_few_trials_no_rank_is_told(start: Open, capsys: pytest.CaptureFixture[str]) -> None:
    broker = start(WHOLE, starts=MANY, budget=PAIRS, rungs=RUNGS)
    climb(broker)
    status = broker.status()
    assert [rung.rank for rung in status.rungs] == [1.0, None, None]
    conclude(status, None)
    assert "rung of 64 images: stopped 0; rank correlation with the final numbers not known" in capsys.readouterr().out


def test_starts_switch_a_rung_on_again(start: Open) -> None:
    """The first ones are told apart by noise alone, all of them by what they lose."""
    more = ({k: random.Random(f"more {i}{k}").randrange(n) for k, n in SPACE.knobs.items()} for i in range(40))
    starts = {**MANY, **{f"warm:{i}": SPACE.decode(levels) for i, levels in enumerate(more)}}
    broker = start(WHOLE, starts=starts, budget=len(starts) + 10, rungs=RUNGS)
    while (job := broker.lease("a")) is not None:
        broker.report(answer(job, noise=20.0 if job.number <= PAIRS else 0.0))
    news = " ".join(event.news for event in broker.events())
    assert 0 <= news.find("64 images switched off") < news.find("64 images switched on")
    assert not any(rung.is_off for rung in broker.status().rungs)


def test_what_dominates_at_no_loss_stops_a_trial_before_any_image(start: Open, tmp_path: Path) -> None:
    """A policy that costs more than one without loss is hopeless whatever its images are. Here none loses anything."""
    broker = start(WHOLE, starts=MANY, budget=30, rungs=RUNGS)
    exact = tuple(Measurement(metric=m, value=v) for m, v in {"fid": 4.0, "delta_fid": 0.0}.items())
    while (job := broker.lease("a")) is not None:
        found = answer(job)
        quality = found.quality and found.quality.model_copy(update={"measurements": exact})
        broker.report(found.model_copy(update={"quality": quality}))
    early = [t for t in stored(tmp_path / "runs.db") if "predicted costs" in t.error]
    assert early and all(t.quality is None for t in early)
    assert broker.status().rungs[0].stopped == len(early)


def test_costs_that_are_measured_are_told_by_predicted_ones() -> None:
    chosen = settings(quality=WHOLE.quality, speed=MEASURED)
    rungs = rungs_of(chosen, SPEED, 64)
    assert rungs[0].protocol == SPEED and set(rungs[0].metrics) == {"latency_ms", "peak_bytes"}
    ladder, trials = Ladder(chosen, rungs), []
    for number, (origin, policy) in enumerate(MANY.items()):
        slower = [m.model_copy(update={"value": 3 * m.value}) for m in known("speed", policy).measurements]
        speed = known("speed", policy, measurements=slower)
        quality = evidence("quality", policy)
        trials.append(TrialRecord(number, policy, origin, State.COMPLETE, quality=quality, speed=speed))
        ladder.note(number, 0, known("speed", policy))
    policy = Policy.dense(4, 3).model_copy(update={"scales": SPACE.decode(dict.fromkeys(SPACE.knobs, 1)).scales})
    ladder.note(len(trials), 0, known("speed", policy))
    newcomer = TrialRecord(len(trials), policy, "sampler", State.STOPPED)
    estimate = ladder._estimated(newcomer, [*trials, newcomer], ladder._links(trials))
    assert estimate is not None
    assert estimate.values["latency_ms"] == pytest.approx(3 * known("speed", policy).values["latency_ms"], rel=0.02)


def test_a_link_is_a_line_with_its_residual_deviation() -> None:
    rng = np.random.default_rng(0)
    early = rng.normal(size=400)
    link = fit_link(early, 2 * early + 1 + rng.normal(0, 0.5, 400))
    assert link.slope == pytest.approx(2, abs=0.1) and link.offset == pytest.approx(1, abs=0.1)
    assert link.error == pytest.approx(0.5, rel=0.15) and link.rank > 0.9 and link.is_usable
    assert not fit_link(early[: PAIRS - 1], early[: PAIRS - 1]).is_usable
    assert not fit_link(early, rng.normal(size=400)).is_usable
    assert 0 < ENOUGH < 0.5
