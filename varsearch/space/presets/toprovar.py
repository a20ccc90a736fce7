"""ToProVAR (arXiv 2602.22948): attention entropy says when an image starts to prune, in which layers, and which tokens.

An image prunes behind the first scale at which `tau` of its tokens have an entropy below the mean. A layer whose map of
entropies has no dominant component (first over second singular value near 1) is one of details and prunes most; early
and final layers see the whole and prune least. The text gives no value for `beta`, `alpha_min` and `alpha_max`; the
defaults here are ours. A token's chance to be pruned is alpha_min + (alpha_max - alpha_min) q, where q is the product
of the scale's depth, the layer's score and the token's entropy. Published, entropies add up to 1, so q is of the order
of 1 / tokens and all but alpha_min is lost; with the rank of the entropy in [0, 1] instead, the mean of q is half the
product of the other two, which gives the number of tokens that stay. Which do is settled by rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from varsearch.calibration import Calibration
from varsearch.errors import UsageError
from varsearch.policy import GRID, Action, Decision, Policy, ScalePolicy, TokenPruning
from varsearch.target import ModelSpec

REPRESENTATIVE = 6 / 13
"""Where among the scales the layers' scores are taken: scale 6 of 13."""


def toprovar(
    spec: ModelSpec,
    calibration: Calibration,
    tau: float = 0.4,
    beta: float | None = None,
    alpha_min: float = 0.1,
    alpha_max: float = 1.0,
) -> Policy:
    """The policy with these constants; only `tau` is published.

    Args:
        spec: the model's shape.
        calibration: of the model: its ratios of singular values, and how many images start where.
        tau: share of low entropies at which an image starts to prune.
        beta: how fast a layer's score exp(-beta (ratio - 1)) falls; None gives the median layer a score of 1/2.
        alpha_min: chance that a token is pruned whatever its entropy.
        alpha_max: chance that the token of the highest entropy is pruned in a layer of score 1 at the last scale.

    Raises:
        UsageError: the model has too few scales.
    """
    n = len(spec.scales)
    if n < 3:
        raise UsageError(f"ToProVAR asks in the second half of the scales, {spec.name} has {n}")
    scores = layer_scores(calibration.entropy_ratio[math.floor(REPRESENTATIVE * n)], beta)
    pruned = [
        _scale([1 - alpha_min - (alpha_max - alpha_min) * (k + 1) / n * score / 2 for score in scores])
        for k in range(n)
    ]
    asked = range(n // 2, n - 1)
    starting = _starting([calibration.low_entropy[k] for k in asked], tau)
    decisions = tuple(_start(k, tau, share, tuple(pruned[k + 1 :])) for k, share in zip(asked, starting, strict=True))
    dense = Policy.dense(spec.n_layers, n)
    return Policy(layers=dense.layers, scales=dense.scales, decisions=decisions)


def layer_scores(ratios: tuple[float, ...], beta: float | None) -> list[float]:
    """exp(-beta (ratio - 1)) per layer, 1 for layers of details and 0 for those that see the whole."""
    if beta is None:
        beta = math.log(2) / max(median(ratios) - 1, 1e-6)
    return [math.exp(-beta * max(ratio - 1, 0)) for ratio in ratios]


def _scale(keep: list[float]) -> ScalePolicy:
    shares = tuple(min(max(round(share * GRID), 1), GRID) / GRID for share in keep)
    if min(shares) == 1:
        return ScalePolicy()
    return ScalePolicy(tokens=TokenPruning(keep=min(shares), layer_keep=shares, score="entropy"))


def _starting(low_entropy: list[tuple[float, ...]], tau: float) -> Iterator[float]:
    """For each decision, the share of images that prune behind it among those that have not started before."""
    left: Sequence[int] = range(len(low_entropy[0]))
    for shares in low_entropy:
        stay = [n for n in left if shares[n] <= tau]
        yield round(GRID * (1 - len(stay) / len(left))) / GRID if left else 0.0
        left = stay


def _start(k: int, tau: float, share: float, scales: tuple[ScalePolicy, ...]) -> Decision:
    """Prunes behind scale `k` where the share of low entropies exceeds `tau`, in this share of the images."""
    stay, prune = Action(weights=(0,), share=1 - share), Action(weights=(1,), bias=-tau, share=share, scales=scales)
    return Decision(after=k, feature="low_entropy", actions=(stay, prune))
