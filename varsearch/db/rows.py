"""Rows of the tables as domain types and back: a damaged row is told in one line."""

from __future__ import annotations

from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from varsearch.calibration import Calibration
from varsearch.db.records import RunRecord, TrialRecord
from varsearch.db.tables import CalibrationRow, EvidenceRow, MeasurementRow, PolicyRow, ProfileRow, RunRow, TrialRow
from varsearch.errors import PolicyError, StoreError
from varsearch.measurement import Evidence, Measurement
from varsearch.policy import Policy, describe
from varsearch.sensitivity_profile import Costs, Sensitivity

T = TypeVar("T")
L = TypeVar("L", Calibration, Sensitivity, Costs)
EVIDENCE, RUN, TRIAL = TypeAdapter(Evidence), TypeAdapter(RunRecord), TypeAdapter(TrialRecord)

WAY_OUT = "delete its row from the table '{}', and it is made again"


def evidence_row(evidence: Evidence) -> EvidenceRow:
    """The rows that keep `evidence`."""
    return EvidenceRow(
        **evidence.model_dump(exclude={"measurements"}),
        measurements=[
            MeasurementRow(position=position, **measurement.model_dump())
            for position, measurement in enumerate(evidence.measurements)
        ],
    )


def to_evidence(row: EvidenceRow) -> Evidence:
    """The evidence that `row` keeps."""
    fields = {name: getattr(row, name) for name in Evidence.model_fields if name != "measurements"}
    measurements = [{name: getattr(m, name) for name in Measurement.model_fields} for m in row.measurements]
    return _checked(EVIDENCE, {**fields, "measurements": measurements}, f"evidence {row.id}")


def to_learnt(kind: type[L], row: CalibrationRow | ProfileRow | None) -> L | None:
    """What `row` keeps of a model, if there is such a row."""
    if row is None:
        return None
    try:
        return kind.model_validate_json(row.body)
    except ValidationError as error:
        name = row.__tablename__
        raise StoreError(
            f"the stored {name} of {row.model[:12]}… is damaged: {describe(error)}; {WAY_OUT.format(name)}"
        ) from None


def to_policy(row: PolicyRow) -> Policy:
    """The policy that `row` keeps, with its digest checked."""
    try:
        policy = Policy.parse(row.body)
    except PolicyError as error:
        raise StoreError(f"the stored policy {row.digest[:12]}… is damaged: {error}") from None
    if policy.digest != row.digest:
        raise StoreError(
            f"the stored policy {row.digest[:12]}… is damaged: its content has digest {policy.digest[:12]}…"
        )
    return policy


def to_run(row: RunRow) -> RunRecord:
    """The run that `row` keeps."""
    return _checked(RUN, {name: getattr(row, name) for name in RunRecord.__dataclass_fields__}, f"run {row.name!r}")


def to_trial(row: TrialRow, policy: Policy, quality: Evidence | None, speed: Evidence | None) -> TrialRecord:
    """The trial that `row` keeps, of this policy and with this evidence."""
    fields = {name: getattr(row, name) for name in ("number", "origin", "state", "error", "attempts", "cost", "worker")}
    found = {**fields, "policy": policy, "quality": quality, "speed": speed}
    return _checked(TRIAL, found, f"trial {row.number} of run {row.run!r}")


def _checked(kind: TypeAdapter[T], fields: dict[str, object], what: str) -> T:
    """The object with these fields. SQLite keeps any value in any column, so that their types say nothing."""
    try:
        return kind.validate_python(fields)
    except ValidationError as error:
        raise StoreError(f"{what} is damaged: {describe(error)}") from None
