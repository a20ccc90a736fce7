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
class Standing:
    """What a rung did so far.

    Attributes:
        name: for people.
        stopped: trials that it stopped.
        rank: rank correlation of its numbers with the final ones; None while too few trials have
            both.
        is_off: whether that is too small for the rung to be of use.
    """

    name: str
    stopped: int
    rank: float | None
    is_off: bool


@dataclass(frozen=True, slots=True)
class Status:
    """Counts and results of a run, over all its invocations.

    Attributes:
        run: the run's name.
        budget: evaluations that the run may spend.
        evaluated: trials that were evaluated whole, failed ones included.
        stopped: trials that were given up early.
        spent: evaluations spent: a stopped trial counts as the part of its images that was drawn.
        failed: trials without usable numbers, the latest of them because of `last_error`.
        reused: trials that stored evidence answered; they cost nothing and are not part of
            `evaluated`.
        running: trials that a worker has now.
        waiting: trials that a worker lost or an interruption put back.
        exhausted: whether no untried policy is left.
        plateau: whether patience is spent: the last evaluations did not make the hypervolume grow.
        rungs: of early looks, cheap ones first.
        seconds_left: estimate until the budget or the time is spent; None before the first
            evaluation.
        front: numbers of the trials on the front.
        hypervolume: see `front_volume`; None while the dense policy has no numbers.
    """

    run: str
    budget: int
    evaluated: int
    stopped: int
    spent: float
    failed: int
    last_error: str
    reused: int
    running: int
    waiting: int
    exhausted: bool
    plateau: bool
    rungs: tuple[Standing, ...]
    seconds_left: float | None
    front: tuple[int, ...]
    hypervolume: float | None


@dataclass(frozen=True, slots=True)
class Progress:
    """A trial has its outcome; `news` says which rungs that switched on or off."""

    trial: TrialRecord
    status: Status
    news: str = ""

    @property
    def reused(self) -> bool:
        """Whether stored evidence answered."""
        return self.trial.attempts == 0


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A finalist was evaluated again.

    Attributes:
        trial: with the numbers of the search.
        again: with those of the confirmation.
        error: why it could not be confirmed, in one line; empty if it was.
        done: finalists that are dealt with, of `total`.
        seconds_left: estimate for the others.
    """

    trial: TrialRecord
    again: TrialRecord
    error: str
    done: int
    total: int
    seconds_left: float | None


Event = Progress | Confirmed

OnEvent = Callable[[Event], None]
"""Gets an event for every trial that has its outcome, then for every confirmed one, in order."""


def ignore(_: Event) -> None:
    """Takes events and does nothing."""


INTERRUPTED = "interrupted: everything measured is stored, and the same command continues"
