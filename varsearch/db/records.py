"""Runs and trials as the store hands them out: immutable, free of SQL."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from varsearch.measurement import Evidence, Measurement
from varsearch.policy import Policy


class State(StrEnum):
    """Where a trial stands; Optuna's trial of the same number is in the state of the same name."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETE = "complete"
    STOPPED = "stopped"
    FAIL = "fail"

    @property
    def is_final(self) -> bool:
        """Whether the trial's one outcome was accepted."""
        return self in (State.COMPLETE, State.STOPPED, State.FAIL)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One search.

    Attributes:
        fingerprint: the model weights that its policies belong to.
        quality_protocol: digest of the protocol of its quality evidence, empty where quality is not evaluated.
        speed_protocol: likewise of speed, never empty.
        settings: JSON of what the run was started with.
        status: "running", "interrupted" or "finished". A killed run still says "running".
        driver: token of the process that may write to the run.
    """

    name: str
    model: str
    fingerprint: str
    quality_protocol: str
    speed_protocol: str
    settings: str
    status: str = "running"
    driver: str = ""
    created: datetime | None = None
    updated: datetime | None = None


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One policy of a run.

    Attributes:
        number: counts from 0 without gaps; Optuna's trial has the same.
        origin: who proposed it, such as "seed:dense" or "sampler".
        error: one line why it failed or was stopped.
        attempts: how often an evaluation was started; 0 where stored evidence answered.
        cost: what it counts as once it has its outcome: 1 if it was evaluated whole, less if it was stopped early,
            nothing if stored evidence answered.
        worker: who evaluates it or did so last.
        quality: what is known under the run's quality protocol; `speed` likewise.
    """

    number: int
    policy: Policy
    origin: str
    state: State = State.WAITING
    error: str = ""
    attempts: int = 0
    cost: float = 0.0
    worker: str = ""
    quality: Evidence | None = None
    speed: Evidence | None = None

    @property
    def metrics(self) -> dict[str, Measurement]:
        """All numbers of both pieces of evidence, with their intervals."""
        return {**(self.quality.metrics if self.quality else {}), **(self.speed.metrics if self.speed else {})}

    @property
    def values(self) -> dict[str, float]:
        """All metrics of both pieces of evidence."""
        return {**(self.quality.values if self.quality else {}), **(self.speed.values if self.speed else {})}

    def with_evidence(self, evidence: Evidence) -> TrialRecord:
        """This trial with evidence of either kind added."""
        return replace(self, quality=evidence) if evidence.kind == "quality" else replace(self, speed=evidence)
