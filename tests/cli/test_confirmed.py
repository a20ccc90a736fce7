"""Commands on a confirmed run of the shipped model: what they show, export and repeat are its fresh numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import frames, losses
from tests.search.support.harness import forget_confirmation
from varsearch.cli.main import main
from varsearch.db import Store
from varsearch.evaluators.worker import WorkerConfig
from varsearch.policy_file import PolicyFile
from varsearch.search.core.protocols import confirming
from varsearch.search.core.settings import RunSettings
from varsearch.search.results.front import read_front
from varsearch.search.run.reevaluation import Reevaluation

IMAGES = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three policies, of which all but the last are confirmed."""
    path = tmp_path_factory.mktemp("confirmed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        given = ["--images", str(IMAGES), "--target", "4090", "--objectives", "fid,memory", "--budget", "3"]
        assert main(["run", *given, "--name", "first"]) == 0
        forget_confirmation(path / "varsearch.db")
        with Store("varsearch.db") as store:
            (run,) = store.runs()
            worker = WorkerConfig(model="mnist", device="cpu", threads=1).make()
            finals = Reevaluation(RunSettings.parse(run.settings), store, run)
            finals.start([trial for trial in store.trials(run) if trial.number < 2])
            while (job := finals.lease("a")) is not None:
                finals.report(worker.evaluate(job))
            assert finals.failed == {}
    return path


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_the_front_is_of_fresh_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "front", "--json"))
    assert found["confirmed"] is True and found["images"] == 4 * IMAGES
    assert {m["n"] for entry in found["entries"] for name, m in entry["metrics"].items() if name == "fid"} == {
        4 * IMAGES
    }
    assert {row["trial"] for row in found["presets"]} == {1}
    change = found["regression_to_the_mean"]
    assert change["claimed_hypervolume"] > 0 and list(change["mean_changes"]) == ["delta_fid"][: change["policies"]]
    out = output(capsys, "front", "--picture", "front.png")
    assert f"confirmed on {4 * IMAGES} fresh images" in out and f"quality of {4 * IMAGES} images" in out
    (row,) = json.loads(output(capsys, "status", "--json"))
    assert row["confirmed"] is True and row["front"] == len(found["entries"])


def test_a_confirmed_policy_is_exported_and_repeated_under_the_fresh_protocol(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = output(capsys, "export", "--select", "trial=1", "--verify", "--output", "one.json")
    assert "images" in out and "NO" not in out, "every number and every image came out the same"
    file = PolicyFile.read(Path("one.json"))
    with Store("varsearch.db") as store:
        fresh = confirming(RunSettings.parse(store.run("first").settings)).quality
    assert fresh is not None and file.sample is not None and file.sample.seed == fresh.seed
    assert {m.n for m in file.measurements if m.metric == "delta_fid"} == {4 * IMAGES}
    assert "not confirmed" not in out and file.provenance.confirmed is True


def test_a_trial_that_was_not_confirmed_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "export", "--select", "trial=2", "--output", "two.json")
    assert "not confirmed on fresh noise" in out
    file = PolicyFile.read(Path("two.json"))
    assert file.sample is not None and file.sample.seed == 0
    assert {m.n for m in file.measurements if m.metric == "delta_fid"} == {IMAGES}
    assert file.provenance.confirmed is False
    for command in (["explain"], ["apply", "--count", "10", "--batch-size", "1"]):
        assert "not confirmed on fresh noise" in output(capsys, *command, "two.json")


def test_what_is_lost_is_drawn_again_from_other_noise(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    losses.main(["--images", "24"])
    first, _, *rows, last = capsys.readouterr().out.splitlines()
    assert f"by {4 * IMAGES} images and by 24 of other noise" in first
    with Store("varsearch.db") as store:
        front = read_front(store, store.runs()[0])
    assert front.quality is not None
    again = list(losses.again(front.quality, "mnist", front.entries, 24))
    changed = [e for e in again if e.value("delta_fid") != 0]
    assert changed and all(e.metrics["delta_fid"].n == 24 for e in again)
    for old, new in zip(front.entries, again, strict=True):
        assert (old.value("delta_fid") == new.value("delta_fid")) == (new not in changed)
    assert {int(row.split()[0]) for row in rows} == {entry.number for entry in losses.fast(front)}
    assert last.startswith("fastest whose interval reaches 0, by 24: trial")


def test_techniques_of_the_whole_policy_are_judged_alone(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    frames.main(["--images", "8"])
    first, _, *rows = capsys.readouterr().out.splitlines()
    assert first == "mnist on 4090; ΔFID, 95 %, by 8 images"
    names = {row[:28].strip() for row in rows}
    assert {"guidance=off from 5", "refiner=mnist-small from 1", "S3.skip=yes"} <= names and len(names) == len(rows)
    speeds = [float(row[28:].split("x")[0]) for row in rows]
    assert speeds == sorted(speeds, reverse=True)
