"""Takes over what other runs of a database know: the quality of policies, whatever the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from varsearch.db import RunRecord, State, Store, TrialRecord
from varsearch.db.knowledge import evaluated
from varsearch.errors import StoreError
from varsearch.policy import Policy
from varsearch.search.core.objectives import front_trials
from varsearch.search.core.settings import RunSettings
from varsearch.search.core.source import Source, SourceKind

NAME = 40
"""Characters of a run's name that an origin shows."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Policies whose quality is known under the protocol of a run.

    Attributes:
        policies: policies that other runs evaluated, by origin. Members of fronts come first, and
            those of the latest run before others.
        fresh: number of them that the run has not tried yet.
        runs: the runs that evaluated the fresh ones, latest first.
        taken: evaluations that the run has spent, and those that known policies without known
            speed will take.
        has_quality: digests of all policies whose quality is known, by whatever command.
        unread: runs that cannot be read, with the reason.
    """

    policies: Mapping[str, Policy] = field(default_factory=dict)
    fresh: int = 0
    runs: tuple[str, ...] = ()
    taken: float = 0
    has_quality: frozenset[str] = frozenset()
    unread: Mapping[str, str] = field(default_factory=dict)


def transfer(settings: RunSettings, name: str, storage: str | Path) -> Transfer:
    """What is known for a run with these settings; nothing where it evaluates no quality.

    A run that is damaged or of a newer version is left out.

    Args:
        settings: of the run.
        name: of the run, new or not.
        storage: the database.
    """
    key = settings.fingerprint, settings.quality_digest
    if settings.quality is None:
        return Transfer()
    with Store(storage) as store:
        latest_first = list(reversed(store.runs()))
        runs = [r for r in latest_first if (r.fingerprint, r.quality_protocol) == key]
        own = [trial for run in runs if run.name == name for trial in store.trials(run)]
        fronts, complete, unread = _read(store, [run for run in runs if run.name != name])
        has_quality = evaluated(store, "quality", *key)
        has_speed = evaluated(store, "speed", key[0], settings.speed.digest)
    # The first evaluation names the origin. It stays the same when another run takes a policy over.
    sources: dict[str, tuple[str, int]] = {}
    for run, trials in complete.items():
        for trial in trials:
            sources[trial.policy.digest] = run, trial.number
    policies: dict[str, Policy] = {}
    for trials in (*fronts.values(), *complete.values()):
        for trial in trials:
            policies[trial.policy.digest] = trial.policy
    fresh = policies.keys() - {trial.policy.digest for trial in own}
    evaluating = {sources[digest][0] for digest in fresh}
    return Transfer(
        policies={_origin(*sources[d], d): policy for d, policy in policies.items()},
        fresh=len(fresh),
        runs=tuple(run for run in complete if run in evaluating),
        taken=sum(t.cost for t in own) + len(fresh - has_speed),
        has_quality=has_quality,
        unread=unread,
    )


Trials = dict[str, list[TrialRecord]]


def _read(store: Store, runs: list[RunRecord]) -> tuple[Trials, Trials, dict[str, str]]:
    """By run: the trials of its front, all complete ones, and why it cannot be read."""
    fronts: Trials = {}
    complete: Trials = {}
    unread: dict[str, str] = {}
    for run in runs:
        try:
            trials = [t for t in store.trials(run) if t.state is State.COMPLETE and t.quality]
            fronts[run.name] = front_trials(RunSettings.parse(run.settings), trials)
            complete[run.name] = trials
        except StoreError as error:
            unread[run.name] = str(error)
    return fronts, complete, unread


def _origin(run: str, number: int, digest: str) -> str:
    """Run and number. A long name is cut, and gets the policy's digest to stay unique."""
    short = run if len(run) <= NAME else f"{run[: NAME - 9]}…{digest[:8]}"
    return str(Source(SourceKind.KNOWN, f"{short}/{number}"))
