from __future__ import annotations

import pytest

from varsearch.measurement import Origin
from varsearch.search.setup import Request, prepare


@pytest.mark.parametrize(
    ("target", "origin", "latency"), [("cpu", Origin.MEASURED, "speedup"), ("4090", Origin.PREDICTED, "latency_ms")]
)
def test_measured_latency_counts_relative_to_dense(target: str, origin: Origin, latency: str) -> None:
    settings = prepare(Request(target=target, images=16)).settings
    assert settings.origin is origin
    assert settings.objectives == ("delta_fid", latency, "peak_bytes")


def test_named_objectives_stay() -> None:
    chosen = ("fid", "latency_ms")
    assert prepare(Request(target="cpu", images=16, objectives=chosen)).settings.objectives == chosen
