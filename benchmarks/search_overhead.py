"""What the search costs per trial when evaluating costs nothing: `python -m benchmarks.search_overhead [URL]`.

The first table has the whole loop without and with side information, and a search of costs alone. The second has the
stages of a proposal with side information, where quality has errors, as it always has in a real run.

URL: a PostgreSQL database to measure besides SQLite; the runs that are made there stay.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.search_synthetic import SPEC, Synthetic
from varsearch.evaluators.speed import machine
from varsearch.measurement import Evidence, Job, Measurement, Outcome
from varsearch.search.core.settings import RunSettings
from varsearch.search.run.driver import run
from varsearch.search.run.events import Event
from varsearch.search.sampler import bayesian, front_posterior, surrogate
from varsearch.search.sampler.base import SideInformation
from varsearch.search.sampler.beat_baseline import BeatBaselineSampler
from varsearch.search.sampler.evolutionary import EvolutionarySampler
from varsearch.search.sampler.front_posterior import FrontPosterior
from varsearch.search.sampler.gaussian_process import Posterior
from varsearch.search.sampler.mutation import MutationSampler
from varsearch.search.sampler.portfolio import PortfolioSampler
from varsearch.search.sampler.surrogate import Surrogate
from varsearch.search.sampler.variation import Variation

STAGES: dict[str, tuple[Any, str]] = {
    "surrogate: fit scales": (surrogate, "fit"),
    "surrogate: posterior samples": (Posterior, "sample_paths"),
    "front: boxes": (front_posterior, "non_dominated_boxes"),
    "candidates: variation": (Variation, "candidates"),
    "candidates: predict": (Surrogate, "draws"),
    "candidates: noisy EHVI": (bayesian, "noisy_expected_hypervolume_improvement"),
    "exact costs": (FrontPosterior, "exact_costs"),
    "beat a baseline, all": (BeatBaselineSampler, "propose"),
    "evolutionary, all": (EvolutionarySampler, "propose"),
    "mutation, all": (MutationSampler, "propose"),
    "credit of the arms": (PortfolioSampler, "shares"),
    "proposal, all": (PortfolioSampler, "propose"),
}
"""Functions that are timed. The last one includes all others, "all" of an arm the stages of its own."""

ENDS = 50
"""Trials at the begin and at the end of a run whose means are printed."""


@dataclass
class Trivial:
    """Answers at once: the synthetic problem's numbers, with an error of a tenth of each loss."""

    problem: Synthetic
    settings: RunSettings

    def evaluate(self, job: Job) -> Outcome:
        """Both pieces of evidence, or that of speed alone."""
        quality, speed = self.problem.evaluate(job.policy)
        loss, measured = quality.values["delta_fid"], []
        for m in quality.measurements:
            half = 0.2 * loss
            measured.append(Measurement(metric=m.metric, value=m.value, low=m.value - half, high=m.value + half))
        seen = quality.model_copy(update={"measurements": tuple(measured)})
        return Outcome(
            number=job.number,
            quality=self._own(seen) if job.quality else None,
            speed=self._own(speed),
        )

    def _own(self, evidence: Evidence) -> Evidence:
        return evidence.model_copy(update={"model": self.settings.fingerprint})


class Clock:
    """Seconds of each stage, by trial."""

    def __init__(self) -> None:
        self.trials: list[dict[str, float]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Times the functions of `STAGES`."""
        with ExitStack() as patches:
            for stage, (owner, name) in STAGES.items():
                patches.enter_context(patch.object(owner, name, self._timed(stage, getattr(owner, name))))
            yield

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if stage == "proposal, all":
                self.trials.append(defaultdict(float))
            begin = time.perf_counter()
            found = function(*args, **kwargs)
            if isinstance(found, Iterator):  # a generator works while it is read
                found = list(found)
            self.trials[-1][stage] += time.perf_counter() - begin
            return found

        return timed

    def lines(self) -> Iterator[str]:
        """Milliseconds per proposal: mean, at the begin, at the end; share of all."""
        total = sum(trial["proposal, all"] for trial in self.trials) or 1.0
        for stage in STAGES:
            seconds = [trial.get(stage, 0.0) for trial in self.trials]
            parts = [1e3 * float(np.mean(part)) for part in (seconds, seconds[:ENDS], seconds[-ENDS:])]
            yield f"{stage:<30}{parts[0]:9.1f}{parts[1]:10.1f}{parts[2]:9.1f}{sum(seconds) / total:8.0%}"


def settings_of(kind: str, problem: Synthetic, workers: int) -> RunSettings:
    """Settings of a model of its own, or stored evidence would answer the next run."""
    changed: dict[str, object] = {"fingerprint": f"{os.getpid()}-{kind}-{workers}"}
    if kind == "costs alone":
        changed |= {"quality": None, "objectives": ("latency_ms", "peak_bytes")}
    return problem.settings.model_copy(update=changed)


def measure(kind: str, storage: str, workers: int, trials: int) -> tuple[float, list[float]]:
    """Seconds until the first outcome, and milliseconds between the following ones."""
    problem = Synthetic(0)
    settings = settings_of(kind, problem, workers)
    # A published system is among the starts of every real run.
    starts = {origin.replace("seed:kv", "preset:kv"): policy for origin, policy in problem.published.items()}
    information = {"with profile": problem.guide(True), "no profile": problem.guide(False)}
    times = [time.perf_counter()]

    def note(_: Event) -> None:
        times.append(time.perf_counter())

    guide: SideInformation | None = information.get(kind)
    run(
        settings, problem.space, starts, functools.partial(Trivial, problem, settings),
        storage=storage, budget=trials, workers=workers, guide=guide and _portable(guide, workers), on_event=note,
    )  # fmt: skip
    steps = [1e3 * (after - before) for before, after in itertools.pairwise(times[1:])]
    return times[1] - times[0], steps


def _portable(guide: SideInformation, workers: int) -> SideInformation:
    """Other processes cannot take a function that was made here, so they go without exact costs."""
    return replace(guide, make_costs=None) if workers else guide


def main(given: Sequence[str] | None = None) -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="*")
    parser.add_argument("--trials", type=int, default=200)
    asked = parser.parse_args(given)
    torch.set_num_threads(1)
    knobs = len(Synthetic(0).space.knobs)
    print(machine(torch.device("cpu")))
    print(f"{SPEC.n_layers} layers, {len(SPEC.scales)} scales, {knobs} knobs, {asked.trials} trials, one thread")
    print(f"{'search':<14}{'storage':<12}{'workers':<12}start s  ms per trial: mean  first {ENDS}  last {ENDS}")
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        for name, storage in (("SQLite", f"{folder}/runs.db"), *(("PostgreSQL", url) for url in asked.url)):
            for kind, workers in itertools.product(("no guide", "costs alone", "no profile", "with profile"), (0, 2)):
                timed = clock.watching() if (kind, workers, name) == ("with profile", 0, "SQLite") else ExitStack()
                with timed:
                    start, steps = measure(kind, storage, workers, asked.trials)
                where = f"{workers} on Ray" if workers else "in process"
                means = [statistics.fmean(part) for part in (steps, steps[:ENDS], steps[-ENDS:])]
                print(
                    f"{kind:<14}{name:<12}{where:<10} {start:8.1f}  {means[0]:18.1f}  {means[1]:8.1f}  {means[2]:7.1f}",
                    flush=True,
                )
    print(f"\n{'ms per proposal, with profile':<30}{'mean':>9}{f'first {ENDS}':>10}{f'last {ENDS}':>9}{'share':>8}")
    print("\n".join(clock.lines()))


if __name__ == "__main__":
    main()
