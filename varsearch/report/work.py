"""Where a policy leaves work: arithmetic per layer and scale, beside dense."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cached_property

from varsearch.evaluators.trace import trace
from varsearch.models.image_model import ImageModel
from varsearch.policy import Policy
from varsearch.target import Target

BLOCK = re.compile(r"\w+\.blocks\.(\d+)(?:\.(?!ada_lin)|$)")
"""Modules inside a transformer block. AdaLN is left out: it runs once per generation, at no scale."""

Shares = tuple[tuple[float | None, ...], ...]
"""`[layer][scale]`, arithmetic of a policy over that of dense; None where a refiner runs the scale."""


class WorkLeft:
    """How much of dense's arithmetic in attention and feed-forward policies leave, by layer and scale.

    Args:
        model: only its shape matters; it may be on the meta device.
        target: its batch size and kernels count, its speed does not.
    """

    def __init__(self, model: ImageModel, target: Target) -> None:
        self.model, self.target = model, target

    def of(self, policy: Policy) -> Shares:
        """The shares of one policy.

        Raises:
            PolicyError: the policy does not fit the model.
            ModelError: the model's refiner is not there.
        """
        own, dense = self._work(policy), self._dense
        return tuple(
            tuple(None if policy.refined(k) else own[i, k] / dense[i, k] for k in range(len(policy.scales)))
            for i in range(len(policy.layers))
        )

    @cached_property
    def _dense(self) -> dict[tuple[int, int], int]:
        return self._work(Policy.dense(self.model.spec.n_layers, len(self.model.spec.scales)))

    def _work(self, policy: Policy) -> dict[tuple[int, int], int]:
        """FLOPs by layer and scale."""
        found: dict[tuple[int, int], int] = defaultdict(int)
        for op in trace(self.model, policy, self.target).ops:
            block = BLOCK.match(op.module)
            if block and op.scale is not None:
                found[int(block[1]), op.scale] += op.flops
        return found
