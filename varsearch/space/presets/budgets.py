"""What the presets of KV compression have in common: head classes, and budgets in entries turned into shares.

Published ratios are of all tokens. Here they are of what the dense cache holds, which is all but the last scale's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from varsearch.calibration import Calibration
from varsearch.policy import GRID
from varsearch.target import ModelSpec

CONTEXTUAL = 0.5
"""Share of all heads that HACK (arXiv 2504.09261) classes as contextual; an assumption, the paper's is not known."""


def seen_tokens(spec: ModelSpec) -> tuple[int, ...]:
    """Number of tokens of the scales up to each, itself included."""
    return tuple(accumulate(spec.tokens))


def contextual_heads(calibration: Calibration, share: float) -> tuple[tuple[bool, ...], ...]:
    """[l][h], whether the head is among the `share` of all heads whose attention varies least over the queries."""
    variance = calibration.column_variance
    ranked = sorted((v, layer, head) for layer, heads in enumerate(variance) for head, v in enumerate(heads))
    chosen = {(layer, head) for _, layer, head in ranked[: round(share * len(ranked))]}
    return tuple(tuple((layer, h) in chosen for h in range(len(heads))) for layer, heads in enumerate(variance))


def cached_entries(spec: ModelSpec, ratio: float) -> float:
    """Entries per head that take `ratio` of the dense cache's bytes, in half precision and with their positions."""
    entry, position = 2 * 2 * spec.head_dim, 2 if sum(spec.tokens) < 2**15 else 4
    return sum(spec.tokens[:-1]) * (1.0 if ratio >= 1 else ratio * entry / (entry + position))


def share_within(entries: float, tokens: int) -> float:
    """The largest share of `tokens` that is on the grid and stands for no more than `entries`."""
    return min(GRID, math.floor(entries + 1e-9) * GRID // tokens) / GRID


def proportional(weights: Sequence[float], mean: float, most: float) -> list[float]:
    """Numbers with this mean, proportional to `weights` but for those that would exceed `most` and get that."""
    found = [most] * len(weights)
    free = set(range(len(weights)))
    while free:
        factor = (mean * len(weights) - most * (len(weights) - len(free))) / sum(weights[i] for i in free)
        over = {i for i in free if factor * weights[i] > most}
        if not over:
            return [factor * w if i in free else most for i, w in enumerate(weights)]
        free -= over
    return found
