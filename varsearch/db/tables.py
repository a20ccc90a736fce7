"""The tables. Singular names: the plural ones beside them belong to Optuna."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Integer,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class UTCDateTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite forgets the zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Gives moments without a zone the zone they were written in."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def now() -> datetime:
    """The present moment in UTC."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Base of the tables; its metadata is what migrations must add up to."""


class RunRow(Base):
    """One search. `driver` is the token of the process that may write to it, see `Store.claim`."""

    __tablename__ = "run"

    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    model: Mapped[str] = mapped_column(String(200))
    fingerprint: Mapped[str] = mapped_column(String(64))
    quality_protocol: Mapped[str] = mapped_column(String(64))
    speed_protocol: Mapped[str] = mapped_column(String(64))
    settings: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(20))
    driver: Mapped[str] = mapped_column(String(32))
    created: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    updated: Mapped[datetime] = mapped_column(UTCDateTime, default=now, onupdate=now)


class PolicyRow(Base):
    """A policy as canonical JSON under its digest."""

    __tablename__ = "policy"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    body: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class TrialRow(Base):
    """One policy proposed in a run, under the number that Optuna's trial has too."""

    __tablename__ = "trial"
    __table_args__ = (UniqueConstraint("run", "policy", name="trial_policy_once_per_run"),)

    run: Mapped[str] = mapped_column(ForeignKey("run.name", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    policy: Mapped[str] = mapped_column(ForeignKey("policy.digest"))
    origin: Mapped[str] = mapped_column(String(200))
    state: Mapped[str] = mapped_column(String(20))
    error: Mapped[str] = mapped_column(Text, default="")
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    cost: Mapped[float] = mapped_column(Float, default=0.0, server_default="0")
    worker: Mapped[str] = mapped_column(String(200), default="")
    created: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    started: Mapped[datetime | None] = mapped_column(UTCDateTime)
    finished: Mapped[datetime | None] = mapped_column(UTCDateTime)


class EvidenceRow(Base):
    """What is known of a policy under a protocol, whichever run asked first."""

    __tablename__ = "evidence"
    __table_args__ = (UniqueConstraint("kind", "policy", "model", "protocol", name="evidence_key"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    policy: Mapped[str] = mapped_column(String(64))
    model: Mapped[str] = mapped_column(String(64))
    protocol: Mapped[str] = mapped_column(String(64))
    seconds: Mapped[float] = mapped_column(Float)
    environment: Mapped[dict[str, str]] = mapped_column(JSON)
    created: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    measurements: Mapped[list[MeasurementRow]] = relationship(lazy="selectin", order_by="MeasurementRow.position")


class MeasurementRow(Base):
    """One number of a piece of evidence; `position` keeps the order in which they were given."""

    __tablename__ = "measurement"

    evidence: Mapped[int] = mapped_column(ForeignKey("evidence.id", ondelete="CASCADE"), primary_key=True)
    metric: Mapped[str] = mapped_column(String(50), primary_key=True)
    position: Mapped[int] = mapped_column(Integer)
    value: Mapped[float] = mapped_column(Float)
    low: Mapped[float | None] = mapped_column(Float)
    high: Mapped[float | None] = mapped_column(Float)
    n: Mapped[int] = mapped_column(Integer)
    origin: Mapped[str] = mapped_column(String(20))
    note: Mapped[str] = mapped_column(Text)


class CalibrationRow(Base):
    """What one pass over a model with these weights learnt, as JSON."""

    __tablename__ = "calibration"

    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    protocol: Mapped[str] = mapped_column(String(64), primary_key=True)
    body: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime] = mapped_column(UTCDateTime, default=now)


class ProfileRow(Base):
    """A part of what is known of a model's units, as JSON: "quality", or "cost" on one target. Grows until complete."""

    __tablename__ = "profile"

    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    part: Mapped[str] = mapped_column(String(20), primary_key=True)
    protocol: Mapped[str] = mapped_column(String(64), primary_key=True)
    body: Mapped[str] = mapped_column(Text)
    created: Mapped[datetime] = mapped_column(UTCDateTime, default=now)
    updated: Mapped[datetime] = mapped_column(UTCDateTime, default=now, onupdate=now)
