"""Maps a function with several copies of it, each in a thread on its share of the cores."""

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
    make: Callable[[], Callable[[A], B]],
) -> Iterator[Callable[[Iterable[A]], Iterator[B]]]:
    """Yields a `map` whose function each thread makes for itself; at the end the rest is dropped.

    A small model's operations are too short for all cores, see docs/log.md.

    Args:
        make: gives a function that shares nothing that it changes.
    """
    cores = cpu_count() or 1
    copies = min(COPIES, cores)
    own = threading.local()

    def start() -> None:
        torch.set_num_threads(cores // copies)  # of this thread's operations
        own.call = make()

    def call(item: A) -> B:
        result: B = own.call(item)
        return result

    pool = ThreadPoolExecutor(copies, initializer=start)
    try:
        yield lambda items: pool.map(call, items)
    finally:
        pool.shutdown(cancel_futures=True)
