"""Which policies something is known of, and since when, asked for all of them at once."""

from __future__ import annotations

from sqlalchemy import select

from varsearch.db.records import RunRecord
from varsearch.db.store import Store
from varsearch.db.tables import EvidenceRow, TrialRow
from varsearch.measurement import Kind


def evaluated(store: Store, kind: Kind, model: str, protocol: str) -> frozenset[str]:
    """Digests of the policies with evidence of this kind, for these weights and under this protocol's digest."""
    query = select(EvidenceRow.policy).where(
        EvidenceRow.kind == kind, EvidenceRow.model == model, EvidenceRow.protocol == protocol
    )
    return store._transaction(lambda session: frozenset(session.scalars(query)))


def known_before(store: Store, run: RunRecord) -> frozenset[tuple[int, str]]:
    """Trials of `run`, by number, with the kinds of evidence that were there when their evaluation began."""
    query = (
        select(TrialRow.number, EvidenceRow.kind)
        .join(EvidenceRow, EvidenceRow.policy == TrialRow.policy)
        .where(
            TrialRow.run == run.name,
            EvidenceRow.model == run.fingerprint,
            EvidenceRow.protocol.in_([run.quality_protocol, run.speed_protocol]),
            EvidenceRow.created < TrialRow.started,
        )
    )
    return store._transaction(lambda session: frozenset((number, kind) for number, kind in session.execute(query)))
