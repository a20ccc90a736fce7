"""The one owner of a run: hands out jobs, takes outcomes, and keeps store and study in step."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Literal

from varsearch.db import RunRecord, State, Store, TrialRecord
from varsearch.errors import UsageError
from varsearch.measurement import Evidence, Job, Outcome
from varsearch.policy import Policy
from varsearch.search.front import dense_trial, front_trials, front_volume
from varsearch.search.guide import Guide
from varsearch.search.limits import Limits
from varsearch.search.progress import Progress, Status
from varsearch.search.proposals import Proposer
from varsearch.search.settings import RunSettings
from varsearch.search.study import Space, StudyView, open_storage, study_errors

ATTEMPTS = 3
"""A trial that loses its worker this often has failed. Deaths of the whole run do not count: they say little about a
policy."""

RECENT = 20
"""Evaluations that the remaining time is estimated from."""


class Broker:
    """Owns a run: its trials, its proposals and its budget.

    A trial is written to the store when it is proposed, leased, lost and finished, each time before Optuna's study
    shows it, and its evidence before that. Whatever a killed process left is therefore completed when the run is
    opened again: finished trials that the study has not seen are told, all others wait for a worker
    under their old number.

    Args:
        starts: origin and policy of what is tried before the sampler; "seed:dense" is the one to compare with.
        storage: SQLAlchemy URL, or path of an SQLite file.
        name: the run's name, by default `settings.default_name`. A run of that name is continued.
        budget: evaluations in total, those of earlier invocations included.
        minutes: time after which no job is handed out, counted from now.
        patience: evaluations without growth of the hypervolume after which no job is handed out, see `Limits`.
        guide: what proposals may know besides the trials.

    Raises:
        UsageError: budget, time or patience is not positive, or the name belongs to a run with other settings.
        PolicyError: a start does not fit the model.
        StoreError: from here and from every method, if the database fails or another process continues the run.
    """

    def __init__(
        self,
        settings: RunSettings,
        space: Space,
        starts: Mapping[str, Policy],
        *,
        storage: str | Path,
        budget: int,
        name: str | None = None,
        minutes: float | None = None,
        patience: int | None = None,
        guide: Guide | None = None,
    ) -> None:
        self._limits, self._settings = Limits(budget, minutes, patience), settings
        self._starts = dict(starts)
        for policy in starts.values():
            space.nearest(policy)
        self._proposer = Proposer(settings, space, guide)
        self._trials: list[TrialRecord] = []
        self._tried: set[str] = set()
        self._workers: set[str] = set()
        self._leases: dict[str, tuple[int, float]] = {}
        self._losses: Counter[int] = Counter()
        self._waiting: deque[int] = deque()
        self._durations: deque[float] = deque(maxlen=RECENT)
        self._events: list[Progress] = []
        self._exhausted = False
        with ExitStack() as connections:
            self._store = connections.enter_context(Store(storage))
            self._run = self._store.claim(self._same_run(name or settings.default_name))
            optuna = connections.enter_context(open_storage(self._store.url))
            with study_errors(self._store.url):
                self._study = StudyView(self._run.name, optuna, settings, space)
            self._resume()
            self._connections = connections.pop_all()

    def _same_run(self, name: str) -> RunRecord:
        """The record to claim; refuses a known name whose settings differ."""
        known = {run.name: run for run in self._store.runs()}.get(name)
        difference = RunSettings.parse(known.settings).difference(self._settings) if known else ""
        if difference:
            raise UsageError(f"run {name!r} has other settings ({difference}): give the new run another --name")
        return RunRecord(
            name=name,
            model=self._settings.model,
            fingerprint=self._settings.fingerprint,
            quality_protocol=self._settings.quality_digest,
            speed_protocol=self._settings.speed.digest,
            settings=self._settings.model_dump_json(),
        )

    def _resume(self) -> None:
        trials = self._store.trials(self._run)
        if self._study.size > len(trials):
            raise UsageError(
                f"Optuna's study {self._run.name!r} has {self._study.size} trials, the run only {len(trials)}: "
                "something else wrote to it; give the new run another --name"
            )
        for trial in trials:
            self._append(trial)
            self._show(trial)
            if not trial.state.is_final:
                self._wait(trial)
            else:
                self._note(trial)
        self._events.clear()

    def lease(self, worker: str) -> Job | None:
        """The next job of `worker`, or None if there is nothing left to do.

        A worker asks when it is free: what it still held was lost with its predecessor of the same name.
        """
        self.lost(worker)
        self._workers.add(worker)
        while self._limits.allow(self._evaluated() + len(self._leases)):
            number = self._waiting.popleft() if self._waiting else self._propose()
            if number is None:
                break
            job = self._start(self._trials[number], worker)
            if job is not None:
                return job
        return None

    def report(self, outcome: Outcome) -> bool:
        """Takes the outcome of a job; False if its trial has one already.

        The trial fails if the outcome is an error, or lacks a finite number for an objective or a bound.
        """
        trial = self._trials[outcome.number]
        if trial.state.is_final:
            return False
        self._release(trial.number)
        error = outcome.error
        for evidence in (outcome.quality, outcome.speed):
            if evidence is None:
                continue
            objection = self._objection(evidence, trial)
            error = error or objection
            if not objection:
                trial = trial.with_evidence(self._store.save(evidence))
        self._finish(trial, error)
        return True

    def lost(self, worker: str) -> None:
        """`worker` died: what it held is evaluated again under the same number, or fails after `ATTEMPTS`."""
        if worker in self._leases:
            number, _ = self._leases.pop(worker)
            self._losses[number] += 1
            if self._losses[number] < ATTEMPTS:
                self._wait(self._trials[number])
            else:
                self._finish(self._trials[number], f"the worker was lost {ATTEMPTS} times during the evaluation")

    def close(self, status: Literal["finished", "interrupted"]) -> None:
        """Puts back what is still leased, without counting it as an attempt, and gives the run up."""
        with self._connections:
            for number, _ in self._leases.values():
                trial = self._trials[number]
                self._record(replace(trial, state=State.WAITING, attempts=trial.attempts - 1))
            self._store.leave(self._run, status)

    def events(self) -> list[Progress]:
        """What happened since the last call."""
        events, self._events = self._events, []
        return events

    def status(self) -> Status:
        """Where the run stands."""
        front = front_trials(self._settings, self._trials)
        dense = dense_trial(self._trials)
        volume = front_volume(self._settings, [t.values for t in front], dense.values) if dense else None
        return Status(
            run=self._run.name,
            budget=self._limits.budget,
            evaluated=self._evaluated(),
            failed=sum(t.state is State.FAIL for t in self._trials),
            last_error=next((t.error for t in reversed(self._trials) if t.error), ""),
            reused=sum(t.state.is_final and t.attempts == 0 for t in self._trials),
            running=len(self._leases),
            waiting=len(self._waiting),
            exhausted=self._exhausted,
            plateau=self._limits.plateau,
            seconds_left=self._seconds_left(),
            front=tuple(t.number for t in front),
            hypervolume=volume,
        )

    def _evaluated(self) -> int:
        return sum(t.state.is_final and t.attempts > 0 for t in self._trials)

    def _seconds_left(self) -> float | None:
        if not self._durations:
            return None
        rounds = max(self._limits.budget - self._evaluated(), 0) / len(self._workers)
        return min(rounds * fmean(self._durations), self._limits.seconds_left)

    def _propose(self) -> int | None:
        """Appends a trial with an untried policy; None when the space is exhausted."""
        number = len(self._trials)
        starts = ((origin, policy) for origin, policy in self._starts.items() if policy.digest not in self._tried)
        proposal = next(starts, None) or self._proposer.propose(number, self._tried)
        if proposal is None:
            self._exhausted = True
            return None
        origin, policy = proposal
        self._append(TrialRecord(number, policy, origin))
        return number

    def _append(self, trial: TrialRecord) -> None:
        self._trials.append(trial)
        self._tried.add(trial.policy.digest)

    def _start(self, trial: TrialRecord, worker: str) -> Job | None:
        """Leases `trial`; None if stored evidence answers it."""
        run, digest = self._run, trial.policy.digest
        quality = self._store.find("quality", digest, run.fingerprint, run.quality_protocol)
        speed = self._store.find("speed", digest, run.fingerprint, run.speed_protocol)
        trial = replace(trial, quality=quality, speed=speed)
        if speed and (quality or not run.quality_protocol):
            self._finish(trial)
            return None
        self._record(replace(trial, state=State.RUNNING, attempts=trial.attempts + 1, worker=worker))
        self._leases[worker] = trial.number, time.monotonic()
        wanted = None if quality else self._settings.quality, None if speed else self._settings.speed
        return Job(number=trial.number, policy=trial.policy, quality=wanted[0], speed=wanted[1])

    def _objection(self, evidence: Evidence, trial: TrialRecord) -> str:
        """Why evidence cannot be stored for `trial`; empty if it can."""
        protocol = self._run.quality_protocol if evidence.kind == "quality" else self._run.speed_protocol
        expected = trial.policy.digest, self._run.fingerprint, protocol
        if (evidence.policy, evidence.model, evidence.protocol) != expected:
            return f"the worker's {evidence.kind} evidence is for another policy, model or protocol"
        odd = (f"{name} = {value}" for name, value in evidence.values.items() if not math.isfinite(value))
        return next((f"the evaluation gave {text}" for text in odd), "")

    def _finish(self, trial: TrialRecord, error: str = "") -> None:
        error = error or self._settings.missing(trial.values)
        self._record(replace(trial, state=State.FAIL if error else State.COMPLETE, error=error))
        self._note(trial)
        self._events.append(Progress(self._trials[trial.number], self.status()))

    def _note(self, trial: TrialRecord) -> None:
        """Tells the limits what an evaluation did to the hypervolume; known evidence cost none."""
        if trial.attempts and self._limits.patience is not None:
            self._limits.note(self.status().hypervolume, start=trial.origin in self._starts)

    def _wait(self, trial: TrialRecord) -> None:
        self._record(replace(trial, state=State.WAITING))
        self._waiting.append(trial.number)

    def _release(self, number: int) -> None:
        """Ends the lease of a trial, or its wait for a new one if an outcome was late."""
        for worker, (leased, since) in list(self._leases.items()):
            if leased == number:
                self._durations.append(time.monotonic() - since)
                del self._leases[worker]
        if number in self._waiting:
            self._waiting.remove(number)

    def _record(self, trial: TrialRecord) -> None:
        """The store first, then both studies: a crash in between is completed by `_resume`."""
        self._store.write(self._run, trial)
        self._trials[trial.number] = trial
        self._show(trial)

    def _show(self, trial: TrialRecord) -> None:
        with study_errors(self._store.url):
            self._study.show(trial)
        self._proposer.show(trial)
