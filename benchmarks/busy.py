"""Time of an image on an idle and on a busy machine, by how long threads spin: `python -m benchmarks.busy`.

Each way to wait has a process of its own, because libgomp reads it once. The processes draw a batch in turn, first with
the machine as it is, then beside a process that is always busy. A ratio is that of a round's time to the time with
libgomp's own spinning in the same round: the median of all rounds and its 95 % interval.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from varsearch.openmp import ROUNDS, SPIN

OWN = 300_000
"""What libgomp does where nothing is set."""

BATCH = 16
LOOP = "while True: pass"


class Drawer:
    """A process that draws a batch of `mnist` images when it is asked."""

    def __init__(self, threads: int, spin: int) -> None:
        command = [sys.executable, "-m", "benchmarks.busy", "--draw", str(threads)]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, SPIN: str(spin)},
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def milliseconds(self) -> float:
        """Of an image, in one batch."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def draw(threads: int) -> None:
    """Draws a batch for each line of the standard input, and prints its milliseconds per image."""
    import torch

    from varsearch.accel import Accelerated, labels_for
    from varsearch.models import zoo

    torch.set_num_threads(threads)
    model = zoo.load("mnist")
    dense, labels_N = Accelerated(model, model.dense_plan()), labels_for(BATCH, model.spec.classes)
    for _ in sys.stdin:
        start = time.perf_counter()
        dense.images(labels_N, seed=0)
        print(1e3 * (time.perf_counter() - start) / BATCH, flush=True)


@contextmanager
def started(command: Sequence[str]) -> Iterator[None]:
    """A process for the time of a block."""
    with subprocess.Popen(command) as process:
        yield
        process.kill()


def rounds(drawers: dict[str, Drawer], count: int) -> dict[str, list[float]]:
    """Times of each drawer; who goes first changes from round to round. The first round is not counted."""
    found: dict[str, list[float]] = {name: [] for name in drawers}
    names = list(drawers)
    for i in range(count + 1):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(drawers[name].milliseconds())
    return {name: times[1:] for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--draw", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=21, help="timed batches of each kind")
    parser.add_argument("--spins", type=int, nargs="*", default=[ROUNDS, 0], help="rounds of spinning to compare")
    arguments = parser.parse_args()
    if arguments.draw:
        return draw(arguments.draw)

    import torch

    from varsearch.evaluators.speed import machine, median_interval

    cores = os.cpu_count() or 1
    print(f"{machine(torch.device('cpu'))}; mnist, dense, batch {BATCH}, {arguments.rounds} rounds")
    print(f"load of the last minute {os.getloadavg()[0]:.1f}; milliseconds per image: lower quartile, median")
    drawers = {f"{cores} threads spin {spin}": Drawer(cores, spin) for spin in (OWN, *arguments.spins)}
    drawers["1 thread"] = Drawer(1, OWN)
    own, *_ = drawers
    for label, others in (("as it is", []), ("beside a busy process", [LOOP])):
        with ExitStack() as stack:
            for loop in others:
                stack.enter_context(started([sys.executable, "-c", loop]))
            found = rounds(drawers, arguments.rounds)
        print(label)
        for name, times in found.items():
            low, middle, _ = statistics.quantiles(times, n=4)
            ratios = [mine / base for mine, base in zip(times, found[own], strict=True)]
            interval = "-".join(f"{end:.2f}" for end in median_interval(ratios))
            print(f"  {name:24} {low:7.1f} {middle:7.1f}   {statistics.median(ratios):5.2f}x ({interval})")
    for drawer in drawers.values():
        drawer.process.kill()


if __name__ == "__main__":
    main()
