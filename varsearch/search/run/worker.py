"""What evaluates policies, as far as the search knows it."""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
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


@contextmanager
def interrupted_after(seconds: float | None) -> Iterator[None]:
    """Raises `TimeoutError` in this thread after so long, as soon as it is back in Python.

    Whoever has other plans for the alarm, and any thread but the main one, has no limit.
    """
    is_free = signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    is_main = threading.current_thread() is threading.main_thread()
    if seconds is None or not is_free or not is_main:
        yield
        return

    def stop(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"the evaluation took longer than {seconds:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


@contextmanager
def killed_after(seconds: float | None) -> Iterator[None]:
    """Ends this process after so long, whatever it is in the middle of."""
    if seconds is None:
        yield
        return
    with open(os.devnull, "w") as nowhere:
        # A thread of Python's own that needs no interpreter lock, which a hanging kernel may hold.
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def evaluate(
    worker: Worker, job: Job, limit: AbstractContextManager[None] | None = None
) -> Outcome:
    """The worker's answer; an exception is its error, as one bad policy must not end the run.

    The evaluation runs inside of `limit`, such as `interrupted_after`.

    Raises:
        DeviceLost: the GPU's context is gone, and with it the rest of this process's work.
    """
    try:
        with limit or nullcontext():
            return worker.evaluate(job)
    except torch.OutOfMemoryError:
        told = out_of_memory()
    # Ctrl-C is no `Exception`, and ends the run.
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
