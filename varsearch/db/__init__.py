"""What was tried and what came out, in SQL: beside Optuna's own tables, content-addressed, shared by all runs."""

from varsearch.db.records import RunRecord, State, TrialRecord
from varsearch.db.store import Store

__all__ = ["RunRecord", "State", "Store", "TrialRecord"]
