"""What `benchmarks.search` searches: what a problem is, and recorded real evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

from varsearch.db import Store
from varsearch.errors import EvaluationError, UsageError
from varsearch.evaluators.costs import exact_costs
from varsearch.measurement import Evidence, Job, Outcome
from varsearch.policy import Policy
from varsearch.profile import Profile
from varsearch.search.core.optuna_study import Space
from varsearch.search.core.protocols import Protocols, confirming
from varsearch.search.core.settings import RunSettings
from varsearch.search.run.rungs import Rung
from varsearch.search.run.worker import evaluate
from varsearch.search.sampler.base import SideInformation
from varsearch.search.sensitivity.profile import profiled
from varsearch.search.sensitivity.warm_start import warm_starts
from varsearch.search.setup.guidance import starts_with
from varsearch.search.setup.prepare import Plan, Request, prepare

WARM_STARTS = 20
"""Policies of the profile that warm methods start from."""

FRESH_IMAGES = 2
"""How many times as many images confirm a policy: fewer than in a run, because all methods' fronts are confirmed whole,
after every count of evaluations."""

Found = tuple[Evidence, Evidence]
"""Evidence of quality and of speed."""


class Problem(Protocol):
    """What a search is about, and its answers."""

    @property
    def settings(self) -> RunSettings:
        """Protocols and objectives."""
        ...

    @property
    def space(self) -> Space:
        """Where policies come from."""
        ...

    @property
    def published(self) -> Mapping[str, Policy]:
        """Dense, published systems and hand-made policies, by origin."""
        ...

    @property
    def profile(self) -> Profile:
        """What single settings do."""
        ...

    @property
    def warm(self) -> dict[str, Policy]:
        """Dense, what the profile suggests, and all of `published`, by origin."""
        ...

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Early looks at which a run may give policies up."""
        ...

    def evaluate(self, policy: Policy) -> Found:
        """The policy's numbers; `EvaluationError` if it has none."""
        ...

    def confirmed(self, policy: Policy) -> Found:
        """The same on fresh noise."""
        ...

    def answer(self, job: Job) -> Outcome:
        """What a worker answers."""
        ...

    def guide(self, profile: bool) -> SideInformation:
        """What proposals may know."""
        ...


@dataclass(eq=False)
class Recorded:
    """Real evaluations of `mnist`, predicted for a target. What the database has is replayed.

    Args:
        storage: the database, which is the record.
        images: of each evaluation.
        record: whether what it lacks is evaluated and kept.
        counts: how many evaluations were replayed, and how many made.
    """

    storage: str
    target: str = "4090"
    images: int = 128
    record: bool = False
    counts: dict[str, int] = field(default_factory=lambda: {"replayed": 0, "evaluated": 0})

    @cached_property
    def _plan(self) -> Plan:
        # One core each, because seeds run side by side.
        return prepare(Request(target=self.target, images=self.images, cpus_per_worker=1), self.storage)

    @cached_property
    def _store(self) -> Store:
        return Store(self.storage)

    @cached_property
    def _worker(self) -> Any:
        return self._plan.worker.make()

    @property
    def settings(self) -> RunSettings:
        """Protocols and objectives."""
        return self._plan.settings

    @property
    def space(self) -> Space:
        """With what published systems set."""
        return self._plan.space

    @cached_property
    def published(self) -> Mapping[str, Policy]:
        """Dense, published systems and hand-made policies."""
        return self._plan.starts.by_origin

    @cached_property
    def profile(self) -> Profile:
        """Measured once per database."""
        return profiled("mnist", self.settings.target, self.storage)

    @cached_property
    def warm(self) -> dict[str, Policy]:
        """As a run with `--warm-starts` starts."""
        return starts_with(self.published, warm_starts(self.profile, WARM_STARTS))

    def guide(self, profile: bool) -> SideInformation:
        """What the search itself would know."""
        found, speed = self.profile, self.settings.speed
        costs = partial(exact_costs, self._plan.worker.model, speed)
        return SideInformation(found.spec, found.siblings, found if profile else None, costs)

    @property
    def rungs(self) -> tuple[Rung, ...]:
        """Early looks at which a run may give policies up."""
        return self._plan.rungs

    def evaluate(self, policy: Policy) -> Found:
        """Under the run's own protocols; `EvaluationError` if it has no numbers."""
        return self._both(policy, Protocols.of(self.settings))

    def confirmed(self, policy: Policy) -> Found:
        """On fresh noise, with `FRESH_IMAGES` times the images."""
        searched, (quality, speed) = self.settings.quality, confirming(self.settings)
        assert searched is not None and quality is not None
        fresh = quality.model_copy(update={"n_images": FRESH_IMAGES * searched.n_images})
        return self._both(policy, Protocols(fresh, speed))

    def _both(self, policy: Policy, protocols: Protocols) -> Found:
        answer = self.answer(Job(number=0, policy=policy, quality=protocols.quality, speed=protocols.speed))
        if answer.error:
            raise EvaluationError(answer.error)
        assert answer.quality is not None and answer.speed is not None
        return answer.quality, answer.speed

    def answer(self, job: Job) -> Outcome:
        """From the database, or for the database."""
        s, digest = self.settings, job.policy.digest
        quality = job.quality and self._store.find("quality", digest, s.fingerprint, job.quality.digest)
        speed = job.speed and self._store.find("speed", digest, s.fingerprint, job.speed.digest)
        missing = None if quality else job.quality, None if speed else job.speed
        if missing == (None, None):
            self.counts["replayed"] += 1
            return Outcome(number=job.number, quality=quality, speed=speed)
        if not self.record:
            raise UsageError(f"{self.storage} has no evaluation of {digest[:12]}…: run again with --record")
        made = evaluate(self._worker, Job(number=job.number, policy=job.policy, quality=missing[0], speed=missing[1]))
        self.counts["evaluated"] += 1
        kept = {e.kind: self._store.save(e) for e in (made.quality, made.speed) if e}
        known = {"quality": quality, "speed": speed} | kept
        return Outcome(number=job.number, quality=known["quality"], speed=known["speed"], error=made.error)
