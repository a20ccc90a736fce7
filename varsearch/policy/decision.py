"""Decisions that each image takes for itself, from what it looks like so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from varsearch.policy.grid import GRID, Share
from varsearch.policy.scales import ScalePolicy
from varsearch.target import Frozen

FEATURES = {"high_frequency": 2, "low_entropy": 1}
"""Numbers per image that each kind of feature gives."""

Number = Annotated[float, Field(ge=-1e9, le=1e9)]


class Action(Frozen):
    """What an image may do, and the linear score by which it chooses.

    `scales` are the settings of all scales behind the decision; none leaves the policy's own. `share` is the part of
    the images that is expected to take this action: costs are predicted with it, images are not.
    """

    weights: tuple[Number, ...]
    bias: Number = 0.0
    share: Share
    scales: tuple[ScalePolicy, ...] = ()


class Decision(Frozen):
    """After scale `after` each image takes the action of the highest score, `weights . features + bias`.

    Features: "high_frequency" are SkipVAR's two, the mean difference of the edges of two small previews, decoded before
    and after this scale, and the share of the latter's spectrum beyond 0.4 of its highest frequency; "low_entropy" is
    ToProVAR's, the share of tokens whose attention entropy, mean over heads and over the layers that run the scale in
    full, lies below the image's mean. A standardiser is part of the weights.

    An image that takes another action than the first follows its scales to the end and is not asked again.
    """

    after: Annotated[int, Field(ge=0)]
    feature: Literal["high_frequency", "low_entropy"]
    actions: tuple[Action, ...] = Field(min_length=2, max_length=GRID)

    @model_validator(mode="after")
    def _actions_fit(self) -> Self:
        expected = FEATURES[self.feature]
        for i, action in enumerate(self.actions):
            if len(action.weights) != expected:
                raise ValueError(f"actions[{i}] has {len(action.weights)} weights, {self.feature} gives {expected}")
            if bool(action.scales) != bool(i):
                raise ValueError("the first action keeps the policy's own scales, and every other names its scales")
        if round(GRID * sum(action.share for action in self.actions)) != GRID:
            raise ValueError("the shares of the actions must add up to 1")
        return self


def largest_remainder(shares: Sequence[float], total: int) -> tuple[int, ...]:
    """Whole numbers that add up to `total`, in the proportion of `shares` (which need not add up to 1).

    What rounding down leaves goes to the largest remainders, the first of equal ones.
    """
    quotas = [share * total / sum(shares) for share in shares]
    counts = [int(quota + 1e-9) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return tuple(counts)
