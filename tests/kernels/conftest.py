from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

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


SHARED_BYTES = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
"""Shared memory of one block by compute capability: CUDA programming guide, table of technical specifications."""


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Calls a function that launches one kernel and returns what would have been launched."""
    triton = pytest.importorskip("triton")
    from varsearch.kernels import block_attention_triton, quantized_linear_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found: list[Any] = []

    def compile_only(kernel: Any) -> Callable[..., None]:
        def run(*args: Any, warmup: bool, **options: Any) -> None:
            found.append(triton.JITFunction.run(kernel, *args, warmup=True, **options))

        return run

    linear, blocks = quantized_linear_triton, block_attention_triton
    for kernel in (linear.linear_kernel, linear.expand_kernel, blocks.attention_kernel, blocks.mass_kernel):
        monkeypatch.setattr(kernel, "run", compile_only(kernel))

    def call(capability: int, launch: Callable[..., None], *args: object) -> Any:
        driver = SimpleNamespace(
            get_current_device=lambda: capability,  # one cache of compiled kernels for each
            get_current_stream=lambda _: 0,
            get_current_target=lambda: triton.backends.compiler.GPUTarget("cuda", capability, 32),
        )
        monkeypatch.setattr(triton.runtime.driver, "_active", driver)
        found.clear()
        launch(*args)
        assert len(found) == 1
        return found[0]

    return call
