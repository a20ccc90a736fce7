"""Prints this machine's CPU as a row of `varsearch/devices.toml`: `python -m benchmarks.device`.

One thread, as a search worker has. Every figure is the best of many repeats, since whatever else runs on the machine
only ever slows it down.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from varsearch.accel import apply
from varsearch.evaluators.cost_model import kind_of, work_seconds
from varsearch.evaluators.speed import machine
from varsearch.evaluators.trace import Recorder, record
from varsearch.evaluators.workload import default_sampler, run_batch
from varsearch.models.random_weights import random_model
from varsearch.models.var import VARConfig
from varsearch.models.vqvae import TokenizerConfig
from varsearch.policy import Policy
from varsearch.target import Device, Target

SCALES = ((1, 1), (2, 2), (3, 3), (4, 4))
COMMAND = "python -m benchmarks.device"
RING_BYTES = 2**26


def best_seconds(fn: Callable[[], object], budget: float = 1.5) -> float:
    """Shortest of the calls that fit into `budget` seconds, after one to warm up."""
    fn()
    best, end = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < end:
        start = time.perf_counter()
        fn()
        best = min(best, time.perf_counter() - start)
    return best


def gemm_tflops(dtype: torch.dtype) -> float:
    """Rate of a linear layer of the size that small models have."""
    x, w, b = torch.randn(2048, 256).to(dtype), torch.randn(1024, 256).to(dtype), torch.randn(1024).to(dtype)
    return 2 * x.numel() * len(w) / best_seconds(lambda: F.linear(x, w, b)) / 1e12


def ring(make: Callable[[], tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """Operands of successive calls, over so many copies that the caches have lost each before it comes again."""
    first = make()
    copies = RING_BYTES // sum(t.nbytes for t in first)
    return itertools.cycle([first, *(make() for _ in range(copies))])


def gb_per_s() -> float:
    """Bandwidth of an addition of activations, two reads and one write of 1 MiB."""
    operands = ring(lambda: (torch.randn(512, 512), torch.randn(512, 512)))
    return 3 * 4 * 512 * 512 / best_seconds(lambda: torch.add(*next(operands))) / 1e9


def launch_us() -> float:
    """Time per operator of a model so small that nothing else takes time."""
    transformer = VARConfig(SCALES, depth=4, width=16, heads=1, classes=10, vocab=16, z_channels=4)
    tokenizer = TokenizerConfig(
        SCALES, vocab=16, z_channels=4, ch=4, ch_mult=(1, 1), res_blocks=1, image_channels=1, norm_groups=1
    )
    model = random_model(transformer, tokenizer, (8, 8))
    with apply(model, Policy.dense(4, len(SCALES))) as applied:
        n_ops = len(record(applied, 1).ops)
        return best_seconds(lambda: run_batch(applied, 1, default_sampler(model))) / n_ops * 1e6


def examples() -> dict[str, Callable[[], Tensor]]:
    """One operator of each kind, at the size that small models have."""
    x = ring(lambda: (torch.randn(2048, 256),))
    qkv = ring(lambda: (torch.randn(32, 4, 64, 32), torch.randn(32, 4, 130, 32), torch.randn(32, 4, 130, 32)))
    rows = ring(lambda: (torch.rand(2048, 128),))
    maps = ring(lambda: (torch.randn(16, 32, 16, 16),))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    return {
        "attention": lambda: attend(*next(qkv)),
        "transcendental": lambda: F.gelu(next(x)[0], approximate="tanh"),
        "reduction": lambda: F.layer_norm(next(x)[0], (256,)),
        "movement": lambda: torch.cat(next(qkv)[1:], dim=2),
        "selection": lambda: next(rows)[0].topk(64).values,
        "sampling": lambda: torch.multinomial(next(rows)[0], 1),
        "interpolation": lambda: F.interpolate(next(maps)[0], scale_factor=2.0, mode="nearest"),
    }


def efficiency(kind: str, fn: Callable[[], Tensor], device: Device, target: Target) -> float:
    """Share of the device's peak that the operator reaches, by the cost model's own count of its work."""
    with torch.inference_mode():
        recorder = Recorder([])
        with recorder:
            fn()
        ideal = sum(work_seconds(op, device, target) for op in recorder.ops if kind_of(op) == kind)
        return ideal / (best_seconds(fn) - device.launch_us * 1e-6)


def main() -> None:
    torch.set_num_threads(1)
    rates = {
        str(dtype).removeprefix("torch."): gemm_tflops(dtype)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    }
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    device = Device.model_validate(
        {
            "name": "cpu", "label": "CPU", "kind": "cpu", "tflops": rates, "gb_per_s": gb_per_s(),
            "launch_us": launch_us(), "memory_gb": memory, "sources": {},
        }
    )  # fmt: skip
    target = Target(device="cpu", dtype="float32", batch_size=1)
    print(f"# {COMMAND} on {machine(torch.device('cpu'))}")
    print("[cpu]")
    print(f"tflops = {{ {', '.join(f'{dtype} = {rate:.4f}' for dtype, rate in rates.items())} }}")
    print(f"gb_per_s = {device.gb_per_s:.1f}")
    print(f"launch_us = {device.launch_us:.1f}")
    print(f"memory_gb = {device.memory_gb:.0f}")
    shares = {kind: efficiency(kind, fn, device, target) for kind, fn in examples().items()}
    print(f"efficiency = {{ {', '.join(f'{kind} = {share:.3f}' for kind, share in shares.items())} }}")


if __name__ == "__main__":
    main()
