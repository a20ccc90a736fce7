"""Runs for latency and memory alone: of a model of which there is only the shape, so that nothing can be drawn."""

from __future__ import annotations

import json
import re
from pathlib import Path

import optuna
import pytest
from PIL import Image
from safetensors.torch import save_file

from tests.cli.commands import as_json, fails, output
from tests.conftest import build_tiny
from varsearch.cli.main import main
from varsearch.errors import ModelError
from varsearch.models import zoo
from varsearch.models.manifest import Manifest
from varsearch.policy_file import PolicyFile
from varsearch.report import dashboard as gallery
from varsearch.search.sensitivity.profile import profile_refusal
from varsearch.search.setup.prepare import prepare
from varsearch.search.setup.request import Request

BLIND = "quality is NOT evaluated"
COSTS = ["--target", "4090", "--objectives", "latency,memory"]
MODEL = ["--model", "models/shape"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a model whose weights are not there."""
    path = tmp_path_factory.mktemp("blind")
    model = build_tiny()
    manifest = Manifest(
        name="shape", description="test", licence="none", data="none", image_size=(12, 12),
        transformer=model.transformer.config, tokenizer=model.tokenizer.config, sampling=model.sampling,
        classifier={}, files={part: (f"{part}.safetensors", "0" * 64) for part in ("transformer", "tokenizer")},
    )  # fmt: skip
    (path / "models" / "shape").mkdir(parents=True)
    (path / "models" / "shape" / "manifest.json").write_text(manifest.model_dump_json())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert main(["run", *MODEL, *COSTS, "--budget", "6", "--name", "costs"]) == 0
    return path


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_the_output_says_what_it_is_not_about_and_has_no_columns_of_quality(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "run", *MODEL, *COSTS, "--budget", "6", "--name", "costs")
    header, _, end = out.partition("6 evaluated")
    assert BLIND in header and BLIND in end
    for word in ("ΔFID", "NLL", "sample grids", "beaten by"):
        assert word not in out, word
    assert "what the published systems cost, relative to dense" in out and "fastvar" in out and "sparvar" in out
    told = re.search(r"constants assumed, as in the papers, because no quality is evaluated: (.*)", out)
    assert told and {"hack", "hackpp", "scalekv", "toprovar"} <= set(told[1].split(", "))


def test_the_study_has_exactly_these_directions() -> None:
    study = optuna.load_study(study_name="costs", storage="sqlite:///varsearch.db")
    assert study.metric_names == ["latency_ms", "peak_bytes"]
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MINIMIZE"]
    assert all(len(trial.values) == 2 for trial in study.trials) and len(study.trials) == 6


def test_the_order_of_the_names_makes_no_difference(capsys: pytest.CaptureFixture[str]) -> None:
    swapped = ["--target", "4090", "--objectives", "memory, latency"]
    out = output(capsys, "run", *MODEL, *swapped, "--budget", "6", "--name", "costs")
    assert "6 evaluated" in out and "trial 5" not in out


def test_front_status_and_picture(capsys: pytest.CaptureFixture[str]) -> None:
    front = as_json(capsys, "front", "--run", "costs", "--picture", "costs.png")
    assert (front["images"], front["objectives"]) == (0, ["latency_ms", "peak_bytes"])
    assert 0 < front["hypervolume"] < 1
    points = [[e["metrics"][m]["value"] for m in front["objectives"]] for e in front["entries"]]
    assert points == sorted(points) and [p[1] for p in points] == sorted((p[1] for p in points), reverse=True)
    assert all("delta_fid" not in entry["metrics"] for entry in front["entries"])
    with Image.open("costs.png") as picture:
        assert picture.width > 300 and len(set(picture.convert("RGB").get_flattened_data())) > 50
    assert "latency_ms, peak_bytes" in output(capsys, "status", "--run", "costs")


def test_the_dashboard_gets_no_grids() -> None:
    warned: list[str] = []
    assert gallery.attach_to_all("varsearch.db", warned.append) == 0 and not warned


def test_an_exported_policy_is_verified_by_its_costs(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "export", "--run", "costs", "--verify", "--output", "v.json")
    assert "quality NOT evaluated" in out and "peak_bytes" in out and "images" not in out
    fails(capsys, ["export", "--run", "costs", "--select", "best-quality"], 2, "the run did not evaluate quality")
    file = PolicyFile.read(Path("v.json"))
    assert file.sample is None and file.envelope.guidance == build_tiny().sampling.guidance


def test_apply_warns_that_nobody_looked_at_images(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output(capsys, "export", "--run", "costs", "--select", "fastest", "--output", "a.json")
    model = build_tiny()
    monkeypatch.setattr(zoo, "tensors", lambda _, part: getattr(model, part).state_dict())
    found = json.loads(
        output(capsys, "apply", "a.json", *MODEL, "--count", "2", "--batch-size", "1", "--output", "a.png", "--json")
    )
    assert found["same_images"] is None and "did not look at any image" in found["check"]


def test_compare_shows_costs_alone(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "compare", *MODEL, *COSTS, "fastvar", "sparvar")
    assert BLIND in out and "fastvar" in out and "ΔFID" not in out and "distance" not in out
    assert "fastvar: known already" in out, "the run evaluated it under the same protocol"
    rows = as_json(capsys, "compare", *MODEL, *COSTS, "fastvar")
    assert rows["images"] == 0 and "delta_fid" not in rows["policies"]["fastvar"]


def test_what_needs_quality_is_refused_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = str(Path("models/shape").absolute())
    monkeypatch.chdir(tmp_path)
    run = ["run", "--target", "4090", "--model", shape]
    fails(
        capsys, run, 4, "the quality of", "no transformer.safetensors and no tokenizer", "--objectives latency,memory"
    )
    fails(capsys, [*run, "--objectives", "memory,fid"], 4, "--objectives latency,memory")
    blind = [*run, "--objectives", "latency,memory"]
    fails(capsys, [*blind, "--max-fid", "+0.5"], 2, "--max-fid needs quality", "add fid to --objectives")
    fails(capsys, [*blind, "--reference", "r"], 2, "--reference needs quality")
    fails(capsys, ["run", "--model", shape, "--objectives", "latency,memory"], 4, "cannot read")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_classifier_says_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    model = build_tiny()
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "manifest.json").write_text((folder / "models" / "shape" / "manifest.json").read_text())
    for part in ("transformer", "tokenizer"):
        save_file(getattr(model, part).state_dict(), whole / f"{part}.safetensors")
    assert zoo.weights_refusal(str(whole)) is None
    told = "it has no classifier and no reference"
    assert profile_refusal(str(whole)).startswith("it has no classifier, ")
    with pytest.raises(ModelError, match=f"{told}; give --reference and --inception-weights; for latency"):
        prepare(Request(model=str(whole), target="4090"), tmp_path / "runs.db")
    assert zoo.quality_refusal(str(whole)) == told and zoo.quality_refusal(str(whole), []) is None
    assert zoo.quality_refusal("var-d16@random") == "its weights are random"
    assert zoo.quality_refusal("mnist") is None


def test_a_front_that_met_no_bound_says_how_near_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "run", *MODEL, *COSTS, "--max-memory", "0.9x", "--budget", "1", "--storage", "bound.db")
    assert re.search(r"bounds: peak_bytes <= [\d.]+ MB", out)
    assert re.search(r"[\da-f]: 0 on the front, hypervolume 0.000\nmodels/shape on 4090", out)
    assert re.search(r"none of 1 trials met all bounds: peak_bytes <= ([\d.]+) MB, the best has ([\d.]+) MB", out)
