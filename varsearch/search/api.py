"""Puts a search together: the command line, examples and benchmarks all start one here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

from varsearch.db import Store
from varsearch.errors import UsageError
from varsearch.models import zoo
from varsearch.search.results import front as results
from varsearch.search.results.front import Front
from varsearch.search.results.runs import find_run
from varsearch.search.run.driver import run
from varsearch.search.run.events import Event, OnEvent, Progress, Status
from varsearch.search.sensitivity.model_profile import ModelProfile
from varsearch.search.sensitivity.profile import OnStep, profiled
from varsearch.search.setup.initial_design import initial_design
from varsearch.search.setup.listener import Listener
from varsearch.search.setup.prepare import prepare
from varsearch.search.setup.request import Options, Request, check_name
from varsearch.search.setup.side_information import gather
from varsearch.search.setup.transfer import transfer
from varsearch.target import check_dtype, default_target, find_device

STORAGE = "varsearch.db"
"""The default database, in the working folder."""

OnTrial = Callable[[Progress], None]


def search(
    model: str = "mnist",
    target: str = "cpu",
    *,
    budget: int = 50,
    storage: str | Path = STORAGE,
    objectives: Sequence[str] | None = None,
    on_trial: OnTrial | None = None,
    listener: Listener | None = None,
    **options: Unpack[Options],
) -> Front:
    """Searches policies and returns the front; the same call continues the same run.

    Args:
        model: name of a model (`varsearch models`), or a model's folder.
        target: device that latency and memory refer to (`varsearch targets`).
        budget: evaluations in total, earlier calls included.
        storage: path of an SQLite file, or any SQLAlchemy URL.
        objectives: one to four of "fid", "latency", "memory" and the metrics of docs/metrics.md;
            None is the first three.
        on_trial: called with each trial that has its outcome: `.trial` has its number, origin,
            policy and values, `.status` the counts of the run.
        listener: is told everything else, such as a calibration or the confirmation of finalists.
        **options: everything else that `varsearch run` takes, such as `max_latency="0.7x"`,
            `images=256` or `workers=2`; `Request` lists all with their defaults.

    Raises:
        UsageError: arguments that make no sense, or a bound that no policy can meet.
        ModelError, TargetError: the model or target is unknown or damaged.
        EvaluationError: a worker could not start, or dense could not be evaluated.
        StoreError: the database failed.
        Interrupted: Ctrl-C. Everything measured is stored, and the same call continues.
    """
    request = Request(
        model=model,
        target=target,
        budget=budget,
        objectives=None if objectives is None else tuple(objectives),
        **options,
    )
    listener = listener or Listener()

    def on_event(event: Event) -> None:
        listener.on_event(event)
        if on_trial is not None and isinstance(event, Progress):
            on_trial(event)

    status = _run(request, storage, listener, on_event)
    listener.on_end(status)
    return read_front(storage, status.run)


def _run(request: Request, storage: str | Path, listener: Listener, on_event: OnEvent) -> Status:
    """From the request to the end of the search."""
    request.check()
    problem = prepare(request, storage, listener.on_calibration, listener.on_calibration_step)
    if request.rungs and not problem.rungs:
        raise UsageError("--rungs: there is none before so few images, or of other metrics of quality than FID")
    name = problem.settings.default_name if request.name is None else request.name
    check_name(name)
    known = transfer(problem.settings, name, storage)
    side_information, warm = gather(
        problem,
        storage,
        evaluations=request.budget - known.taken,
        profile=request.profile,
        n_warm=request.warm_starts,
        listener=listener,
    )
    design = initial_design(problem.starts.by_origin, known.policies, warm)
    listener.on_start(name, problem, design, known)
    return run(
        problem.settings,
        problem.space,
        design,
        problem.worker.make,
        storage=storage,
        budget=request.budget,
        name=name,
        minutes=request.minutes,
        patience=request.patience,
        guide=side_information,
        rungs=problem.rungs if request.rungs else (),
        confirm=request.confirm,
        workers=request.workers,
        resources=problem.resources,
        ray_address=request.ray_address,
        on_event=on_event,
    )


def read_front(storage: str | Path = STORAGE, run: str | None = None) -> Front:
    """The front of a run as it is in the database now.

    Args:
        storage: path of an SQLite file, or any SQLAlchemy URL.
        run: name of the run; None is the latest.

    Raises:
        UsageError: there is no such run.
        StoreError: the database cannot be read.
    """
    with Store(storage, create=False) as store:
        return results.read_front(store, find_run(store, run))


def profile(
    model: str = "mnist",
    target: str = "cpu",
    *,
    storage: str | Path = STORAGE,
    batch_size: int | None = None,
    dtype: str | None = None,
    seed: int = 0,
    on_step: OnStep = lambda step: None,
) -> ModelProfile:
    """Measures what each setting of a model loses and saves on its own, once per database.

    For a second target only latency and memory are computed.

    Args:
        model: name of a model, or a model's folder.
        target: device that costs refer to.
        storage: path of an SQLite file, or any SQLAlchemy URL.
        batch_size: images per batch; None takes the device's usual one.
        dtype: number format; None takes the device's usual one.
        seed: of the noise, and of the choice of pairs and whole policies.
        on_step: called after every measurement.

    Raises:
        Interrupted: Ctrl-C. The same call goes on from there.
        ModelError, TargetError, StoreError: something that is needed is missing or damaged.
    """
    spec = zoo.manifest(model).spec()
    chosen = default_target(find_device(target), batch_size, check_dtype(dtype), spec)
    return ModelProfile(profiled(model, chosen, storage, seed=seed, on_step=on_step))
