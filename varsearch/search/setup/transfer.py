"""What other runs of a database found out that a run need not: the quality of policies, whatever the target was."""

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
from varsearch.search.core.source import DENSE, Source, SourceKind

NAME = 40
"""Characters of a run's name that an origin shows."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """Policies whose quality is known under the protocol of a run.

    Attributes:
        policies: by origin, those that other runs evaluated; members of their fronts first, the latest run's before
            others.
        fresh: how many of them the run has not tried yet, and `runs` the runs that evaluated these, latest first.
        taken: evaluations that the run has spent, and that those of them will take whose speed is not known.
        judged: digests of all policies whose quality is known, by whatever command.
        unread: why nothing is taken from other runs, by name.
    """

    policies: Mapping[str, Policy] = field(default_factory=dict)
    fresh: int = 0
    runs: tuple[str, ...] = ()
    taken: float = 0
    judged: frozenset[str] = frozenset()
    unread: Mapping[str, str] = field(default_factory=dict)

    def starts(self, starts: Mapping[str, Policy]) -> dict[str, Policy]:
        """Dense, what is known, and the rest of `starts`: nothing costs images as long as anything does not.

        Args:
            starts: what the run starts from otherwise, by origin, which known policies keep.
        """
        called = {policy.digest: origin for origin, policy in reversed([*starts.items()])}
        known = {called.get(policy.digest, origin): policy for origin, policy in self.policies.items()}
        return {DENSE: starts[DENSE]} | known | dict(starts)


def knowledge(settings: RunSettings, name: str, storage: str | Path) -> Knowledge:
    """What is known for the run `name`, new or not, with these settings; nothing where it evaluates no quality.

    A run that cannot be read, because it is damaged or of a newer version, is left out.
    """
    key = settings.fingerprint, settings.quality_digest
    if settings.quality is None:
        return Knowledge()
    with Store(storage) as store:
        runs = [run for run in reversed(store.runs()) if (run.fingerprint, run.quality_protocol) == key]
        own = [trial for run in runs if run.name == name for trial in store.trials(run)]
        found, unread = _found(store, [run for run in runs if run.name != name])
        judged, costed = evaluated(store, "quality", *key), evaluated(store, "speed", key[0], settings.speed.digest)
    # Who evaluated it first, so that an origin stays what it is when yet another run takes the policy over.
    sources = {trial.policy.digest: (run, trial.number) for run, (_, trials) in found.items() for trial in trials}
    ranked = [t for front, _ in found.values() for t in front] + [t for _, trials in found.values() for t in trials]
    policies = {trial.policy.digest: trial.policy for trial in ranked}
    fresh = policies.keys() - {trial.policy.digest for trial in own}
    evaluating = {sources[digest][0] for digest in fresh}
    return Knowledge(
        policies={_origin(*sources[digest], digest): policy for digest, policy in policies.items()},
        fresh=len(fresh),
        runs=tuple(run for run in found if run in evaluating),
        taken=sum(t.cost for t in own) + len(fresh - costed),
        judged=judged,
        unread=unread,
    )


Found = dict[str, tuple[list[TrialRecord], list[TrialRecord]]]


def _found(store: Store, runs: list[RunRecord]) -> tuple[Found, dict[str, str]]:
    """The front and all complete trials of each run; and why some cannot be read."""
    found: Found = {}
    unread: dict[str, str] = {}
    for run in runs:
        try:
            complete = [t for t in store.trials(run) if t.state is State.COMPLETE and t.quality]
            found[run.name] = front_trials(RunSettings.parse(run.settings), complete), complete
        except StoreError as error:
            unread[run.name] = str(error)
    return found, unread


def _origin(run: str, number: int, digest: str) -> str:
    """Run and number; of a long name the beginning, with the policy's digest because others may begin like it."""
    short = run if len(run) <= NAME else f"{run[: NAME - 9]}…{digest[:8]}"
    return str(Source(SourceKind.KNOWN, f"{short}/{number}"))
