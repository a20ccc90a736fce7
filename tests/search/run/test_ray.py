"""What Ray cannot do is one line, and running clusters are joined."""

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

from tests.search.support.harness import check_consistent, stored
from tests.search.support.process import ROOT, Search, descendants, lines

pytestmark = pytest.mark.slow


@pytest.fixture
def head() -> Iterator[str]:
    """Address of a running Ray cluster."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tempfile.mkdtemp(dir="/tmp")
    ray = str(Path(sys.executable).with_name("ray"))
    command = f"start --head --block --port={port} --num-cpus=2 --include-dashboard=false --temp-dir={folder}"
    process = subprocess.Popen(
        [ray, *command.split()],
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    asked = [ray, "status", f"--address=127.0.0.1:{port}"]
    while "/2.0 CPU" not in subprocess.run(asked, capture_output=True, text=True, check=False).stdout:
        assert process.poll() is None
        time.sleep(0.5)
    yield f"127.0.0.1:{port}"
    for pid in [process.pid, *descendants(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def test_workers_of_a_running_cluster(search: Search, head: str) -> None:
    search.start(workers=2, budget=6, kind=head)
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
from varsearch.search.run.events import Resources
from varsearch.search.run.ray import ask
try:
    ask(None, Resources(gpus=99), print)
except TargetError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )  # fmt: skip
    assert done.stdout.startswith("1 x 99 GPU per worker is more than the ")
    assert done.stderr == ""


def test_questions_are_answered_where_workers_run() -> None:
    code = """
import os
from varsearch.search.run.events import Resources
from varsearch.search.run.ray import ask
def found(*names):
    return os.getpid(), os.nice(0), *map(os.getenv, names)
pid, niceness, *rest = ask(None, Resources(cpus=2), found, "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
print(pid != os.getpid(), niceness == os.nice(0), *rest)
try:
    ask(None, Resources(), int, "x")
except ValueError as error:
    print(error)
"""
    waiting = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in waiting}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )  # fmt: skip
    assert done.stdout == "True True 2 1000\ninvalid literal for int() with base 10: 'x'\n"
    assert done.stderr == ""


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
