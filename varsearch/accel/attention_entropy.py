"""Attention entropy: the signal by which ToProVAR (arXiv 2602.22948) chooses tokens and starts to prune.

A low entropy marks a query that looks at few keys. Entropies are noted while a layer runs a scale in full: later scales
prune the same layer by them, and images are asked for their share of low ones. They are means over heads, over all keys
that the cache offers, whatever windows attention then uses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from varsearch.kernels.attention_entropy import attention_entropy
from varsearch.models.seams import KVView, LayerState, Observe
from varsearch.policy import Policy


def observe(paths: Sequence[Policy], scale: int, layer: int) -> Observe | None:
    """Notes the entropies of `layer` at `scale` if a later scale prunes by them or images are asked by them.

    `paths` are what the images at this scale can go through; they differ in later scales only.
    """
    if paths[0].prunes(scale, layer):
        return None
    scored = any(
        tokens is not None
        and tokens.score == "entropy"
        and path.prunes(k, layer)
        and path.restore_scale(k, layer) == scale
        for path in paths
        for k, tokens in enumerate(s.tokens for s in path.scales)
    )
    asked = any(d.after == scale and d.feature == "low_entropy" for d in paths[0].decisions)
    return note_entropy if scored or asked else None


def note_entropy(q_BHLC: Tensor, views: tuple[KVView, ...], state: LayerState) -> None:
    """Keeps the entropy of each token's attention for all branches of the layer."""
    parts = [
        attention_entropy(q_BHLC if view.heads is None else q_BHLC[:, list(view.heads)], view.k_BHSC) for view in views
    ]
    entropy_BL = torch.cat(parts, dim=1).mean(1)
    for branch in (state.attn, state.between, state.ffn):
        branch.entropy_BL = entropy_BL
