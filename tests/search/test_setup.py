from __future__ import annotations

from pathlib import Path

import pytest

from varsearch.calibration import Calibration
from varsearch.measurement import Origin
from varsearch.search import starts
from varsearch.search.setup import Request, prepare


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, mnist_calibration: Calibration) -> None:
    monkeypatch.setattr(starts, "calibrate", lambda model, protocol: mnist_calibration)


@pytest.mark.parametrize(
    ("target", "origin", "latency"), [("cpu", Origin.MEASURED, "speedup"), ("4090", Origin.PREDICTED, "latency_ms")]
)
def test_measured_latency_counts_relative_to_dense(target: str, origin: Origin, latency: str, tmp_path: Path) -> None:
    settings = prepare(Request(target=target, images=16), tmp_path / "runs.db").settings
    assert settings.origin is origin
    assert settings.objectives == ("delta_fid", latency, "peak_bytes")


def test_named_objectives_stay(tmp_path: Path) -> None:
    chosen = ("fid", "latency_ms")
    request = Request(target="cpu", images=16, objectives=chosen)
    assert prepare(request, tmp_path / "runs.db").settings.objectives == chosen


def test_the_calibration_of_a_database_is_made_once(tmp_path: Path) -> None:
    told: list[int] = []
    for seed in (0, 0, 1):
        request = Request(target="4090", images=16, seed=seed)
        prepare(request, tmp_path / "runs.db", lambda: told.append(1))
    assert told == [1], "neither a second run nor another seed of the images needs another"


def test_another_space_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = prepare(Request(target="4090", images=16), tmp_path / "runs.db")
    assert plan.settings.space == plan.space.digest
    assert plan.starts.presets and not plan.starts.missing
    monkeypatch.setattr(starts, "presets", lambda *_: ({}, {"hack": "why"}))
    other = prepare(Request(target="4090", images=16), tmp_path / "runs.db")
    assert other.settings.default_name != plan.settings.default_name
    assert plan.settings.difference(other.settings).startswith("space was")
