"""What the front of a run shows: `python -m benchmarks.front --storage FILE [--run NAME]`.

Which published systems it dominates, by numbers of the same protocol, and how surely by their errors; and what is the
most that can be saved at a ΔFID whose interval includes 0, or is below it. Says whether the numbers are confirmed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.stored import parser, stored_run
from varsearch.formatting import interval, times
from varsearch.search.results.baselines import baselines
from varsearch.search.results.claims import headline, regression_to_the_mean, shortfall
from varsearch.search.results.front import Front, FrontEntry, read_front


def saved(front: Front, entry: FrontEntry) -> str:
    """ΔFID, speed-up and memory of an entry, with intervals where there are some."""
    told = f"ΔFID {interval(entry.metrics['delta_fid'])}, speed-up {times(entry.metrics['speedup'])}"
    if front.dense is None:
        return told
    return f"{told}, peak memory {entry.value('peak_bytes') / front.dense.value('peak_bytes'):.2f} of dense's"


def harmless(entry: FrontEntry) -> bool:
    """Whether its images cannot be told from dense's: the interval of its ΔFID reaches down to 0."""
    delta = entry.metrics["delta_fid"]
    return (delta.value if delta.low is None else delta.low) <= 0


def lines(front: Front) -> list[str]:
    """What is claimed."""
    found = baselines(front)
    beaten = [baseline for baseline in found if baseline.beaten_by]
    told = [f"{headline(front)}; hypervolume {front.hypervolume or 0.0:.3f}"]
    told += filter(None, (shortfall(front), regression_to_the_mean(front)))
    told.append(f"{len(beaten)} of {len(found)} published systems are dominated")
    for baseline in found:
        told.append(f"  {baseline.entry.origin.partition(':')[2]}: {saved(front, baseline.entry)}")
        if near := baseline.nearest:
            word = "by" if baseline.beaten_by else "by none, nearest"
            told.append(f"    {word} trial {near.number}: {saved(front, near)}; {baseline.probability:.0%} sure")
    told.append("of those whose images cannot be told from dense's")
    kinds: tuple[tuple[str, Callable[[FrontEntry], float]], ...] = (
        ("fastest", lambda e: -e.value("speedup")),
        ("smallest", lambda e: e.value("peak_bytes")),
    )
    for name, key in kinds:
        best = min(filter(harmless, front.entries), key=key, default=None)
        told.append(f"  {name}: " + (f"trial {best.number}: {saved(front, best)}" if best else "none"))
    return told


def main(given: Sequence[str] | None = None) -> None:
    """Reads a run and prints."""
    with stored_run(parser(__doc__).parse_args(given)) as (store, run):
        print(f"{run.name}: ", end="")
        print("\n".join(lines(read_front(store, run))))


if __name__ == "__main__":
    main()
