"""Warm starts from a profile next to hand-made policies and published systems: `python -m benchmarks.warm_starts`.

ΔFID of every policy, by a search's images and on fresh noise, with the loss that the profile predicts, and the
hypervolume of the dense model with each set. What the database knows is not measured again, the profile included.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.search_problem import WARM_STARTS, Found, Recorded
from varsearch.search.core.objectives import front_volume
from varsearch.search.core.source import DENSE, Source, SourceKind, kind_of
from varsearch.search.sensitivity.warm_start import warm_starts


@dataclass
class Row:
    """The numbers of a policy: `[0]` by the search's images, `[1]` on fresh noise."""

    values: tuple[dict[str, float], dict[str, float]]
    told: str = ""


def values(found: Found) -> dict[str, float]:
    """By metric."""
    quality, speed = found
    return quality.values | speed.values


def line(origin: str, row: Row, dense: Row) -> str:
    """One policy as a line."""
    (searched, fresh), (full, _) = row.values, dense.values
    return (
        f"{origin:22s} ΔFID {searched['delta_fid']:+7.2f}, on fresh noise {fresh['delta_fid']:+7.2f}; "
        f"{searched['latency_ms'] / full['latency_ms']:.2f}x latency, "
        f"{searched['peak_bytes'] / full['peak_bytes']:.2f}x peak{row.told}"
    )


def main(given: Sequence[str] | None = None) -> None:
    """Evaluates what the database lacks and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="4090")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--starts", type=int, default=WARM_STARTS)
    parser.add_argument("--storage", default="search.db")
    asked = parser.parse_args(given)
    problem = Recorded(asked.storage, asked.target, asked.images, record=True)
    starts = {origin: (policy, "") for origin, policy in problem.published.items()}
    for i, start in enumerate(warm_starts(problem.profile, asked.starts)):
        starts[str(Source(SourceKind.WARM, str(i)))] = start.policy, f"; predicted loss {start.loss:.2f}"
    rows: dict[str, Row] = {}
    for origin, (policy, told) in starts.items():
        found = values(problem.evaluate(policy)), values(problem.confirmed(policy))
        rows[origin] = Row(found, told)
        print(line(origin, rows[origin], rows[DENSE]), flush=True)
    preset, seed, warm = SourceKind.PRESET, SourceKind.SEED, SourceKind.WARM
    sets = {"published": (preset,), "hand-made": (seed,), "warm": (warm,), "warm and published": (warm, preset)}
    for what, kinds in (sets | {"all": tuple(SourceKind)}).items():
        chosen = [row.values for origin, row in rows.items() if origin == DENSE or kind_of(origin) in kinds]
        searched, fresh = (
            front_volume(problem.settings, [both[i] for both in chosen], rows[DENSE].values[i]) for i in range(2)
        )
        print(f"hypervolume of dense and {len(chosen) - 1} {what}: {searched:.3f}, on fresh noise {fresh:.3f}")


if __name__ == "__main__":
    main()
