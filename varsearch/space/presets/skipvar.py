"""SkipVAR (arXiv 2506.08908): after an early scale each image says which of the last scales it needs, and how.

The published classifier has two stages: the first chooses how many of the last scales are skipped, the second, where
none is, how many of them run without guidance. Here one linear classifier chooses among all of these, ordered by
strength: the stages ask the same two features, and an image takes one way in the end. Its numbers come from
`varsearch.evaluators.decisions.fit_skipvar`; the published ones belong to another model's images.
"""

from __future__ import annotations

from varsearch.calibration import Calibration
from varsearch.errors import UsageError
from varsearch.policy import Action, Decision, Policy, ScalePolicy
from varsearch.target import ModelSpec

LAST = 3
"""How many scales an image may do without, or run unguided, as published: the decision comes before them."""


def after(spec: ModelSpec) -> int:
    """The scale after which images are asked.

    Raises:
        UsageError: the model has too few scales.
    """
    if len(spec.scales) <= LAST + 1:
        raise UsageError(f"SkipVAR asks before the last {LAST} scales, {spec.name} has {len(spec.scales)} in all")
    return len(spec.scales) - LAST - 1


def untrained(spec: ModelSpec) -> Decision:
    """The decision whose weights are all 0: every image stays with the full scales."""
    full, unguided, skipped = ScalePolicy(), ScalePolicy(guidance="off"), ScalePolicy(run=False)
    ways = [(full,) * (LAST - n) + (other,) * n for other in (unguided, skipped) for n in range(1, LAST + 1)]
    actions = [Action(weights=(0, 0), share=1), *(Action(weights=(0, 0), share=0, scales=way) for way in ways)]
    return Decision(after=after(spec), feature="high_frequency", actions=tuple(actions))


def trained(spec: ModelSpec, calibration: Calibration, threshold: float) -> Decision:
    """The decision that was trained for images of this structural similarity with the full ones.

    Raises:
        UsageError: the model has too few scales.
    """
    after(spec)
    return calibration.skipvar[threshold]


def skipvar(spec: ModelSpec, decision: Decision) -> Policy:
    """The policy of a trained decision."""
    dense = Policy.dense(spec.n_layers, len(spec.scales))
    return Policy(layers=dense.layers, scales=dense.scales, decisions=(decision,))
