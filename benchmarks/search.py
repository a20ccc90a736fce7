"""How good fronts are after equally many evaluations, by method: `python -m benchmarks.search synthetic`.

`python -m benchmarks.search recorded --record --storage FILE --workers 2` evaluates policies of `mnist` and keeps them:
FILE is the record, and from then on, without `--record`, all is replayed. What was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.search_methods import METHODS, search, volumes
from benchmarks.search_problem import Problem, Recorded
from benchmarks.search_synthetic import Synthetic
from varsearch.errors import UsageError
from varsearch.evaluators.speed import machine
from varsearch.files import write_atomically

RESULTS = Path(__file__).parent / "results"
COLD = ("TPE cold", "NSGA-II cold")
PROBLEM = ("problem", "budget", "at", "problem_seed", "target", "images")
"""Arguments that make numbers comparable."""


def problem_of(asked: argparse.Namespace) -> Problem:
    """The problem that the arguments name."""
    if asked.problem == "synthetic":
        return Synthetic(asked.problem_seed)
    return Recorded(asked.storage, asked.target, asked.images, asked.record)


@cache
def _problem(key: str) -> Problem:
    return problem_of(argparse.Namespace(**json.loads(key)))


def one(task: tuple[str, str, int]) -> dict[str, Any]:
    """The volumes of one method with one seed, confirmed and claimed, and what became of its evaluations."""
    key, method, seed = task
    torch.set_num_threads(1)
    asked, problem = json.loads(key), _problem(key)
    before, started = dict(getattr(problem, "counts", {})), time.monotonic()
    trials = search(problem, method, seed, asked["budget"])
    claimed, found = volumes(problem, trials, asked["at"])
    counts = {name: n - before[name] for name, n in getattr(problem, "counts", {}).items()}
    seconds = time.monotonic() - started
    row = {"method": method, "seed": seed, "volumes": found, "claimed": claimed, "trials": len(trials)}
    return row | {"seconds": seconds, **counts}


def summarized(rows: Sequence[dict[str, Any]], at: Sequence[int]) -> list[str]:
    """Median and range over seeds of each method, ratios to the cold ones, and wins against the warm one."""
    by = {method: {r["seed"]: r["volumes"] for r in rows if r["method"] == method} for method in METHODS}
    by = {method: seeds for method, seeds in by.items() if seeds}
    last = {method: statistics.median(v[-1] for v in seeds.values()) for method, seeds in by.items()}
    cold = [method for method in COLD if method in last]
    head = "".join(f"{f'HV at {n}: median [range]':>30}" for n in at) + "".join(f"{f'/ {c}':>15}" for c in cold)
    lines = [f"{'method':<22}{head}{'wins on TPE warm':>18}{'s per run':>11}"]
    for method, seeds in by.items():
        cells = ""
        for i in range(len(at)):
            column = sorted(v[i] for v in seeds.values())
            cells += f"{statistics.median(column):>14.4f} [{column[0]:.4f}, {column[-1]:.4f}]"[-30:].rjust(30)
        cells += "".join(f"{last[method] / last[c]:>15.2f}" for c in cold)
        rival = by.get("TPE warm", {})
        both = [seed for seed in seeds if seed in rival]
        wins = sum(seeds[seed][-1] > rival[seed][-1] for seed in both)
        seconds = statistics.median(r["seconds"] for r in rows if r["method"] == method)
        lines.append(f"{method:<22}{cells}{f'{wins} of {len(both)}' if both else '':>18}{seconds:>11.1f}")
    return lines


def measured(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All methods with all seeds, in `asked.workers` processes; each as soon as those before it are known."""
    key = json.dumps(vars(asked), default=str)
    tasks = [(key, method, seed) for seed in range(asked.seeds) for method in asked.methods]
    fresh = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads as locks that nobody opens
    with ProcessPoolExecutor(asked.workers, fresh) if asked.workers > 1 else nullcontext() as pool:
        for done, row in enumerate(pool.map(one, tasks) if pool else map(one, tasks), start=1):
            told = f"{done}/{len(tasks)} {row['method']}, seed {row['seed']}: {row['volumes'][-1]:.4f}"
            print(told, file=sys.stderr, flush=True)
            yield row


class Results:
    """A file of rows, written whenever there is a new one.

    Args:
        asked: the arguments. With `--add` the file's rows of other methods and seeds stay; they must be of the same
            problem, or it is a `UsageError`.
    """

    def __init__(self, asked: argparse.Namespace) -> None:
        self.path = asked.out or RESULTS / f"search-{asked.problem}.json"
        problem = {name: vars(asked)[name] for name in PROBLEM}
        packages = {name: version(name) for name in ("varsearch", "optuna", "numpy", "scipy", "torch")}
        here = {"machine": machine(torch.device("cpu")), "python": platform.python_version(), "packages": packages}
        self.found: dict[str, Any] = {"problem": problem, **here, "runs": []}
        if asked.add and self.path.exists():
            known = json.loads(self.path.read_text())
            if known | {"runs": []} != self.found:
                raise UsageError(f"{self.path} is of another problem, machine or packages: give another --out")
            self.found = known

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of the file."""
        rows: list[dict[str, Any]] = self.found["runs"]
        return rows

    def keep(self, row: dict[str, Any]) -> None:
        """In place of what the file has of this method and seed."""
        others = [r for r in self.rows if (r["method"], r["seed"]) != (row["method"], row["seed"])]
        order = list(METHODS)
        self.found["runs"] = sorted([*others, row], key=lambda r: (order.index(r["method"]), r["seed"]))
        self.path.parent.mkdir(exist_ok=True)
        write_atomically(self.path, json.dumps(self.found, indent=1) + "\n")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=("synthetic", "recorded"))
    parser.add_argument("--budget", type=int, default=200, help="evaluations of each search")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    parser.add_argument("--workers", type=int, default=1, help="processes; each takes one core")
    parser.add_argument("--problem-seed", type=int, default=0, help="of the synthetic problem")
    parser.add_argument("--storage", default="search.db", help="the record")
    parser.add_argument("--target", default="4090")
    parser.add_argument("--images", type=int, default=128, help="of each recorded evaluation")
    parser.add_argument("--record", action="store_true", help="evaluate what the record lacks")
    parser.add_argument("--out", type=Path, default=None, help="JSON; default: results/search-PROBLEM.json")
    parser.add_argument("--add", action="store_true", help="keep other methods' and seeds' rows of the JSON")
    asked = parser.parse_args(given)
    asked.at = sorted({min(60, asked.budget), asked.budget})
    return asked


def main(given: Sequence[str] | None = None) -> None:
    """Runs, prints and keeps it."""
    asked = arguments(given)
    torch.set_num_threads(1)  # as every search
    if asked.problem == "recorded":  # calibration and profile, before processes would each make them
        problem = problem_of(asked)
        print(f"{len(problem.published)} published policies, {len(problem.profile.sensitivity.effects)} profiled")
    results, rows = Results(asked), []
    for row in measured(asked):
        results.keep(row)
        rows.append(row)
    print(f"{asked.problem}, {asked.budget} evaluations; {machine(torch.device('cpu'))}")
    print("\n".join(summarized(results.rows, asked.at)))
    if asked.problem == "recorded":
        replayed, new = (sum(row[name] for row in rows) for name in ("replayed", "evaluated"))
        print(f"{replayed + new} answers (also of rungs and confirmations), {new} of them new to {asked.storage}")
        images = len(problem.profile.sensitivity.effects) * problem.profile.sensitivity.protocol.images
        print(
            f"the profile's {images} images, as many as {images / asked.images:.0f} evaluations draw, are not counted"
        )
    print(f"written to {results.path.name}")


if __name__ == "__main__":
    main()
