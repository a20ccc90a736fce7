"""The one owner of a run: first it explores, then it confirms what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from varsearch.db import TrialRecord
from varsearch.measurement import Job, Outcome
from varsearch.policy import Policy
from varsearch.search.core.optuna_study import Space
from varsearch.search.core.settings import RunSettings
from varsearch.search.results.claims import confirmation_summary
from varsearch.search.results.front import read_front
from varsearch.search.run.events import Confirmed, Event, Status
from varsearch.search.run.exploration import Explorer
from varsearch.search.run.reevaluation import Confirmation
from varsearch.search.run.rungs import Rung
from varsearch.search.run.stopping import Limits, Pace
from varsearch.search.run.trials import Ledger
from varsearch.search.sampler.base import SideInformation
from varsearch.search.sampler.portfolio import DEFAULTS, PortfolioConfig, PortfolioSampler


class Broker:
    """Owns a run: hands out jobs, takes outcomes, and writes down both.

    Args:
        starts: origin and policy of what is tried first, and whole; "seed:dense" is the one to compare with.
        storage: SQLAlchemy URL, or path of an SQLite file.
        name: the run's name, by default `settings.default_name`. A run of that name is continued.
        budget: evaluations in total, those of earlier invocations included.
        minutes: time after which no evaluation begins, counted from now.
        patience: evaluations without growth of the hypervolume that end the search, see `Limits`.
        guide: what proposals may know besides the trials.
        sampler: tuning constants of the proposals.
        rungs: early looks at which policies may be given up.
        confirm: whether finalists are evaluated again when the search has ended. Budget and time do not count that.

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
        guide: SideInformation | None = None,
        sampler: PortfolioConfig = DEFAULTS,
        rungs: Sequence[Rung] = (),
        confirm: bool = False,
    ) -> None:
        limits, proposer = Limits(budget, minutes, patience), PortfolioSampler(settings, space, guide, sampler)
        for policy in starts.values():
            space.nearest(policy)
        self._settings, self._confirms = settings, confirm
        self._ledger = Ledger(settings, space, storage, name or settings.default_name, proposer.show)
        try:
            self._explorer = Explorer(settings, starts, self._ledger, proposer, limits, rungs)
        except BaseException:
            self._ledger.close()
            raise
        self._confirmation = Confirmation(settings, self._ledger.store, self._ledger.run)
        self._finals = False
        self._leases: dict[str, int] = {}
        self._pace = Pace()
        self._events: list[Event] = []

    def lease(self, worker: str) -> Job | None:
        """The next job of `worker`, or None if there is nothing to do now; see `is_over`.

        A worker asks when it is free: what it still held was lost with its predecessor of the same name.
        """
        self.lost(worker)
        job = self._explorer.lease(worker)
        if job or not self._confirms or not self._explorer.is_over:
            return job
        if not self._finals:
            self._confirmation.start(self._ledger.trials)
            self._finals = True
        job = self._confirmation.next()
        if job is not None:
            self._leases[worker] = job.number
            self._pace.begin(job.number)
        return job

    @property
    def is_over(self) -> bool:
        """Whether a worker that got no job need not ask again: what others do now can leave work over."""
        return self._explorer.is_over and not self._leases

    def report(self, outcome: Outcome) -> bool:
        """Takes the outcome of a job; False if nobody waits for it any more."""
        if outcome.number not in self._leases.values() and not self._confirmation.waits_for(outcome):
            return self._explorer.report(outcome)
        self._leases = {worker: number for worker, number in self._leases.items() if number != outcome.number}
        self._pace.end(outcome.number)
        known = self._confirmation.known(outcome.number)
        error = self._confirmation.take(outcome)
        self._pace.finish(outcome.number, 1.0)
        self._tell(replace(known, quality=outcome.quality or known.quality, speed=outcome.speed or known.speed), error)
        return True

    def _tell(self, trial: TrialRecord, error: str) -> None:
        left, total = self._confirmation.left, self._confirmation.total
        seconds = self._pace.seconds(left, max(1, len(self._leases) + 1))
        self._events.append(Confirmed(self._ledger.trials[trial.number], trial, error, total - left, total, seconds))

    def lost(self, worker: str) -> None:
        """`worker` died: what it held is evaluated again, or fails if that happened too often."""
        self._explorer.lost(worker)
        if worker in self._leases:
            number = self._leases.pop(worker)
            if error := self._confirmation.put_back(number):
                self._tell(self._ledger.trials[number], error)

    def close(self, status: Literal["finished", "interrupted"]) -> None:
        """Puts back what is not finished, without counting it as an attempt, and gives the run up."""
        try:
            self._explorer.put_back()
            if self._finals:
                self._ledger.describe(confirmation_summary(read_front(self._ledger.store, self._ledger.run)))
            self._ledger.leave(status)
        finally:
            self._ledger.close()

    def events(self) -> list[Event]:
        """What happened since the last call."""
        events, self._events = [*self._explorer.events(), *self._events], []
        return events

    def status(self) -> Status:
        """Where the search stands."""
        return self._explorer.status()
