"""The search itself: which policy is evaluated next, how far, and which one is given up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from varsearch.db import State, TrialRecord
from varsearch.errors import EvaluationError
from varsearch.measurement import Evidence, Job, Kind, Outcome
from varsearch.policy import Policy
from varsearch.search.core.objectives import front_trials, volume_of
from varsearch.search.core.settings import RunSettings
from varsearch.search.core.source import DENSE, SourceKind
from varsearch.search.run.events import Event, Progress, Status
from varsearch.search.run.pruner import Pruner
from varsearch.search.run.queue import ATTEMPTS, Queue, is_late
from varsearch.search.run.stopping import Limits
from varsearch.search.run.trials import Trials
from varsearch.search.run.worker import because
from varsearch.search.sampler.portfolio import Proposer


class Exploration:
    """Proposes policies, has them evaluated, and keeps to a budget.

    A policy climbs the rungs of the pruner, one job each, before it is evaluated as the run asks. A
    trial costs the part of its images that was drawn. Interrupted trials wait for a worker under
    their old number, and go on from the rung that they reached.

    Args:
        starts: origin and policy of the trials that come first; the pruner never stops them.
        trials: the run's trials.
        proposer: proposes the policies after the starts.
        pruner: has the rungs, and says which policies are given up.
        limits: the budget.
        queue: an empty one.
        emit: gets an event for every trial that has its outcome.

    Raises:
        StoreError: from here and from every method, if the database fails or another process
            continues the run.
        EvaluationError: from `report`, `lost` and `lease` if dense cannot be evaluated.
    """

    def __init__(
        self,
        settings: RunSettings,
        starts: Mapping[str, Policy],
        trials: Trials,
        proposer: Proposer,
        pruner: Pruner,
        limits: Limits,
        queue: Queue,
        emit: Callable[[Event], None],
    ) -> None:
        self._settings, self._starts, self._limits, self._emit = (
            settings,
            dict(starts),
            limits,
            emit,
        )
        self._trials, self._proposer, self._pruner = trials, proposer, pruner
        self._queue = queue
        self._on_rung: set[int] = set()  # trials whose last job was that of a rung
        self._exhausted = False
        self._resume()

    def _resume(self) -> None:
        """Brings pruner, limits and queue to where the last process left the run."""
        records = self._trials.records
        if self._pruner.rungs:
            # The pruner learns from all trials, so it needs their evidence before any decision.
            for trial in records:
                self._look_up(trial.number)
        for number in range(len(records)):
            if records[number].state.is_final:
                # With the trials up to this one, as it was when this one ended.
                self._note(number, records[: number + 1])
            else:
                self._wait(number)

    def lease(self, worker: str) -> Job | None:
        """The next job of `worker`, or None if there is nothing to do now; see `is_over`."""
        while self._is_between_rungs or self._limits.allow(
            self._trials.spent + self._queue.running
        ):
            # Trials that have begun come first, or an interrupted run would go another way.
            number = self._queue.waiting.popleft() if self._queue.waiting else self._propose()
            if number is None:
                break
            job = self._next_job(number)
            # Without a job the trial got its outcome, and the budget may allow another one.
            if job is not None:
                # The store first: a lease that only memory knows would be lost with this process.
                self._trials.begin(number, worker)
                self._queue.lease(worker, job)
                return job
        return None

    @property
    def _is_between_rungs(self) -> bool:
        """Whether the next trial has begun: neither time nor patience ends it between rungs."""
        waiting = self._queue.waiting
        return bool(waiting) and self._trials.records[waiting[0]].state is State.RUNNING

    @property
    def is_over(self) -> bool:
        """Whether a worker that got no job can stop asking: no trial can leave budget over."""
        return not self._queue.running

    def report(self, outcome: Outcome) -> bool:
        """Takes the outcome of a job; False if its trial has one already.

        The trial fails if the outcome is an error, or lacks a finite number for an objective or a
        bound. An answer to an earlier job, of a worker that was believed dead, is kept, and the
        trial's present job goes on.
        """
        number = outcome.number
        trial = self._trials.records[number]
        if trial.state.is_final:
            return False
        error = outcome.error or ("" if outcome.evidence else "the worker found nothing")
        for evidence in outcome.evidence:
            objection = self._objection(evidence, trial)
            error = error or objection
            if not objection:
                # Evidence is kept even of a trial that fails: it may answer another run.
                self._learn(number, self._trials.store.save(evidence))
        job = self._queue.job_of(number)
        if job is not None and not error and is_late(outcome, job):
            return True
        self._queue.release(number)
        if number in self._on_rung and not error:
            self._queue.waiting.appendleft(number)
        else:
            self._finish(number, error)
        return True

    def lost(self, worker: str, reason: str = "") -> None:
        """`worker` died of `reason`: its trial is evaluated again, or fails after `ATTEMPTS`."""
        number = self._queue.lose(worker)
        if number is None:
            return
        if self._queue.is_lost(number):
            self._finish(
                number,
                f"the worker was lost {ATTEMPTS} times during the evaluation{because(reason)}",
            )
        else:
            self._wait(number)

    def put_back(self) -> None:
        """Puts running trials back for the next process; only a climbed rung is an attempt."""
        for trial in self._trials.records:
            if trial.state is State.RUNNING:
                self._trials.put_back(trial.number, counts=self._pruner.share(trial.number) > 0)

    def status(self) -> Status:
        """Where the run stands."""
        records, spent = self._trials.records, self._trials.spent
        seconds = self._queue.seconds(max(self._limits.budget - spent, 0.0))
        return Status(
            run=self._trials.run.name,
            budget=self._limits.budget,
            evaluated=sum(
                t.state in (State.COMPLETE, State.FAIL) and t.attempts > 0 for t in records
            ),
            stopped=self._trials.count(State.STOPPED),
            spent=spent,
            failed=self._trials.count(State.FAIL),
            last_error=next((t.error for t in reversed(records) if t.state is State.FAIL), ""),
            reused=sum(t.state.is_final and t.attempts == 0 for t in records),
            running=self._queue.running,
            waiting=len(self._queue.waiting),
            exhausted=self._exhausted,
            plateau=self._limits.plateau,
            seconds_left=None if seconds is None else min(seconds, self._limits.seconds_left),
            rungs=self._pruner.standing(records),
            front=tuple(t.number for t in front_trials(self._settings, records)),
            hypervolume=volume_of(self._settings, records),
        )

    def _propose(self) -> int | None:
        """Adds a trial with an untried policy; None when the space is exhausted."""
        tried = self._trials.tried
        proposal: tuple[str, Policy] | None = next(
            (start for start in self._starts.items() if start[1].digest not in tried), None
        )
        if proposal is None:
            # Proposals see the stopped trials with the numbers that they would have had.
            for estimate in self._pruner.estimates(self._trials.records):
                self._proposer.show(estimate)
            proposal = self._proposer.propose(len(self._trials.records), tried)
        if proposal is None:
            self._exhausted = True
            return None
        return self._trials.propose(*proposal)

    def _next_job(self, number: int) -> Job | None:
        """The next rung of a trial, or all that it lacks; None if it got its outcome here."""
        settings = self._settings
        if self._trials.records[number].state is not State.RUNNING:
            self._look_up(number)
        trial = self._trials.records[number]
        quality = None if trial.quality else settings.quality
        speed = None if trial.speed else settings.speed
        if quality is None and speed is None:
            self._finish(number)
            return None
        self._on_rung.discard(number)
        # A rung saves images; a trial whose quality is known has none to save.
        if quality is not None:
            is_start = trial.origin in self._starts
            # A policy that aims at a baseline is not given up for a front: one of many on it may be
            # lucky.
            is_whole = is_start or trial.origin == SourceKind.BASELINE
            reason = "" if is_whole else self._pruner.reason_to_stop(number, self._trials.records)
            if reason:
                self._finish(number, stopped=reason)
                return None
            rung = self._pruner.next(number, self._trials.records, also_off=is_start)
            if rung is not None:
                self._on_rung.add(number)
                quality, speed = rung.asks
        return Job(
            number=number,
            policy=trial.policy,
            quality=quality,
            speed=speed,
            seconds=self._queue.limit,
        )

    def _look_up(self, number: int) -> None:
        """Learns all that is stored of a trial's policy, whoever evaluated it."""
        run, policy = self._trials.run, self._trials.records[number].policy.digest
        keys: list[tuple[Kind, str]] = [
            ("quality", run.quality_protocol),
            ("speed", run.speed_protocol),
        ]
        keys += [(rung.kind, rung.protocol.digest) for rung in self._pruner.rungs]
        for kind, protocol in dict.fromkeys(keys):
            evidence = self._trials.store.find(kind, policy, run.fingerprint, protocol)
            if evidence is not None:
                self._learn(number, evidence)

    def _learn(self, number: int, evidence: Evidence) -> None:
        """Gives evidence of rungs to the pruner, and of the run's own protocols to the trial."""
        self._pruner.learn(number, evidence)
        run = self._trials.run
        if evidence.protocol in (run.quality_protocol, run.speed_protocol):
            self._trials.learn(number, evidence)

    def _objection(self, evidence: Evidence, trial: TrialRecord) -> str:
        """Why evidence cannot be stored for `trial`; empty if it can."""
        run, rungs = self._trials.run, self._pruner.rungs
        own = run.quality_protocol if evidence.kind == "quality" else run.speed_protocol
        early = {rung.protocol.digest for rung in rungs if rung.kind == evidence.kind}
        return evidence.objection(trial.policy.digest, run.fingerprint, {own} | early)

    def _finish(self, number: int, error: str = "", stopped: str = "") -> None:
        """Gives a trial its outcome: stopped, failed, or complete if it has all numbers."""
        trial = self._trials.records[number]
        if not stopped:
            error = error or self._settings.missing(trial.values)
        state = State.STOPPED if stopped else State.FAIL if error else State.COMPLETE
        if state is State.FAIL and trial.origin == DENSE:
            # The next call tries it again; a trial that has failed never is.
            self._wait(number)
            raise EvaluationError(
                f"dense, which all else is compared with, could not be evaluated: {error}"
            )
        self._on_rung.discard(number)
        # A stopped trial costs the images that its rungs drew.
        share = self._pruner.share(number) if stopped else 1.0
        self._trials.finish(number, state, stopped or error, share)
        records = self._trials.records
        self._queue.finish(number, records[number].cost)
        self._note(number, records)
        status = self.status()
        self._emit(Progress(records[number], status, self._pruner.news(status.rungs)))

    def _note(self, number: int, records: Sequence[TrialRecord]) -> None:
        """Passes the hypervolume after an evaluation to the limits; stored evidence cost none."""
        trial = records[number]
        if trial.attempts and self._limits.patience is not None:
            spent, is_start = sum(t.cost for t in records), trial.origin in self._starts
            self._limits.note(volume_of(self._settings, records), spent, start=is_start)

    def _wait(self, number: int) -> None:
        self._trials.put_back(number)
        self._queue.waiting.append(number)
