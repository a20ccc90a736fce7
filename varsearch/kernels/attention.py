"""Attention in which queries see only some keys, by skipping what is not seen.

Shape suffixes: B rows, H heads, L queries, S keys, N keys of a list, C head dim. Queries come scaled; the softmax takes
plain products, of which `attention` computes the parts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from varsearch.kernels.attention_backends import DEFAULT, Attention


class Tile(NamedTuple):
    """Queries that are computed together, the keys that at least one of them sees, and who sees what.

    `bias_LS` is 0 where a query sees a key and -inf elsewhere; None where every query of the tile sees every key of it.
    A boolean mask would be turned into this at each call, which costs a quarter of the time.
    """

    query_L: Tensor
    key_S: Tensor
    bias_LS: Tensor | None


class KeyList(NamedTuple):
    """A run of queries, `first` to `end`, and the keys that each row and head of it sees."""

    first: int
    end: int
    index_BHN: Tensor


def tiled_attention(
    q_BHLC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor, tiles: tuple[Tile, ...], attention: Attention = DEFAULT
) -> Tensor:
    """Equals attention under a mask with the tiles' visibility, and computes only the tiles; zeros outside of them."""
    out_BHLC = torch.zeros_like(q_BHLC)
    for query_L, key_S, bias_LS in tiles:
        q, k, v = (t.index_select(2, index) for t, index in ((q_BHLC, query_L), (k_BHSC, key_S), (v_BHSC, key_S)))
        out_BHLC[:, :, query_L] = attention(q, k, v, bias_LS)
    return out_BHLC


def listed_attention(
    q_BHLC: Tensor, k_BHSC: Tensor, v_BHSC: Tensor, lists: Iterable[KeyList], attention: Attention = DEFAULT
) -> Tensor:
    """Attention of runs of queries, which cover all queries, to the keys of their lists: each gathered once."""
    rows, heads, length = k_BHSC.shape[:3]
    starts_BH1 = torch.arange(0, rows * heads * length, length, device=q_BHLC.device).view(rows, heads, 1)
    # Whole entries are copied: a gather along one dimension would move them number by number.
    k_MC, v_MC = k_BHSC.flatten(0, 2), v_BHSC.flatten(0, 2)
    out_BHLC = torch.empty_like(q_BHLC)
    for first, end, index_BHN in lists:
        index_M = (index_BHN + starts_BH1).flatten()
        k, v = (t.index_select(0, index_M).unflatten(0, index_BHN.shape) for t in (k_MC, v_MC))
        out_BHLC[:, :, first:end] = attention(q_BHLC[:, :, first:end], k, v)
    return out_BHLC
