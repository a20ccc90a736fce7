from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.db.postgres import cluster, programs
from tests.db.samples import execute
from varsearch.db import Store


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server."""
    binaries = programs()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (Debian package postgresql)")
    with cluster(binaries) as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind that the project supports."""
    if request.param == "sqlite":
        return str(tmp_path / "runs.db")
    url = str(request.getfixturevalue("postgres"))
    execute(url, "DROP SCHEMA public CASCADE")
    execute(url, "CREATE SCHEMA public")
    return url


@pytest.fixture
def store(storage: str) -> Iterator[Store]:
    with Store(storage) as opened:
        yield opened
