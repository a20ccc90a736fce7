"""Searches in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.search.support.fakes import released

ROOT = Path(__file__).parents[3]

# Ray gives its workers the niceness 15, with which they may get no core for minutes on a busy machine.
KIND = {"RAY_worker_niceness": "0"}


class Search:
    """A search in a process of its own, with all the processes that it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.storage, self.log = folder, str(folder / "runs.db"), folder / "log"
        self.process: subprocess.Popen[str] | None = None
        self.pids: list[int] = []

    def start(self, *, workers: int, budget: int, hold: int = 0, kind: str = "") -> None:
        """Starts a search whose `hold`-th evaluation to begin, and all later ones, wait for `release`."""
        arguments = [self.storage, str(self.log), str(workers), str(budget), str(hold), *filter(None, [kind])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.search.support.driver", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), **KIND},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self.pids.append(self.process.pid)

    def wait(self) -> tuple[int, list[str]]:
        """Exit code and all lines that were printed."""
        assert self.process is not None
        output, _ = self.process.communicate()
        return self.process.returncode, output.splitlines()

    def release(self) -> None:
        """Lets evaluations end that are held."""
        released(self.log).touch()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close() if self.process.stdout else None

    def events(self, kind: str) -> list[tuple[int, int]]:
        """Number and process of every evaluation that began or ended."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(int(number), int(pid)) for event, number, pid in map(str.split, lines) if event == kind]

    def leftovers(self) -> list[Path]:
        """Temporary folders of all processes that were started."""
        return [folder for pid in self.pids for folder in Path("/tmp").glob(f"varsearch-{pid}-*")]

    def until_begun(self, n: int) -> tuple[int, int]:
        """Waits until `n` evaluations have begun; number and process of the last."""
        while len(self.events("begin")) < n:
            assert self.process is not None
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)
        return self.events("begin")[n - 1]


def descendants(pid: int) -> dict[int, str]:
    """Title of each process below `pid`."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, title = (folder / "stat").read_text(), (folder / "cmdline").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
        titles[int(folder.name)] = title.replace("\0", " ")

    def below(child: int) -> bool:
        return child in parents and (parents[child] == pid or below(parents[child]))

    return {child: titles[child] for child in parents if below(child)}


def lines(numbers: int) -> set[str]:
    return {f"{number} complete" for number in range(numbers)}
