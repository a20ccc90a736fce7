"""One worker in this process, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from varsearch.errors import EvaluationError, Interrupted, StoreError
from varsearch.evaluators.faults import DeviceLost
from varsearch.interrupts import kept_interrupts, postponed_interrupts
from varsearch.measurement import Job
from varsearch.search.run.broker import Broker
from varsearch.search.run.events import INTERRUPTED, OnEvent, Status
from varsearch.search.run.worker import MakeWorker, evaluate, interrupted_after, startup_error

NAME = "in-process"


def run_inline(
    make_broker: Callable[[], Broker], make_worker: MakeWorker, on_event: OnEvent
) -> Status:
    """Evaluates one job after the other; see `run`."""
    with kept_interrupts() as check:
        return _run(make_broker(), make_worker, on_event, check)


def _run(
    broker: Broker, make_worker: MakeWorker, on_event: OnEvent, check: Callable[[], None]
) -> Status:
    try:
        try:
            worker = make_worker()
        except Exception as error:
            raise startup_error(error) from error
        while (job := _lease(broker)) is not None:
            try:
                outcome = evaluate(worker, job, interrupted_after(job.seconds))
            except DeviceLost as error:
                # The process is the run's own, so it ends; the same command goes on.
                broker.lost(NAME, str(error))
                raise EvaluationError(
                    f"the GPU failed: {error}; the same command goes on, --workers 1 survives it"
                ) from None
            # Ctrl-C ends an evaluation, but not the transaction that stores it.
            with postponed_interrupts():
                broker.report(outcome)
            _pass_on(broker, on_event)
            check()
        _pass_on(broker, on_event)
    except KeyboardInterrupt:
        broker.close("interrupted")
        raise Interrupted(INTERRUPTED) from None
    except BaseException:
        # The first error is the reason; a database that fails again adds nothing.
        with suppress(StoreError):
            broker.close("interrupted")
        raise
    status = broker.status()
    broker.close("finished")
    return status


def _lease(broker: Broker) -> Job | None:
    with postponed_interrupts():
        return broker.lease(NAME)


def _pass_on(broker: Broker, on_event: OnEvent) -> None:
    for event in broker.events():
        on_event(event)
