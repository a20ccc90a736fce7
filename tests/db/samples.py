"""Domain values to store."""

from __future__ import annotations

from sqlalchemy import create_engine, text

from varsearch.calibration import Calibration, CalibrationProtocol
from varsearch.db import RunRecord, TrialRecord
from varsearch.db.engine import locate
from varsearch.measurement import Evidence, Measurement, Origin, SpeedProtocol
from varsearch.policy import Action, Decision, LayerPolicy, Policy, Quantization, ScalePolicy, Weights
from varsearch.sensitivity_profile import Cost, CostProtocol, Costs, Effect, Estimate, Sensitivity, SensitivityProtocol
from varsearch.target import Target

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

CALIBRATION = Calibration(
    fingerprint="f" * 64,
    protocol=CalibrationProtocol(images=2, guidance=1.5, top_k=0, top_p=0.0),
    column_variance=((0.1 + 0.2,), (1 / 3,)),
    scale_mass=((((1.0,),), ((1.0,),)),),
    band_mass=(((((1.0,),),), (((1.0,),),)),),
    history_top=((0.0, 0.5),),
    entropy_ratio=((1.0, 2.0),),
    half_distance=((0.25, 0.5),),
    low_entropy=((0.5, 0.25),),
    skipvar={
        0.84: Decision(
            after=0,
            feature="high_frequency",
            actions=(
                Action(weights=(0.5, -1.0), share=0.25),
                Action(weights=(0, 0), bias=0.5, share=0.75, scales=(ScalePolicy(run=False),)),
            ),
        )
    },
    sqnr=({"qkv": {8: 40.5, 4: 20.25}}, {}),
    seconds=1.5,
)

SENSITIVITY = Sensitivity(
    fingerprint="f" * 64,
    protocol=SensitivityProtocol(extractor="e", images=8, seed=0, guidance=1.5, top_k=0, top_p=0.0, settings="s" * 64),
    effects={
        "S2.skip=yes": Effect(
            shift=Estimate(value=0.1 + 0.2, error=1 / 3), distance=Estimate(value=0.5, error=0.25), nll=None
        )
    },
    seconds=1.5,
)
COSTS = Costs(
    fingerprint="f" * 64,
    protocol=CostProtocol(
        speed=SpeedProtocol(
            target=Target(device="cpu", dtype="float32", batch_size=16),
            origin=Origin.PREDICTED,
            machine="m",
            backend="b",
            repeats=0,
        ),
        settings="s" * 64,
    ),
    parts={"dense": Cost(latency_ms=1 / 3, peak_bytes=4, weight_bytes=2, kv_bytes=1, flops=9)},
    seconds=0.5,
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
