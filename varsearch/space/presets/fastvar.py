"""FastVAR (arXiv 2503.23367): the last scales run on their most distinctive tokens, and the very last not at all.

It needs no calibration. The published text gives the ratios, the published code the layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from varsearch.errors import UsageError
from varsearch.policy import Policy, ScalePolicy, TokenPruning
from varsearch.target import ModelSpec

INFINITY = (0.4, 0.5, 1.0, 1.0)
"""Pruning ratios of Infinity's last four scales of 13."""

HART = (0.5, 0.75)
"""Pruning ratios of HART's last two scales of 14; the paper reports that it does not survive skipped scales."""

MIDDLE = (3 / 32, 28 / 32)
"""Infinity prunes layers 3 to 27 of 32; HART prunes all, (0, 1)."""


def fastvar(spec: ModelSpec, ratios: Sequence[float] = INFINITY, layers: tuple[float, float] = MIDDLE) -> Policy:
    """The policy with these pruning ratios.

    Args:
        spec: the model's shape.
        ratios: of the last scales, the share of tokens that is pruned, a multiple of 1/80; 1 skips the scale.
        layers: where the pruned layers begin and end, as parts of all layers.

    Raises:
        UsageError: no scale is left whose outputs could stand in for pruned tokens.
    """
    full = len(spec.scales) - len(ratios)
    if full < 1:
        raise UsageError(f"{len(ratios)} ratios for the {len(spec.scales)} scales of {spec.name}: one must run in full")
    first, end = (round(part * spec.n_layers) for part in layers)
    pruned = (
        ScalePolicy(run=False)
        if ratio == 1
        else ScalePolicy(tokens=TokenPruning(keep=1 - ratio, first_layer=first, last_layer=end - 1))
        for ratio in ratios
    )
    dense = Policy.dense(spec.n_layers, len(spec.scales))
    return Policy(layers=dense.layers, scales=(*dense.scales[:full], *pruned))
