"""HACK: head-aware KV compression (arXiv 2504.09261)."""

from __future__ import annotations

from varsearch.calibration import Calibration
from varsearch.policy import GRID, KVCompression, LayerPolicy, Policy, ScalePolicy, Selection
from varsearch.space.presets.budgets import CONTEXTUAL, cached_entries, contextual_heads, seen_tokens, share_within
from varsearch.target import ModelSpec

OBSERVERS, SINKS = 32, 2

CONTEXTUAL_RULE = Selection(queries=OBSERVERS)
STRUCTURAL_RULE = Selection(queries=OBSERVERS, sinks=SINKS, recent=True)

ASYMMETRY = 5.0
"""A structural head's budget over a contextual one's; an assumption. The paper finds that contextual heads bear 90 %
eviction and structural ones 50 %, which at equal numbers is its main setting, 70 % on average."""


def hack(
    spec: ModelSpec,
    calibration: Calibration,
    compression: float = 0.7,
    contextual: float = CONTEXTUAL,
    asymmetry: float = ASYMMETRY,
) -> Policy:
    """Small budgets for heads whose queries look at the same keys, large ones for heads that follow the map.

    The queries of a scale attend to the very entries that stay in the cache. The last scale's entries never stay, its
    queries attend to the same ratio of all keys. The paper merges what a contextual head evicts at the last step into
    what it keeps; here it is dropped.

    Args:
        spec: the model.
        calibration: of the model, for the head classes.
        compression: part of the dense cache that is saved, in 0..1.
        contextual: share of contextual heads among all, between 0 and 1.
        asymmetry: a structural head's budget over a contextual head's.
    """
    classes, seen = contextual_heads(calibration, contextual), seen_tokens(spec)
    # The cache is fullest before the last scale.
    means = [cached_entries(spec, 1 - compression)] * (len(seen) - 1) + [(1 - compression) * seen[-1]]
    mosts = [seen[-2]] * (len(seen) - 1) + [seen[-1]]
    part = sum(map(sum, classes)) / (spec.n_layers * spec.n_heads)
    split = [_split(mean, most, part, asymmetry) for mean, most in zip(means, mosts, strict=True)]
    layers = []
    for heads in classes:
        attended = tuple(
            tuple(max(share_within(small if c else large, tokens), 1 / GRID) for c in heads)
            for (small, large), tokens in zip(split, seen, strict=True)
        )
        kv = KVCompression(
            cache_budget=(*attended[:-1], (1.0,) * spec.n_heads),
            attention_budget=attended,
            selection=tuple(CONTEXTUAL_RULE if c else STRUCTURAL_RULE for c in heads),
        )
        layers.append(LayerPolicy(kv=kv))
    return Policy(layers=tuple(layers), scales=(ScalePolicy(),) * len(spec.scales))


def _split(mean: float, most: int, part: float, asymmetry: float) -> tuple[float, float]:
    """Entries of a contextual and of a structural head, `mean` on average when `part` of the heads are contextual."""
    large = min(float(most), asymmetry * mean / (part + asymmetry * (1 - part)))
    return (mean - (1 - part) * large) / part if part else 0.0, large
