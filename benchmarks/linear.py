"""What oneDNN saves of a float32 product with weights, next to PyTorch's own choice: `python -m benchmarks.linear`.

CPU time of one thread, the two in turn; a number is the median ratio of 9 rounds, above 1 where oneDNN is faster. From
where on it always is, `varsearch.linear.LARGE` should be.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor

from varsearch.evaluators.speed import machine
from varsearch.linear import linear

ROWS = (2, 8, 32, 128, 512, 2048)
SHAPES = ((128, 384), (128, 512), (256, 1024), (512, 1536), (1024, 1024), (1024, 3072), (1024, 4096), (4096, 1024))
"""Inputs and outputs: linears of `mnist`, of two widths between, and of VAR-d16."""

ROUNDS, FLOPS = 9, 2e9
"""Each timing repeats a product up to so many operations."""


def seconds(fn: Callable[[], Tensor], calls: int) -> float:
    """CPU time of one call."""
    start = time.process_time()
    for _ in range(calls):
        fn()
    return (time.process_time() - start) / calls


def ratio(rows: int, inputs: int, outputs: int) -> float:
    """Time of PyTorch's choice over oneDNN's."""
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    calls = max(1, min(200, int(FLOPS / (2 * rows * inputs * outputs))))
    found = []
    for _ in range(ROUNDS + 1):
        with patch("varsearch.linear.LARGE", 2**62):
            default = seconds(lambda: linear(x, weight, bias), calls)
        with patch("varsearch.linear.LARGE", 0):
            found.append(default / seconds(lambda: linear(x, weight, bias), calls))
    return statistics.median(found[1:])


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    print(machine(torch.device("cpu")))
    print("weight            " + "".join(f"{rows:>7} rows" for rows in ROWS))
    for inputs, outputs in SHAPES:
        row = "".join(f"{ratio(rows, inputs, outputs):11.2f}x" for rows in ROWS)
        print(f"{inputs:5} x {outputs:5}     {row}", flush=True)


if __name__ == "__main__":
    main()
