"""Whatever is wrong with a database is one line that names it, without its password."""

from __future__ import annotations

import re
import socket
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.db.samples import QUALITY, RUN, trial
from varsearch.db import Store
from varsearch.db.engine import label, locate
from varsearch.errors import StoreError


def message(storage: str, **options: bool) -> str:
    with pytest.raises(StoreError) as caught:
        Store(storage, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    assert caught.value.__cause__ is None
    return text


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_unreachable_server() -> None:
    text = message(f"postgresql://me:hunter2@127.0.0.1:{closed_port()}/runs?application_name=hunter2")
    assert text.startswith("database postgresql+psycopg://me:***@127.0.0.1:")
    assert "refused" in text.lower()
    assert "hunter2" not in text


@pytest.mark.service
def test_unknown_database(postgres: str) -> None:
    text = message(postgres.replace("tester@", "tester:hunter2@").replace("/postgres", "/absent"))
    assert '"absent" does not exist' in text
    assert "hunter2" not in text


def test_not_a_database(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"not a database, but longer than the header of one" * 100)
    assert message(str(path)) == f"database {path}: file is not a database"
    assert path.read_bytes().startswith(b"not a database")


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    assert message(str(tmp_path)) == f"database {tmp_path}: unable to open database file"


def test_missing_folder(tmp_path: Path) -> None:
    assert f"the folder {tmp_path / 'absent'} does not exist" in message(str(tmp_path / "absent" / "runs.db"))
    assert not (tmp_path / "absent").exists()


def test_reading_a_missing_file_does_not_create_it(tmp_path: Path) -> None:
    assert "there is no database at" in message(str(tmp_path / "runs.db"), create=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("create", [True, False])
@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("", "names no file"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        (":memory:", "names no file"),
        ("sqlite:///runs.db?mode=ro&uri=true", "take no options"),
        ("runs.db?mode=ro", "take no options"),
        ("~nobody-of-this-name/runs.db", "home directory"),
        ("runs\udcff.db", "cannot be printed"),
        ("runs\n.db", "cannot be printed"),
        ("x" * 300, "File name too long"),
        ("x" * 300 + "/runs.db", "File name too long"),
    ],
)
def test_paths_that_no_run_can_live_at(
    storage: str, words: str, create: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in message(storage, create=create)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert message(str(tmp_path / "runs.db")).endswith("runs.db: Permission denied")


@pytest.mark.parametrize(("create", "words"), [(False, "is not a varsearch database"), (True, "it has a table pets")])
def test_a_database_of_something_else_stays_as_it_is(create: bool, words: str, tmp_path: Path) -> None:
    path = tmp_path / "pets.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE pets (name TEXT)")
    before = path.read_bytes()
    assert words in message(str(path), create=create)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_may_join_the_studies_of_optuna(tmp_path: Path) -> None:
    path = tmp_path / "studies.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE studies (study_id INTEGER)")
    assert "is not a varsearch database" in message(str(path), create=False)
    with Store(path) as store:
        assert store.runs() == []


DAMAGE = {
    "update trial set state = 'bogus'": "trial 0 of run 'first' is damaged: state",
    "update trial set attempts = 'x'": "trial 0 of run 'first' is damaged: attempts",
    "update trial set number = 'x'": "trial x of run 'first' is damaged: number",
    "update run set created = 'x'": "has a damaged row: Invalid isoformat",
    "update run set updated = 3": "has a damaged row: fromisoformat",
    "update run set settings = x'ff'": "run 'first' is damaged: settings",
    "update evidence set environment = 'x'": "has a damaged row: Expecting value",
    "update evidence set environment = '[]'": "evidence 1 is damaged: environment",
    "update evidence set environment = x'ff'": "has a damaged row: 'utf-8' codec",
    "update measurement set value = 'x'": "evidence 1 is damaged: measurements.0.value",
    "update policy set body = '{'": "is damaged: invalid policy",
    "drop table measurement": "no such table: measurement",
}


@pytest.mark.parametrize("statement", DAMAGE)
def test_damaged_rows(statement: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with Store(path) as store:
        store.write(store.claim(RUN), trial())
        store.save(QUALITY)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()
    with Store(path) as store, pytest.raises(StoreError, match=re.escape(DAMAGE[statement])) as caught:
        store.trials(store.runs()[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["://", "postgresql://me@host:port/name", "sqlite+nodriver:///x", "nosuch://host/name"])
def test_malformed_urls(url: str) -> None:
    message(url)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert message("mysql+pymysql://host/name") == "mysql+pymysql needs the driver pymysql, which is not installed"
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert message("postgresql://host/name").endswith("not installed: pip install 'varsearch[postgres]'")


def test_read_only_database_can_be_read_but_not_written(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with Store(path) as store:
        store.claim(RUN)
        store.save(QUALITY)
        with store._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA query_only = ON")
        assert store.find("quality", QUALITY.policy, QUALITY.model, QUALITY.protocol) == QUALITY
        with pytest.raises(StoreError, match="attempt to write a readonly database"):
            store.claim(RUN)


def test_full_disk(tmp_path: Path) -> None:
    with Store(tmp_path / "runs.db") as store:
        with store._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1")
        with pytest.raises(StoreError, match=r"runs\.db: database or disk is full"):
            store.save(QUALITY.model_copy(update={"environment": {"note": "x" * 100_000}}))
        assert store.find("quality", QUALITY.policy, QUALITY.model, QUALITY.protocol) is None


def test_locked_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varsearch.db.engine.LOCK_SECONDS", 0.1)
    with Store(tmp_path / "runs.db") as store, store._engine.connect() as other:
        other.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="database is locked"):
            store.save(QUALITY)


def test_labels_hide_secrets_and_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert label(locate("postgresql://me:pw@host/runs?sslpassword=pw")) == "postgresql+psycopg://me:***@host/runs"
    monkeypatch.chdir(tmp_path)
    assert label(locate("runs.db")) == str(tmp_path / "runs.db")
