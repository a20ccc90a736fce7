"""HACK++: separate budgets for attending and for keeping (arXiv 2606.08302)."""

from __future__ import annotations

import math

from varsearch.calibration import Calibration
from varsearch.policy import GRID, KVCompression, LayerPolicy, Policy, ScalePolicy, Selection
from varsearch.space.presets.budgets import (
    CONTEXTUAL,
    cached_entries,
    contextual_heads,
    proportional,
    seen_tokens,
    share_within,
)
from varsearch.space.presets.hack import OBSERVERS
from varsearch.target import ModelSpec

RELIANCE = 1.0
"""Exponent of the reliance that cache budgets are proportional to; an assumption, the paper's is not known."""

CONTEXTUAL_RULE = Selection(queries=OBSERVERS, pool="max")
"""The width of the pooling window is an assumption too, `Selection`'s default."""


def hackpp(
    spec: ModelSpec,
    calibration: Calibration,
    attention: float = 0.3,
    cache: float = 0.1,
    contextual: float = CONTEXTUAL,
    reliance: float = RELIANCE,
) -> Policy:
    """A scale's queries attend to more entries than stay for later scales.

    After each scale the heads of one class in one layer keep entries in proportion to the attention that later scales
    will pay to an earlier token.

    Args:
        spec: the model.
        calibration: of the model, for head classes, scale priors and reliance.
        attention: entries that a head attends to, relative to all tokens of the sequence.
        cache: entries that a head keeps on average, relative to what the dense cache holds.
        contextual: share of contextual heads among all, between 0 and 1.
        reliance: exponent of the later attention in the share of the cache.
    """
    classes, seen = contextual_heads(calibration, contextual), seen_tokens(spec)
    attended = tuple((max(share_within(attention * seen[-1], n), 1 / GRID),) * spec.n_heads for n in seen)
    kept = [_cached(calibration, classes, k, cached_entries(spec, cache), seen, reliance) for k in range(len(seen) - 1)]
    layers = tuple(
        LayerPolicy(
            kv=KVCompression(
                cache_budget=(*(rows[layer] for rows in kept), (1.0,) * spec.n_heads),
                attention_budget=attended,
                selection=tuple(
                    CONTEXTUAL_RULE if c else Selection(prior=_prior(spec, calibration, layer, h))
                    for h, c in enumerate(heads)
                ),
            )
        )
        for layer, heads in enumerate(classes)
    )
    return Policy(layers=layers, scales=(ScalePolicy(),) * len(spec.scales))


def _cached(
    calibration: Calibration,
    classes: tuple[tuple[bool, ...], ...],
    scale: int,
    mean: float,
    seen: tuple[int, ...],
    exponent: float,
) -> list[tuple[float, ...]]:
    """[l][h], shares of the tokens up to `scale` that stay after it: `mean` entries on average."""
    weights = []
    for layer, heads in enumerate(classes):
        later = [_later_attention(calibration, layer, head, scale, seen) for head in range(len(heads))]
        for c in heads:
            alike = [value for value, other in zip(later, heads, strict=True) if other == c]
            weights.append((sum(alike) / len(alike)) ** exponent)
    counts = iter(proportional(weights, min(mean, seen[scale]), seen[scale]))
    return [tuple(share_within(next(counts), seen[scale]) for _ in heads) for heads in classes]


def _later_attention(calibration: Calibration, layer: int, head: int, scale: int, seen: tuple[int, ...]) -> float:
    """Attention of later scales to one earlier token, on average over tokens, summed over scales."""
    later = range(scale + 1, len(seen))
    return sum(sum(calibration.scale_mass[k][layer][head][:k]) / seen[k - 1] for k in later)


def _prior(spec: ModelSpec, calibration: Calibration, layer: int, head: int) -> tuple[tuple[int, ...], ...]:
    """Decibels by which one key of a scale gets less attention than one of the scale that gets most."""
    rows = []
    for by_head in calibration.scale_mass:
        per_key = [mass / n for mass, n in zip(by_head[layer][head], spec.tokens, strict=False)]
        most = max(per_key)
        rows.append(tuple(min(100, round(10 * math.log10(most / max(x, 1e-10 * most)))) for x in per_key))
    return tuple(rows)
