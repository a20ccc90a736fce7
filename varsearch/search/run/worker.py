"""What evaluates policies, as far as the search knows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from varsearch.errors import EvaluationError, VarsearchError
from varsearch.evaluators.faults import DeviceLost, clean, is_fatal, out_of_memory
from varsearch.measurement import Job, Outcome


class Worker(Protocol):
    """Holds a model and evaluates one job at a time."""

    def evaluate(self, job: Job) -> Outcome:
        """Measures what the job does not bring along."""
        ...


MakeWorker = Callable[[], Worker]
"""Loads the model; called once in each worker's process, so it must be picklable."""


def evaluate(worker: Worker, job: Job) -> Outcome:
    """The worker's answer; an exception is its error, as one bad policy must not end the run.

    Raises:
        DeviceLost: the GPU's context is gone, and with it all that this process would do next.
    """
    try:
        return worker.evaluate(job)
    except torch.OutOfMemoryError:
        told = out_of_memory()
    except Exception as error:
        if is_fatal(error):
            raise DeviceLost(
                f"trial {job.number}, policy {job.policy.digest[:12]}: {one_line(error)}"
            ) from None
        return Outcome(number=job.number, error=one_line(error))
    # The exception is gone by now, and with it the frames that held the tensors.
    clean()
    return Outcome(number=job.number, error=told)


def one_line(error: BaseException) -> str:
    """What went wrong, in one line; errors that were not raised on purpose keep their type."""
    lines = str(error).splitlines() or [""]
    return (
        lines[0]
        if isinstance(error, VarsearchError)
        else f"{type(error).__name__}: {lines[0]}".rstrip(": ")
    )


def because(reason: str) -> str:
    """The end of a sentence that may have a reason."""
    return f": {reason}" if reason else ""


def startup_error(error: Exception) -> VarsearchError:
    """Why a worker could not be made, as an error that ends the run."""
    return (
        error
        if isinstance(error, VarsearchError)
        else EvaluationError(f"a worker cannot start: {one_line(error)}")
    )
