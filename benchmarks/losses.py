"""What policies of a front lose, by many images: `python -m benchmarks.losses --storage FILE [--trials NUMBER …]`.

Of each policy that none beats in both ΔFID and speed-up, or of these trials of the front and published systems, the
ΔFID is evaluated again, on noise that neither the search nor the confirmation has drawn. Policies that draw nearly the
same images share their luck in the confirmation: ten that agree are hardly more than one. The speed-up is the front's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks.front import harmless
from benchmarks.stored import parser, stored_run
from varsearch.evaluators.worker import WorkerConfig
from varsearch.formatting import interval, times
from varsearch.measurement import QualityProtocol
from varsearch.search.core.pareto import non_dominated
from varsearch.search.core.protocols import FRESH_NOISE
from varsearch.search.results.front import Front, FrontEntry, read_front

ROW = "{:>6}  {:<22}{:<22}{:<24}{}"


def fast(front: Front) -> list[FrontEntry]:
    """The entries that none beats in both ΔFID and speed-up, fastest first."""
    points = [(entry.value("delta_fid"), -entry.value("speedup")) for entry in front.entries]
    return sorted((front.entries[i] for i in non_dominated(points)), key=lambda e: -e.value("speedup"))


def again(quality: QualityProtocol, model: str, entries: Sequence[FrontEntry], images: int) -> Iterator[FrontEntry]:
    """The entries with the ΔFID of so many images of other noise, one after the other."""
    fresh = {"seed": quality.seed + FRESH_NOISE, "n_images": images, "nll_images": 0}
    judge = WorkerConfig(model=model, device="cpu", threads=1).make().quality(quality.model_copy(update=fresh))
    for entry in entries:
        found = judge.evaluate(entry.policy).metrics
        yield replace(entry, metrics={**entry.metrics, "delta_fid": found["delta_fid"]})


def chosen(front: Front, numbers: Sequence[int]) -> list[FrontEntry]:
    """These trials, fastest first."""
    known = {entry.number: entry for entry in (*front.presets, *front.entries)}
    if unknown := set(numbers) - known.keys():
        raise SystemExit(f"trial {min(unknown)} is neither on the front nor a published system")
    return sorted((known[number] for number in numbers), key=lambda e: -e.value("speedup"))


def images_parser(description: str | None) -> argparse.ArgumentParser:
    """Takes a run and how many images to draw."""
    takes = parser(description)
    takes.add_argument("--images", type=int, default=4096)
    return takes


def read(asked: argparse.Namespace) -> tuple[str, Front, QualityProtocol]:
    """The run that the arguments name: its name, its front, how that was judged."""
    with stored_run(asked) as (store, run):
        front = read_front(store, run)
    if front.quality is None:
        raise SystemExit(f"{run.name} has no ΔFID")
    return run.name, front, front.quality


def main(given: Sequence[str] | None = None) -> None:
    """Reads a run, draws and prints."""
    takes = images_parser(__doc__)
    takes.add_argument("--trials", type=int, nargs="+", metavar="NUMBER")
    asked = takes.parse_args(given)
    name, front, quality = read(asked)
    images, after = asked.images, []
    before = chosen(front, asked.trials) if asked.trials else fast(front)
    print(f"{name}: ΔFID, 95 %, by {quality.n_images} images and by {images} of other noise")
    print(ROW.format("trial", "origin", "speed-up", f"by {quality.n_images}", f"by {images}"))
    for old, new in zip(before, again(quality, front.settings.model, before, images), strict=True):
        deltas = (interval(entry.metrics["delta_fid"]) for entry in (old, new))
        print(ROW.format(new.number, new.origin, times(new.metrics["speedup"]), *deltas), flush=True)
        after.append(new)
    best = next(filter(harmless, after), None)
    told = f"trial {best.number}, {times(best.metrics['speedup'])}" if best else "none"
    print(f"fastest whose interval reaches 0, by {images}: {told}")


if __name__ == "__main__":
    main()
