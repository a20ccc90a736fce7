"""The search itself: what is evaluated next, how far, and what is given up."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

from varsearch.db import State, TrialRecord
from varsearch.errors import EvaluationError
from varsearch.measurement import Evidence, Job, Kind, Outcome
from varsearch.policy import Policy
from varsearch.search.core.objectives import front_trials, volume_of
from varsearch.search.core.settings import RunSettings
from varsearch.search.core.source import DENSE, RIVAL
from varsearch.search.run.events import Progress, Status
from varsearch.search.run.pruner import Ladder
from varsearch.search.run.rungs import Rung
from varsearch.search.run.stopping import Limits, Pace
from varsearch.search.run.trials import Ledger
from varsearch.search.sampler.portfolio import PortfolioSampler

ATTEMPTS = 3
"""A trial that loses its worker this often has failed. Deaths of the whole run do not count: they say little about a
policy."""


class Explorer:
    """Proposes policies, has them evaluated, and keeps to a budget.

    A policy climbs the rungs of `Ladder`, a job each, before it is evaluated as the run asks. What a trial costs is
    the part of its images that was drawn. Interrupted trials wait for a worker under their old number, and go on from
    the rung that they reached.

    Args:
        starts: origin and policy of what is tried first, and whole.
        ledger: the run's trials.
        proposer: of what comes after the starts.
        limits: what may be spent.
        rungs: early looks at which policies may be given up.

    Raises:
        StoreError: from here and from every method, if the database fails or another process continues the run.
        EvaluationError: from `report`, `lost` and `lease`, which calls it, if dense cannot be evaluated.
    """

    def __init__(
        self,
        settings: RunSettings,
        starts: Mapping[str, Policy],
        ledger: Ledger,
        proposer: PortfolioSampler,
        limits: Limits,
        rungs: Sequence[Rung] = (),
    ) -> None:
        self._settings, self._starts, self._limits = settings, dict(starts), limits
        self._ledger, self._proposer, self._ladder = ledger, proposer, Ladder(settings, rungs)
        self._workers: set[str] = set()
        self._leases: dict[str, int] = {}
        self._early: set[int] = set()
        self._asked: dict[int, set[str]] = {}
        self._losses: Counter[int] = Counter()
        self._waiting: deque[int] = deque()
        self._pace = Pace()
        self._events: list[Progress] = []
        self._exhausted = False
        self._resume()

    def _resume(self) -> None:
        if self._ladder.rungs:
            for trial in self._ledger.trials:
                self._looked_up(trial)
        for number, trial in enumerate(list(self._ledger.trials)):
            if trial.state.is_final:
                self._note(trial, self._ledger.trials[: number + 1])
            else:
                self._wait(trial)

    def lease(self, worker: str) -> Job | None:
        """The next job of `worker`, or None if there is nothing to do now; see `is_over`.

        A worker asks when it is free: what it still held was lost with its predecessor of the same name.
        """
        self.lost(worker)
        self._workers.add(worker)
        while self._goes_on or self._limits.allow(self._spent() + len(self._leases)):
            number = self._waiting.popleft() if self._waiting else self._propose()
            if number is None:
                break
            job = self._start(self._ledger.trials[number], worker)
            if job is not None:
                return job
        return None

    @property
    def _goes_on(self) -> bool:
        """Whether a trial is between two rungs: it has begun, so neither time nor patience ends it."""
        return bool(self._waiting) and self._ledger.trials[self._waiting[0]].state is State.RUNNING

    @property
    def is_over(self) -> bool:
        """Whether a worker that got no job need not ask again: what others evaluate now can leave budget over."""
        return not self._leases

    def report(self, outcome: Outcome) -> bool:
        """Takes the outcome of a job; False if its trial has one already.

        The trial fails if the outcome is an error, or lacks a finite number for an objective or a bound. An answer to
        an earlier job, of a worker that was believed dead, is kept, and the trial's present job goes on.
        """
        trial = self._ledger.trials[outcome.number]
        if trial.state.is_final:
            return False
        found = [e for e in (outcome.quality, outcome.speed) if e]
        error = outcome.error or ("" if found else "the worker found nothing")
        late = not error and self._asked.get(trial.number, set()).isdisjoint(e.protocol for e in found)
        for evidence in found:
            objection = self._objection(evidence, trial)
            error = error or objection
            if not objection:
                trial = self._told(trial, self._ledger.store.save(evidence))
        if late and not error and trial.number in self._asked:
            self._ledger.trials[trial.number] = trial
            return True
        self._release(trial.number)
        if trial.number in self._early and not error:
            self._ledger.trials[trial.number] = trial
            self._waiting.appendleft(trial.number)
        else:
            self._finish(trial, error)
        return True

    def lost(self, worker: str) -> None:
        """`worker` died: what it held is evaluated again under the same number, or fails after `ATTEMPTS`."""
        if worker in self._leases:
            number = self._leases.pop(worker)
            self._asked.pop(number, None)
            self._losses[number] += 1
            trial = self._ledger.trials[number]
            if self._losses[number] < ATTEMPTS:
                self._wait(trial)
            else:
                self._finish(trial, f"the worker was lost {ATTEMPTS} times during the evaluation")

    def put_back(self) -> None:
        """What is not finished waits for the next invocation, and counts as an attempt if it has climbed a rung."""
        for trial in list(self._ledger.trials):
            if trial.state is State.RUNNING:
                lost = not self._ladder.share(trial.number)
                self._ledger.record(replace(trial, state=State.WAITING, attempts=trial.attempts - lost))

    def events(self) -> list[Progress]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events

    def status(self) -> Status:
        """Where the run stands."""
        trials = self._ledger.trials
        front = front_trials(self._settings, trials)
        seconds = self._pace.seconds(max(self._limits.budget - self._spent(), 0.0), len(self._workers))
        return Status(
            run=self._ledger.run.name,
            budget=self._limits.budget,
            evaluated=sum(t.state in (State.COMPLETE, State.FAIL) and t.attempts > 0 for t in trials),
            stopped=self._ledger.count(State.STOPPED),
            spent=self._spent(),
            failed=self._ledger.count(State.FAIL),
            last_error=next((t.error for t in reversed(trials) if t.state is State.FAIL), ""),
            reused=sum(t.state.is_final and t.attempts == 0 for t in trials),
            running=len(self._leases),
            waiting=len(self._waiting),
            exhausted=self._exhausted,
            plateau=self._limits.plateau,
            seconds_left=None if seconds is None else min(seconds, self._limits.seconds_left),
            rungs=self._ladder.standing(trials),
            front=tuple(t.number for t in front),
            hypervolume=volume_of(self._settings, trials),
        )

    def _spent(self) -> float:
        return sum(trial.cost for trial in self._ledger.trials)

    def _propose(self) -> int | None:
        """Appends a trial with an untried policy; None when the space is exhausted."""
        number, tried = len(self._ledger.trials), self._ledger.tried
        starts = ((origin, policy) for origin, policy in self._starts.items() if policy.digest not in tried)
        proposal = next(starts, None)
        if proposal is None:
            for estimate in self._ladder.estimates(self._ledger.trials):
                self._proposer.show(estimate)
            proposal = self._proposer.propose(number, tried)
        if proposal is None:
            self._exhausted = True
            return None
        origin, policy = proposal
        self._ledger.append(TrialRecord(number, policy, origin))
        return number

    def _start(self, trial: TrialRecord, worker: str) -> Job | None:
        """Leases the next rung of `trial`, or all of it; None if stored evidence answers it, or it is given up."""
        again, settings = trial.state is State.RUNNING, self._settings
        trial = trial if again else self._looked_up(trial)
        if trial.speed and (trial.quality or settings.quality is None):
            self._finish(trial)
            return None
        quality, speed = None if trial.quality else settings.quality, None if trial.speed else settings.speed
        self._early.discard(trial.number)
        rung = self._climb(trial) if quality else None
        if isinstance(rung, str):
            self._finish(trial, stopped=rung)
            return None
        if rung is not None:
            self._early.add(trial.number)
            quality, speed = rung.asks
        if not again or trial.worker != worker:
            attempts = trial.attempts + (not again)
            self._ledger.record(replace(trial, state=State.RUNNING, attempts=attempts, worker=worker))
        self._leases[worker] = trial.number
        self._asked[trial.number] = {protocol.digest for protocol in (quality, speed) if protocol}
        self._pace.begin(trial.number)
        return Job(number=trial.number, policy=trial.policy, quality=quality, speed=speed)

    def _climb(self, trial: TrialRecord) -> Rung | str | None:
        """The rung that `trial` is to climb next, why it is given up, or None if it has climbed all.

        What is to dominate a published system is not given up for a front on which one of many may be lucky.
        """
        trials, is_start = self._ledger.trials, trial.origin in self._starts
        is_whole = is_start or trial.origin == RIVAL
        if not is_whole and (reason := self._ladder.verdict(trial.number, trials)):
            return reason
        return self._ladder.next(trial.number, trials, also_off=is_start)

    def _looked_up(self, trial: TrialRecord) -> TrialRecord:
        """With all that is stored of it, whoever evaluated it; the ladder is told too."""
        run, policy = self._ledger.run, trial.policy.digest
        keys: list[tuple[Kind, str]] = [("quality", run.quality_protocol), ("speed", run.speed_protocol)]
        keys += [(rung.kind, rung.protocol.digest) for rung in self._ladder.rungs]
        for kind, protocol in dict.fromkeys(keys):
            evidence = self._ledger.store.find(kind, policy, run.fingerprint, protocol)
            trial = self._told(trial, evidence) if evidence else trial
        return trial

    def _told(self, trial: TrialRecord, evidence: Evidence) -> TrialRecord:
        """With evidence of the run's own protocols; the ladder is told that of its rungs."""
        for i, rung in enumerate(self._ladder.rungs):
            if evidence.protocol == rung.protocol.digest:
                self._ladder.note(trial.number, i, evidence)
        own = evidence.protocol in (self._ledger.run.quality_protocol, self._ledger.run.speed_protocol)
        return trial.with_evidence(evidence) if own else trial

    def _objection(self, evidence: Evidence, trial: TrialRecord) -> str:
        """Why evidence cannot be stored for `trial`; empty if it can."""
        run = self._ledger.run
        own = run.quality_protocol if evidence.kind == "quality" else run.speed_protocol
        protocols = {own} | {rung.protocol.digest for rung in self._ladder.rungs if rung.kind == evidence.kind}
        return evidence.objection(trial.policy.digest, run.fingerprint, protocols)

    def _finish(self, trial: TrialRecord, error: str = "", stopped: str = "") -> None:
        if not stopped:
            error = error or self._settings.missing(trial.values)
        state = State.STOPPED if stopped else State.FAIL if error else State.COMPLETE
        if state is State.FAIL and trial.origin == DENSE:
            self._wait(trial)  # for the next call, as a trial that has failed is never tried again
            raise EvaluationError(f"dense, which all else is compared with, could not be evaluated: {error}")
        self._early.discard(trial.number)
        share = self._ladder.share(trial.number) if stopped else 1.0
        cost = share if trial.attempts else 0.0
        self._ledger.record(replace(trial, state=state, error=stopped or error, cost=cost))
        self._pace.finish(trial.number, cost)
        self._note(self._ledger.trials[trial.number], self._ledger.trials)
        status = self.status()
        self._events.append(Progress(self._ledger.trials[trial.number], status, self._ladder.news(status.rungs)))

    def _note(self, trial: TrialRecord, trials: Sequence[TrialRecord]) -> None:
        """Tells the limits what an evaluation did to the hypervolume; known evidence cost none."""
        if trial.attempts and self._limits.patience is not None:
            spent, start = sum(t.cost for t in trials), trial.origin in self._starts
            self._limits.note(volume_of(self._settings, trials), spent, start=start)

    def _wait(self, trial: TrialRecord) -> None:
        self._ledger.record(replace(trial, state=State.WAITING))
        self._waiting.append(trial.number)

    def _release(self, number: int) -> None:
        """Ends the lease of a trial, or its wait for a new one if an outcome was late."""
        self._leases = {worker: leased for worker, leased in self._leases.items() if leased != number}
        self._asked.pop(number, None)
        self._pace.end(number)
        if number in self._waiting:
            self._waiting.remove(number)
