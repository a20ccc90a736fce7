"""Every command on the shipped model, as a user types it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.commands import as_json, output
from varsearch.cli.main import main
from varsearch.evaluators.quality import QualityEvaluator
from varsearch.library import load_policy
from varsearch.policy import Policy
from varsearch.report import dashboard as gallery
from varsearch.search.setup import initial_design as starts

FAST = ["--images", "16", "--target", "4090"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the first seeds."""
    path = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert main(["run", *FAST, "--budget", "3", "--name", "first"]) == 0
    return path


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VARSEARCH_LIBRARY", str(folder / "library"))


def test_run_prints_progress_and_the_front(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "run", *FAST, "--budget", "4", "--name", "second", "--storage", "other.db")
    assert "mnist on 4090, float16, batch 256, latency and memory predicted" in out
    for word in (
        "4/4",
        "seed:dense",
        "ETA",
        "hypervolume",
        "front",
        "PREDICTED",
        "sample grids drawn",
        "varsearch export",
    ):
        assert word in out, word


def test_the_same_command_again_evaluates_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "run", *FAST, "--budget", "3", "--name", "first")
    assert "3 evaluated" in out and "trial 0" not in out.split("on the front")[0]


@pytest.mark.parametrize("option", [[], ["--rungs"]])
def test_there_are_rungs_where_they_are_asked_for(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "--images", "128", "--target", "4090", "--budget", "1", "--no-confirm", *option]
    assert ("rung of 64 images: stopped 0" in output(capsys, *command, "--name", f"rungs {option}")) == bool(option)


def test_another_run_reuses_what_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "run", *FAST, "--budget", "1", "--name", "third", "--max-memory", "0.99x")
    assert "3 known already" in out


def test_another_target_draws_nothing_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: QualityEvaluator, policy: Policy) -> None:
        raise AssertionError("an image would be drawn")

    monkeypatch.setattr(QualityEvaluator, "evaluate", refuse)
    monkeypatch.setattr(gallery, "attach_to_run", lambda *_: 0)
    command = ["run", "--images", "16", "--target", "h100", "--budget", "3", "--name", "new"]
    told = output(capsys, *command)
    assert re.search(r"quality of \d policies is known from (\w+, )?first: they come first, without any image", told)
    assert told.count("(quality known)") == 3 and "(known already)" not in told
    assert "3 evaluated, 0 stopped early, 0 known already, 0 failed" in told
    assert "quality was known for 3 of these 3 evaluations: no image drawn" in told
    again = output(capsys, *command)
    assert "3 evaluated" in again and "(quality known)" not in again and "quality was known" not in again


def test_status_lists_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = [row for row in as_json(capsys, "status") if row["run"] == "first"]
    assert row["complete"] == 3 and row["open"] == 0 and row["origin"] == "predicted" and row["status"] == "finished"
    assert "first" in output(capsys, "status")


def test_front_is_marked_predicted_and_not_dominated(capsys: pytest.CaptureFixture[str]) -> None:
    front = as_json(capsys, "front", "--run", "first")
    assert front["origin"] == "predicted" and front["entries"]
    for entry in front["entries"]:
        assert entry["metrics"]["latency_ms"]["origin"] == "predicted"
        assert entry["metrics"]["delta_fid"]["low"] <= entry["metrics"]["delta_fid"]["value"]
    points = [[e["metrics"][m]["value"] for m in front["objectives"]] for e in front["entries"]]
    for a in points:
        assert not any(b != a and all(x <= y for x, y in zip(b, a, strict=True)) for b in points)
    assert "PREDICTED" in output(capsys, "front", "--run", "first")


@pytest.mark.parametrize("select", ["knee", "fastest", "smallest", "best-quality", "max-latency=1000ms", "trial=1"])
def test_export_every_selection(select: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "predicted for 4090" in output(capsys, "export", "--run", "first", "--select", select, "--output", "p.json")
    assert load_policy("p.json").provenance.run == "first"


def test_export_to_the_library_and_apply_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    output(capsys, "export", "--run", "first", "--select", "trial=1", "--library", "--name", "w8")
    assert load_policy("mnist/4090/w8").policy.layers[0].weights.qkv.bits == 8
    arguments = ("--output", "grid.png", "--labels", "3,1,4", "--batch-size", "2", "--attention", "reference")
    applied = as_json(capsys, "apply", "mnist/4090/w8", *arguments)
    assert applied["images"] == 3 and applied["same_images"] is True and applied["speedup"] > 0
    assert applied["attention"] == "reference"
    with Image.open("grid.png") as picture:
        assert picture.width > 300 and picture.getextrema()[1] == 255


def test_export_verify_repeats_everything_in_a_fresh_process(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "export", "--run", "first", "--select", "trial=2", "--verify", "--output", "v.json")
    assert "verified in a fresh process" in out and "images" in out and "NO" not in out


def test_export_verify_notices_a_forged_number(capsys: pytest.CaptureFixture[str]) -> None:
    import shutil
    import sqlite3

    shutil.copy("varsearch.db", "forged.db")
    with sqlite3.connect("forged.db") as connection:
        changed = connection.execute("update measurement set value = value - 0.5 where metric = 'delta_fid'").rowcount
    assert changed
    capsys.readouterr()
    arguments = [
        "export",
        "--run",
        "first",
        "--select",
        "trial=1",
        "--verify",
        "--storage",
        "forged.db",
        "--output",
        "f.json",
    ]
    assert main(arguments) == 7
    assert "did not reproduce its delta_fid" in capsys.readouterr().err
    assert not Path("f.json").exists()


def test_compare_shows_policies_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    rows = as_json(capsys, "compare", "dense", "kv-none", *FAST)["policies"]
    assert rows["dense"]["delta_fid"]["value"] == 0 and rows["kv-none"]["kv_bytes"]["value"] == 0
    table = output(capsys, "compare", "dense", "kv-none", *FAST)
    assert "kv-none" in table and "0.00x" in table


def test_compare_knows_published_systems(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, "compare", "hack", "hackpp", "code", *FAST, "--predict", "h100")
    assert (found["model"], found["origin"], found["predicted_target"]["device"]) == ("mnist", "predicted", "h100")
    rows = found["policies"]
    assert list(rows) == ["dense", "hack", "hackpp", "code"], "dense is what they are compared with"
    full = rows["dense"]["kv_bytes"]["value"]
    assert rows["hack"]["kv_bytes"]["value"] <= 0.3 * full and rows["hackpp"]["kv_bytes"]["value"] <= 0.1 * full
    assert rows["hack"]["predicted"]["latency_ms"]["origin"] == "predicted"
    table = output(capsys, "compare", "dense", "hack", *FAST, "--predict", "h100")
    assert "h100: PREDICTED for h100, float16" in table and "hack: known already" in table
    same = as_json(capsys, "compare", "dense", *FAST, "--predict", "4090")["policies"]["dense"]
    assert "predicted" not in same, "the target is a prediction for that device already"


def test_published_systems_that_do_not_fit_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starts, "presets", lambda *_: ({}, {"hack": "it needs more scales"}))
    assert main(["compare", "dense", "hack", *FAST]) == 3
    assert "hack cannot be compared: it needs more scales" in capsys.readouterr().err
    assert "not shown: hack: it needs more scales" in output(capsys, "compare", *FAST)
    told = output(capsys, "run", *FAST, "--budget", "1", "--name", "few")
    assert "; starts from 15 hand-made policies and " in told and "not among them: hack: it needs more scales" in told


def test_run_starts_from_published_systems_and_says_what_beats_them(capsys: pytest.CaptureFixture[str]) -> None:
    out = output(capsys, "run", *FAST, "--budget", "4", "--storage", "third.db")
    assert "preset:litevar" in out and "the front against the published systems" in out
    found = as_json(capsys, "front", "--storage", "third.db")["presets"]
    assert [row["name"] for row in found] == ["litevar", "litevar-w6", "litevar-85"]
    members = {entry["trial"] for entry in as_json(capsys, "front", "--storage", "third.db")["entries"]}
    assert all((row["trial"] in members) != (row["beaten_by"] in members) for row in found)
    assert "beaten by: probability" in out
    assert all(row["nearest"] == row["beaten_by"] and 0 < row["chance"] <= 1 for row in found if row["beaten_by"])


def test_calibrate_shows_what_was_learnt_once(capsys: pytest.CaptureFixture[str]) -> None:
    table = output(capsys, "calibrate", "--storage", "new.db")
    assert "calibrating the model" in table and "contextual" in table and "SkipVAR at similarity 0.84" in table
    again = output(capsys, "calibrate", "--storage", "new.db")
    assert "calibrating the model" not in again and table.endswith(again)
    found = as_json(capsys, "calibrate", "--storage", "new.db")
    assert len(found["column_variance"]) == 6 and found["protocol"]["images"] == 50


def test_targets_and_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    rows = as_json(capsys, "targets")
    assert {"4090", "3090", "l40s", "a100", "h100", "h200", "cpu"} <= {row["name"] for row in rows}
    assert "http" in output(capsys, "targets", "--sources")


def test_apply_needs_only_the_deployment_install(capsys: pytest.CaptureFixture[str]) -> None:
    """With the search packages made unimportable, as on a machine that never installed them."""
    output(capsys, "export", "--run", "first", "--select", "trial=1", "--output", "p.json")
    absent = ("ray", "optuna", "sqlalchemy", "alembic", "torchmetrics", "optuna_dashboard", "plotly", "scipy")
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({absent!r}))\n"
        "from varsearch.cli.main import main\n"
        "sys.exit(main(['apply', 'p.json', '--count', '10', '--batch-size', '2', '--output', 'd.png']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "equal the search worker's, bit for bit" in done.stdout
    searching = code.replace(
        "['apply', 'p.json', '--count', '10', '--batch-size', '2', '--output', 'd.png']", "['front']"
    )
    done = subprocess.run([sys.executable, "-c", searching], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "pip install 'varsearch[search]'" in done.stderr and "Traceback" not in done.stderr
