"""`varsearch explain` by every name of a policy, in words, as JSON and as pictures."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.cli.commands import as_json, output
from tests.report.runs import POLICIES, make_run, settings
from varsearch.cli.main import main
from varsearch.search.results.resolve_policy import resolve_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explain")
    make_run(path / "varsearch.db", "made up", settings(), POLICIES)
    return path


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VARSEARCH_LIBRARY", str(folder / "library"))


def test_a_trial_by_number(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "explain", "made up:5", "--picture", "five.svg")
    assert "made up:5: ΔFID +1.50 [+1.35, +1.65], 1.11x dense's speed, predicted for 4090" in out
    assert "batch 256, not confirmed on fresh noise; weights" in out
    lines = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    assert "4-bit" in lines["layer 0 fc2"] and "+98 kB" in lines["layer 0 fc2"]
    assert "guidance" in lines["scale 5 on"] and "+" in lines["scale 5 on"]
    assert lines["layer 0 fc2"].count("not measured") == 2 and "beside dense" in lines["whole policy"]
    assert "quality: not measured; --measure does" in out and "PREDICTED" in out
    drawn = ElementTree.parse("five.svg").getroot()
    titles = [e.text or "" for e in drawn.iter() if e.tag.endswith("title")]
    assert "layer 0, fc2: 4-bit weights" in titles and drawn.get("aria-label")


def test_a_selection_a_file_and_the_library_are_the_same_policy(capsys: pytest.CaptureFixture[str]) -> None:
    output(capsys, "export", "--select", "fastest", "--output", "p.json")
    output(capsys, "export", "--select", "fastest", "--library")
    names = ("made up:fastest", "made up:4", ":fastest", ":4", "p.json", "mnist/4090/fastest")
    found = [resolve_policy(name, "varsearch.db") for name in names]
    assert [subject.name for subject in found] == list(names)
    assert {subject.file.policy for subject in found} == {POLICIES["sampler"][0]}
    assert {(subject.model, str(subject.file.target)) for subject in found} == {("mnist", "4090, float16, batch 256")}


def test_json_of_a_policy_in_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    output(capsys, "export", "--select", "fastest", "--library")
    found = as_json(capsys, "explain", "mnist/4090/fastest")
    assert [unit["unit"] for unit in found["units"]] == ["scale 4", "scale 5"]
    assert all(unit["saved"]["flops"] > 0 and not unit["lost"] for unit in found["units"])
    assert found["whole"]["saved"]["latency_ms"] > 0 == found["measured_images"]


def test_measured_losses_as_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["explain", "made up:1", "--measure", "--images", "16", "--picture", "one.html"]
    found = as_json(capsys, *given)
    (unit,) = found["units"]
    assert unit["lost"] == found["whole"]["lost"] and unit["saved"] == found["whole"]["saved"], "the only change"
    assert unit["lost"]["nll"]["low"] <= unit["lost"]["nll"]["value"] <= unit["lost"]["nll"]["high"]
    text = Path("one.html").read_text()
    assert f"{unit['lost']['nll']['value']:+.4f} [" in text and "layer 0 qkv" in text and "16 images" in text
    assert "http" not in text.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["made up:99"], 2, "no evaluated trial 99"),
        (["made up:nicest"], 2, "unknown selection"),
        (["gone:1"], 2, "no run 'gone': there are made up"),
        (["made up:1", "--weights", "x"], 2, "--weights and --prompts are for published models"),
        (["gone"], 3, "a trial of a run is RUN:NUMBER"),
        (["made up:1", "--picture", "x.gif"], 2, "expected a file that ends in one of .svg, .png, .html"),
        (["made up:1", "--model", "mnist-small"], 4, "was made with other weights"),
        (["made up:1", "--storage", "gone.db"], 6, "gone.db"),
    ],
)
def test_what_cannot_be_explained(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *arguments]) == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_policy_of_other_weights(capsys: pytest.CaptureFixture[str]) -> None:
    output(capsys, "export", "--select", "trial=1", "--output", "p.json")
    assert main(["explain", "p.json", "--model", "mnist-small"]) == 3
    assert "policy was made for mnist" in capsys.readouterr().err
