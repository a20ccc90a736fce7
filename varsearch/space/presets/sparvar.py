"""SparVAR (arXiv 2602.04361): keys chosen at one scale for the later ones, and local windows in the late layers.

The published constants are those of Infinity's 13 scales and of its `bound_layer` 10; on other models they keep their
proportion. The windows of the last scales keep their sides.
"""

from __future__ import annotations

from varsearch.policy import CrossScale, LayerPolicy, Policy, ScalePolicy, SparseAttention
from varsearch.target import ModelSpec

SINKS, LOCAL, SCALES = 5, 5, 13
"""Of 13 scales the first five are sinks, and the last five are seen through windows."""

RADII = (0, 0, 1, 2, 3)
"""Of those windows, whose sides are 1, 1, 3, 5 and 7 cells. The radii of the last three are also those of the
neighbourhood around chosen keys."""


def sparvar(spec: ModelSpec, keys: float = 0.2, bound: float = 1 / 3) -> Policy:
    """The policy of one strength; the paper keeps a fifth of the keys. It decides while it runs.

    Args:
        spec: of the model.
        keys: share of the decision scale's keys that each head and group of queries keeps.
        bound: share of the layers, the first ones, that choose keys; the others have windows. Published are 11 of 32
            (Infinity-2B) and of 40 (8B).

    Raises:
        ValidationError: `keys` is not a multiple of 1/80.
    """
    n = len(spec.scales)
    sinks, local = max(1, round(n * SINKS / SCALES)), min(len(RADII), max(3, round(n * LOCAL / SCALES)))
    decision = max(0, n - 3)
    chosen = CrossScale(
        decision_scale=decision,
        keys=keys,
        sink_scales=sinks,
        radius=RADII[decision - n :],
        groups=min(8, spec.tokens[decision]),
    )
    first = max(sinks, n - local)
    radii = tuple(RADII[j - n] if j >= first else None for j in range(n))
    window = tuple((radii[: k + 1] if k >= first else None,) * spec.n_heads for k in range(n))
    early, late = SparseAttention(cross_scale=chosen), SparseAttention(window=window)
    n_early = round(bound * spec.n_layers)
    layers = tuple(LayerPolicy(attention=early if i < n_early else late) for i in range(spec.n_layers))
    return Policy(layers=layers, scales=(ScalePolicy(),) * n)
