"""What a run would do on a machine with GPUs, with one of each kind stood in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from varsearch.calibration import Calibration
from varsearch.errors import TargetError
from varsearch.measurement import Origin
from varsearch.models import zoo
from varsearch.search.setup import calibration
from varsearch.search.setup.prepare import Problem, prepare
from varsearch.search.setup.request import Request

GPUS = {
    "4090": ("NVIDIA GeForce RTX 4090", (8, 9)),
    "h100": ("NVIDIA H100 80GB HBM3", (9, 0)),
    "a100": ("NVIDIA A100-SXM4-80GB", (8, 0)),
}


@pytest.fixture
def loads() -> list[tuple[str, str]]:
    """Device and number format of each load."""
    return []


@pytest.fixture(params=GPUS)
def gpu(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    loads: list[tuple[str, str]],
    mnist_calibration: Calibration,
) -> str:
    name, capability = GPUS[request.param]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: name)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: capability)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda: None)
    original = zoo.load

    def load(model: str, device: str = "cpu", dtype: Any = None) -> Any:
        loads.append((device, dtype or "float32"))
        return original(model, "cpu", dtype)

    monkeypatch.setattr(zoo, "load", load)
    monkeypatch.setattr(calibration, "calibrate", lambda model, protocol, **_: mnist_calibration)
    return str(request.param)


def planned(tmp_path: Path, target: str, **asked: Any) -> Problem:
    return prepare(Request(target=target, images=16, **asked), tmp_path / "runs.db")


def test_everything_heavy_names_the_gpu(tmp_path: Path, gpu: str, loads: list[tuple[str, str]]) -> None:
    plan = planned(tmp_path, gpu)
    quality = plan.settings.quality
    assert plan.settings.origin is Origin.MEASURED and plan.worker.device == "cuda" and quality is not None
    assert (quality.noise, quality.dtype) == ("philox", "float16")
    assert ("cuda", "float16") in loads, "what calibrates"
    assert {dtype for _, dtype in loads} == {"float16"}, "nothing is read in a wider format"


def test_local_is_that_gpu(tmp_path: Path, gpu: str) -> None:
    assert planned(tmp_path, "local").settings.target.device == gpu


def test_another_target_is_predicted_and_stays_on_the_cpu(
    tmp_path: Path, gpu: str, loads: list[tuple[str, str]]
) -> None:
    plan = planned(tmp_path, "l40s")
    assert plan.settings.origin is Origin.PREDICTED and plan.worker.device == "cpu"
    assert plan.settings.quality is not None and plan.settings.quality.noise == "mt19937"
    assert set(loads) == {("cpu", "float32")} and plan.resources.gpus == 0


def test_images_may_be_drawn_on_a_gpu_for_a_target_elsewhere(tmp_path: Path, gpu: str) -> None:
    plan = planned(tmp_path, "l40s", workers=2, cpus_per_worker=1, gpus_per_worker=0.5)
    assert (plan.worker.device, plan.resources.gpus) == ("cuda", 0.5)


def test_the_number_format_can_be_named(tmp_path: Path, gpu: str) -> None:
    plan = planned(tmp_path, gpu, quality_dtype="float32")
    assert plan.settings.quality is not None and plan.settings.quality.dtype == "float32"


def test_measuring_workers_get_a_gpu_each(tmp_path: Path, gpu: str) -> None:
    assert planned(tmp_path, gpu).resources.gpus == 0, "this process needs none of Ray"
    assert planned(tmp_path, gpu, workers=2, cpus_per_worker=1).resources.gpus == 1
    assert planned(tmp_path, gpu, workers=1, gpus_per_worker=2.0).resources.gpus == 2


@pytest.mark.parametrize("gpus", [0.0, 0.5, 1.5])
def test_measuring_workers_share_no_gpu(tmp_path: Path, gpu: str, gpus: float) -> None:
    with pytest.raises(TargetError, match=rf"a whole GPU per worker, got {gpus:g}"):
        planned(tmp_path, gpu, workers=2, cpus_per_worker=1, gpus_per_worker=gpus)


def test_more_workers_than_gpus_are_refused(tmp_path: Path, gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    with pytest.raises(TargetError, match="3 workers of 1 GPU each measure latency, and 2 GPUs are here"):
        planned(tmp_path, gpu, workers=3, cpus_per_worker=1)


def test_without_quality_nothing_calibrates(
    tmp_path: Path, gpu: str, loads: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "calibrate", lambda *_, **__: pytest.fail("a calibration"))
    plan = planned(tmp_path, gpu, objectives=("latency", "memory"))
    assert len(plan.starts.presets) == 16 and "hack" in plan.starts.assumed and not plan.starts.missing
