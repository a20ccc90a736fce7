"""Whatever is wrong with a database is one line that names it, without its password."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.db.samples import QUALITY, RUN
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


@pytest.mark.parametrize("url", ["://", "postgresql://me@host:port/name", "sqlite+nodriver:///x", "nosuch://host/name"])
def test_malformed_urls(url: str) -> None:
    message(url)


def test_a_missing_driver_names_its_package() -> None:
    assert "pip install" in message("mysql+pymysql://host/name")


def test_read_only_database_can_be_read_but_not_written(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    with Store(path) as store:
        store.claim(RUN)
        store.save(QUALITY)
    with Store(f"sqlite:///file:{path}?mode=ro&uri=true") as store:
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
