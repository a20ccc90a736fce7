from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.db.conftest import postgres, storage
from tests.search.support.fakes import SPACE, STARTS, settings
from tests.search.support.harness import Open
from tests.search.support.process import Search as Process
from varsearch.policy import Policy
from varsearch.search.core.optuna_study import Space
from varsearch.search.core.settings import RunSettings
from varsearch.search.run.broker import Broker, Search

__all__ = ["postgres", "storage"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Open]:
    """Opens brokers on one database; what a test leaves open is dropped without a word, as by kill -9."""
    opened: list[Broker] = []

    def start(
        chosen: RunSettings | None = None,
        space: Space = SPACE,
        starts: Mapping[str, Policy] = STARTS,
        *,
        storage: str | Path = tmp_path / "runs.db",
        budget: int = 4,
        name: str | None = None,
        **limits: float | None,
    ) -> Broker:
        chosen = chosen or settings()
        opened.append(Broker(Search(chosen, space, starts, storage, budget, name, **limits)))
        return opened[-1]

    yield start
    for broker in opened:
        broker.abandon()


@pytest.fixture
def search(tmp_path: Path) -> Iterator[Process]:
    found = Process(tmp_path)
    yield found
    if found.process is not None and found.process.poll() is None:
        found.kill()
    for folder in found.leftovers():
        shutil.rmtree(folder, ignore_errors=True)
