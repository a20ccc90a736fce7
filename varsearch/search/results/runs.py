"""Runs of a storage, for listing."""

from __future__ import annotations

from typing import Any

from varsearch.db import RunRecord, State, Store
from varsearch.errors import UsageError
from varsearch.search.core.protocols import Protocols, confirming
from varsearch.search.core.settings import RunSettings
from varsearch.search.results.front import Front, FrontEntry, confirmed_trials, entry_of, read_front
from varsearch.search.results.selection import select


def find_run(store: Store, name: str | None) -> RunRecord:
    """The named run, or the one that was updated last.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    runs = store.runs()
    if not runs:
        raise UsageError("the storage has no runs yet: start one with 'varsearch run'")
    if name is None:
        return max(runs, key=lambda run: str(run.updated or run.created or ""))
    found = next((run for run in runs if run.name == name), None)
    if found is None:
        raise UsageError(f"no run {name!r}: there are {', '.join(run.name for run in runs)}")
    return found


def pick(store: Store, run: RunRecord, front: Front, how: str) -> FrontEntry:
    """An entry of the front by `select`, or any evaluated trial by "trial=NUMBER", with confirmed numbers if it has."""
    number = how.removeprefix("trial=")
    if number == how:
        return select(front, how)
    settings = front.settings
    sources = (
        (confirming(settings), confirmed_trials(store, run)),
        (Protocols.of(settings), store.trials(run)),
    )
    for protocols, trials in sources:
        for trial in trials:
            if str(trial.number) == number and trial.state is State.COMPLETE:
                return entry_of(trial, protocols, run.name, settings)
    raise UsageError(f"run {run.name!r} has no evaluated trial {number}")


def overview(storage: str, name: str | None = None) -> list[dict[str, Any]]:
    """One row per run: what it is about, how many trials it has in which state, and its front's size."""
    with Store(storage, create=False) as store:
        runs = [find_run(store, name)] if name else store.runs()
        return [_row(store, run) for run in runs]


def _row(store: Store, run: RunRecord) -> dict[str, Any]:
    settings, trials, front = (
        RunSettings.parse(run.settings),
        store.trials(run),
        read_front(store, run),
    )
    return {
        "run": run.name,
        "model": run.model,
        "target": str(settings.target),
        "origin": settings.origin.value,
        "objectives": list(settings.objectives),
        "status": run.status,
        "complete": sum(t.state is State.COMPLETE for t in trials),
        "stopped": sum(t.state is State.STOPPED for t in trials),
        "failed": sum(t.state is State.FAIL for t in trials),
        "spent": sum(t.cost for t in trials),
        "open": sum(not t.state.is_final for t in trials),
        "front": len(front.entries),
        "confirmed": front.confirmed,
        "exact": front.exact,
        "hypervolume": front.hypervolume,
        "updated": run.updated.isoformat(timespec="seconds") if run.updated else "",
    }
