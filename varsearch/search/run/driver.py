"""The search from start to end: the same call starts a run or continues it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from varsearch.errors import UsageError
from varsearch.policy import Policy
from varsearch.search.core.optuna_study import Space
from varsearch.search.core.settings import RunSettings
from varsearch.search.run.broker import Broker
from varsearch.search.run.events import OnEvent, Resources, Status, ignore
from varsearch.search.run.in_process import run_inline
from varsearch.search.run.rungs import Rung
from varsearch.search.run.worker import MakeWorker
from varsearch.search.sampler.base import SideInformation
from varsearch.search.sampler.portfolio import DEFAULTS, PortfolioConfig


def run(
    settings: RunSettings,
    space: Space,
    starts: Mapping[str, Policy],
    make_worker: MakeWorker,
    *,
    storage: str | Path,
    budget: int,
    name: str | None = None,
    minutes: float | None = None,
    patience: int | None = None,
    guide: SideInformation | None = None,
    sampler: PortfolioConfig = DEFAULTS,
    rungs: Sequence[Rung] = (),
    confirm: bool = False,
    workers: int = 0,
    resources: Resources | None = None,
    ray_address: str | None = None,
    on_event: OnEvent = ignore,
) -> Status:
    """Searches until budget, time or patience is spent, or no untried policy is left.

    Args:
        settings: what the run is about; with equal settings the same call continues a run that was killed.
        space: where policies come from. It travels to other processes, so it must be picklable.
        starts: origin and policy of what is tried first, "seed:dense" among them.
        make_worker: loads the model and returns what evaluates; picklable too.
        storage: SQLAlchemy URL, or path of an SQLite file.
        budget: evaluations in total. Trials that stored evidence answers cost none.
        name: the run's name, by default `settings.default_name`.
        minutes: after this time no evaluation begins; those that run are finished.
        patience: evaluations without growth of the hypervolume, earlier invocations included, that end the search.
        guide: what proposals may know besides the trials. It travels too.
        sampler: tuning constants of the proposals.
        rungs: early looks at which policies may be given up.
        confirm: whether finalists are evaluated again when the search has ended.
        workers: processes on Ray, or 0 to evaluate in this process without Ray.
        resources: what each worker takes, by default one core.
        ray_address: a running Ray cluster, by default Ray is started on this machine.
        on_event: told of every trial that has its outcome.

    Raises:
        UsageError: arguments that make no sense, or a name that belongs to a run with other settings.
        EvaluationError: a worker could not start, or dense, which all else is compared with, could not be evaluated.
            The same call tries again.
        StoreError: the database failed. The same call continues where it did.
        Interrupted: Ctrl-C. Trials that were being evaluated wait for the next call.
    """
    if workers < 0:
        raise UsageError(f"workers must be 0 (in this process) or more, got {workers}")
    make_broker = partial(
        Broker,
        settings,
        space,
        dict(starts),
        storage=storage,
        budget=budget,
        name=name,
        minutes=minutes,
        patience=patience,
        guide=guide,
        sampler=sampler,
        rungs=rungs,
        confirm=confirm,
    )
    if workers == 0:
        return run_inline(make_broker, make_worker, on_event)
    from varsearch.search.run.ray import run_on_ray  # importing Ray takes seconds

    return run_on_ray(
        make_broker,
        make_worker,
        workers=workers,
        resources=resources or Resources(),
        address=ray_address,
        on_event=on_event,
    )
