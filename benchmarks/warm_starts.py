"""Warm starts from a profile next to hand-made policies: `python -m benchmarks.warm_starts --target 4090`.

ΔFID of every policy, with its predicted loss, and the hypervolume of the dense model with each set. What the database
knows is not measured again, the profile included.
"""

from __future__ import annotations

import argparse

from varsearch.db import Store
from varsearch.search.compare import Row, compare
from varsearch.search.front import front_volume
from varsearch.search.profile import profiled
from varsearch.search.settings import RunSettings
from varsearch.search.setup import Request, prepare
from varsearch.search.warm import warm_starts


def values(row: Row) -> dict[str, float]:
    return {name: m.value for name, m in row.metrics.items()}


def line(name: str, row: Row, dense: Row, told: str = "") -> None:
    v, d = values(row), values(dense)
    print(
        f"{name:18s} ΔFID {v['delta_fid']:+7.2f}  {v['latency_ms'] / d['latency_ms']:.2f}x latency  "
        f"{v['peak_bytes'] / d['peak_bytes']:.2f}x peak  {told}",
        flush=True,
    )


def volume(settings: RunSettings, rows: dict[str, Row], dense: Row) -> float:
    return front_volume(settings, [values(row) for row in (dense, *rows.values())], values(dense))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="4090")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--starts", type=int, default=15)
    parser.add_argument("--storage", default="varsearch.db")
    asked = parser.parse_args()
    plan = prepare(Request(target=asked.target, images=asked.images), asked.storage)
    warm = warm_starts(profiled("mnist", plan.settings.target, asked.storage), asked.starts)
    starts = {f"warm {i}": start for i, start in enumerate(warm)}
    with Store(asked.storage) as store:
        worker = plan.worker.make()
        hand = compare(plan.starts.seeds, plan.settings, worker, store)
        dense = hand.pop("dense")
        for name, row in hand.items():
            line(name, row, dense)
        found: dict[str, Row] = {}
        for name, start in starts.items():
            found |= compare({name: start.policy}, plan.settings, worker, store)
            cost, full = start.cost, values(dense)
            kinds = ", ".join(sorted({setting.kind for setting in start.chosen}))
            told = f"loss {start.loss:.2f}, {cost.latency_ms / full['latency_ms']:.2f}x, "
            told += f"{cost.peak_bytes / full['peak_bytes']:.2f}x; {len(start.chosen)} settings of {kinds}"
            line(name, found[name], dense, f"predicted: {told}")
    for what, rows in {f"{len(hand)} hand-made": hand, f"{len(found)} warm": found, "both": hand | found}.items():
        print(f"hypervolume of {what}: {volume(plan.settings, rows, dense):.3f}")


if __name__ == "__main__":
    main()
