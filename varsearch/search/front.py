"""The front of a run: its best trade-offs; `selection` chooses one of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from varsearch.db import RunRecord, State, Store, TrialRecord
from varsearch.errors import UsageError
from varsearch.measurement import METRICS, Measurement, QualityProtocol
from varsearch.policy import Policy
from varsearch.search.chances import chances, domination, standard_error
from varsearch.search.optimism import Optimism, optimism
from varsearch.search.pareto import hypervolume, non_dominated
from varsearch.search.protocols import Protocols, answered, confirming, under
from varsearch.search.settings import RunSettings

SEED, PRESET, WARM, KNOWN = "seed:", "preset:", "warm:", "known:"
"""How the origins of hand-made and of published policies begin, of those that a profile suggests, and of those whose
quality another run evaluated."""

RIVAL = "rival"
"""Origin of what was proposed to dominate a published system."""

DENSE = f"{SEED}dense"
"""Origin of the trial that all others are compared with."""

NEAR = 0.1
"""Trials that are on the front with this probability or more are confirmed with it: one of them may be better. Of a
crowd of nearly the same policies each has a small one."""

WORST = 1.1
"""Relative costs from here on add nothing to the hypervolume."""

LEAST = 1e-3
"""Of a metric to maximize counts no less than this share of dense's."""

ALIKE = 0.03
"""Policies whose costs differ by no more than this share of them, and whose quality differs by no more than its error,
are a crowd, of which one is confirmed: what the others would take is better spent on more images."""

CHALLENGERS = 3
"""So many of the likeliest to dominate it are confirmed with each published system."""


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


def relative_costs(settings: RunSettings, values: Mapping[str, float], dense: Mapping[str, float]) -> tuple[float, ...]:
    """Each objective relative to the dense policy: dense costs 1, half the latency 0.5, nothing 0.

    Metrics to maximize count by their inverse ratio, so twice the speed costs 0.5. A metric that is a difference to
    dense costs 0 there: ΔFID is divided by the dense FID, and any other one by 1. Negative ΔFID is noise, not
    a gain, and costs 0 too.
    """

    def cost(metric: str) -> float:
        scale = dense["fid"] if metric == "delta_fid" and "fid" in dense else dense[metric]
        if METRICS[metric].direction == "maximize":
            return abs(scale) / max(abs(values[metric]), LEAST * abs(scale)) if scale else 1.0
        return max(values[metric], 0.0) / (abs(scale) or 1.0)

    return tuple(cost(metric) for metric in settings.objectives)


def front_volume(settings: RunSettings, front: Iterable[Mapping[str, float]], dense: Mapping[str, float]) -> float:
    """Hypervolume of a front in relative costs, as a share of the box from 0 to `WORST`: 0 nothing, 1 unreachable.

    The reference point depends on dense alone, so values of one run can be compared from its first trial to its last.
    """
    reference = (WORST,) * len(settings.objectives)
    points = [relative_costs(settings, values, dense) for values in front]
    return hypervolume(points, reference) / WORST ** len(reference)


def front_trials(settings: RunSettings, trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The feasible trials that no other feasible one dominates."""
    complete = [t for t in trials if t.state is State.COMPLETE]
    for trial in complete:
        settings.require(trial.values, trial.number)
    feasible = [t for t in complete if settings.is_feasible(t.values)]
    return [feasible[i] for i in non_dominated([settings.losses(t.values) for t in feasible])]


def dense_trial(trials: Iterable[TrialRecord]) -> TrialRecord | None:
    """The evaluated dense policy among `trials`, if there is one."""
    return next((t for t in trials if t.origin == DENSE and t.state is State.COMPLETE), None)


def finalists(settings: RunSettings, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """What is to be confirmed, each once: dense, what may be on the front, published systems, what may dominate them.

    The front and what may well be on it (`NEAR`), the likeliest first, are thinned: of a crowd (`ALIKE`) one is left,
    and the best in each objective. All that this run proposed to dominate a published system is confirmed with it:
    whether it does a small difference decides.
    """
    complete, dense = [t for t in trials if t.state is State.COMPLETE], dense_trial(trials)
    chance = {t.number: share for t, share in zip(complete, chances(settings, complete), strict=True)}
    front = front_trials(settings, complete)
    rivals = (t for t in complete if t.origin == RIVAL and settings.is_feasible(t.values))
    may = {t.number: t for t in (*front, *(t for t in complete if chance[t.number] >= NEAR), *rivals)}
    losses = {t.number: settings.losses(t.values) for t in front}
    ends = {min(losses, key=lambda number: losses[number][j]) for j in range(len(settings.objectives)) if losses}
    thinned: list[TrialRecord] = []
    for trial in sorted((t for t in may.values() if t is not dense), key=lambda t: -chance[t.number]):
        stays = trial.number in ends or trial.origin == RIVAL
        if stays or not any(_alike(settings, trial, other) for other in thinned):
            thinned.append(trial)
    chosen = [dense, *thinned] if dense else thinned
    presets = [t for t in complete if t.origin.startswith(PRESET)]
    rest = (t for preset in presets for t in (preset, *_challengers(settings, preset, complete, chosen)))
    return list({t.number: t for t in (*chosen, *rest)}.values())


def _alike(settings: RunSettings, a: TrialRecord, b: TrialRecord) -> bool:
    """Whether their costs are about the same, and their quality is within the error of its difference."""
    for name in settings.objectives:
        x, y = a.metrics[name], b.metrics[name]
        if METRICS[name].kind == "quality":
            limit = math.hypot(standard_error(x), standard_error(y))
        else:
            limit = ALIKE * max(x.value, y.value)
        if abs(x.value - y.value) > limit:
            return False
    return True


def _challengers(
    settings: RunSettings, preset: TrialRecord, complete: Sequence[TrialRecord], preferred: Sequence[TrialRecord]
) -> list[TrialRecord]:
    """The likeliest to dominate a published system; of those about as likely, what is confirmed anyway comes first."""
    if not settings.is_feasible(preset.values):
        return []
    rest = [t for t in complete if not t.origin.startswith(PRESET) and settings.is_feasible(t.values)]
    numbers = {t.number for t in preferred}
    shares = domination(settings, [t.metrics for t in rest], preset.metrics)
    able = [(share, t) for share, t in zip(shares, rest, strict=True) if share]
    able.sort(key=lambda pair: (-round(pair[0], 1), pair[1].number not in numbers, -pair[0]))
    return [t for _, t in able[:CHALLENGERS]]


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
            entry_of(t, protocols) for t in shown if t.origin.startswith(PRESET) and t.state is State.COMPLETE
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


def volume_of(settings: RunSettings, trials: Sequence[TrialRecord]) -> float | None:
    """Hypervolume of the front of these trials, see `front_volume`; None without dense."""
    dense = dense_trial(trials)
    return front_volume(settings, [t.values for t in front_trials(settings, trials)], dense.values) if dense else None


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
