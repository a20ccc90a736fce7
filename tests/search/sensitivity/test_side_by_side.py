from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

from varsearch.search.sensitivity import side_by_side as module
from varsearch.search.sensitivity.side_by_side import side_by_side

TWO = 2


class Doubling:
    """Doubles in pairs: a call waits until another thread is in one too."""

    def __init__(self) -> None:
        self.together = threading.Barrier(TWO)
        self.threads: list[int] = []

    def make(self) -> Callable[[int], int]:
        self.threads.append(torch.get_num_threads())

        def double(item: int) -> int:
            self.together.wait(timeout=60)
            return 2 * item

        return double


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COPIES", TWO)
    monkeypatch.setattr(module, "cpu_count", lambda: 6)


def test_copies_compute_at_once_and_answer_in_order(cores: None) -> None:
    doubling, before = Doubling(), torch.get_num_threads()
    with side_by_side(doubling.make) as doubled:
        assert list(doubled(range(10))) == [2 * i for i in range(10)]
    assert doubling.threads == [3, 3], "each copy has its share of the cores"
    assert torch.get_num_threads() == before


def test_what_has_not_begun_is_left(cores: None) -> None:
    begun: list[int] = []

    def make() -> Callable[[int], int]:
        def fails(item: int) -> int:
            begun.append(item)
            time.sleep(0.01)
            raise KeyboardInterrupt

        return fails

    with pytest.raises(KeyboardInterrupt), side_by_side(make) as results:
        next(results(range(10_000)))
    assert len(begun) < 10_000


def test_nothing_is_made_for_nothing(cores: None) -> None:
    doubling = Doubling()
    with side_by_side(doubling.make) as doubled:
        assert list(doubled([])) == []
    assert doubling.threads == []
