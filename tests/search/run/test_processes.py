"""Real processes, really killed."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.search.support.harness import check_consistent, shown, stored
from tests.search.support.process import Search, descendants, lines
from varsearch.db import State

pytestmark = pytest.mark.slow


def test_killed_in_process_the_same_command_continues(search: Search) -> None:
    search.start(workers=0, budget=5, hold=3)
    number, _ = search.until_begun(3)
    search.kill()
    assert [t.state for t in stored(search.storage)] == [State.COMPLETE, State.COMPLETE, State.RUNNING]
    search.start(workers=0, budget=5)
    assert search.wait() == (0, ["2 complete", "3 complete", "4 complete"])
    check_consistent(search.storage, 5)
    assert [n for n, _ in search.events("begin")] == [0, 1, 2, 2, 3, 4]
    assert number == 2
    assert [t.attempts for t in stored(search.storage)] == [1, 1, 2, 1, 1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_second_driver_takes_the_run_over_and_the_first_says_so(search: Search, workers: int) -> None:
    search.start(workers=workers, budget=6, hold=2)
    search.until_begun(2)
    first = search.process
    assert first is not None
    search.start(workers=0, budget=6)
    assert search.wait()[0] == 0
    search.release()
    output, _ = first.communicate()
    assert first.returncode == 6
    assert output.splitlines()[-1].startswith("StoreError: run fake-4090-")
    assert "was continued by another process" in output.splitlines()[-1]
    check_consistent(search.storage, 6)


def test_of_drivers_that_start_at_once_on_a_new_file_one_finishes(search: Search) -> None:
    for _ in range(3):
        search.start(workers=0, budget=3)
        first = search.process
        assert first is not None
        search.start(workers=0, budget=3)
        code, output = search.wait()
        others, _ = first.communicate()
        assert sorted((code, first.returncode)) in ([0, 0], [0, 6]), (output, others)
        last = [lines[-1] for lines in (output, others.splitlines()) if lines and lines[-1].startswith("StoreError")]
        assert all("was continued by another process" in line for line in last), last
        check_consistent(search.storage, 3)
        for path in search.folder.glob("runs.db*"):
            path.unlink()


def test_a_killed_ray_worker_is_replaced_and_its_trial_evaluated_again(search: Search) -> None:
    search.start(workers=2, budget=8, hold=4)
    number, pid = search.until_begun(4)
    os.kill(pid, signal.SIGKILL)
    search.until_begun(6)  # by the other worker, which is held, and by the one in the place of the killed one
    search.release()
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
    search.start(workers=2, budget=8, hold=5)
    search.until_begun(6)
    below = descendants(search.process.pid if search.process else 0)
    assert any(title.startswith("ray::") for title in below.values())
    search.kill()
    before = {t.number for t in stored(search.storage) if t.state.is_final}
    assert before
    begun = len(search.events("begin"))
    search.start(workers=2, budget=8)
    code, output = search.wait()
    assert code == 0
    assert set(output) <= lines(8)
    check_consistent(search.storage, 8)
    assert not before & {n for n, _ in search.events("begin")[begun:]}
    # What could still write ends with the driver, also where an evaluation does not end.
    ours = ("ray::BrokerActor", "ray::ImplicitFunc")
    while [p for p, title in descendants(1).items() if p in below and title.startswith(ours)]:
        time.sleep(0.1)


def test_a_killed_broker_ends_the_run_in_one_line_and_it_continues(search: Search) -> None:
    search.start(workers=1, budget=6, hold=2)
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
    search.start(workers=workers, budget=30, hold=4)
    search.until_begun(4 if workers < 2 else 5)  # all workers are held now
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


def test_an_evaluation_that_hangs_fails_in_process(search: Search) -> None:
    search.start(workers=0, budget=4, kind="hangs")
    code, output = search.wait()
    assert (code, output) == (0, ["0 complete", "1 complete", "2 fail", "3 complete"])
    assert stored(search.storage)[2].error == "TimeoutError: the evaluation took longer than 5 s"
    check_consistent(search.storage, 4)


def test_a_worker_that_hangs_is_replaced_and_its_trial_evaluated_again(search: Search) -> None:
    search.start(workers=1, budget=4, kind="hangs")
    code, output = search.wait()
    assert (code, set(output)) == (0, lines(4))
    assert stored(search.storage)[2].attempts == 2
    check_consistent(search.storage, 4)


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
