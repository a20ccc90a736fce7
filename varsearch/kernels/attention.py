"""Attention in which queries see only some keys: the definition, and a version that skips what is not seen.

Shape suffixes: B rows, H heads, L queries, S keys, C head dim. Queries come scaled; the softmax takes plain products.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Tile(NamedTuple):
    """Queries that are computed together, the keys that at least one of them sees, and who sees what.

    `visible_LS` is None where every query of the tile sees every key of it.
    """

    query_L: Tensor
    key_S: Tensor
    visible_LS: Tensor | None


def masked_attention(q_BHLC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor, visible: Tensor) -> Tensor:
    """Softmax attention over the visible keys, (B, H, L, C); `visible` broadcasts to (B, H, L, S).

    A query that sees no key gets zeros.
    """
    return F.scaled_dot_product_attention(q_BHLC, k_BHSC, v_BHSC, attn_mask=visible, scale=1.0)


def tiled_attention(q_BHLC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor, tiles: tuple[Tile, ...]) -> Tensor:
    """Equals `masked_attention` with the tiles' visibility, and computes only the tiles; zeros outside of them."""
    out_BHLC = torch.zeros_like(q_BHLC)
    for query_L, key_S, visible_LS in tiles:
        out_BHLC[:, :, query_L] = F.scaled_dot_product_attention(
            q_BHLC[:, :, query_L], k_BHSC[:, :, key_S], v_BHSC[:, :, key_S], attn_mask=visible_LS, scale=1.0
        )
    return out_BHLC


def take(t_BHSC: Tensor, index_BHN: Tensor) -> Tensor:
    """Each row's and head's own choice of entries, (B, H, N, C)."""
    return t_BHSC.gather(2, index_BHN[..., None].expand(-1, -1, -1, t_BHSC.shape[3]))
