"""What noise costs, in nanoseconds per number: `python -m benchmarks.noise`; on a GPU too, where there is one.

One image of VAR at 256 pixels takes 680 x 4096 numbers. Kinds are drawn in turn, and the least of the rounds counts.
"""

from __future__ import annotations

import time
from typing import get_args

import torch

from varsearch.evaluators.speed import machine
from varsearch.models.noise import gumbel
from varsearch.target import Noise

ROUNDS, VOCAB = 7, 4096
TOKENS = tuple(side * side for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
NUMBERS = VOCAB * sum(TOKENS)


def seconds(noise: Noise, device: str) -> float:
    """All scales of one image; on a CPU the time of this process alone."""
    like = [torch.empty(1, n, VOCAB, device=device) for n in TOKENS]
    clock = time.perf_counter if device == "cuda" else time.process_time
    started = clock()
    for scale, like_NLV in enumerate(like):
        gumbel(noise, 0, range(1), scale, like_NLV)
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - started


def main() -> None:
    torch.set_num_threads(1)
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        print(machine(torch.device(device)))
        rounds = [{noise: seconds(noise, device) for noise in get_args(Noise)} for _ in range(ROUNDS)]
        for noise in get_args(Noise):
            least = min(found[noise] for found in rounds)
            told = f"{1e9 * least / NUMBERS:.1f} ns per number, {1e3 * least:.1f} ms per image of VAR at 256 pixels"
            print(f"  {noise}: {told}")


if __name__ == "__main__":
    main()
