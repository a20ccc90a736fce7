"""Real processes, really killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.search.test_broker import check_consistent, shown, stored
from varsearch.db import State

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow


class Search:
    """A search in a process of its own, with all the processes that it starts."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.storage, self.log = folder, str(folder / "runs.db"), folder / "log"
        self.process: subprocess.Popen[str] | None = None

    def start(self, *, workers: int, budget: int, seconds: float = 0.0, kind: str = "") -> None:
        arguments = [self.storage, str(self.log), str(workers), str(budget), str(seconds), *filter(None, [kind])]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "driver.py"), *arguments],
            env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parents[1]}"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def wait(self) -> tuple[int, list[str]]:
        """Exit code and all lines that were printed."""
        assert self.process is not None
        output, _ = self.process.communicate(timeout=120)
        return self.process.returncode, output.splitlines()

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
        """Temporary folders of the search."""
        assert self.process is not None
        return list(Path("/tmp").glob(f"varsearch-{self.process.pid}-*"))

    def until_begun(self, n: int) -> tuple[int, int]:
        """Waits until `n` evaluations have begun; number and process of the last."""
        deadline = time.monotonic() + 90
        while len(self.events("begin")) < n:
            assert self.process is not None
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return self.events("begin")[n - 1]


@pytest.fixture
def search(tmp_path: Path) -> Iterator[Search]:
    found = Search(tmp_path)
    yield found
    if found.process is not None and found.process.poll() is None:
        found.kill()


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


def test_killed_in_process_the_same_command_continues(search: Search) -> None:
    search.start(workers=0, budget=5, seconds=0.3)
    number, _ = search.until_begun(3)
    search.kill()
    assert [t.state for t in stored(search.storage)] == [State.COMPLETE, State.COMPLETE, State.RUNNING]
    search.start(workers=0, budget=5)
    assert search.wait() == (0, ["2 complete", "3 complete", "4 complete"])
    check_consistent(search.storage, 5)
    assert [n for n, _ in search.events("begin")] == [0, 1, 2, 2, 3, 4]
    assert number == 2
    assert [t.attempts for t in stored(search.storage)] == [1, 1, 2, 1, 1]


def test_a_killed_ray_worker_is_replaced_and_its_trial_evaluated_again(search: Search) -> None:
    search.start(workers=2, budget=8, seconds=0.5)
    number, pid = search.until_begun(4)
    os.kill(pid, signal.SIGKILL)
    code, output = search.wait()
    assert (code, set(output), len(output)) == (0, lines(8), 8)
    check_consistent(search.storage, 8)
    ended = [n for n, _ in search.events("end")]
    assert sorted(ended) == list(range(8))
    again = [n for n, _ in search.events("begin") if n == number]
    assert len(again) == 2
    assert stored(search.storage)[number].attempts == 2
    # Each worker loaded its model once, and so did the one in the place of the killed one.
    assert len({p for _, p in search.events("begin")}) == 3
    assert search.leftovers() == []


def test_a_killed_driver_leaves_nothing_running_after_the_rerun(search: Search) -> None:
    search.start(workers=2, budget=8, seconds=0.5)
    search.until_begun(5)
    below = descendants(search.process.pid if search.process else 0)
    assert any(title.startswith("ray::") for title in below.values())
    search.kill()
    before = {t.number for t in stored(search.storage) if t.state.is_final}
    assert before
    begun = len(search.events("begin"))
    search.start(workers=2, budget=8, seconds=0.1)
    code, output = search.wait()
    # An orphaned worker may have delivered its outcome before it noticed that the driver was gone.
    assert code == 0
    assert set(output) <= lines(8)
    check_consistent(search.storage, 8)
    assert not before & {n for n, _ in search.events("begin")[begun:]}
    # Ray's own agents notice later; what could still write has ended with the driver.
    alive = {pid: title for pid, title in descendants(1).items() if pid in below}
    assert not [title for title in alive.values() if title.startswith(("ray::BrokerActor", "ray::ImplicitFunc"))]


def test_a_killed_broker_ends_the_run_in_one_line_and_it_continues(search: Search) -> None:
    search.start(workers=1, budget=6, seconds=0.5)
    search.until_begun(2)
    assert search.process is not None
    (broker,) = [p for p, title in descendants(search.process.pid).items() if title.startswith("ray::BrokerActor")]
    os.kill(broker, signal.SIGKILL)
    code, output = search.wait()
    assert code == 6
    assert output[-1] == "StoreError: the process that owns the run died: run the same command again to continue"
    assert set(output[:-1]) <= lines(6)
    search.start(workers=0, budget=6)
    assert search.wait()[0] == 0
    check_consistent(search.storage, 6)


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_puts_running_trials_back(search: Search, workers: int) -> None:
    search.start(workers=workers, budget=30, seconds=1.0)
    search.until_begun(4)
    assert search.process is not None
    os.killpg(search.process.pid, signal.SIGINT)
    code, output = search.wait()
    assert code == 130
    assert output[-1].startswith("Interrupted: interrupted: everything measured is stored")
    assert set(output[:-1]) <= lines(30)
    states = [t.state for t in stored(search.storage)]
    assert [t.state.name for t in shown(search.storage)] == [state.name for state in states]
    assert states.count(State.WAITING) == max(workers, 1)
    assert State.RUNNING not in states
    assert all(t.attempts == (t.state is State.COMPLETE) for t in stored(search.storage))
    assert search.leftovers() == []


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("broken", 4, "ModelError: weights of model fake are missing"),
        ("deadly", 7, "EvaluationError: worker-0 died 3 times while loading the model: is memory short?"),
    ],
)
def test_a_ray_worker_that_cannot_start_ends_the_run(search: Search, kind: str, code: int, message: str) -> None:
    search.start(workers=1, budget=4, kind=kind)
    assert search.wait() == (code, [message])
    assert stored(search.storage) == []


def test_a_full_disk_is_one_line_and_nothing_is_half_written(search: Search) -> None:
    search.start(workers=0, budget=500, kind="full")
    code, output = search.wait()
    assert code == 6
    assert output[-1].startswith(f"StoreError: database {search.storage}: ")
    finished = len(output) - 1
    assert finished > 0
    search.start(workers=0, budget=finished + 5)
    assert search.wait()[0] == 0
    check_consistent(search.storage, finished + 5)


@pytest.fixture
def head() -> Iterator[str]:
    """Address of a running Ray cluster."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tempfile.mkdtemp(dir="/tmp")
    command = f"start --head --block --port={port} --num-cpus=2 --include-dashboard=false --temp-dir={folder}"
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("ray")), *command.split()],
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parents[1]}", "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    below: dict[int, str] = {}
    while not any("raylet" in title for title in below.values()):
        assert process.poll() is None
        time.sleep(0.5)
        below = descendants(process.pid)
    time.sleep(5)
    yield f"127.0.0.1:{port}"
    for pid in [process.pid, *descendants(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def test_workers_of_a_running_cluster(search: Search, head: str) -> None:
    search.start(workers=2, budget=6, seconds=0.1, kind=head)
    code, output = search.wait()
    assert (code, sorted(output)) == (0, sorted(lines(6)))
    check_consistent(search.storage, 6)
    assert len({pid for _, pid in search.events("end")}) == 2


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:10001"])
def test_a_cluster_that_is_not_there_is_one_line(search: Search, address: str) -> None:
    search.start(workers=1, budget=2, kind=address)
    code, output = search.wait()
    assert code == 5
    (line,) = output
    assert line.startswith(f"TargetError: cannot join a Ray cluster at '{address}': expected HOST:PORT")
    assert search.leftovers() == []


def test_more_gpus_than_there_are_is_one_line() -> None:
    code = """
from varsearch.errors import TargetError
from varsearch.search.progress import Resources
from varsearch.search.ray_workers import ask
try:
    ask(None, Resources(gpus=99), print)
except TargetError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE.parents[1]
    )  # fmt: skip
    assert done.stdout.startswith("1 x 99 GPU per worker is more than the ")
    assert done.stderr == ""


def test_questions_are_answered_where_workers_run() -> None:
    code = """
import os
from varsearch.search.progress import Resources
from varsearch.search.ray_workers import ask
pid, threads = ask(None, Resources(cpus=2), lambda *names: [os.getpid(), *map(os.getenv, names)], "OMP_NUM_THREADS")
print(pid != os.getpid(), threads)
try:
    ask(None, Resources(), int, "x")
except ValueError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HERE.parents[1]
    )  # fmt: skip
    assert done.stdout == "True 2\ninvalid literal for int() with base 10: 'x'\n"
    assert done.stderr == ""
