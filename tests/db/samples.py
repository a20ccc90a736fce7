"""Domain values to store."""

from __future__ import annotations

from sqlalchemy import create_engine, text

from varsearch.db import RunRecord, TrialRecord
from varsearch.db.engine import locate
from varsearch.measurement import Evidence, Measurement, Origin
from varsearch.policy import LayerPolicy, Policy, Quantization, ScalePolicy, Weights

DENSE = Policy.dense(2, 3)
W8 = Policy(
    layers=(LayerPolicy(weights=Weights.uniform(Quantization(bits=8, group=32))), LayerPolicy()),
    scales=(ScalePolicy(), ScalePolicy(run=False), ScalePolicy(guidance="off")),
)
RUN = RunRecord(
    name="first", model="mnist", fingerprint="f" * 64, quality_protocol="q" * 64, speed_protocol="s" * 64,
    settings='{"seed":0}',
)  # fmt: skip
QUALITY = Evidence(
    kind="quality",
    policy=DENSE.digest,
    model="f" * 64,
    protocol="q" * 64,
    measurements=(
        Measurement(metric="fid", value=0.1 + 0.2, low=0.25, high=1 / 3, n=512),
        Measurement(metric="delta_fid", value=0.0, n=512, note="dense is the baseline"),
    ),
    seconds=1.5,
    environment={"torch": "2.13.0", "threads": "1"},
)
SPEED = Evidence(
    kind="speed",
    policy=DENSE.digest,
    model="f" * 64,
    protocol="s" * 64,
    measurements=(Measurement(metric="latency_ms", value=1e-3, n=0, origin=Origin.PREDICTED),),
    seconds=0.25,
)


def trial(number: int = 0, policy: Policy = DENSE) -> TrialRecord:
    return TrialRecord(number, policy, "seed:dense")


def execute(storage: str, statement: str) -> list[tuple[object, ...]]:
    """Runs SQL beside the store and returns the rows, if there are any."""
    engine = create_engine(locate(storage))
    try:
        with engine.begin() as connection:
            result = connection.execute(text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        engine.dispose()
