"""Threads that wait: the bound is there before libgomp reads it, and nobody's own choice is replaced."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = "import varsearch, os; print(os.environ.get('GOMP_SPINCOUNT')); import torch"


def started(**given: str) -> subprocess.CompletedProcess[str]:
    """A process that imports the package and then PyTorch, in an environment with these variables alone."""
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in ours} | given
    command = [sys.executable, "-c", CODE]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch brings libgomp on Linux")
def test_libgomp_reads_the_bound() -> None:
    done = started(OMP_DISPLAY_ENV="verbose")
    assert done.stdout == "1000\n"
    assert "GOMP_SPINCOUNT = '1000'" in done.stderr


@pytest.mark.parametrize(
    ("given", "bound"),
    [({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
)
def test_a_choice_of_the_users_stays(given: dict[str, str], bound: str) -> None:
    assert started(**given).stdout == f"{bound}\n"
