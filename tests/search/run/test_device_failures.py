"""What a GPU does to a run when a policy breaks it; the GPU's exceptions are stood in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.accel.techniques import DENSE
from varsearch.evaluators import faults
from varsearch.evaluators.faults import DeviceLost, is_fatal
from varsearch.measurement import Job, Outcome
from varsearch.search.run import worker as module
from varsearch.search.run.worker import evaluate

JOB = Job(number=7, policy=DENSE)


class Failing:
    """A worker that raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def evaluate(self, job: Job) -> Outcome:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered\nCompile with ..."),
    ],
)
def test_a_lost_context_ends_the_worker_and_names_the_policy(error: Exception) -> None:
    with pytest.raises(DeviceLost, match=rf"trial 7, policy {DENSE.digest[:12]}: .*CUDA error"):
        evaluate(Failing(error), JOB)


def test_an_error_that_hides_a_lost_context_is_one() -> None:
    outer = ValueError("the metric is nan")
    outer.__cause__ = RuntimeError("CUDA error: unspecified launch failure")
    assert is_fatal(outer) and not is_fatal(ValueError("the metric is nan"))


def test_out_of_memory_fails_the_trial_with_its_bytes_and_cleans(monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned: list[int] = []
    monkeypatch.setattr(module, "clean", lambda: cleaned.append(1))
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda *_: 23_456_789_012)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda *_: (1_000, 25_000_000_000))
    found = evaluate(Failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")), JOB)
    assert found.number == 7 and "23,456,789,012 bytes were in use" in found.error and "25,000,000,000" in found.error
    assert cleaned == [1]
    assert not is_fatal(torch.OutOfMemoryError("CUDA out of memory"))


def test_cleaning_gives_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def told(name: str) -> Callable[[], None]:
        return lambda: done.append(name)

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(f"torch.cuda.{name}", told(name))
    faults.clean()
    assert done == ["empty_cache", "reset_peak_memory_stats"]


def test_other_errors_fail_the_trial_alone() -> None:
    assert evaluate(Failing(ValueError("odd\nmore")), JOB).error == "ValueError: odd"
