"""How OpenMP's threads wait for work, on a machine that other processes use too.

By default a thread of libgomp, which PyTorch computes with, spins for 300,000 rounds before it sleeps. That is some
milliseconds in which its core does nothing. Where another process is busy, the thread that all wait for gets no core
meanwhile, and drawing images takes several times as long (`benchmarks/busy.py`).
"""

from __future__ import annotations

import os

SPIN = "GOMP_SPINCOUNT"
ROUNDS = 1_000
"""Some 25 to 50 microseconds: longer than most pauses between two operators, and nothing to a scheduler's time slice."""


def bound_spinning() -> None:
    """Sets the environment, unless it says already how threads wait.

    libgomp reads it once, when PyTorch loads it. Processes that this one starts inherit it.
    """
    if not os.environ.keys() & {SPIN, "OMP_WAIT_POLICY"}:
        os.environ[SPIN] = str(ROUNDS)
