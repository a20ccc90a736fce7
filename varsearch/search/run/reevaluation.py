"""Evaluates the finalists again on fresh noise, with more images and more timed rounds.

The best of many noisy numbers are partly good luck. So a front is made of numbers that had no part
in the choice of its members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from varsearch.db import RunRecord, Store, TrialRecord
from varsearch.measurement import Evidence, Job, Outcome
from varsearch.search.core.protocols import answered, confirming, under
from varsearch.search.core.settings import RunSettings
from varsearch.search.results.finalists import finalists
from varsearch.search.run.events import Confirmed, Event, ignore
from varsearch.search.run.queue import ATTEMPTS, Queue
from varsearch.search.run.worker import because


class Reevaluation:
    """Hands out the evaluations that the finalists of a run lack, and stores the answers.

    Only evidence is stored. So an interrupted reevaluation goes on with the finalists that lack
    some, and numbers that another run has stored count too.

    Args:
        queue: an empty one.
        emit: gets an event for every finalist that has its fresh numbers, or cannot get them.

    Attributes:
        failed: number of each finalist that could not be confirmed, with the reason in one line.
            This object does not try it again, and it is not on the front.
        total: number of finalists.
    """

    def __init__(
        self,
        settings: RunSettings,
        store: Store,
        run: RunRecord,
        queue: Queue | None = None,
        emit: Callable[[Event], None] = ignore,
    ) -> None:
        self.failed: dict[int, str] = {}
        self.total = 0
        self._settings, self._store, self._run, self._emit = settings, store, run, emit
        self._protocols = confirming(settings)
        self._trials: Sequence[TrialRecord] = ()  # of the run, with the numbers of the search
        self._open: dict[
            int, TrialRecord
        ] = {}  # finalists without an outcome, with the fresh numbers that they have
        self._queue = queue or Queue()

    def start(self, trials: Sequence[TrialRecord]) -> None:
        """Finds the finalists among the run's trials that lack fresh numbers; dense comes first."""
        wanted = [t.number for t in finalists(self._settings, trials)]
        known = {t.number: t for t in under(self._store, self._run, self._protocols)}
        missing = [
            n for n in wanted if n not in self.failed and not answered(known[n], self._protocols)
        ]
        self._trials, self.total, self._open = trials, len(wanted), {n: known[n] for n in missing}
        self._queue.waiting.extend(missing)

    @property
    def left(self) -> int:
        """Finalists without an outcome, those included that a worker has now."""
        return len(self._open)

    @property
    def is_over(self) -> bool:
        """Whether no worker has a job of it now."""
        return not self._queue.running

    def lease(self, worker: str) -> Job | None:
        """The next job of `worker`, under the trial's number; None if there is none to begin."""
        if not self._queue.waiting:
            return None
        trial = self._open[self._queue.waiting.popleft()]
        job = Job(
            number=trial.number,
            policy=trial.policy,
            quality=None if trial.quality else self._protocols.quality,
            speed=None if trial.speed else self._protocols.speed,
            seconds=self._queue.limit,
        )
        self._queue.lease(worker, job)
        return job

    def waits_for(self, outcome: Outcome) -> bool:
        """Whether an outcome is of a finalist's job, which a worker has or seemed to have lost."""
        # Also the numbers of this reevaluation that a worker found which was believed dead.
        found = {evidence.protocol for evidence in outcome.evidence}
        asked = {protocol.digest for protocol in self._protocols if protocol}
        lacks_it = outcome.number in self._open and bool(found) and found <= asked
        return self._queue.job_of(outcome.number) is not None or lacks_it

    def report(self, outcome: Outcome) -> bool:
        """Stores the fresh numbers of a finalist; False if it has its outcome already."""
        number = outcome.number
        if number not in self._open:
            return False
        self._queue.release(number)
        trial = self._open[number]
        # Evidence of anything else is not stored, as it is no confirmation.
        objections = (self._objection(evidence, trial) for evidence in outcome.evidence)
        error = outcome.error or next(filter(None, objections), "")
        for evidence in outcome.evidence:
            trial = trial.with_evidence(evidence)
        error = error or self._settings.missing(trial.values)
        # Nothing is stored of an answer that fails, so the next call asks for all of it.
        if not error:
            for evidence in outcome.evidence:
                self._store.save(evidence)
        self._finish(trial, error)
        return True

    def lost(self, worker: str, reason: str = "") -> None:
        """`worker` died of `reason`: its finalist comes next, or has failed after `ATTEMPTS`."""
        number = self._queue.lose(worker)
        if number is None:
            return
        if self._queue.is_lost(number):
            self._finish(
                self._trials[number],
                f"the worker was lost {ATTEMPTS} times during the confirmation{because(reason)}",
            )
        else:
            # Before all others, so that dense, which they are relative to, stays first.
            self._queue.waiting.appendleft(number)

    def _objection(self, evidence: Evidence, trial: TrialRecord) -> str:
        """Why evidence confirms nothing; empty if it does."""
        asked = self._protocols.quality if evidence.kind == "quality" else self._protocols.speed
        return evidence.objection(
            trial.policy.digest, self._run.fingerprint, {asked.digest} if asked else ()
        )

    def _finish(self, trial: TrialRecord, error: str) -> None:
        number = trial.number
        del self._open[number]
        self._queue.finish(number, 1.0)
        if error:
            self.failed[number] = error
        done, seconds = self.total - self.left, self._queue.seconds(self.left)
        self._emit(Confirmed(self._trials[number], trial, error, done, self.total, seconds))
