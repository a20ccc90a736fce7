"""Confirms the finalists of a search: the same policies on fresh noise, with more images and more timed rounds.

The best of many noisy numbers are partly good luck. A front is therefore made of numbers that had no part in choosing
its members.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from varsearch.db import RunRecord, Store, TrialRecord
from varsearch.measurement import Evidence, Job, Outcome
from varsearch.search.core.protocols import answered, confirming, under
from varsearch.search.core.settings import RunSettings
from varsearch.search.results.finalists import finalists

ATTEMPTS = 3
"""A finalist that loses its worker this often has failed."""


class Confirmation:
    """Hands out the evaluations that the finalists of a run lack, and stores what comes back.

    Nothing of it is kept but the evidence, so a confirmation that was interrupted goes on with what is missing, and
    numbers that another run has stored count too.

    Attributes:
        failed: number of each finalist that could not be confirmed, with the reason in one line. It is not tried again
            by this object, and not on the front.
        total: number of finalists.
    """

    def __init__(self, settings: RunSettings, store: Store, run: RunRecord) -> None:
        self.failed: dict[int, str] = {}
        self.total = 0
        self._settings, self._store, self._run = settings, store, run
        self._protocols = confirming(settings)
        self._open: dict[int, TrialRecord] = {}
        self._waiting: deque[int] = deque()
        self._losses: Counter[int] = Counter()

    def start(self, trials: Sequence[TrialRecord]) -> None:
        """Finds out which finalists among `trials`, the run's, have no fresh numbers yet; dense comes first."""
        wanted = [t.number for t in finalists(self._settings, trials)]
        known = {t.number: t for t in under(self._store, self._run, self._protocols)}
        missing = [n for n in wanted if n not in self.failed and not answered(known[n], self._protocols)]
        self.total, self._open, self._waiting = len(wanted), {n: known[n] for n in missing}, deque(missing)

    @property
    def left(self) -> int:
        """Finalists without an outcome, those included that a worker has now."""
        return len(self._open)

    def next(self) -> Job | None:
        """The next evaluation, under the trial's number; None if there is none to begin."""
        if not self._waiting:
            return None
        trial = self._open[self._waiting.popleft()]
        return Job(
            number=trial.number,
            policy=trial.policy,
            quality=None if trial.quality else self._protocols.quality,
            speed=None if trial.speed else self._protocols.speed,
        )

    def waits_for(self, outcome: Outcome) -> bool:
        """Whether a finalist still lacks what this answer of a worker that was believed lost has found."""
        found = [e.protocol for e in (outcome.quality, outcome.speed) if e]
        asked = {protocol.digest for protocol in self._protocols if protocol}
        return outcome.number in self._open and bool(found) and asked.issuperset(found)

    def known(self, number: int) -> TrialRecord:
        """A finalist without an outcome, with the confirmed numbers that it has nevertheless."""
        return self._open[number]

    def put_back(self, number: int) -> str:
        """The worker that had this job is lost: it is handed out again, before all others.

        After `ATTEMPTS` losses it has failed, and the answer says so in one line.
        """
        if number not in self._open or number in self._waiting:
            return ""
        self._losses[number] += 1
        if self._losses[number] == ATTEMPTS:
            return self._fail(number, f"the worker was lost {ATTEMPTS} times during the confirmation")
        self._waiting.appendleft(number)
        return ""

    def take(self, outcome: Outcome) -> str:
        """Stores what an evaluation found; says in one line why it confirms nothing, or "". A second one is ignored."""
        number = outcome.number
        if number not in self._open:
            return ""
        trial, found = self._open[number], [e for e in (outcome.quality, outcome.speed) if e]
        error = outcome.error or next(filter(None, (self._objection(e, trial) for e in found)), "")
        for evidence in found:
            trial = trial.with_evidence(evidence)
        error = error or self._settings.missing(trial.values)
        if error:
            return self._fail(number, error)
        for evidence in found:
            self._store.save(evidence)
        self._close(number)
        return ""

    def _objection(self, evidence: Evidence, trial: TrialRecord) -> str:
        asked = self._protocols.quality if evidence.kind == "quality" else self._protocols.speed
        return evidence.objection(trial.policy.digest, self._run.fingerprint, {asked.digest} if asked else ())

    def _fail(self, number: int, error: str) -> str:
        self._close(number)
        self.failed[number] = error
        return error

    def _close(self, number: int) -> None:
        del self._open[number]
        if number in self._waiting:
            self._waiting.remove(number)
