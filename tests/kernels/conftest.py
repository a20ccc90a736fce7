from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import pytest
import torch

T = TypeVar("T")
Interpreter = Callable[..., T]


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Interpreter[object]]:
    """Calls a function in a process in which Triton interprets kernels: that is settled when Triton is imported."""
    pytest.importorskip("triton")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("TRITON_INTERPRET", "1")
            pool.submit(torch.set_num_threads, 1).result()

        def call(fn: Callable[..., T], *args: object) -> T:
            return pool.submit(fn, *args).result()

        yield call
