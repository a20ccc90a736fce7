"""What the search loop costs per trial when evaluating costs nothing: `python -m benchmarks.search_overhead [URL]`.

URL: a PostgreSQL database to measure besides SQLite; the run that is made there stays.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import time
from functools import partial

import torch

from varsearch.evaluators.speed import machine
from varsearch.measurement import Evidence, Job, Measurement, Origin, Outcome, QualityProtocol, SpeedProtocol
from varsearch.search.core.settings import RunSettings, default_objectives
from varsearch.search.run.driver import run
from varsearch.search.run.events import Event
from varsearch.space import SearchSpace
from varsearch.space.presets import seeds
from varsearch.target import ModelSpec, Target

TRIALS = 200
SPEC = ModelSpec(
    name="small",
    n_layers=6,
    n_heads=4,
    head_dim=32,
    scales=((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)),
    classes=10,
    image_size=(32, 32),
    fingerprint="none",
)
SETTINGS = RunSettings(
    model="small",
    fingerprint="none",
    quality=QualityProtocol(
        extractor="none", reference="none", n_images=2, nll_images=0, seed=0, guidance=1.5, top_k=0, top_p=0.0
    ),
    speed=SpeedProtocol(
        target=Target(device="4090", dtype="float16", batch_size=256),
        origin=Origin.PREDICTED,
        machine="4090",
        backend="none",
        repeats=0,
    ),
    objectives=default_objectives(Origin.PREDICTED),
    bounds={"delta_fid": 2.0},
)
STARTS = {f"seed:{name}": policy for name, policy in seeds(SPEC).items()}
QUALITY = ("fid", "delta_fid", "kid", "precision", "recall", "feature_distance", "nll", "label_agreement")
SPEED = ("latency_ms", "speedup", "peak_bytes", "kv_bytes", "weight_bytes", "flops", "attention_flops")


class Trivial:
    """Draws as many numbers as a real worker gives from the policy's digest."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings

    def evaluate(self, job: Job) -> Outcome:
        """Answers at once."""
        digest = job.policy.digest

        def evidence(kind: str, protocol: str, names: tuple[str, ...]) -> Evidence:
            numbers = (int(digest[i : i + 4], 16) / 2**14 for i in range(len(names)))
            measurements = tuple(Measurement(metric=m, value=x) for m, x in zip(names, numbers, strict=True))
            return Evidence.model_validate(
                {"kind": kind, "policy": digest, "model": self.settings.fingerprint, "protocol": protocol}
                | {"measurements": measurements, "seconds": 0.0}
            )

        return Outcome(
            number=job.number,
            quality=evidence("quality", self.settings.quality_digest, QUALITY),
            speed=evidence("speed", self.settings.speed.digest, SPEED),
        )


def measure(storage: str, workers: int) -> tuple[float, list[float]]:
    """Seconds until the first outcome, and milliseconds between the following ones."""
    times = [time.perf_counter()]
    # Of a model of its own, or stored evidence would answer the second run.
    settings = SETTINGS.model_copy(update={"fingerprint": f"{os.getpid()}-{workers}"})

    def note(_: Event) -> None:
        times.append(time.perf_counter())

    run(
        settings, SearchSpace(SPEC), STARTS, partial(Trivial, settings),
        storage=storage, budget=TRIALS, workers=workers, on_event=note,
    )  # fmt: skip
    steps = [1e3 * (after - before) for before, after in itertools.pairwise(times[1:])]
    return times[1] - times[0], steps


def main() -> None:
    torch.set_num_threads(1)
    print(machine(torch.device("cpu")))
    print(f"{len(SearchSpace(SPEC).knobs)} knobs, {TRIALS} trials, {len(QUALITY) + len(SPEED)} metrics each")
    print("storage     workers    start s  ms per trial: mean  first 50  last 50")
    with tempfile.TemporaryDirectory() as folder:
        for kind, storage in (("SQLite", f"{folder}/runs.db"), *(("PostgreSQL", url) for url in sys.argv[1:])):
            for workers in (0, 2):
                start, steps = measure(storage, workers)
                where = f"{workers} on Ray" if workers else "in process"
                means = [statistics.fmean(part) for part in (steps, steps[:50], steps[-50:])]
                print(f"{kind:<11} {where:<10} {start:7.1f}  {means[0]:18.1f}  {means[1]:8.1f}  {means[2]:7.1f}")


if __name__ == "__main__":
    main()
