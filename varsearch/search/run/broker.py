"""The one owner of a run: first it explores, then it evaluates the finalists again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from varsearch.errors import UsageError
from varsearch.measurement import Job, Outcome
from varsearch.policy import Policy
from varsearch.search.core.optuna_study import Space
from varsearch.search.core.settings import RunSettings
from varsearch.search.results.claims import confirmation_summary
from varsearch.search.results.front import read_front
from varsearch.search.run.events import Event, Status
from varsearch.search.run.exploration import Exploration
from varsearch.search.run.pruner import Pruner
from varsearch.search.run.queue import Queue
from varsearch.search.run.reevaluation import Reevaluation
from varsearch.search.run.rungs import Rung
from varsearch.search.run.stopping import Limits
from varsearch.search.run.trials import Trials
from varsearch.search.sampler.portfolio import Proposer
from varsearch.search.sampler.side_information import Guide


@dataclass(frozen=True, slots=True)
class Search:
    """All that a broker needs. It travels to another process, so its parts must be picklable.

    Attributes:
        settings: what the run is about.
        space: where policies come from.
        starts: origin and policy of the trials that come first, and are evaluated whole;
            "seed:dense" is the one that all others are compared with.
        storage: SQLAlchemy URL, or path of an SQLite file.
        budget: evaluations in total, those of earlier invocations included.
        name: the run's name, by default `settings.default_name`. A run of that name is continued.
        minutes: time after which no evaluation begins, counted from when the broker is made.
        patience: evaluations without growth of the hypervolume that end the search, see `Limits`.
        guide: what proposals may know besides the trials.
        rungs: early looks at which policies may be given up.
        confirm: whether finalists are evaluated again when the search has ended. Budget and time do
            not count that.
        max_seconds: after so many an evaluation has hung, by default a multiple of those of others,
            see `Queue.limit`.
    """

    settings: RunSettings
    space: Space
    starts: Mapping[str, Policy]
    storage: str | Path
    budget: int
    name: str | None = None
    minutes: float | None = None
    patience: int | None = None
    guide: Guide | None = None
    rungs: Sequence[Rung] = ()
    confirm: bool = False
    max_seconds: float | None = None


class Broker:
    """Owns a run: hands out jobs, takes outcomes, and writes down both.

    Raises:
        UsageError: budget, time or patience is not positive, or the name belongs to a run with
            other settings.
        PolicyError: a start does not fit the model.
        StoreError: from here and from every method, if the database fails or another process
            continues the run.
    """

    def __init__(self, search: Search) -> None:
        settings, space = search.settings, search.space
        # All that can be refused is refused before anything is written.
        limits = Limits(search.budget, search.minutes, search.patience)
        if search.max_seconds is not None and not search.max_seconds > 0:
            raise UsageError(f"an evaluation needs more than {search.max_seconds:g} seconds")
        for policy in search.starts.values():
            space.nearest(policy)
        proposer = Proposer(settings, space, search.guide)
        name = search.name or settings.default_name
        self._confirms = search.confirm
        self._events: list[Event] = []
        self._trials = Trials(settings, space, search.storage, name, proposer.show)
        try:
            pruner, emit = Pruner(settings, search.rungs), self._events.append
            queues = Queue(search.max_seconds), Queue(search.max_seconds)
            self._exploration = Exploration(
                settings, search.starts, self._trials, proposer, pruner, limits, queues[0], emit
            )
            self._reevaluation = Reevaluation(
                settings, self._trials.store, self._trials.run, queues[1], emit
            )
        except BaseException:
            # Whoever gets no broker cannot close it.
            self._trials.close()
            raise
        self._has_finalists = False

    def lease(self, worker: str) -> Job | None:
        """The next job of `worker`, or None if there is nothing to do now; see `is_over`.

        A worker asks when it is free: its last job was lost with its predecessor of the same name.
        """
        self.lost(worker)
        job = self._exploration.lease(worker)
        if job or not self._confirms or not self._exploration.is_over:
            return job
        # Finalists are chosen once, when no trial can still join the front.
        if not self._has_finalists:
            self._reevaluation.start(self._trials.records)
            self._has_finalists = True
        return self._reevaluation.lease(worker)

    @property
    def is_over(self) -> bool:
        """Whether a worker that got no job can stop asking: no other worker can leave work over."""
        return self._exploration.is_over and self._reevaluation.is_over

    def report(self, outcome: Outcome) -> bool:
        """Takes the outcome of a job; False if nobody waits for it any more."""
        if self._reevaluation.waits_for(outcome):
            return self._reevaluation.report(outcome)
        return self._exploration.report(outcome)

    def lost(self, worker: str, reason: str = "") -> None:
        """`worker` died of `reason`: its job is done again, or fails if that happened too often."""
        self._exploration.lost(worker, reason)
        self._reevaluation.lost(worker, reason)

    def close(self, status: Literal["finished", "interrupted"]) -> None:
        """Puts back the unfinished trials, not counted as attempts, and gives the run up."""
        try:
            self._exploration.put_back()
            # Finished trials of the study take no more attributes, so the study as a whole says
            # what the reevaluation found.
            if self._has_finalists:
                self._trials.describe(
                    confirmation_summary(read_front(self._trials.store, self._trials.run))
                )
            self._trials.leave(status)
        finally:
            self._trials.close()

    def abandon(self) -> None:
        """Closes the database as the death of this process would: nothing is put back."""
        self._trials.close()

    def events(self) -> list[Event]:
        """What happened since the last call."""
        events = self._events.copy()
        self._events.clear()
        return events

    def status(self) -> Status:
        """Where the search stands."""
        return self._exploration.status()
