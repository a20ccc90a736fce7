"""Workers on Ray: Tune places, supervises and replaces them; a broker actor owns the run."""

from __future__ import annotations

import logging
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeVar

# Ray prints the deaths of workers even with `log_to_driver=False`. This setting silences them; Ray
# reads it when it is imported, so a process that imported Ray before sees them.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")

import ray
from ray import tune
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from varsearch.errors import EvaluationError, Interrupted, StoreError, TargetError
from varsearch.interrupts import kept_interrupts
from varsearch.measurement import Job, Outcome
from varsearch.search.run.broker import Broker
from varsearch.search.run.events import INTERRUPTED, Event, OnEvent, Resources, Status
from varsearch.search.run.queue import ATTEMPTS
from varsearch.search.run.worker import MakeWorker, evaluate, killed_after, one_line, startup_error

T = TypeVar("T")

PAUSE = 0.2
"""Seconds after which a worker without a job asks again, while others may still free budget."""

SILENCE = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune would wait for running evaluations to end; ours are put back instead.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
NICENESS = "RAY_worker_niceness"
"""Ray lets workers stand back, by 15: beside one busy process on each core they get 3 % of it."""


class BrokerActor:
    """The broker in its own process. After an error it has no jobs; the driver finds the error."""

    def __init__(self, make_broker: Callable[[], Broker]) -> None:
        self._make_broker = make_broker
        self._error: Exception | None = None
        self._closed = False
        self._starts: dict[str, int] = {}

    def open(self) -> None:
        """Opens the run; raises what `Broker` raises."""
        self._broker = self._make_broker()

    def starting(self, worker: str) -> None:
        """`worker` begins to load its model; after `ATTEMPTS` deaths in a row the run ends."""
        self._starts[worker] = self._starts.get(worker, 0) + 1
        if self._starts[worker] > ATTEMPTS:
            self.abort(
                EvaluationError(
                    f"{worker} died {ATTEMPTS} times while loading the model: is memory short?"
                )
            )

    def abort(self, error: Exception) -> None:
        """Ends the run with `error`."""
        self._error = self._error or error

    def lease(self, worker: str) -> tuple[Job | None, bool]:
        """See `Broker.lease`; and whether a worker that got no job is done."""
        self._starts.pop(worker, None)
        if self._error or self._closed:
            return None, True
        try:
            return self._broker.lease(worker), self._broker.is_over
        except Exception as error:
            self.abort(error)
            return None, True

    def report(self, outcome: Outcome) -> None:
        """See `Broker.report`."""
        try:
            self._broker.report(outcome)
        except Exception as error:
            self.abort(error)

    def poll(self) -> tuple[list[Event], Exception | None]:
        """What happened since the last call, and the error that ended the run."""
        return self._broker.events(), self._error

    def close(self, status: Literal["finished", "interrupted"]) -> Status:
        """See `Broker.close`; returns where the run stood."""
        self._closed = True
        final = self._broker.status()
        self._broker.close(status)
        return final


def run_on_ray(
    make_broker: Callable[[], Broker],
    make_worker: MakeWorker,
    *,
    workers: int,
    resources: Resources,
    address: str | None,
    on_event: OnEvent,
) -> Status:
    """Runs `workers` processes until the broker has no more jobs; see `run`."""
    with _cluster(workers, resources, address) as folder:
        broker = _start_broker(make_broker)
        try:
            with kept_interrupts() as check:
                watch = _Watch(broker, on_event, check)
                _supervise(broker, make_worker, workers, resources, watch, folder)
                # Events of the last outcomes, after Tune's last step.
                watch.on_step_end()
            status: Status = ray.get(broker.close.remote("finished"))
        except BaseException as error:
            with suppress(RayError, StoreError):
                ray.get(broker.close.remote("interrupted"))
            raise _explained(error) from None
        return status


def _explained(error: BaseException) -> BaseException:
    """What an error in the driver means to its user."""
    if isinstance(error, KeyboardInterrupt):
        return Interrupted(INTERRUPTED)
    if isinstance(error, RayActorError):
        return StoreError(
            "the process that owns the run died: run the same command again to continue"
        )
    return error.cause if isinstance(error, RayTaskError) else error


def ask(address: str | None, resources: Resources, function: Callable[..., T], *args: Any) -> T:
    """What `function` answers where a worker would run, such as which device it finds there."""
    with _cluster(1, resources, address):
        task = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus)(lambda: function(*args))
        try:
            answer: T = ray.get(task.remote())
        except RayTaskError as error:
            raise error.cause from None
        return answer


@contextmanager
def _cluster(workers: int, resources: Resources, address: str | None) -> Iterator[str]:
    """Ray for the time of a run, and a folder for what Tune writes; neither leaves anything behind.

    Without an address Ray starts on this machine, with as many logical cores as the workers ask
    for.
    """
    # Not TMPDIR or RAY_TMPDIR, which add folders: paths of sockets must fit into 107 characters.
    folder = tempfile.mkdtemp(prefix=f"varsearch-{os.getpid()}-", dir="/tmp")
    local = {
        "num_cpus": math.ceil(workers * resources.cpus),
        "include_dashboard": False,
        "_temp_dir": folder,
    }
    threads = str(max(1, math.floor(resources.cpus)))
    options = {
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads}},
        "log_to_driver": False,
        "logging_level": logging.CRITICAL,
    }
    with _silence():
        try:
            if address:
                _join(address, options)
            else:
                ray.init(**local, **options)
            _check_resources(1 if address else workers, resources)
            yield folder
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _silence() -> Iterator[None]:
    """Leaves the terminal to the search, and the workers their share of the machine."""
    replaced = {name: os.environ.get(name) for name in (*SILENCE, NICENESS)}
    os.environ.update(SILENCE)
    os.environ.setdefault(NICENESS, "0")
    try:
        yield
    finally:
        for name, value in replaced.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _join(address: str, options: dict[str, Any]) -> None:
    """Joins a running cluster, if its head node answers: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        if address != "auto":
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, **options)
    except (OSError, ValueError):
        raise TargetError(
            f"cannot join a Ray cluster at {address!r}: expected HOST:PORT of a running head node, "
            "or 'auto' on one of its nodes; a cluster that asks for a token needs "
            "RAY_AUTH_MODE=token"
        ) from None


def _check_resources(workers: int, resources: Resources) -> None:
    """Ray would wait for ever for what it does not have."""
    there = ray.cluster_resources()
    for kind, each in (("CPU", resources.cpus), ("GPU", resources.gpus)):
        if workers * each > there.get(kind, 0):
            raise TargetError(
                f"{workers} x {each:g} {kind} per worker is more than the "
                f"{there.get(kind, 0):g} of Ray"
            )


def _start_broker(make_broker: Callable[[], Broker]) -> Any:
    """The broker's actor, on this node because an SQLite file is local."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    broker = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=here)(BrokerActor).remote(
        make_broker
    )
    try:
        ray.get(broker.open.remote())
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        raise EvaluationError(f"the search's own process cannot start: {one_line(error)}") from None
    return broker


def _supervise(
    broker: Any,
    make_worker: MakeWorker,
    workers: int,
    resources: Resources,
    watch: _Watch,
    folder: str,
) -> None:
    """One Tune trial is the life of one worker, from its model to its last job."""
    life = tune.with_parameters(_work, broker=broker, make_worker=make_worker)
    tune.Tuner(
        tune.with_resources(life, {"cpu": resources.cpus, "gpu": resources.gpus}),
        param_space={"worker": tune.grid_search(list(range(workers)))},
        run_config=tune.RunConfig(
            name="workers",
            storage_path=folder,
            verbose=0,
            callbacks=[watch],
            failure_config=tune.FailureConfig(max_failures=-1),
        ),
    ).fit()


def _work(config: dict[str, int], broker: Any, make_worker: MakeWorker) -> None:
    """The life of a worker in its process. If it dies, Tune starts another of its name."""
    name = f"worker-{config['worker']}"
    ray.get(broker.starting.remote(name))
    jobs = 0
    try:
        worker = make_worker()
    except Exception as error:
        ray.get(broker.abort.remote(startup_error(error)))
    else:
        while True:
            job, is_over = ray.get(broker.lease.remote(name))
            if job is not None:
                # Tune starts another worker, whose lease tells the broker that this one is lost.
                outcome = evaluate(worker, job, killed_after(job.seconds))
                ray.get(broker.report.remote(outcome))
                jobs += 1
            elif is_over:
                break
            else:
                time.sleep(PAUSE)
    # Tune prints a line for trials that end without any result.
    tune.report({"jobs": jobs})


# Ray is untyped, and Tune insists on its own base class.
class _Watch(tune.Callback):  # type: ignore[misc]
    """Passes the broker's events on in the driver's process, and ends the run at an error."""

    def __init__(self, broker: Any, on_event: OnEvent, check: Callable[[], None]) -> None:
        self._broker, self._on_event, self._check = broker, on_event, check

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by Tune several times per second."""
        events, error = ray.get(self._broker.poll.remote())
        for event in events:
            self._on_event(event)
        if error:
            raise error
        self._check()
