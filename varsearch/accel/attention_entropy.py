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
from varsearch.kernels.block_attention import AttentionInputs, Implementation, KVEntries, attend
from varsearch.models.seams import AttentionMemory, BranchMemory, KVView, LayerState, Observe
from varsearch.policy import Policy


def observe(paths: Sequence[Policy], scale: int, layer: int, note: Observe) -> Observe | None:
    """Has `note` keep the entropies of `layer` at `scale` if a later scale prunes by them or images are asked by them.

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
    return note if scored or asked else None


def note_entropy(q_BHLC: Tensor, views: tuple[KVView, ...], state: LayerState) -> None:
    """Keeps the entropy of each token's attention for all branches of the layer."""
    parts = [attention_entropy(q_BHLC[:, view.place], view.k_BHSC) for view in views]
    _keep(torch.cat(parts, dim=1), branches_of(state))


def ask_for_entropy(q_BHLC: Tensor, views: tuple[KVView, ...], state: LayerState) -> None:
    """Leaves `note_entropy` to the attention that follows, which is `WithEntropy`."""
    state.attention.noting = branches_of(state)


class WithEntropy:
    """Dense attention that gives its entropy in the same pass."""

    def __init__(self, implementation: Implementation) -> None:
        self.implementation = implementation

    def __call__(self, q_BHLC: Tensor, pos_BL: Tensor, views: tuple[KVView, ...], memory: AttentionMemory) -> Tensor:
        found = [self._view(q_BHLC[:, view.place], view) for view in views]
        _keep(torch.cat([entropy_BHL for _, entropy_BHL in found], dim=1), memory.noting)
        memory.noting = ()
        if len(views) == 1:
            return found[0][0]
        out_BHLC = torch.empty_like(q_BHLC)
        for view, (part_BHLC, _) in zip(views, found, strict=True):
            out_BHLC[:, view.place] = part_BHLC
        return out_BHLC

    def _view(self, q_BHLC: Tensor, view: KVView) -> tuple[Tensor, Tensor]:
        inputs = AttentionInputs(q_BHLC, KVEntries(view.k_BHSC, view.v_BHSC), entropy=True)
        out_BHLC, _, entropy_BHL = attend(inputs, self.implementation)
        assert entropy_BHL is not None, "it was asked for"
        return out_BHLC, entropy_BHL


def branches_of(state: LayerState) -> tuple[BranchMemory, ...]:
    """All branches of a layer."""
    return state.attn, state.between, state.ffn


def _keep(entropy_BHL: Tensor, branches: tuple[BranchMemory, ...]) -> None:
    entropy_BL = entropy_BHL.mean(1)
    for branch in branches:
        branch.entropy_BL = entropy_BL
