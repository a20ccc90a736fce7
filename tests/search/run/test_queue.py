"""What a queue knows of its trials and of the time that they take."""

from __future__ import annotations

import time

import pytest

from tests.search.support.fakes import DENSE
from varsearch.measurement import Job
from varsearch.search.run.queue import HANGS, LEAST_LIMIT, Queue


def test_an_evaluation_may_take_a_multiple_of_what_others_took(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    queue, limits = Queue(), []
    for number, seconds in enumerate((1.0, 100.0, 10.0)):
        limits.append(queue.limit)
        queue.lease("a", Job(number=number, policy=DENSE))
        now += seconds
        queue.release(number)
        queue.finish(number, 1.0)
    assert [*limits, queue.limit] == [None, LEAST_LIMIT, HANGS * 100, HANGS * 100]
    assert Queue(7.0).limit == 7.0
