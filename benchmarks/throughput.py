"""Images per second of the dense model at several batch sizes: `python -m benchmarks.throughput`."""

from __future__ import annotations

import statistics
import time

import torch

from benchmarks.model import small_model
from varsearch.accel import Accelerated
from varsearch.evaluators.speed import machine
from varsearch.evaluators.workload import default_sampler, device_of, run_batch

BATCH_SIZES, ROUNDS = (1, 4, 16, 64, 256), 5


def main() -> None:
    torch.set_num_threads(1)
    model = small_model()
    dense = Accelerated(model, model.dense_plan())
    print(machine(device_of(model)))
    print(f"dense sampling and decoding, 32x32 images, median of {ROUNDS} batches")
    print("batch  ms per batch  images/s")
    for batch_size in BATCH_SIZES:
        seconds = []
        for _ in range(ROUNDS + 1):
            start = time.perf_counter()
            run_batch(dense, batch_size, default_sampler(model))
            seconds.append(time.perf_counter() - start)
        median = statistics.median(seconds[1:])
        print(f"{batch_size:5d}  {median * 1e3:12.1f}  {batch_size / median:8.1f}")


if __name__ == "__main__":
    main()
