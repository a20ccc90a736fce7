from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from varsearch.calibration import Calibration
from varsearch.db import Store
from varsearch.errors import StoreError
from varsearch.measurement import Origin
from varsearch.models import zoo
from varsearch.search.setup import calibration
from varsearch.search.setup import initial_design as starts
from varsearch.search.setup.prepare import prepare
from varsearch.search.setup.request import Request


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, mnist_calibration: Calibration) -> None:
    monkeypatch.setattr(calibration, "calibrate", lambda model, protocol, **_: mnist_calibration)


@pytest.mark.parametrize(
    ("target", "origin", "latency"), [("cpu", Origin.MEASURED, "speedup"), ("4090", Origin.PREDICTED, "latency_ms")]
)
def test_measured_latency_counts_relative_to_dense(target: str, origin: Origin, latency: str, tmp_path: Path) -> None:
    settings = prepare(Request(target=target, images=16, attention="auto"), tmp_path / "runs.db").settings
    assert settings.origin is origin
    assert settings.speed.attention == "sdpa"
    assert settings.objectives == ("delta_fid", latency, "peak_bytes")


def test_named_objectives_stay(tmp_path: Path) -> None:
    chosen = ("fid", "latency_ms")
    request = Request(target="cpu", images=16, objectives=chosen, attention="reference")
    settings = prepare(request, tmp_path / "runs.db").settings
    assert (settings.objectives, settings.speed.attention) == (chosen, "reference")


def test_the_calibration_of_a_database_is_made_once(tmp_path: Path) -> None:
    told: list[int] = []
    for seed in (0, 0, 1):
        request = Request(target="4090", images=16, seed=seed)
        prepare(request, tmp_path / "runs.db", lambda: told.append(1))
    assert told == [1], "neither a second run nor another seed of the images needs another"


def test_another_space_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = prepare(Request(target="4090", images=16), tmp_path / "runs.db")
    assert problem.settings.space == problem.space.digest
    assert problem.starts.presets and not problem.starts.missing
    monkeypatch.setattr(starts, "presets", lambda *_: ({}, {"hack": "why"}))
    other = prepare(Request(target="4090", images=16), tmp_path / "runs.db")
    assert other.settings.default_name != problem.settings.default_name
    assert problem.settings.difference(other.settings).startswith("space was")


def test_a_calibration_of_another_shape_is_damage(tmp_path: Path, mnist_calibration: Calibration) -> None:
    short = mnist_calibration.model_copy(update={"scale_mass": mnist_calibration.scale_mass[:1]})
    with Store(tmp_path / "runs.db") as store:
        store.save_calibration(short)
    with pytest.raises(StoreError, match="calibration of mnist is damaged: it is of another shape; delete its row"):
        prepare(Request(target="4090", images=16), tmp_path / "runs.db")


@pytest.mark.parametrize(
    "field", ["column_variance", "band_mass", "history_top", "entropy_ratio", "low_entropy", "sqnr"]
)
def test_every_table_is_counted(field: str, mnist_calibration: Calibration) -> None:
    spec = zoo.manifest("mnist").spec()
    assert mnist_calibration.fits(spec)
    table = getattr(mnist_calibration, field)
    assert not mnist_calibration.model_copy(update={field: table[:-1]}).fits(spec)
    assert not mnist_calibration.fits(spec.model_copy(update={"n_heads": 2}))


def test_workers_find_the_user_s_files_from_wherever_they_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(zoo.folder("mnist"), tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    reference = "models/mine/reference.safetensors"
    request = Request(model="models/mine", target="4090", images=16, reference=reference)
    problem = prepare(request, tmp_path / "runs.db")
    assert (problem.settings.model, problem.worker.model) == ("models/mine", str(tmp_path / "models" / "mine"))
    assert problem.worker.reference == str(tmp_path / reference)
    assert prepare(Request(target="4090", images=16), tmp_path / "runs.db").worker.model == "mnist"
