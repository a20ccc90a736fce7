"""The front of a run: its best trade-offs, to read, choose from, draw, export and apply."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from varsearch.db import RunRecord, State, Store, TrialRecord
from varsearch.errors import UsageError
from varsearch.formatting import data_frame, interval, quantity, times
from varsearch.measurement import METRICS, Measurement, QualityProtocol
from varsearch.policy import Policy
from varsearch.policy.summary import summarize
from varsearch.search.core.objectives import dense_trial, front_trials, volume_of
from varsearch.search.core.protocols import Protocols, answered, confirming, under
from varsearch.search.core.settings import RunSettings
from varsearch.search.core.source import DENSE, Source, SourceKind, kind_of
from varsearch.search.results.baselines import Baseline, baselines
from varsearch.search.results.claims import headline
from varsearch.search.results.finalists import finalists
from varsearch.search.results.optimism import Optimism, optimism
from varsearch.search.results.selection import best_within, knee
from varsearch.search.results.table import html, tables_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from varsearch.accel import Accelerated
    from varsearch.models.image_model import ImageModel
    from varsearch.policy_file import PolicyFile


@dataclass(frozen=True, slots=True, repr=False)
class FrontEntry:
    """An evaluated policy, on the front or not.

    Attributes:
        number: of its trial.
        origin: where the policy comes from.
        metrics: everything that was evaluated under `protocols`.
        environment: what the evaluators noted about where.
        run: name of the run.
        settings: of the run.
    """

    number: int
    origin: str
    policy: Policy
    metrics: dict[str, Measurement]
    environment: dict[str, str]
    protocols: Protocols
    run: str = field(compare=False)
    settings: RunSettings = field(compare=False)

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

    @property
    def is_confirmed(self) -> bool:
        """Whether the numbers are final."""
        return self.protocols == confirming(self.settings)

    def to_file(self) -> PolicyFile:
        """The policy with its numbers, as `export` writes it.

        Raises:
            ModelError: the model's weights are no longer those that the run measured.
            StoreError: the stored evidence is damaged.
        """
        from varsearch.search.results.export import export  # importing torch takes a second

        return export(self)

    def export(self, path: str | Path) -> Path:
        """Writes the policy file, which `varsearch.load_policy` and `varsearch apply` read.

        Raises:
            OutputError: the file cannot be written.
        """
        self.to_file().write(Path(path))
        return Path(path)

    def apply(self, model: ImageModel) -> AbstractContextManager[Accelerated]:
        """The model with this policy applied, inside `with`; see `varsearch.apply`.

        Raises:
            PolicyError: the model has other weights than those that the run measured.
        """
        from varsearch.accel import apply

        return apply(model, self.to_file())

    def __repr__(self) -> str:
        m = self.metrics
        numbers = [f"ΔFID {interval(m['delta_fid'])}"] if "delta_fid" in m else []
        numbers += [times(m["speedup"])] if "speedup" in m else []
        numbers += [quantity("peak_bytes", m["peak_bytes"].value)] if "peak_bytes" in m else []
        return f"<trial {self.number} ({self.origin}): {', '.join(numbers)}; {summarize(self.policy)}>"


@dataclass(frozen=True, slots=True, repr=False)
class Front:
    """Feasible trials of a run that no other feasible one dominates, by the first objective.

    All numbers of a front are of the same protocols: the confirming ones as soon as something
    besides dense has numbers under them. Before that they are the search's own, and the entries are
    no more than candidates.

    Attributes:
        run: name of the run.
        settings: of the run. A bound on `fid` is as far from dense as in the search, because FID
            shrinks with more images.
        trials: every complete trial with the numbers of the search.
        complete: number of trials with numbers of `protocols`, feasible or not.
        dense: the dense policy, on the front or not; None while it has no numbers.
        presets: published systems, on the front or not.
        hypervolume: see `front_volume`; None without dense.
        best_values: the best value of each bounded metric among all trials.
        protocols: of the numbers.
        confirmed: whether these are the confirming ones.
        unconfirmed: number of finalists without confirmed numbers.
        optimism: how much better the search's front looked; None where nothing is confirmed, or
            nothing was to be.
    """

    run: str
    settings: RunSettings
    entries: tuple[FrontEntry, ...]
    trials: tuple[FrontEntry, ...]
    complete: int
    dense: FrontEntry | None
    presets: tuple[FrontEntry, ...]
    hypervolume: float | None
    best_values: dict[str, float]
    protocols: Protocols
    confirmed: bool
    unconfirmed: int
    optimism: Optimism | None

    def __iter__(self) -> Iterator[FrontEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, place: int) -> FrontEntry:
        return self.entries[place]

    @property
    def exact(self) -> bool:
        """Whether the search's own numbers are final: predictions have no noise."""
        return confirming(self.settings) == Protocols.of(self.settings)

    @property
    def quality(self) -> QualityProtocol | None:
        """How the quality of the entries was evaluated."""
        return self.protocols.quality

    @property
    def knee(self) -> FrontEntry:
        """The entry with the smallest distance to zero relative costs; see `selection.knee`."""
        return knee(self)

    @property
    def baselines(self) -> list[Baseline]:
        """The published systems that the run evaluated, with the entry that beats each."""
        return baselines(self)

    def best(self, *, latency: str | None = None, memory: str | None = None, fid: str | None = None) -> FrontEntry:
        """The best entry within limits, such as `best(latency="0.7x", memory="8GB")`.

        Best in the first of quality, speed and memory that has no limit here; in the first of them
        if all have one.

        Args:
            latency: "12ms", or "0.7x" of dense.
            memory: "8GB", or "0.5x" of dense.
            fid: "1.9", or "+0.5" above dense.

        Raises:
            UsageError: no entry is within the limits, or a limit cannot be read.
        """
        return best_within(self, latency=latency, memory=memory, fid=fid)

    def to_dataframe(self) -> DataFrame:
        """A row per entry: trial, origin, policy in words, and every metric with its interval.

        Raises:
            UsageError: pandas is not installed.
        """
        return data_frame([_row(entry) for entry in self], index="trial")

    def plot(self) -> Figure:
        """The front as a matplotlib figure, which a notebook shows; `.savefig(path)` stores it.

        Raises:
            UsageError: the front is empty or has no dense policy, or matplotlib is not installed.
        """
        try:
            from varsearch.report.page import front_picture
        except ModuleNotFoundError as error:
            raise UsageError(f"a plot needs {error.name}: pip install 'varsearch[search]'") from None
        return front_picture(self).figure()

    def __repr__(self) -> str:
        volume = "" if self.hypervolume is None else f", hypervolume {self.hypervolume:.3f}"
        return f"<front of {self.run}: {headline(self)}{volume}>"

    def _repr_html_(self) -> str:
        return "".join(map(html, tables_of(self)))


def _row(entry: FrontEntry) -> dict[str, object]:
    row: dict[str, object] = {"trial": entry.number, "origin": entry.origin}
    row["policy"] = summarize(entry.policy)
    for name, m in entry.metrics.items():
        row[name] = m.value
        if m.low is not None and m.high is not None:
            row |= {f"{name}_low": m.low, f"{name}_high": m.high}
    return row


def confirmed_trials(store: Store, run: RunRecord) -> list[TrialRecord]:
    """The trials that have confirmed numbers, with these."""
    protocols = confirming(RunSettings.parse(run.settings))
    return [t for t in under(store, run, protocols) if answered(t, protocols)]


def read_front(store: Store, run: RunRecord) -> Front:
    """The front of `run` as it is in the store now."""
    searched, trials = RunSettings.parse(run.settings), store.trials(run)
    confirmed_ones = confirmed_trials(store, run)
    numbers = {t.number for t in confirmed_ones}
    missing = [t for t in finalists(searched, trials) if t.number not in numbers]
    # Everything is relative to dense. Dense alone is no front, unless nothing else was to be
    # confirmed.
    others = any(t.origin != DENSE for t in confirmed_ones)
    has_dense = all(t.origin != DENSE for t in missing)
    confirmed = has_dense and (others or (bool(confirmed_ones) and not missing))
    shown = confirmed_ones if confirmed else trials
    protocols = confirming(searched) if confirmed else Protocols.of(searched)
    settings = _moved(searched, dense_trial(trials), dense_trial(shown))

    def entries(of: Iterable[TrialRecord]) -> tuple[FrontEntry, ...]:
        return tuple(entry_of(t, protocols, run.name, settings) for t in of)

    complete = [t for t in shown if t.state is State.COMPLETE]
    members = sorted(front_trials(settings, shown), key=lambda t: settings.losses(t.values))
    dense = dense_trial(shown)
    front = Front(
        run=run.name,
        settings=settings,
        entries=entries(members),
        trials=tuple(
            entry_of(t, Protocols.of(searched), run.name, searched) for t in trials if t.state is State.COMPLETE
        ),
        complete=len(complete),
        dense=entries([dense])[0] if dense else None,
        presets=entries(t for t in complete if kind_of(t.origin) is SourceKind.PRESET),
        hypervolume=volume_of(settings, shown),
        best_values=_best_values(settings, complete),
        protocols=protocols,
        confirmed=confirmed,
        unconfirmed=len(missing),
        optimism=None,
    )
    if not confirmed or front.exact:
        return front
    best = [t for t in front_trials(searched, trials) if t.origin != DENSE]
    claimed = volume_of(searched, [t for t in trials if t.number in numbers])
    return replace(front, optimism=optimism(settings, best, confirmed_ones, claimed))


def _moved(settings: RunSettings, before: TrialRecord | None, now: TrialRecord | None) -> RunSettings:
    """The settings with a bound on `fid` as far from dense now as it was from dense before."""
    if "fid" not in settings.bounds or before is None or now is None:
        return settings
    limit = settings.bounds["fid"] + now.values["fid"] - before.values["fid"]
    return settings.model_copy(update={"bounds": {**settings.bounds, "fid": limit}})


def _best_values(settings: RunSettings, complete: list[TrialRecord]) -> dict[str, float]:
    best: dict[str, float] = {}
    for metric in settings.bounds if complete else ():
        better = min if METRICS[metric].direction == "minimize" else max
        best[metric] = better(t.values[metric] for t in complete)
    return best


def entry_of(trial: TrialRecord, protocols: Protocols, run: str, settings: RunSettings) -> FrontEntry:
    """An evaluated trial, whose evidence is of these protocols, as an entry."""
    quality, speed = trial.quality, trial.speed
    environment = speed.environment if speed else {}
    environment = environment | (quality.environment if quality else {})
    return FrontEntry(
        number=trial.number,
        origin=trial.origin,
        policy=trial.policy,
        metrics=trial.metrics,
        environment=environment,
        protocols=protocols,
        run=run,
        settings=settings,
    )
