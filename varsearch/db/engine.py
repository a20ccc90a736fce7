"""Where the database is: its URL, its connections, its schema, and its errors in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from varsearch.errors import StoreError

VERSION_TABLE = "varsearch_schema"
LOCK_SECONDS = 30


def locate(storage: str | Path) -> URL:
    """The SQLAlchemy URL of `storage`: itself a URL, or the path of an SQLite file.

    `postgresql://` means the psycopg driver, the one that the `postgres` extra installs.
    """
    text = str(storage)
    if "://" not in text:
        return URL.create("sqlite", database=str(Path(text).expanduser().absolute()))
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise StoreError(
            "the storage is no database URL: expected postgresql://user@host/name or a file path"
        ) from None
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


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
    if url.get_backend_name() == "sqlite" and not url.query:
        path = Path(url.database or "")
        if not path.parent.is_dir():
            raise StoreError(f"cannot open {path}: the folder {path.parent} does not exist")
        if not create and not path.is_file():
            raise StoreError(f"there is no database at {path}: start a run first, or name another with --storage")
    with one_line_errors(url):
        try:
            engine = create_engine(url, **engine_options(url))
        except ModuleNotFoundError as error:
            raise StoreError(f"{url.drivername} needs {error.name}: pip install 'varsearch[postgres]'") from None
        try:
            with engine.connect() as connection:
                upgrade(connection, label(url))
        except BaseException:
            engine.dispose()
            raise
    return engine


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
        raise StoreError(f"database {label(url)}: {reason(error, url)}") from None


def reason(error: BaseException, url: URL) -> str:
    """What the driver said, in one line."""
    text = " ".join(str(error.orig if isinstance(error, DBAPIError) else error).split())
    return text.replace(str(url.password), "***") if url.password else text
