"""Computes with several copies of something at once, each in a thread of its own and on its share of the cores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from os import cpu_count
from typing import TypeVar

import torch

COPIES = 4
"""At most: each takes the memory of a model, and more cores help one copy as well."""

A = TypeVar("A")
B = TypeVar("B")


@contextmanager
def side_by_side(
    make: Callable[[], Callable[[A], B]], most: int = COPIES
) -> Iterator[Callable[[Iterable[A]], Iterator[B]]]:
    """Yields a `map` whose function each thread makes for itself; what has not begun at the end is left.

    A small model's operations are too short for all cores, see docs/log.md.

    Args:
        make: gives a function that shares nothing that it changes.
        most: copies at most.
    """
    cores = cpu_count() or 1
    copies = min(most, cores)
    own = threading.local()

    def start() -> None:
        torch.set_num_threads(cores // copies)  # of this thread's operations
        own.call = make()

    def call(item: A) -> B:
        found: B = own.call(item)
        return found

    pool = ThreadPoolExecutor(copies, initializer=start)
    try:
        yield lambda items: pool.map(call, items)
    finally:
        pool.shutdown(cancel_futures=True)
