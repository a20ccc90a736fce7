"""The front of a run: its best trade-offs; `selection` chooses one of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from varsearch.db import RunRecord, State, Store, TrialRecord
from varsearch.errors import UsageError
from varsearch.measurement import METRICS, Measurement, QualityProtocol
from varsearch.policy import Policy
from varsearch.search.core.objectives import dense_trial, front_trials, volume_of
from varsearch.search.core.protocols import Protocols, answered, confirming, under
from varsearch.search.core.settings import RunSettings
from varsearch.search.core.source import DENSE, Source, SourceKind, kind_of
from varsearch.search.results.finalists import finalists
from varsearch.search.results.optimism import Optimism, optimism


@dataclass(frozen=True, slots=True)
class FrontEntry:
    """A trial, on the front or not.

    Attributes:
        metrics: everything that was evaluated under `protocols`.
        environment: what the evaluators noted about where.
    """

    number: int
    origin: str
    policy: Policy
    metrics: dict[str, Measurement]
    environment: dict[str, str]
    protocols: Protocols

    @property
    def source(self) -> Source:
        """Where the policy comes from."""
        return Source.parse(self.origin)

    @property
    def values(self) -> dict[str, float]:
        """The value of every metric."""
        return {name: measurement.value for name, measurement in self.metrics.items()}

    def value(self, metric: str) -> float:
        """The value of a metric; `UsageError` if the run did not evaluate it."""
        if metric not in self.metrics:
            raise UsageError(f"trial {self.number} has no {metric}: it has {', '.join(self.metrics)}")
        return self.metrics[metric].value


@dataclass(frozen=True, slots=True)
class Front:
    """Feasible trials of a run that no other feasible one dominates, in the order of the first objective.

    All numbers of a front are of the same protocols: the confirming ones as soon as there is something to see under
    them, before that the search's own, and then its entries are no more than candidates.

    Attributes:
        settings: of the run; a bound on `fid` is as far from dense as in the search, as FID shrinks with more images.
        complete: number of trials with numbers of `protocols`, feasible or not.
        dense: the dense policy's trial, on the front or not; None while it has no numbers.
        presets: the trials of published systems, on the front or not.
        hypervolume: see `front_volume`; None without dense.
        best: the best value of each bounded metric among all trials that could be on this front.
        protocols: what the numbers are of.
        confirmed: whether these are the confirming ones.
        unconfirmed: finalists that have no confirmed numbers.
        optimism: how much better the search's front looked; None where nothing is confirmed, or nothing was to be.
    """

    settings: RunSettings
    entries: tuple[FrontEntry, ...]
    complete: int
    dense: FrontEntry | None
    presets: tuple[FrontEntry, ...]
    hypervolume: float | None
    best: dict[str, float]
    protocols: Protocols
    confirmed: bool
    unconfirmed: int
    optimism: Optimism | None

    @property
    def exact(self) -> bool:
        """Whether the search's own numbers are final: predictions have no noise."""
        return confirming(self.settings) == Protocols.of(self.settings)

    def is_confirmed(self, entry: FrontEntry) -> bool:
        """Whether the numbers of an entry, of this front or not, are final."""
        return entry.protocols == confirming(self.settings)

    @property
    def quality(self) -> QualityProtocol | None:
        """How the quality of the entries was evaluated."""
        return self.protocols.quality


def confirmed_trials(store: Store, run: RunRecord) -> list[TrialRecord]:
    """The trials that have confirmed numbers, with these."""
    protocols = confirming(RunSettings.parse(run.settings))
    return [t for t in under(store, run, protocols) if answered(t, protocols)]


def read_front(store: Store, run: RunRecord) -> Front:
    """The front of `run` as it is in the store now: of confirmed numbers, if there are any beside dense's."""
    settings, trials, known = RunSettings.parse(run.settings), store.trials(run), confirmed_trials(store, run)
    numbers = {t.number for t in known}
    missing = [t for t in finalists(settings, trials) if t.number not in numbers]
    # Everything is relative to dense, and dense alone is no front unless nothing else was to be confirmed.
    others = any(t.origin != DENSE for t in known)
    confirmed = all(t.origin != DENSE for t in missing) and (others or (bool(known) and not missing))
    protocols, shown = (confirming(settings), known) if confirmed else (Protocols.of(settings), trials)
    searched, settings = settings, _moved(settings, dense_trial(trials), dense_trial(shown))
    best = sorted(front_trials(settings, shown), key=lambda t: settings.losses(t.values))
    dense = dense_trial(shown)
    front = Front(
        settings=settings,
        entries=tuple(entry_of(t, protocols) for t in best),
        complete=sum(t.state is State.COMPLETE for t in shown),
        dense=entry_of(dense, protocols) if dense else None,
        presets=tuple(
            entry_of(t, protocols)
            for t in shown
            if kind_of(t.origin) is SourceKind.PRESET and t.state is State.COMPLETE
        ),
        hypervolume=volume_of(settings, shown),
        best=_best_values(settings, shown),
        protocols=protocols,
        confirmed=confirmed,
        unconfirmed=len(missing),
        optimism=None,
    )
    if not confirmed or front.exact:
        return front
    members = [t for t in front_trials(searched, trials) if t.origin != DENSE]
    claimed = volume_of(searched, [t for t in trials if t.number in numbers])
    return replace(front, optimism=optimism(settings, members, known, claimed))


def _moved(settings: RunSettings, before: TrialRecord | None, now: TrialRecord | None) -> RunSettings:
    """With the bound on `fid`, if there is one, as far from dense's now as it was from dense's before."""
    if "fid" not in settings.bounds or before is None or now is None:
        return settings
    limit = settings.bounds["fid"] + now.values["fid"] - before.values["fid"]
    return settings.model_copy(update={"bounds": {**settings.bounds, "fid": limit}})


def _best_values(settings: RunSettings, trials: Iterable[TrialRecord]) -> dict[str, float]:
    values = [t.values for t in trials if t.state is State.COMPLETE]
    least = {metric: METRICS[metric].direction == "minimize" for metric in settings.bounds if values}
    return {metric: (min if low else max)(v[metric] for v in values) for metric, low in least.items()}


def entry_of(trial: TrialRecord, protocols: Protocols) -> FrontEntry:
    """An evaluated trial, whose evidence is of these protocols, as an entry."""
    quality, speed = trial.quality, trial.speed
    return FrontEntry(
        number=trial.number,
        origin=trial.origin,
        policy=trial.policy,
        metrics=trial.metrics,
        environment={**(speed.environment if speed else {}), **(quality.environment if quality else {})},
        protocols=protocols,
    )
