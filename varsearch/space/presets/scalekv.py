"""ScaleKV: layers that need the history and layers that do not (arXiv 2505.19602)."""

from __future__ import annotations

import statistics

from varsearch.calibration import Calibration
from varsearch.policy import KVCompression, LayerPolicy, Policy, ScalePolicy, Selection
from varsearch.space.presets.budgets import cached_entries, seen_tokens, share_within
from varsearch.target import ModelSpec

REFINER, DECAY = 600 / 650, 70 / 650
"""A refiner's budget when compression starts, and what it loses per scale, over the average budget."""

DRAFTERS = 0.075
"""Share of layers that are drafters: 2 of 32 and 3 of 40 in the published tables. The rule behind is not known."""


def scalekv(spec: ModelSpec, calibration: Calibration, budget: float = 0.1, drafters: float = DRAFTERS) -> Policy:
    """Drafters, the layers that look back widely, keep most of the cache; refiners keep little, and ever less.

    A layer is a drafter at a scale if its attention selectivity index there, attention to the current map times
    attention to the best of the history, is among the lowest. What stays after a scale follows from the roles at the
    next one, and averages to the same number of entries at each, as in the published tables.

    Args:
        spec: the model.
        calibration: of the model, for the roles.
        budget: entries that a layer keeps on average, relative to what the dense cache holds.
        drafters: share of layers that are drafters at each scale; at least one is.
    """
    seen = seen_tokens(spec)
    mean = cached_entries(spec, budget)
    count = min(spec.n_layers, max(1, round(drafters * spec.n_layers)))
    first = next(k for k, n in enumerate(seen) if n >= mean)
    table = []
    for k in range(len(seen) - 1):
        small = min(mean, max(0.0, mean * (REFINER - DECAY * (k - first))))
        index = _selectivity(calibration, k + 1)
        chosen = set(sorted(range(spec.n_layers), key=index.__getitem__)[:count])
        large, small = _budgets(mean, small, seen[k], count, spec.n_layers)
        table.append([share_within(large if layer in chosen else small, seen[k]) for layer in range(spec.n_layers)])
    rule = _rule(min(min(row) * n for row, n in zip(table[first:], seen[first:], strict=False)))
    layers = tuple(
        LayerPolicy(
            kv=KVCompression(
                cache_budget=(*((row[layer],) * spec.n_heads for row in table), (1.0,) * spec.n_heads),
                selection=(rule,) * spec.n_heads,
            )
        )
        for layer in range(spec.n_layers)
    )
    return Policy(layers=layers, scales=(ScalePolicy(),) * len(spec.scales))


def _selectivity(calibration: Calibration, scale: int) -> list[float]:
    """Attention selectivity index of every layer at `scale`."""
    by_layer = zip(calibration.scale_mass[scale], calibration.history_top[scale], strict=True)
    return [statistics.fmean(head[scale] for head in heads) * top for heads, top in by_layer]


def _budgets(mean: float, small: float, most: int, drafters: int, layers: int) -> tuple[float, float]:
    """A drafter's and a refiner's budget, `mean` on average; refiners take what drafters have no entries for."""
    large = min(float(most), (mean * layers - small * (layers - drafters)) / drafters)
    if large < most or drafters == layers:
        return large, small
    return large, min(float(most), (mean * layers - large * drafters) / (layers - drafters))


def _rule(smallest: float) -> Selection:
    """The published 4 x 4 observers, or fewer where these, who always stay, would take more than half of a budget."""
    side = max(side for side in range(1, 5) if side == 1 or side**2 <= smallest / 2)
    return Selection(queries=side**2, grid=True, pool="mean")
