"""The store: few verbs, domain types in and out, one transaction each. Sessions never leave this file."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, Self, TypeVar

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from varsearch.calibration import Calibration, CalibrationProtocol
from varsearch.db.engine import label, locate, one_line_errors, open_engine, reason
from varsearch.db.records import RunRecord, State, TrialRecord
from varsearch.db.rows import evidence_row, to_evidence, to_learnt, to_policy, to_run, to_trial
from varsearch.db.tables import CalibrationRow, EvidenceRow, PolicyRow, ProfileRow, RunRow, TrialRow, now
from varsearch.errors import StoreError
from varsearch.measurement import Evidence, Kind
from varsearch.policy import Policy
from varsearch.sensitivity_profile import CostProtocol, Costs, Sensitivity, SensitivityProtocol

T = TypeVar("T")
P = TypeVar("P", Sensitivity, Costs)


class Store:
    """A database of runs, policies and evidence.

    Evidence is found again by its content (kind, policy, model, protocol), so that every later run and target
    reuses it. A run is written by one process at a time: the last one that claimed it.

    Args:
        storage: SQLAlchemy URL, or path of an SQLite file.
        create: whether a missing SQLite file is created.

    Raises:
        StoreError: from here and from every method, whenever the database cannot do what was asked.
    """

    def __init__(self, storage: str | Path, *, create: bool = True) -> None:
        self.url = locate(storage)
        self._engine = open_engine(self.url, create)

    def close(self) -> None:
        """Closes all connections; leaving a `with` block does too."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _transaction(self, work: Callable[[Session], T]) -> T:
        """`work` in a transaction; again if another process inserted the same content in the meantime."""
        with one_line_errors(self.url):
            for last in (False, True):
                try:
                    with Session(self._engine) as session, session.begin():
                        return work(session)
                except IntegrityError:
                    if last:
                        raise
                except (ValueError, TypeError) as error:  # from SQLAlchemy's own conversions
                    raise StoreError(f"{label(self.url)} has a damaged row: {reason(error, self.url)}") from None
        raise AssertionError("unreachable")

    def find(self, kind: Kind, policy: str, model: str, protocol: str) -> Evidence | None:
        """What is known of the policy with this digest, for these weights and under this protocol's digest."""
        return self._transaction(lambda session: _find(session, kind, policy, model, protocol))

    def save(self, evidence: Evidence) -> Evidence:
        """Stores evidence and returns what the store holds now: the first under a key is the one that stays."""

        def work(session: Session) -> Evidence:
            known = _find(session, evidence.kind, evidence.policy, evidence.model, evidence.protocol)
            if known is None:
                session.add(evidence_row(evidence))
            return known or evidence

        return self._transaction(work)

    def calibration(self, model: str, protocol: CalibrationProtocol) -> Calibration | None:
        """What was learnt of these weights under this protocol."""
        return self._transaction(
            lambda session: to_learnt(Calibration, session.get(CalibrationRow, (model, protocol.digest)))
        )

    def save_calibration(self, calibration: Calibration) -> Calibration:
        """Stores a calibration and returns what the store holds now: the first under a key is the one that stays."""
        key = calibration.fingerprint, calibration.protocol.digest

        def work(session: Session) -> Calibration:
            known = to_learnt(Calibration, session.get(CalibrationRow, key))
            if known is None:
                session.add(CalibrationRow(model=key[0], protocol=key[1], body=calibration.model_dump_json()))
            return known or calibration

        return self._transaction(work)

    def profile(self, part: type[P], model: str, protocol: SensitivityProtocol | CostProtocol) -> P | None:
        """One part of the profile of these weights under this protocol, as far as it was made."""
        key = model, part.part, protocol.digest
        return self._transaction(lambda session: to_learnt(part, session.get(ProfileRow, key)))

    def save_profile(self, found: P) -> P:
        """Adds to a profile and returns what the store holds now: the first number under a name stays."""
        key = found.fingerprint, found.part, found.protocol.digest

        def work(session: Session) -> P:
            row = session.get(ProfileRow, key)
            known = to_learnt(type(found), row)
            whole = known.merged(found) if known is not None else found
            if row is None:
                row = ProfileRow(model=key[0], part=key[1], protocol=key[2])
                session.add(row)
            row.body = whole.model_dump_json()
            return whole

        return self._transaction(work)

    def policy(self, digest: str) -> Policy:
        """The policy with this digest."""

        def work(session: Session) -> Policy:
            row = session.get(PolicyRow, digest)
            if row is None:
                raise StoreError(f"{label(self.url)} has no policy {digest}")
            return to_policy(row)

        return self._transaction(work)

    def runs(self) -> list[RunRecord]:
        """All runs, oldest first."""
        query = select(RunRow).order_by(RunRow.created, RunRow.name)
        return self._transaction(lambda session: [to_run(row) for row in session.scalars(query)])

    def run(self, name: str) -> RunRecord:
        """The run called `name`; the error lists the names there are."""
        runs = {run.name: run for run in self.runs()}
        if name not in runs:
            raise StoreError(f"{label(self.url)} has no run {name!r}: it has {', '.join(runs) or 'none yet'}")
        return runs[name]

    def claim(self, run: RunRecord) -> RunRecord:
        """Makes this process the only one that may write to `run`, which is created if it is new.

        A process that claimed the run before gets a `StoreError` at its next write: two drivers can
        never record the same number twice, and a rerun need not wait until a killed one is known to be dead.
        """
        token = uuid.uuid4().hex

        def work(session: Session) -> RunRecord:
            row = session.get(RunRow, run.name)
            if row is None:
                row = RunRow(
                    name=run.name,
                    model=run.model,
                    fingerprint=run.fingerprint,
                    quality_protocol=run.quality_protocol,
                    speed_protocol=run.speed_protocol,
                    settings=run.settings,
                )
                session.add(row)
            row.driver, row.status = token, "running"
            session.flush()
            return to_run(row)

        return self._transaction(work)

    def leave(self, run: RunRecord, status: Literal["finished", "interrupted"]) -> None:
        """Records how the process that claimed `run` ended it."""
        self._transaction(lambda session: _fence(session, run, status=status))

    def write(self, run: RunRecord, trial: TrialRecord) -> None:
        """Records `trial` as it is now. Its evidence is not written here: see `save`.

        Raises:
            StoreError: another process claimed the run, or the trial has its outcome already.
        """

        def work(session: Session) -> None:
            _fence(session, run)
            row = session.get(TrialRow, (run.name, trial.number))
            if row is None:
                digest = trial.policy.digest
                if session.get(PolicyRow, digest) is None:
                    session.add(PolicyRow(digest=digest, body=trial.policy.canonical()))
                    session.flush()
                row = TrialRow(run=run.name, number=trial.number, policy=digest, origin=trial.origin)
                session.add(row)
            elif State(row.state).is_final:
                raise StoreError(f"trial {trial.number} of run {run.name} has its outcome already: {row.state}")
            row.state, row.error, row.attempts, row.worker = trial.state, trial.error, trial.attempts, trial.worker
            row.cost = trial.cost
            if trial.state is State.RUNNING:
                row.started = now()
            elif trial.state.is_final:
                row.finished = now()

        self._transaction(work)

    def trials(self, run: RunRecord) -> list[TrialRecord]:
        """The trials of `run` by number, with all evidence there is for them under the run's protocols."""
        trials = select(TrialRow, PolicyRow).join(PolicyRow).where(TrialRow.run == run.name).order_by(TrialRow.number)
        policies = select(TrialRow.policy).where(TrialRow.run == run.name)

        def evidence(session: Session, kind: Kind, protocol: str) -> dict[str, Evidence]:
            query = select(EvidenceRow).where(*_key(kind, run.fingerprint, protocol), EvidenceRow.policy.in_(policies))
            return {row.policy: to_evidence(row) for row in session.scalars(query)}

        def work(session: Session) -> list[TrialRecord]:
            quality = evidence(session, "quality", run.quality_protocol)
            speed = evidence(session, "speed", run.speed_protocol)
            return [
                to_trial(row, to_policy(policy), quality.get(row.policy), speed.get(row.policy))
                for row, policy in session.execute(trials)
            ]

        return self._transaction(work)


def _fence(session: Session, run: RunRecord, **changes: str) -> None:
    """Lets only the process with the run's token pass. As the first statement it also takes the write lock."""
    mine = update(RunRow).where(RunRow.name == run.name, RunRow.driver == run.driver)
    if session.connection().execute(mine.values(updated=now(), **changes)).rowcount != 1:
        raise StoreError(f"run {run.name} was continued by another process: let that one finish, or use another --name")


def _key(kind: Kind, model: str, protocol: str) -> Iterable[ColumnElement[bool]]:
    return EvidenceRow.kind == kind, EvidenceRow.model == model, EvidenceRow.protocol == protocol


def _find(session: Session, kind: Kind, policy: str, model: str, protocol: str) -> Evidence | None:
    query = select(EvidenceRow).where(*_key(kind, model, protocol), EvidenceRow.policy == policy)
    row = session.scalar(query)
    return None if row is None else to_evidence(row)
