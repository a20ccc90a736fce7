from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.db.conftest import postgres, storage
from tests.search.fakes import SPACE, STARTS, settings
from tests.search.harness import Open
from tests.search.process import Search
from varsearch.policy import Policy
from varsearch.search.core.optuna_study import Space
from varsearch.search.core.settings import RunSettings
from varsearch.search.run.broker import Broker

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
        opened.append(Broker(chosen, space, starts, storage=storage, budget=budget, name=name, **limits))
        return opened[-1]

    yield start
    for broker in opened:
        broker._ledger.close()


@pytest.fixture
def search(tmp_path: Path) -> Iterator[Search]:
    found = Search(tmp_path)
    yield found
    if found.process is not None and found.process.poll() is None:
        found.kill()
    for folder in found.leftovers():
        shutil.rmtree(folder, ignore_errors=True)
