"""A whole run in this process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.search.support.fakes import SPACE, STARTS, FakeWorker, broken, outcome, settings
from tests.search.support.process import ROOT
from varsearch.db import State, Store
from varsearch.errors import EvaluationError, Interrupted, ModelError, UsageError
from varsearch.measurement import Job, Outcome
from varsearch.search.run.driver import run
from varsearch.search.run.events import Progress, Status


class Worker:
    """Answers with a function of the job."""

    def __init__(self, answer: Callable[[Job], Outcome]) -> None:
        self.evaluate = answer


def search(path: Path, answer: Callable[[Job], Outcome] = outcome, budget: int = 4, **options: object) -> Status:
    return run(settings(), SPACE, STARTS, lambda: Worker(answer), storage=path / "runs.db", budget=budget, **options)


def states(path: Path) -> list[State]:
    with Store(path / "runs.db") as store:
        return [trial.state for trial in store.trials(store.runs()[0])]


def test_a_run_reports_every_trial_and_ends(tmp_path: Path) -> None:
    events: list[Progress] = []
    status = search(tmp_path, on_event=events.append)
    assert [progress.trial.number for progress in events] == [0, 1, 2, 3]
    assert events[-1].status.evaluated == status.evaluated == 4
    assert status.seconds_left == 0
    with Store(tmp_path / "runs.db") as store:
        assert [(r.name, r.status) for r in store.runs()] == [(settings().default_name, "finished")]


def test_an_exception_fails_its_trial_in_one_line(tmp_path: Path) -> None:
    def answer(job: Job) -> Outcome:
        if job.number == 1:
            raise RuntimeError("CUDA out of memory.\nTried to allocate 20 GiB")
        return outcome(job)

    status = search(tmp_path, answer)
    assert states(tmp_path) == [State.COMPLETE, State.FAIL, State.COMPLETE, State.COMPLETE]
    assert status.last_error == "RuntimeError: CUDA out of memory."


def test_a_run_ends_if_dense_fails_and_the_same_call_tries_it_again(tmp_path: Path) -> None:
    def answer(job: Job) -> Outcome:
        raise EvaluationError(f"image {job.number} is not finite")

    for _ in range(2):
        with pytest.raises(EvaluationError, match=r"dense, .*, could not be evaluated: image 0 is not finite"):
            search(tmp_path, answer)
        assert states(tmp_path) == [State.WAITING]
    assert search(tmp_path).failed == 0 and states(tmp_path) == 4 * [State.COMPLETE]


def test_ctrl_c_keeps_what_is_measured_and_the_same_call_continues(tmp_path: Path) -> None:
    def answer(job: Job) -> Outcome:
        if job.number == 2:
            raise KeyboardInterrupt
        return outcome(job)

    with pytest.raises(Interrupted) as caught:
        search(tmp_path, answer)
    assert caught.value.exit_code == 130
    assert states(tmp_path) == [State.COMPLETE, State.COMPLETE, State.WAITING]
    with Store(tmp_path / "runs.db") as store:
        assert store.runs()[0].status == "interrupted"
    assert search(tmp_path).evaluated == 4
    assert states(tmp_path) == [State.COMPLETE] * 4


@pytest.mark.parametrize(
    ("make_worker", "error", "message"),
    [
        (broken, ModelError, "weights of model fake are missing"),
        (lambda: FakeWorker(*"abcd"), EvaluationError, "a worker cannot start: TypeError: "),
    ],
)
def test_a_worker_that_cannot_start_ends_the_run(
    tmp_path: Path, make_worker: Callable[[], FakeWorker], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(settings(), SPACE, STARTS, make_worker, storage=tmp_path / "runs.db", budget=4)
    assert states(tmp_path) == []
    assert search(tmp_path).evaluated == 4


def test_an_error_of_the_caller_puts_back_what_was_leased(tmp_path: Path) -> None:
    def fail(progress: Progress) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        search(tmp_path, on_event=fail)
    assert states(tmp_path) == [State.COMPLETE]
    with Store(tmp_path / "runs.db") as store:
        assert store.runs()[0].status == "interrupted"


def test_a_negative_number_of_workers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="workers must be 0"):
        search(tmp_path, workers=-1)


def test_neither_ray_nor_torch_is_imported_in_process(tmp_path: Path) -> None:
    code = f"""
import sys
from tests.search.support.fakes import STARTS, SPACE, FakeWorker, settings
from varsearch.search.run.driver import run
run(settings(), SPACE, STARTS, FakeWorker, storage={str(tmp_path / "runs.db")!r}, budget=3)
print(sorted({{"ray", "torch"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("[]\n", "")
