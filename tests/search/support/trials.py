"""Finished trials with numbers that a test chooses."""

from __future__ import annotations

from tests.search.support.fakes import DENSE, evidence, settings
from varsearch.db import State, TrialRecord
from varsearch.measurement import METRICS, Measurement

COSTS = settings(objectives=("delta_fid", "latency_ms"))
Z_95 = 1.96


def trial(number: int, *measurements: Measurement) -> TrialRecord:
    """A finished trial with these numbers."""
    by_kind = {kind: tuple(m for m in measurements if METRICS[m.metric].kind == kind) for kind in ("quality", "speed")}
    quality, speed = (evidence(kind, DENSE, measurements=numbers) for kind, numbers in by_kind.items())
    return TrialRecord(number, DENSE, "sampler", State.COMPLETE, quality=quality, speed=speed)


def between(metric: str, value: float, half: float, n: int = 512) -> Measurement:
    """A number with an interval of twice `half`."""
    return Measurement(metric=metric, value=value, low=value - half, high=value + half, n=n)


def judged(number: int, delta: float, error: float, latency: float) -> TrialRecord:
    """With a standard error of its ΔFID, and an exact latency."""
    return trial(number, between("delta_fid", delta, Z_95 * error), Measurement(metric="latency_ms", value=latency))


def with_values(number: int, **values: float) -> TrialRecord:
    """A finished trial with these exact numbers, all as evidence of quality."""
    measurements = tuple(Measurement(metric=name, value=value) for name, value in values.items())
    quality = evidence("quality", DENSE).model_copy(update={"measurements": measurements})
    return TrialRecord(number, DENSE, "sampler", State.COMPLETE, quality=quality)
