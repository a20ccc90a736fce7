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


HANGS = 20.0
"""An evaluation that takes so many times as long as the longest of the recent trials has hung."""

LEAST_LIMIT = 600.0
"""Seconds that every evaluation may take, however short the others are."""


class Queue:
    """Trials without an outcome, by number.

    Args:
        max_seconds: what an evaluation may take, by default a multiple of what others took.

    Attributes:
        waiting: numbers that no worker has, next one first.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self._max_seconds = max_seconds
        self.waiting: deque[int] = deque()
        self._leases: dict[str, Job] = {}  # by worker
        self._losses: Counter[int] = Counter()
        self._workers: set[str] = set()  # all that ever had a job
        self._begun: dict[int, float] = {}  # when the present job of a trial began
        self._taken: defaultdict[int, float] = defaultdict(float)  # by its jobs so far, in seconds
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)  # seconds and cost

    @property
    def running(self) -> int:
        """Trials that a worker has."""
        return len(self._leases)

    @property
    def limit(self) -> float | None:
        """Seconds that an evaluation may take; None before the first outcome if none are given."""
        if self._max_seconds is not None or not self._recent:
            return self._max_seconds
        longest, _ = max(self._recent)
        return max(LEAST_LIMIT, HANGS * longest)

    def lease(self, worker: str, job: Job) -> None:
        """Gives `job`, whose trial waits no more, to `worker`, which holds nothing else."""
        self._workers.add(worker)
        self._leases[worker] = job
        self._begun[job.number] = time.monotonic()

    def job_of(self, number: int) -> Job | None:
        """The job of a trial that a worker has now."""
        for job in self._leases.values():
            if job.number == number:
                return job
        return None

    def lose(self, worker: str) -> int | None:
        """The trial that `worker` held when it died, out of the queue now; None if it held none."""
        job = self._leases.pop(worker, None)
        if job is None:
            return None
        self._losses[job.number] += 1
        return job.number

    def is_lost(self, number: int) -> bool:
        """Whether a trial has lost its worker too often."""
        return self._losses[number] >= ATTEMPTS

    def release(self, number: int) -> None:
        """Takes an answered trial out of the queue, even one that waits: a late answer counts."""
        for worker, job in list(self._leases.items()):
            if job.number == number:
                del self._leases[worker]
        if number in self.waiting:
            self.waiting.remove(number)
        if number in self._begun:
            # A trial with rungs has several jobs, and takes as long as all of them.
            self._taken[number] += time.monotonic() - self._begun.pop(number)

    def finish(self, number: int, cost: float) -> None:
        """A trial has its outcome, which counts as so many evaluations."""
        # A stored answer took no time, and says nothing of those that do.
        if number in self._taken:
            self._recent.append((self._taken.pop(number), cost))

    def seconds(self, evaluations: float) -> float | None:
        """How long so many evaluations take all workers; None before the first outcome."""
        taken = cost = 0.0
        for seconds, share in self._recent:
            taken += seconds
            cost += share
        return evaluations / len(self._workers) * taken / cost if cost else None


def is_late(outcome: Outcome, job: Job) -> bool:
    """Whether an outcome has nothing of what `job` asks for: it answers an earlier job."""
    asked = [protocol.digest for protocol in (job.quality, job.speed) if protocol]
    return not any(evidence.protocol in asked for evidence in outcome.evidence)
