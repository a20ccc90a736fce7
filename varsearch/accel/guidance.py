"""Guidance: branches computed for the conditional rows and reused for the unconditional ones, or no guidance.

Sharing attention between the halves of classifier-free guidance is LiteVAR's (arXiv 2411.17178); dropping the
unconditional half for late scales is SkipVAR's (arXiv 2506.08908). Once dropped the rows cannot come back: their
keys and values are missing.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from varsearch.models.seams import Branch, BranchMemory, Guidance, Sublayer
from varsearch.policy import Policy, ScalePolicy


def of_scale(scale: ScalePolicy) -> Guidance:
    """Whether the loop keeps unconditional rows at this scale."""
    return Guidance.OFF if scale.guidance == "off" else Guidance.FULL


def branch(policy: Policy, scale: int, layer: int, sublayer: Literal["attn", "ffn"], inner: Branch) -> Branch:
    """`inner`, computed once for both halves where the policy shares this sublayer."""
    chosen = policy.scales[scale].shared_attention if sublayer == "attn" else policy.scales[scale].shared_ffn
    return Shared(inner) if layer in chosen else inner


class Shared:
    """Runs `inner` on the conditional rows and gives its output to all rows."""

    def __init__(self, inner: Branch) -> None:
        self.inner = inner

    def __call__(self, fn: Sublayer, x_BLD: Tensor, pos_BL: Tensor, memory: BranchMemory, n_images: int) -> Tensor:
        y_BLD = self.inner(fn, x_BLD[:n_images], pos_BL[:n_images], memory, n_images)
        return y_BLD.repeat(len(x_BLD) // n_images, 1, 1)
