"""A run as Optuna sees it: trials of our store, shown in an Optuna storage.

Our tables are the truth and the study is made from them, so that whatever a crash left unfinished
is completed by showing the same trials again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL, inspect

from varsearch.db import State, TrialRecord
from varsearch.db.engine import alone, engine_options, label, one_line_errors, reason
from varsearch.errors import StoreError
from varsearch.measurement import METRICS
from varsearch.policy import Policy
from varsearch.policy.summary import summarize
from varsearch.search.core.settings import RunSettings
from varsearch.space.settings import settings_of

STATES = {
    State.WAITING: TrialState.WAITING,
    State.RUNNING: TrialState.RUNNING,
    State.COMPLETE: TrialState.COMPLETE,
    State.STOPPED: TrialState.PRUNED,
    State.FAIL: TrialState.FAIL,
}


class Space(Protocol):
    """Policies as integer vectors."""

    @property
    def knobs(self) -> Mapping[str, int]:
        """Name of each knob to its number of levels."""
        ...

    def decode(self, levels: Mapping[str, int]) -> Policy:
        """The policy with these levels; several vectors may mean the same policy."""
        ...

    def nearest(self, policy: Policy) -> dict[str, int]:
        """The levels of a policy, or of one like it; `PolicyError` if it is of another model."""
        ...


@contextmanager
def open_storage(url: URL) -> Iterator[RDBStorage]:
    """Optuna's tables in the database at `url`, created if missing and closed at the end."""
    with study_errors(url):
        try:
            address = url.render_as_string(hide_password=False)
            with alone(url):
                storage = RDBStorage(address, engine_kwargs=engine_options(url))
                _complete(storage)
        except RuntimeError as error:  # Optuna's word for tables of another version
            raise StoreError(f"database {label(url)}: {reason(error, url)}") from None
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _complete(storage: RDBStorage) -> None:
    """Adds the index that is missing if a process was killed while it made the tables.

    Without it every start adds a study of the same name, and then Optuna opens none of them.
    """
    indexes = inspect(storage.engine).get_indexes("studies")
    if any(index["unique"] and index["column_names"] == ["study_name"] for index in indexes):
        return
    names: set[str] = set()
    for study in storage.get_all_studies():
        # Our tables are the truth, so any of them can be completed.
        if study.study_name in names:
            storage.delete_study(study._study_id)
        names.add(study.study_name)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name)")


@contextmanager
def study_errors(url: URL) -> Iterator[None]:
    """Turns Optuna's and the database's errors into a `StoreError` of one line."""
    with one_line_errors(url):
        try:
            yield
        except OptunaError as error:
            raise StoreError(f"database {label(url)}: {reason(error.__cause__ or error, url)}") from None


def is_study(storage: BaseStorage, name: str) -> bool:
    """Whether there is a study of this name."""
    try:
        storage.get_study_id_from_name(name)
    except KeyError:
        return False
    return True


class StudyView:
    """Shows trials of a run in an Optuna study.

    Args:
        name: the study's name, created with directions and metric names if it is new.
        storage: where the study lives.
    """

    def __init__(self, name: str, storage: BaseStorage, settings: RunSettings, space: Space) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.distributions: dict[str, BaseDistribution] = {
            knob: IntDistribution(0, levels - 1) for knob, levels in space.knobs.items()
        }
        self._name, self._storage, self._settings, self._space = name, storage, settings, space
        self._open()

    def _open(self) -> None:
        self.study = optuna.create_study(
            study_name=self._name,
            storage=self._storage,
            directions=[METRICS[metric].direction for metric in self._settings.objectives],
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self.study.set_metric_names(list(self._settings.objectives))
        self._study_id = self._storage.get_study_id_from_name(self._name)
        shown = self._storage.get_all_trials(self._study_id, deepcopy=False)
        self._trial_ids = {trial.number: trial._trial_id for trial in shown}
        self._finished = {trial.number for trial in shown if trial.state.is_finished()}

    def can_become(self, trials: Sequence[TrialRecord]) -> bool:
        """Whether showing these trials makes the study equal to them: it has none that they deny."""
        shown = self._storage.get_all_trials(self._study_id, deepcopy=False)
        # Two processes that write at once can give two trials the same number.
        if len({trial.number for trial in shown}) < len(shown) or len(shown) > len(trials):
            return False
        return all(_can_become(trial, trials[trial.number]) for trial in shown)

    def clear(self) -> None:
        """Forgets all trials; the study's own attributes stay, such as notes of the dashboard."""
        storage, old = self._storage, self._study_id
        user, system = storage.get_study_user_attrs(old), storage.get_study_system_attrs(old)
        storage.delete_study(old)
        self._open()
        for key, value in user.items():
            storage.set_study_user_attr(self._study_id, key, value)
        for key, value in system.items():
            storage.set_study_system_attr(self._study_id, key, value)

    @property
    def size(self) -> int:
        """Number of trials shown so far."""
        return len(self._trial_ids)

    def show(self, trial: TrialRecord) -> None:
        """Brings the study's trial to the state of ours: a new one at once, a final one never."""
        if trial.number in self._finished:
            return
        frozen = self._frozen(trial)
        if trial.number in self._trial_ids:
            self._update(self._trial_ids[trial.number], frozen)
        else:
            self._trial_ids[trial.number] = self._storage.create_new_trial(self._study_id, frozen)
        if trial.state.is_final:
            self._finished.add(trial.number)

    def describe(self, attributes: Mapping[str, Any]) -> None:
        """Facts about the run as a whole, as its finished trials take no more attributes."""
        for key, value in attributes.items():
            self._storage.set_study_user_attr(self._study_id, key, value)

    def _update(self, trial_id: int, frozen: FrozenTrial) -> None:
        known = self._storage.get_trial(trial_id)
        for key, value in _news(frozen.user_attrs, known.user_attrs):
            self._storage.set_trial_user_attr(trial_id, key, value)
        for key, value in _news(frozen.system_attrs, known.system_attrs):
            self._storage.set_trial_system_attr(trial_id, key, value)
        # The state comes last: a finished trial takes no more attributes.
        if known.state is not frozen.state:
            self._storage.set_trial_state_values(trial_id, frozen.state, frozen.values)

    def _frozen(self, trial: TrialRecord) -> FrozenTrial:
        complete = trial.state is State.COMPLETE
        if complete:
            self._settings.require(trial.values, trial.number)
        levels = self._space.nearest(trial.policy)
        return optuna.create_trial(
            state=STATES[trial.state],
            values=self._settings.objective_values(trial.values) if complete else None,
            params=levels,
            distributions=self.distributions,
            user_attrs=self._user_attrs(trial) | self._edited(trial.policy, levels),
            system_attrs=self._constraints(trial.values) if complete else {},
        )

    def _user_attrs(self, trial: TrialRecord) -> dict[str, Any]:
        attrs: dict[str, Any] = {
            "origin": trial.origin,
            "policy": summarize(trial.policy),
            "digest": trial.policy.digest,
            "speed": self._settings.origin.value,
        }
        if trial.error:
            attrs["stopped" if trial.state is State.STOPPED else "error"] = trial.error
        return attrs | trial.values

    def _edited(self, policy: Policy, levels: Mapping[str, int]) -> dict[str, Any]:
        """The settings in which the policy differs from its parameters, if there are any."""
        shown = self._space.decode(levels)
        if shown == policy:
            return {}
        units = {setting.unit for setting in {*settings_of(policy)} ^ {*settings_of(shown)}}
        return {"edited": ", ".join(sorted(units))}

    def _constraints(self, values: Mapping[str, float]) -> dict[str, Any]:
        # Optuna 5 writes one attribute per constraint but still reads this list, and
        # optuna-dashboard 0.21 reads only the list. Writing both would count every violation twice.
        return {"constraints": self._settings.violations(values)} if self._settings.bounds else {}


def _can_become(shown: FrozenTrial, trial: TrialRecord) -> bool:
    """Whether the study's trial is of the same policy, and final only if ours is so in the same state."""
    is_same = shown.user_attrs.get("digest") == trial.policy.digest
    return is_same and (not shown.state.is_finished() or shown.state is STATES[trial.state])


def _news(shown: Mapping[str, Any], known: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in shown.items() if key not in known or known[key] != value]
