from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.report.runs import POLICIES, evidence, make_run, settings
from varsearch.db import Store
from varsearch.search.core.protocols import confirming


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose numbers are made up, of the shipped model."""
    path = tmp_path_factory.mktemp("report") / "runs.db"
    make_run(path, "made up", settings(), POLICIES)
    return path


@pytest.fixture(scope="session")
def confirmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run of a model that is gone; on fresh noise trial 2 has 0.2 less of ΔFID, and all but dense 0.5 more."""
    path = tmp_path_factory.mktemp("confirmed") / "runs.db"
    chosen = settings("./gone")
    make_run(path, "made up", chosen, POLICIES)
    fresh = chosen.model_copy(update={"quality": confirming(chosen).quality})
    with Store(path) as store:
        for number, (policy, delta, latency, peak) in enumerate(POLICIES.values()):
            change = {0: 0.0, 2: -0.2}.get(number, 0.5)
            for found in evidence(policy, fresh, delta + change, latency, peak):
                store.save(found)
    return path


@pytest.fixture(scope="session")
def written(database: Path) -> Path:
    """Its report, written by the command in a process of its own."""
    return write(database, "0")


def write(database: Path, hash_seed: str) -> Path:
    """The report, by a process with this seed of Python's hashes."""
    path = database.with_name(f"report-{hash_seed}.html")
    command = [sys.executable, "-m", "varsearch", "report", "--storage", str(database), "--out", str(path)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert str(path) in done.stdout
    return path
