"""Sample grids: what keeps one run from having them does not keep the others, and nothing half-stored stays."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.storages import RDBStorage

from varsearch.cli.main import main
from varsearch.errors import StoreError
from varsearch.models import zoo
from varsearch.models.image_model import ImageModel
from varsearch.report import dashboard as gallery

RUN = ["run", "--images", "16", "--target", "4090", "--budget", "1", "--storage", "x.db"]
FOLDER = Path("x.db.artifacts")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs without grids, one of them of a model in a folder."""
    path = tmp_path_factory.mktemp("runs")
    shutil.copytree(zoo.folder("mnist"), path / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(gallery, "attach_to_run", lambda *_: 0)
        assert main([*RUN, "--name", "shipped"]) == 0
        assert main([*RUN, "--name", "copied", "--model", str(path / "model")]) == 0
    return path


@pytest.fixture(autouse=True)
def here(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database of the runs, and grids that cost nothing."""
    shutil.copy(runs / "x.db", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gallery, "_picture", lambda *_: b"png")


def execute(statement: str) -> None:
    with closing(sqlite3.connect("x.db")) as connection:
        connection.execute(statement)
        connection.commit()


def delete_the_study(_: pytest.MonkeyPatch) -> None:
    optuna.delete_study(study_name="copied", storage="sqlite:///x.db")


def lose_a_trial(_: pytest.MonkeyPatch) -> None:
    execute("delete from trials where study_id = (select study_id from studies where study_name = 'copied')")


def replace_the_weights(patch: pytest.MonkeyPatch) -> None:
    load = zoo.load

    def other(model: str) -> ImageModel:
        found = load("mnist")
        return (
            found if model == "mnist" else replace(found, spec=found.spec.model_copy(update={"fingerprint": "0" * 64}))
        )

    patch.setattr(zoo, "load", other)


def lose_the_model(_: pytest.MonkeyPatch) -> None:
    execute("update run set settings = replace(settings, '/model', '/gone') where name = 'copied'")


def damage_the_settings(_: pytest.MonkeyPatch) -> None:
    execute("update run set settings = '{}' where name = 'copied'")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (delete_the_study, "study of run 'copied' was deleted"),
        (lose_a_trial, "study of run 'copied' was deleted or is not complete"),
        (replace_the_weights, "now has 000000000000"),
        (lose_the_model, "unknown model"),
        (damage_the_settings, "settings are damaged"),
    ],
)
def test_a_run_that_cannot_have_grids_is_passed_over(
    damage: Callable[[pytest.MonkeyPatch], None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(monkeypatch)
    warnings: list[str] = []
    drawn = gallery.attach_to_all("x.db", warnings.append)
    assert drawn == len(list(FOLDER.iterdir())) > 0
    assert len(warnings) == 1 and warnings[0].startswith("no sample grids for run 'copied': ")
    assert words in warnings[0] and "\n" not in warnings[0]
    assert gallery.attach_to_all("x.db", warnings.append) == 0


@pytest.mark.parametrize("command", [["dashboard", "--storage", "x.db"], [*RUN, "--name", "shipped"]])
def test_a_file_where_the_grids_belong(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    FOLDER.write_text("mine")
    assert main(command) == 8
    out, error = capsys.readouterr()
    assert error.count("\n") == 1 and "cannot make the folder" in error and "File exists" in error
    assert ("confirmed on 64 fresh images" in out) == (command[0] == "run")
    assert FOLDER.read_text() == "mine"


def test_a_grid_whose_place_cannot_be_stored_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise optuna.exceptions.StorageInternalError("no room") from sqlite3.OperationalError("disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(RDBStorage, "set_study_system_attr", full)
        with pytest.raises(StoreError, match=r"x\.db: disk is full"):
            gallery.attach_to_run("x.db", "shipped")
        assert list(FOLDER.iterdir()) == []
    assert gallery.attach_to_run("x.db", "shipped") == len(list(FOLDER.iterdir())) > 0
