"""The synthetic problem of the tests, full of interactions, as `benchmarks.search` asks for it."""

from __future__ import annotations

from benchmarks.search_problem import Found
from tests.search.synthetic import SPEC
from tests.search.synthetic import Synthetic as Instant
from varsearch.measurement import Job, Outcome
from varsearch.policy import Policy

__all__ = ["SPEC", "Synthetic"]


class Synthetic(Instant):
    """The same numbers for evaluations and for confirmations."""

    rungs = ()
    """There is no noise that fewer images could have more of."""

    def confirmed(self, policy: Policy) -> Found:
        """The same numbers."""
        return self.evaluate(policy)

    def answer(self, job: Job) -> Outcome:
        """Both pieces of evidence."""
        quality, speed = self.evaluate(job.policy)
        return Outcome(number=job.number, quality=quality, speed=speed)
