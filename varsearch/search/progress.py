"""How a run is going, and what its workers take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from varsearch.db import TrialRecord


@dataclass(frozen=True, slots=True)
class Resources:
    """What one worker takes; a fraction of a GPU lets several share it.

    Args:
        cpus: cores, which are also the threads that the worker computes with.
        gpus: GPUs.
    """

    cpus: float = 1
    gpus: float = 0


@dataclass(frozen=True, slots=True)
class Status:
    """Counts and results of a run, over all its invocations.

    Attributes:
        run: the run's name.
        budget: evaluations that the run may spend.
        evaluated: evaluations spent, failed ones included.
        failed: trials without usable numbers, the latest of them because of `last_error`.
        reused: trials that stored evidence answered; they cost nothing and are not part of `evaluated`.
        running: trials that a worker has now.
        waiting: trials that a worker lost or an interruption put back.
        exhausted: whether no untried policy is left.
        plateau: whether patience is spent: the last evaluations did not make the hypervolume grow.
        seconds_left: estimate until the budget or the time is spent; None before the first evaluation.
        front: numbers of the trials on the front.
        hypervolume: see `front_volume`; None while the dense policy has no numbers.
    """

    run: str
    budget: int
    evaluated: int
    failed: int
    last_error: str
    reused: int
    running: int
    waiting: int
    exhausted: bool
    plateau: bool
    seconds_left: float | None
    front: tuple[int, ...]
    hypervolume: float | None


@dataclass(frozen=True, slots=True)
class Progress:
    """A trial has its outcome, and where the run stands now. `reused` if nothing had to be evaluated for it."""

    trial: TrialRecord
    status: Status

    @property
    def reused(self) -> bool:
        """Whether stored evidence answered."""
        return self.trial.attempts == 0


OnEvent = Callable[[Progress], None]
"""Told of every trial that has its outcome, in the order in which they got it."""


def ignore(_: Progress) -> None:
    """Takes events and does nothing."""


INTERRUPTED = "interrupted: everything measured is stored, and the same command continues"
