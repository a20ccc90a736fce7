"""Names, streams, databases, cards and folders that are not as they should be: one line, its code, nothing left."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import fails
from tests.cli.test_bad_input import FAST, LIKE_A_USER, clean_environment, exported, in_empty_folder, model_copy
from varsearch.cli.main import main
from varsearch.models import names, zoo

__all__ = ["exported", "in_empty_folder", "model_copy"]


REFUSED = {
    "name with a line break": (["run", *FAST, "--name", "a\nb"], 2, ["name 'a\\nb' is not 1 to 200 printable"]),
    "name with an escape code": (["run", *FAST, "--name", "\x1b[31m"], 2, ["name '\\x1b[31m' is not"]),
    "name that is no text": (["run", *FAST, "--name", "\udcff"], 2, ["name '\\udcff' is not"]),
    "name of nothing": (["run", *FAST, "--name", ""], 2, ["name '' is not"]),
    "name without end": (["run", *FAST, "--name", "x" * 201], 2, ["is not 1 to 200"]),
    "cluster without workers": (["run", *FAST, "--ray-address", "auto"], 2, ["--ray-address needs --workers"]),
    "cores without workers": (["run", *FAST, "--cpus-per-worker", "999"], 2, ["1 x 999 cores are more than the"]),
    "reference that is a folder": (["run", *FAST, "--reference", "."], 4, ["reference statistics .: it is a folder"]),
    "two places": (["export", "--library", "--output", "x.json"], 2, ["--output and --library exclude"]),
    "name outside the library": (["export", "--name", "x"], 2, ["--name is a name in the library"]),
    "storage of nothing": (["status", "--storage", ""], 6, ["names no file"]),
    "storage in memory": (["run", *FAST, "--storage", "sqlite://"], 6, ["names no file"]),
    "storage with options": (["run", *FAST, "--storage", "sqlite:///x.db?mode=ro&uri=true"], 6, ["take no options"]),
    "storage with a long name": (["status", "--storage", "x" * 300], 6, ["File name too long"]),
    "storage without driver": (["run", *FAST, "--storage", "oracle://u@h/x"], 6, ["needs the driver oracledb"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_arguments(name: str, capsys: pytest.CaptureFixture[str], in_empty_folder: Path) -> None:
    arguments, code, words = REFUSED[name]
    fails(capsys, arguments, code, *words)
    assert list(in_empty_folder.iterdir()) == []


LOST = {
    "delete from measurement where metric = 'latency_ms'": ["status", "front", "export", "run"],
    "delete from measurement where metric = 'speedup'": ["export"],
    "delete from measurement": ["status", "front", "export", "run"],
    "update evidence set environment = '{}'": ["export"],
    "update evidence set environment = 'x'": ["status", "front", "export", "run"],
    "update trial set state = 'bogus'": ["status", "front", "export", "run"],
    "update run set created = 'x'": ["status", "front", "export", "run", "dashboard"],
}


def damaged(exported: Path, statement: str) -> None:
    """Makes x.db, a copy of the tiny run's database with a change that no command of ours makes."""
    shutil.copy(exported.parent / "x.db", "x.db")
    connection = sqlite3.connect("x.db")
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize("statement", LOST)
def test_damaged_databases(statement: str, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged(exported, statement)
    for command in LOST[statement]:
        options = [*FAST, "--budget", "2"] if command == "run" else []
        fails(capsys, [command, *options, "--storage", "x.db"], 6)
    assert {path.suffix for path in Path().iterdir()} <= {".db", ".db-shm", ".db-wal"}


def test_a_comparison_with_lost_numbers(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged(exported, "delete from measurement where metric = 'feature_distance'")
    fails(capsys, ["compare", "dense", *FAST, "--storage", "x.db"], 6, "has no feature_distance")


def test_a_run_without_a_finished_trial_says_so(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged(exported, "update trial set state = 'waiting'")
    fails(capsys, ["export", "--storage", "x.db"], 2, "the run has no evaluated trial yet")


@pytest.mark.parametrize("card", ["{}", "[]", '{"numbers": {"fid": "x"}, "scan": [], "minutes": {}}', "3"])
def test_damaged_cards(card: str, model_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model_copy / "card.json").write_text(card)
    for arguments in (["models", str(model_copy)], ["models", str(model_copy), "--json"]):
        fails(capsys, arguments, 4, "card")


def test_a_model_that_lacks_a_file(
    model_copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (zoo, names):
        monkeypatch.setattr(module, "WEIGHTS", model_copy.parent)
    (model_copy / "held_out.safetensors").unlink()
    fails(capsys, ["models", model_copy.name], 4, "held_out.safetensors: No such file")
    assert main(["models"]) == 0, "the list says nothing of files"


def test_the_folder_of_a_database_is_read_only(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "readonly"
    shutil.copytree(exported.parent, folder)
    folder.chmod(0o555)
    status = [sys.executable, "-m", "varsearch", "status", "--storage", str(folder / "x.db")]
    done = subprocess.run([*LIKE_A_USER, *status], capture_output=True, text=True, check=False, env=clean_environment())
    folder.chmod(0o755)
    assert (done.returncode, done.stderr.count("\n")) == (6, 1), done.stderr
    assert f"the folder {folder} is read-only" in done.stderr


def test_a_run_goes_on_when_its_reader_has_left(exported: Path) -> None:
    shutil.copy(exported.parent / "x.db", "x.db")
    command = [sys.executable, "-m", "varsearch", "run", *FAST, "--budget", "1", "--name", "again", "--storage", "x.db"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment())
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (0, b"")
    process.stderr.close()
    with sqlite3.connect("x.db") as connection:
        assert connection.execute("select status from run where name = 'again'").fetchall() == [("finished",)]
