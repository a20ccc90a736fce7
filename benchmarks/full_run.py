"""Time and memory of a whole command: `python -m benchmarks.full_run run --budget 200 --target 4090 --workers 2`.

Runs `varsearch` with the given arguments and passes its output on. Memory is the proportional set size of its
process and all their children, sampled every two seconds: pages that processes share count once.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress

import psutil
import torch

from varsearch.evaluators.speed import machine


def resident(root: psutil.Process) -> int:
    """Bytes of a process and its descendants."""
    total = 0
    for process in (root, *root.children(recursive=True)):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += process.memory_full_info().pss
    return total


def main() -> int:
    """Runs the command and prints what it took; its exit status is the command's."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, "-m", "varsearch", *sys.argv[1:]])
    root = psutil.Process(process.pid)
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            peak = max(peak, resident(root))
        time.sleep(2)
    minutes = (time.perf_counter() - start) / 60
    cores = psutil.cpu_count()
    print(f"\n{minutes:.1f} minutes, peak memory {peak / 1e9:.2f} GB; {cores} cores, {machine(torch.device('cpu'))}")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
