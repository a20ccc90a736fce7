"""The trials of a run: in the store, in Optuna's study, and in memory for the proposals.

All changes of a trial's state are here:

    propose -> WAITING -> begin -> RUNNING -> finish -> COMPLETE, STOPPED or FAIL
                  ^                   |
                  +---- put_back -----+
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from varsearch.db import RunRecord, State, Store, TrialRecord
from varsearch.errors import UsageError
from varsearch.measurement import Evidence
from varsearch.policy import Policy
from varsearch.search.core.optuna_study import (
    Space,
    StudyView,
    is_study,
    open_storage,
    study_errors,
)
from varsearch.search.core.settings import RunSettings


class Trials:
    """Claims a run, reads its trials, and keeps store, study and memory in step.

    Every change goes to the store first, then to the study. Its evidence is in the store before
    that. So a killed process leaves nothing that is not completed when the run is opened again: the
    study is shown the finished trials that it lacks, and all other trials wait.

    The study is lazy: it sees a trial when that trial or a later one ends, and all trials when the
    run is left. A trial that it sees once takes one transaction, and otherwise about twenty.

    Args:
        storage: SQLAlchemy URL, or path of an SQLite file.
        name: the run's name. A run of that name is continued.
        on_trial: gets every trial as it is now.

    Attributes:
        store: the database.
        run: the run's record.
        records: the trials by number.
        tried: digests of all their policies.

    Raises:
        UsageError: the name is that of a run with other settings, or of a study that is not ours.
        StoreError: from here and from every method, if the database fails or another process
            continues the run.
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
        self.records: list[TrialRecord] = []
        self._n_stored = 0
        self.tried: set[str] = set()
        with ExitStack() as connections:
            self.store = connections.enter_context(Store(storage))
            optuna = connections.enter_context(open_storage(self.store.url))
            # The study first: whoever makes one has claimed the run before.
            with study_errors(self.store.url):
                has_study = is_study(optuna, name)
            self.run = self.store.claim(self._same_run(name, has_study=has_study))
            with study_errors(self.store.url):
                self._study = StudyView(self.run.name, optuna, settings, space)
            self._read()
            self._connections = connections.pop_all()

    def _same_run(self, name: str, *, has_study: bool) -> RunRecord:
        """The record to claim; refuses the name of another run or of a study that is not ours."""
        known = {run.name: run for run in self.store.runs()}.get(name)
        if has_study and not known:
            raise UsageError(
                f"the database has an Optuna study {name!r} of something else: "
                "give the new run another --name"
            )
        difference = RunSettings.parse(known.settings).difference(self._settings) if known else ""
        if difference:
            raise UsageError(
                f"run {name!r} has other settings ({difference}): give the new run another --name"
            )
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
        with study_errors(self.store.url):
            # A process that slept and lost the run meanwhile may have written to the study since.
            if not self._study.can_become(trials):
                self._study.clear()
        self._n_stored = len(trials)
        for trial in trials:
            self._add(trial)
            self._show(trial)

    def propose(self, origin: str, policy: Policy) -> int:
        """Adds a trial that waits; its number. It is not stored before its state changes."""
        self._add(TrialRecord(len(self.records), policy, origin))
        return len(self.records) - 1

    def _add(self, trial: TrialRecord) -> None:
        self.records.append(trial)
        self.tried.add(trial.policy.digest)

    def learn(self, number: int, evidence: Evidence) -> None:
        """A trial that has no outcome yet has this evidence, which is stored already."""
        self.records[number] = self.records[number].with_evidence(evidence)

    def begin(self, number: int, worker: str) -> None:
        """A worker evaluates a trial: a new attempt, unless the trial is between two rungs."""
        trial = self.records[number]
        if trial.state is State.RUNNING and trial.worker == worker:
            return  # nothing that is stored changes
        attempts = trial.attempts + (trial.state is not State.RUNNING)
        self._record(replace(trial, state=State.RUNNING, attempts=attempts, worker=worker))

    def put_back(self, number: int, *, counts: bool = True) -> None:
        """A trial waits for a worker; `counts` says whether its last evaluation was an attempt."""
        trial = self.records[number]
        attempts = trial.attempts - (not counts)
        self._record(replace(trial, state=State.WAITING, attempts=attempts))

    def finish(self, number: int, state: State, error: str = "", cost: float = 1.0) -> None:
        """A trial gets its outcome, for good; a trial that was never evaluated costs nothing."""
        trial = self.records[number]
        cost = cost if trial.attempts else 0.0
        self._record(replace(trial, state=state, error=error, cost=cost))

    def _record(self, trial: TrialRecord) -> None:
        """Writes the store first, then the study: the next process completes a crash in between."""
        self.store.write(self.run, trial)
        self._n_stored = max(self._n_stored, trial.number + 1)
        self.records[trial.number] = trial
        self._show(trial)

    def _show(self, trial: TrialRecord) -> None:
        if trial.state.is_final:
            # Optuna counts trials as they come, so those with smaller numbers must be there before.
            unseen = self.records[self._study.size : trial.number]
            self._tell_study([*unseen, trial])
        self._on_trial(trial)

    def _tell_study(self, trials: Sequence[TrialRecord]) -> None:
        with study_errors(self.store.url):
            for trial in trials:
                self._study.show(trial)

    def describe(self, attributes: Mapping[str, Any]) -> None:
        """Shows facts about the run as a whole in its study."""
        with study_errors(self.store.url):
            self._study.describe(attributes)

    def count(self, *states: State) -> int:
        """Trials in these states."""
        return sum(trial.state in states for trial in self.records)

    @property
    def spent(self) -> float:
        """Evaluations that the outcomes so far cost."""
        return sum(trial.cost for trial in self.records)

    def leave(self, status: Literal["finished", "interrupted"]) -> None:
        """Gives the run up; from then on the study shows every trial that is stored."""
        # The store first: a process that has lost the run writes no more to the study either.
        self.store.leave(self.run, status)
        self._tell_study(self.records[: self._n_stored])

    def close(self) -> None:
        """Closes the database."""
        self._connections.close()
