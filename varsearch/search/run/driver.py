"""The search from start to end: the same call starts a run or continues it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack, cast

from varsearch.errors import UsageError
from varsearch.policy import Policy
from varsearch.search.core.optuna_study import Space
from varsearch.search.core.settings import RunSettings
from varsearch.search.run.broker import Broker, Search
from varsearch.search.run.events import OnEvent, Resources, Status, ignore
from varsearch.search.run.in_process import run_inline
from varsearch.search.run.rungs import Rung
from varsearch.search.run.worker import MakeWorker
from varsearch.search.sampler.side_information import Guide


class SearchOptions(TypedDict, total=False):
    """Optional parts of a search, see `Search`."""

    name: str | None
    minutes: float | None
    patience: int | None
    guide: Guide | None
    rungs: Sequence[Rung]
    confirm: bool
    max_seconds: float | None


class Options(SearchOptions, total=False):
    """The options of `run`.

    Attributes:
        workers: processes on Ray, or 0 to evaluate in this process without Ray.
        resources: what each worker takes, by default one core.
        ray_address: a running Ray cluster, by default Ray is started on this machine.
        on_event: gets an event for every trial that has its outcome.
    """

    workers: int
    resources: Resources | None
    ray_address: str | None
    on_event: OnEvent


def run(
    settings: RunSettings,
    space: Space,
    starts: Mapping[str, Policy],
    make_worker: MakeWorker,
    *,
    storage: str | Path,
    budget: int,
    **options: Unpack[Options],
) -> Status:
    """Searches until budget, time or patience is spent, or no untried policy is left.

    Args:
        settings: what the run is about; with equal settings the same call continues a run that was
            killed.
        space: where policies come from.
        starts: origin and policy of the trials that come first, "seed:dense" among them.
        make_worker: loads the model and returns a worker; picklable, as it travels to other
            processes.
        storage: SQLAlchemy URL, or path of an SQLite file.
        budget: evaluations in total. Trials that stored evidence answers cost none.
        options: see `Options` and `Search`.

    Raises:
        UsageError: arguments that make no sense, or a name that belongs to a run with other
            settings.
        EvaluationError: a worker could not start, or dense, which all else is compared with, could
            not be evaluated. The same call tries again.
        StoreError: the database failed. The same call continues where it did.
        Interrupted: Ctrl-C. Trials that were being evaluated wait for the next call.
    """
    workers, on_event = options.pop("workers", 0), options.pop("on_event", ignore)
    resources, address = options.pop("resources", None), options.pop("ray_address", None)
    if workers < 0:
        raise UsageError(f"workers must be 0 (in this process) or more, got {workers}")
    rest = cast(SearchOptions, options)
    search = Search(settings, space, dict(starts), storage, budget, **rest)
    make_broker = partial(Broker, search)
    if workers == 0:
        return run_inline(make_broker, make_worker, on_event)
    from varsearch.search.run.ray import run_on_ray  # importing Ray takes seconds

    return run_on_ray(
        make_broker,
        make_worker,
        workers=workers,
        resources=resources or Resources(),
        address=address,
        on_event=on_event,
    )
