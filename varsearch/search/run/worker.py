"""What evaluates policies, as far as the search knows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from varsearch.errors import EvaluationError, VarsearchError
from varsearch.measurement import Job, Outcome


class Worker(Protocol):
    """Holds a model and evaluates one job at a time."""

    def evaluate(self, job: Job) -> Outcome:
        """Measures what the job does not bring along."""
        ...


MakeWorker = Callable[[], Worker]
"""Loads the model; called once in each worker's process, so it must be picklable."""


def evaluate(worker: Worker, job: Job) -> Outcome:
    """The worker's answer; an exception is its error, as one bad policy must not end the run."""
    try:
        return worker.evaluate(job)
    # Ctrl-C is no `Exception`, and ends the run.
    except Exception as error:
        return Outcome(number=job.number, error=one_line(error))


def one_line(error: BaseException) -> str:
    """What went wrong, in one line; errors that were not raised on purpose keep their type."""
    lines = str(error).splitlines() or [""]
    return (
        lines[0]
        if isinstance(error, VarsearchError)
        else f"{type(error).__name__}: {lines[0]}".rstrip(": ")
    )


def startup_error(error: Exception) -> VarsearchError:
    """Why a worker could not be made, as an error that ends the run."""
    return (
        error
        if isinstance(error, VarsearchError)
        else EvaluationError(f"a worker cannot start: {one_line(error)}")
    )
