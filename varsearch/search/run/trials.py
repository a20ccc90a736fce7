"""The trials of a run: in the store, in Optuna's study, and in memory for what proposes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from varsearch.db import RunRecord, State, Store, TrialRecord
from varsearch.errors import UsageError
from varsearch.search.core.optuna_study import Space, StudyView, open_storage, study_errors
from varsearch.search.core.settings import RunSettings


class Ledger:
    """Claims a run, reads its trials, and keeps store and study in step.

    A trial is written to the store when it is proposed, leased, lost and finished, each time before Optuna's study
    shows it, and its evidence before that. Whatever a killed process left is therefore completed when the run is
    opened again: finished trials that the study has not seen are told, all others wait.

    Args:
        storage: SQLAlchemy URL, or path of an SQLite file.
        name: the run's name. A run of that name is continued.
        on_trial: told of every trial as it is now.

    Attributes:
        store: the database.
        run: the run's record.
        trials: by number.
        tried: digests of all their policies.

    Raises:
        UsageError: the name belongs to a run with other settings, or something else wrote to its study.
        StoreError: from here and from every method, if the database fails or another process continues the run.
    """

    def __init__(
        self,
        settings: RunSettings,
        space: Space,
        storage: str | Path,
        name: str,
        on_trial: Callable[[TrialRecord], None],
    ) -> None:
        self._settings, self._on_trial = settings, on_trial
        self.trials: list[TrialRecord] = []
        self.tried: set[str] = set()
        with ExitStack() as connections:
            self.store = connections.enter_context(Store(storage))
            self.run = self.store.claim(self._same_run(name))
            optuna = connections.enter_context(open_storage(self.store.url))
            with study_errors(self.store.url):
                self._study = StudyView(self.run.name, optuna, settings, space)
            self._read()
            self._connections = connections.pop_all()

    def _same_run(self, name: str) -> RunRecord:
        """The record to claim; refuses a known name whose settings differ."""
        known = {run.name: run for run in self.store.runs()}.get(name)
        difference = RunSettings.parse(known.settings).difference(self._settings) if known else ""
        if difference:
            raise UsageError(f"run {name!r} has other settings ({difference}): give the new run another --name")
        return RunRecord(
            name=name,
            model=self._settings.model,
            fingerprint=self._settings.fingerprint,
            quality_protocol=self._settings.quality_digest,
            speed_protocol=self._settings.speed.digest,
            settings=self._settings.model_dump_json(),
        )

    def _read(self) -> None:
        trials = self.store.trials(self.run)
        if self._study.size > len(trials):
            raise UsageError(
                f"Optuna's study {self.run.name!r} has {self._study.size} trials, the run only {len(trials)}: "
                "something else wrote to it; give the new run another --name"
            )
        for trial in trials:
            self.append(trial)
            self._show(trial)

    def append(self, trial: TrialRecord) -> None:
        """A trial that is new here; it is not stored before it is recorded."""
        self.trials.append(trial)
        self.tried.add(trial.policy.digest)

    def record(self, trial: TrialRecord) -> None:
        """The store first, then the studies: a crash in between is completed when the run is opened again."""
        self.store.write(self.run, trial)
        self.trials[trial.number] = trial
        self._show(trial)

    def _show(self, trial: TrialRecord) -> None:
        with study_errors(self.store.url):
            self._study.show(trial)
        self._on_trial(trial)

    def describe(self, attributes: Mapping[str, Any]) -> None:
        """Shows what is known of the run as a whole in its study."""
        with study_errors(self.store.url):
            self._study.describe(attributes)

    def count(self, *states: State) -> int:
        """Trials in these states."""
        return sum(trial.state in states for trial in self.trials)

    def leave(self, status: Literal["finished", "interrupted"]) -> None:
        """Gives the run up."""
        self.store.leave(self.run, status)

    def close(self) -> None:
        """Closes the database."""
        self._connections.close()
