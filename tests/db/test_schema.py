"""Migrations add up to the tables, old databases are read, and half a schema is never left."""

from __future__ import annotations

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine

from tests.db.samples import CALIBRATION, COSTS, QUALITY, RUN, SENSITIVITY, SPEED, W8, execute, trial
from varsearch.db import State, Store
from varsearch.db.engine import VERSION_TABLE, engine_options, locate
from varsearch.db.tables import Base
from varsearch.errors import StoreError

ASSETS = sorted((Path(__file__).parent / "assets").glob("*.sql"))


def test_migrations_add_up_to_the_tables(storage: str, store: Store) -> None:
    engine = create_engine(locate(storage))
    with engine.connect() as connection:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []
    engine.dispose()


def test_every_schema_has_an_old_database() -> None:
    versions = Path(__file__).parents[2] / "varsearch/db/migrations/versions"
    assert [path.stem for path in ASSETS] == sorted(path.stem[:4] for path in versions.glob("0*.py"))


@pytest.mark.parametrize("dump", ASSETS, ids=lambda path: path.stem)
def test_old_databases_are_read_and_continued(dump: Path, tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    connection = sqlite3.connect(path)
    connection.executescript(dump.read_text())
    connection.close()
    with Store(path) as store:
        run = store.run("first")
        assert replace(run, driver="", created=None, updated=None) == replace(RUN, status="interrupted")
        assert run.created is not None and run.created.tzinfo is not None
        assert store.trials(run) == [
            replace(trial(0), state=State.COMPLETE, attempts=1, cost=1.0, worker="a", quality=QUALITY, speed=SPEED),
            replace(trial(1, W8), origin="sampler", state=State.FAIL, error="why", attempts=3, cost=1.0),
        ]
        known = CALIBRATION if dump.stem >= "0002" else None
        assert store.calibration(CALIBRATION.fingerprint, CALIBRATION.protocol) == known
        assert store.save_calibration(CALIBRATION) == CALIBRATION
        for part in (SENSITIVITY, COSTS):
            found = store.profile(type(part), part.fingerprint, part.protocol)
            assert found == (part if dump.stem >= "0003" else None)
            assert store.save_profile(part) == part
        store.leave(store.claim(run), "finished")
        assert store.run("first").status == "finished"


def test_a_crash_during_the_first_opening_leaves_an_empty_database(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upgrade = command.upgrade

    def crash(config: Config, revision: str) -> None:
        upgrade(config, revision)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "upgrade", crash)
    with pytest.raises(KeyboardInterrupt):
        Store(storage)
    monkeypatch.undo()
    with pytest.raises(Exception, match="run"):
        execute(storage, "SELECT * FROM run")
    with Store(storage) as store:
        assert store.runs() == []


def test_processes_may_open_a_new_database_at_once(storage: str) -> None:
    def claim(number: int) -> None:
        with Store(storage) as store:
            store.claim(replace(RUN, name=str(number)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(claim, range(4)))
    with Store(storage) as store:
        assert sorted(run.name for run in store.runs()) == list("0123")


def test_a_later_schema_is_refused(storage: str, store: Store) -> None:
    execute(storage, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"written by a newer varsearch \(schema 9999\): upgrade"):
        Store(storage)


def test_sqlite_is_set_up_to_survive_kills_and_to_wait_for_locks(tmp_path: Path) -> None:
    url = locate(tmp_path / "runs.db")
    engine = create_engine(url, **engine_options(url))
    with engine.connect() as connection:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        values = [connection.exec_driver_sql(f"PRAGMA {pragma}").scalar() for pragma in pragmas]
    engine.dispose()
    assert values == ["wal", 1, 1, 30_000]
