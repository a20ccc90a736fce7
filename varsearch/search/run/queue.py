"""Which trials wait for a worker, which worker has which, and how long evaluations take.

The exploration and the reevaluation of a run have a queue each. A trial is in one of three places:
it waits, a worker has leased it, or it is not in the queue because it has its outcome.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque

from varsearch.measurement import Job, Outcome

ATTEMPTS = 3
"""A trial that loses its worker this often has failed.

Deaths of the whole run do not count: they say little about a policy.
"""

RECENT = 20
"""Trials that the remaining time is estimated from."""


class Queue:
    """Trials without an outcome, by number.

    Attributes:
        waiting: numbers that no worker has, next one first.
    """

    def __init__(self) -> None:
        self.waiting: deque[int] = deque()
        self._workers: set[str] = set()
        self._leases: dict[str, int] = {}
        self._jobs: dict[int, Job] = {}
        self._losses: Counter[int] = Counter()
        self._pace = _Pace()

    @property
    def running(self) -> int:
        """Trials that a worker has."""
        return len(self._leases)

    def lease(self, worker: str, job: Job) -> None:
        """Gives `job`, whose trial waits no more, to `worker`, which holds nothing else."""
        self._workers.add(worker)
        self._leases[worker] = job.number
        self._jobs[job.number] = job
        self._pace.begin(job.number)

    def is_leased(self, number: int) -> bool:
        """Whether a worker has a trial now."""
        return number in self._jobs

    def is_late(self, outcome: Outcome) -> bool:
        """Whether an outcome answers an earlier job than the one that a worker has now."""
        job = self._jobs.get(outcome.number)
        if job is None:
            return False
        asked = {protocol.digest for protocol in (job.quality, job.speed) if protocol}
        return asked.isdisjoint(evidence.protocol for evidence in outcome.evidence)

    def lose(self, worker: str) -> int | None:
        """The trial that `worker` held when it died, out of the queue now; None if it held none."""
        if worker not in self._leases:
            return None
        number = self._leases.pop(worker)
        self._jobs.pop(number, None)
        self._losses[number] += 1
        return number

    def is_lost(self, number: int) -> bool:
        """Whether a trial has lost its worker too often."""
        return self._losses[number] >= ATTEMPTS

    def release(self, number: int) -> None:
        """Takes an answered trial out of the queue, even one that waits: a late answer counts."""
        self._leases = {worker: held for worker, held in self._leases.items() if held != number}
        self._jobs.pop(number, None)
        self._pace.end(number)
        if number in self.waiting:
            self.waiting.remove(number)

    def finish(self, number: int, cost: float) -> None:
        """A trial has its outcome, which counts as so many evaluations."""
        self._pace.finish(number, cost)

    def seconds(self, evaluations: float) -> float | None:
        """How long so many evaluations take all workers; None before the first outcome."""
        return self._pace.seconds(evaluations, len(self._workers))


class _Pace:
    """How long evaluations take, from the last `RECENT` of them, jobs of their rungs together."""

    def __init__(self) -> None:
        self._begun: dict[int, float] = {}
        self._taken: defaultdict[int, float] = defaultdict(float)
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)

    def begin(self, number: int) -> None:
        """A job of this trial begins."""
        self._begun[number] = time.monotonic()

    def end(self, number: int) -> None:
        """It ends."""
        if number in self._begun:
            self._taken[number] += time.monotonic() - self._begun.pop(number)

    def finish(self, number: int, cost: float) -> None:
        """The trial has its outcome, which counts as so many evaluations."""
        # A stored answer took no time, and says nothing of those that do.
        if number in self._taken:
            self._recent.append((self._taken.pop(number), cost))

    def seconds(self, evaluations: float, workers: int) -> float | None:
        """How long so many evaluations take so many workers; None before the first one."""
        seconds = sum(taken for taken, _ in self._recent)
        cost = sum(cost for _, cost in self._recent)
        return evaluations / workers * seconds / cost if cost else None
