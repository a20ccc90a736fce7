"""Attention entropy: the signal by which ToProVAR (arXiv 2602.22948) chooses tokens and starts to prune.

A low entropy marks a query that looks at few keys. Two things are noted while a scale runs in full: each token's
entropy, by which a later scale prunes the same layer, and each image's share of tokens below the mean, which images are
asked by. Entropies are over all keys that the cache offers, whatever windows attention then uses, and means over heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from varsearch.kernels.attention_entropy import attention_entropy
from varsearch.models.seams import KVView, LayerState, Observe
from varsearch.policy import Policy


def observe(paths: Sequence[Policy], scale: int, layer: int, asked: bool) -> Observe | None:
    """What to note of the attention of `layer` at `scale`, if anything.

    Args:
        paths: what the images at this scale can go through.
        scale: index of the scale.
        layer: index of the layer.
        asked: whether images are asked for their share of low entropies after this scale.
    """
    scored = any(
        tokens is not None
        and tokens.score == "entropy"
        and path.prunes(k, layer)
        and path.restore_scale(k, layer) == scale
        for path in paths
        for k, tokens in enumerate(s.tokens for s in path.scales)
    )
    return Entropies(scored, asked) if scored or asked else None


@dataclass(frozen=True, slots=True)
class Entropies:
    """Keeps the entropies of all tokens for later scales, the share of low ones for a decision, or both."""

    scored: bool
    asked: bool

    def __call__(self, q_BHLC: Tensor, views: tuple[KVView, ...], state: LayerState) -> None:
        entropy_BL = mean_entropy(q_BHLC, views)
        if self.scored:
            state.attn.entropy_BL = state.ffn.entropy_BL = entropy_BL
        if self.asked:
            state.low_entropy_B = low_entropy(entropy_BL)


def mean_entropy(q_BHLC: Tensor, views: tuple[KVView, ...]) -> Tensor:
    """Entropy of each query's attention, mean over heads, (B, L)."""
    parts = [
        attention_entropy(q_BHLC if view.heads is None else q_BHLC[:, list(view.heads)], view.k_BHSC) for view in views
    ]
    return torch.cat(parts, dim=1).mean(1)


def low_entropy(entropy_BL: Tensor) -> Tensor:
    """Share of each row's tokens whose entropy lies below the row's mean, (B)."""
    return (entropy_BL < entropy_BL.mean(1, keepdim=True)).to(entropy_BL).mean(1)
