"""Where the database is: its URL, its connections, its schema, and its errors in one line."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from filelock import FileLock, Timeout
from sqlalchemy import URL, Connection, Engine, create_engine, inspect, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from varsearch.errors import StoreError

VERSION_TABLE = "varsearch_schema"
OPTUNA_TABLE = "studies"  # in whose databases a run may be at home too
LOCK_SECONDS = 30


def locate(storage: str | Path) -> URL:
    """The SQLAlchemy URL of `storage`: itself a URL, or the path of an SQLite file.

    `postgresql://` means the psycopg driver, the one that the `postgres` extra installs.
    """
    text = str(storage)
    if not text.isprintable():  # SQLAlchemy and Optuna fail on some of these, each in its own way
        raise StoreError("the name of the storage has a character that cannot be printed")
    try:
        url = make_url(text) if "://" in text else URL.create("sqlite", database=text)
    except (ArgumentError, ValueError):
        raise StoreError(
            "the storage is no database URL: expected postgresql://user@host/name or a file path"
        ) from None
    if url.get_backend_name() == "sqlite":
        return url.set(database=str(_file(url)))
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def _file(url: URL) -> Path:
    """The file of an SQLite URL. In memory, everything that a run measures would be lost at its end."""
    if not url.database or url.database == ":memory:":
        raise StoreError("the storage names no file: expected a path, sqlite:///PATH or postgresql://user@host/name")
    if url.query or "?" in url.database:
        raise StoreError(f"cannot open {url.database}: SQLite files take no options, and no '?' in their name")
    try:
        return Path(url.database).expanduser().absolute()
    except RuntimeError as error:  # "~name" of a user that there is not
        raise StoreError(f"cannot open {url.database}: {error}") from None


def label(url: URL) -> str:
    """How messages name the database: never with its password or options."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return url.set(query={}).render_as_string(hide_password=True)


def engine_options(url: URL) -> dict[str, Any]:
    """Arguments of `create_engine` that every connection to `url` needs, Optuna's included."""
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": LOCK_SECONDS}, "pool_events": [(_set_pragmas, "connect")]}
    timeout = {"connect_timeout": 10} if url.get_backend_name() == "postgresql" else {}
    # Evaluations take minutes: the server may have closed an idle connection meanwhile.
    return {"pool_pre_ping": True, "connect_args": timeout}


def _set_pragmas(connection: Any, _: Any) -> None:
    # WAL survives kill -9 of the process without loss; NORMAL may lose the last commits in a power cut, no more.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def open_engine(url: URL, create: bool) -> Engine:
    """An engine whose database has the current schema.

    Raises:
        StoreError: the database cannot be reached or written, is no database, or is of a newer version.
    """
    if url.get_backend_name() == "sqlite":
        _check_path(Path(url.database or ""), create)
    with one_line_errors(url), alone(url):
        _check_owner(url, create)
        engine = create_engine(url, **engine_options(url))
        try:
            with engine.connect() as connection:
                upgrade(connection, label(url))
        except BaseException:
            engine.dispose()
            raise
    return engine


@contextmanager
def alone(url: URL) -> Iterator[None]:
    """Lets one process at a time make or check tables: of two that make the same ones, both would fail."""
    if url.get_backend_name() == "sqlite":
        # Not beside the database, whose folder may be read-only. An SQLite file is used on one machine.
        digest = hashlib.sha256(str(url.database).encode()).hexdigest()[:16]
        lock = FileLock(Path(tempfile.gettempdir()) / f"varsearch_{os.getuid()}_{digest}.lock", timeout=LOCK_SECONDS)
        try:
            with lock:
                yield
        except Timeout:
            why = f"another process has been opening it for {LOCK_SECONDS} s"
            raise StoreError(f"database {label(url)}: {why}") from None
        return
    engine = _make_engine(url, engine_options(url))
    try:
        with engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                # Ends with the connection. It is another lock than that of `_lock`, which this one may hold meanwhile.
                connection.exec_driver_sql("SELECT pg_advisory_lock(hashtext(%s))", ("varsearch_opening",))
            yield
    finally:
        engine.dispose()


def _make_engine(url: URL, options: dict[str, Any]) -> Engine:
    try:
        return create_engine(url, **options)
    except ModuleNotFoundError as error:
        extra = ": pip install 'varsearch[postgres]'" if url.get_backend_name() == "postgresql" else ""
        raise StoreError(f"{url.drivername} needs the driver {error.name}, which is not installed{extra}") from None


def _check_path(path: Path, create: bool) -> None:
    try:
        if not path.parent.is_dir():
            raise StoreError(f"cannot open {path}: the folder {path.parent} does not exist")
        if not path.is_file() and not create:
            raise StoreError(f"there is no database at {path}: start a run first, or name another with --storage")
    except OSError as error:
        raise StoreError(f"cannot open {path}: {error.strerror}") from None


def _check_owner(url: URL, create: bool) -> None:
    """Refuses a database of something else while it is as it was: our own connections switch SQLite to WAL."""
    options = {name: value for name, value in engine_options(url).items() if name != "pool_events"}
    engine = _make_engine(url, options)
    try:
        with engine.connect() as connection:
            tables = inspect(connection).get_table_names()
    finally:
        engine.dispose()
    if VERSION_TABLE in tables:
        return
    if not create:
        raise StoreError(f"{label(url)} is not a varsearch database: it has no table {VERSION_TABLE}")
    if tables and OPTUNA_TABLE not in tables:
        raise StoreError(f"{label(url)} belongs to something else, it has a table {tables[0]}: name another --storage")


def upgrade(connection: Connection, name: str) -> None:
    """Brings the tables to the current schema, all or nothing; `StoreError` if they are of a later one."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    script = ScriptDirectory.from_config(config)
    known = {revision.revision for revision in script.walk_revisions()}
    if _revision(connection) == script.get_current_head():
        return
    connection.rollback()
    _lock(connection)
    found = _revision(connection)
    if found is not None and found not in known:
        raise StoreError(f"{name} was written by a newer varsearch (schema {found}): upgrade this one")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    connection.commit()


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def _lock(connection: Connection) -> None:
    """Makes other processes that find the schema old wait for this one."""
    if connection.dialect.name == "sqlite":
        # Python's driver opens no transaction for CREATE TABLE, so a crash would leave half a schema.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    elif connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext(%s))", (VERSION_TABLE,))


@contextmanager
def one_line_errors(url: URL) -> Iterator[None]:
    """Turns whatever the database raises inside into a `StoreError` of one line, without passwords."""
    try:
        yield
    except SQLAlchemyError as error:
        raise StoreError(f"database {label(url)}: {reason(error, url)}{_hint(url)}") from None


def _hint(url: URL) -> str:
    folder = Path(url.database or "").parent
    if url.get_backend_name() != "sqlite" or os.access(folder, os.W_OK):
        return ""
    return f" (the folder {folder} is read-only, and SQLite writes beside its file even to read)"


def reason(error: BaseException, url: URL) -> str:
    """What the driver said, in one line."""
    text = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
    return text.replace(str(url.password), "***") if url.password else text
