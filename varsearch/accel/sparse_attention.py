"""Local attention: which keys a query sees is fixed by where both lie.

Windows are squares of cells around the query's own place on every map: SparVAR's CSLA (arXiv 2602.04361), with a radius
per key scale and its sinks as scales without one. Bands are LiteVAR's, in `banded_attention`. Places, not array
indices, decide who sees whom: after pruning or eviction every entry still has its original position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varsearch.accel.banded_attention import Band, per_scale
from varsearch.accel.scale_skipping import run_scales
from varsearch.accel.token_maps import Array, Cells, Maps, look_up
from varsearch.kernels.attention import Tile, tiled_attention
from varsearch.kernels.attention_backends import DEFAULT, Attention
from varsearch.models.seams import Attend, AttentionMemory, KVView
from varsearch.policy import Policy, Reach
from varsearch.target import ModelSpec

NARROWEST, USUAL = 4, 8
"""Sides of a tile of queries: the least, and one that keeps a CPU busy. Smaller tiles save work and cost calls."""


@dataclass(frozen=True, slots=True)
class Window:
    """A radius in cells for the map of each key scale; None is the whole map."""

    reach: Reach

    def sees(self, maps: Maps, query: Cells, key: Cells) -> Any:
        """Whether each query sees each key; `query` and `key` broadcast.

        A query's place on another map is the cell under the query's centre.
        """
        radii = [max(maps.sizes[j]) if r is None else r for j, r in enumerate(per_scale(self.reach, maps.scale))]
        radius, (height, width) = look_up(radii, key.scale), maps.sizes[maps.scale]
        heights, widths = (look_up([size[axis] for size in maps.sizes], key.scale) for axis in (0, 1))
        dy = abs((2 * query.y + 1) * heights // (2 * height) - key.y)
        return (dy <= radius) & (abs((2 * query.x + 1) * widths // (2 * width) - key.x) <= radius)

    def query_tiles(self, maps: Maps) -> list[Array]:
        """Raster indices of the queries that share a tile: squares, on small maps no wider than the window."""
        height, width = maps.sizes[maps.scale]
        radii = [r for r in per_scale(self.reach, maps.scale) if r is not None]
        side = max(NARROWEST, min(USUAL, 2 * max(radii, default=0)), max(height, width) // 8)
        index = np.arange(height * width).reshape(height, width)
        corners = ((top, left) for top in range(0, height, side) for left in range(0, width, side))
        return [index[top : top + side, left : left + side].ravel() for top, left in corners]


Pattern = tuple[Window | Band, ...]
"""What a head sees: the keys that all of these show. The empty pattern is full attention."""


def attend(
    policy: Policy,
    spec: ModelSpec,
    scale: int,
    layer: int,
    local: Callable[[Pattern, Maps], LocalAttention],
    blocks: Callable[[tuple[Pattern, ...], Maps], Attend] | None = None,
) -> Attend | None:
    """Attention of `layer` at `scale` where the policy has windows or bands, else None.

    It is made by `blocks` of all heads at once where there is somebody for such requests, else of parts by `local`.
    """
    patterns = [pattern_of(policy, scale, layer, head) for head in range(spec.n_heads)]
    if not any(patterns):
        return None
    seen = (scale,) if spec.family == "mvar" else run_scales(policy)
    maps = Maps(spec.scales, seen, scale)
    if blocks is not None:
        return blocks(tuple(patterns), maps)
    return RaggedHeads([local(pattern, maps) for pattern in patterns])


def pattern_of(policy: Policy, scale: int, layer: int, head: int) -> Pattern:
    """The pattern of one head."""
    sparse = policy.layers[layer].attention
    window = sparse.window[scale][head] if sparse.window else None
    band = sparse.band[scale][head] if sparse.band else None
    return (() if window is None else (Window(window),)) + (() if band is None else (Band(band),))


class LocalAttention:
    """Attention of heads with one pattern.

    Where keys and queries are complete (no pruning, no eviction) the work outside the pattern is skipped, tile by
    tile. Otherwise the remaining entries differ between rows and heads, and the pattern masks them.
    """

    def __init__(self, pattern: Pattern, maps: Maps, attention: Attention = DEFAULT) -> None:
        self.pattern, self.maps, self.attention = pattern, maps, attention
        self.tiles: tuple[Tile, ...] | None = None

    def __call__(self, q_BHLC: Tensor, pos_BL: Tensor, view: KVView, memory: AttentionMemory) -> Tensor:
        if not self.pattern:
            return self.attention(q_BHLC, view.k_BHSC, view.v_BHSC)
        if self.maps.complete(pos_BL, view):
            if self.tiles is None:
                self.tiles = tuple(tile_tensors(*tile, like=q_BHLC) for tile in tiles(self.maps, self.pattern))
            return tiled_attention(q_BHLC, view.k_BHSC, view.v_BHSC, self.tiles, self.attention)
        seen = visible(self.maps, self.pattern, pos_BL[:, None], view.positions())
        return self.attention(q_BHLC, view.k_BHSC, view.v_BHSC, seen)


class RaggedHeads:
    """The `Attend` of heads each of which has its own local attention; those that have the same run together."""

    def __init__(self, heads: Sequence[LocalAttention]) -> None:
        self.heads = heads

    def __call__(self, q_BHLC: Tensor, pos_BL: Tensor, views: tuple[KVView, ...], memory: AttentionMemory) -> Tensor:
        if views[0].heads is None and len(set(self.heads)) == 1:
            return self.heads[0](q_BHLC, pos_BL, views[0], memory)
        out_BHLC = torch.empty_like(q_BHLC)
        for view in views:
            heads = view.heads or tuple(range(q_BHLC.shape[1]))
            for local in dict.fromkeys(self.heads[h] for h in heads):
                place = [i for i, h in enumerate(heads) if self.heads[h] is local]
                chosen, part = _index([heads[i] for i in place]), _heads(view, _index(place))
                out_BHLC[:, chosen] = local(q_BHLC[:, chosen], pos_BL, part, memory)
        return out_BHLC


def _index(place: list[int]) -> list[int] | slice:
    """These indices as a slice where they follow each other: a view instead of a copy."""
    run = range(place[0], place[-1] + 1)
    return slice(run.start, run.stop) if place == list(run) else place


def _heads(view: KVView, place: list[int] | slice) -> KVView:
    """The part of `view` at these indices of its head dimension, as a view of all its heads."""
    pos_parts = tuple(p if p.shape[1] == 1 else p[:, place] for p in view.pos_parts)
    return KVView(view.k_BHSC[:, place], view.v_BHSC[:, place], pos_parts)


def visible(maps: Maps, pattern: Pattern, query_L: Any, key_S: Any) -> Any:
    """Whether each query sees each key, by their positions in the full token sequence, (..., L, S) bool.

    `query_L` (..., L) and `key_S` (..., S) are both arrays or both tensors.
    """
    query, key = maps.cells(query_L).queries(), maps.cells(key_S).keys()
    seen = pattern[0].sees(maps, query, key)
    for rule in pattern[1:]:
        seen = seen & rule.sees(maps, query, key)
    return seen


@lru_cache(maxsize=256)
def tiles(maps: Maps, pattern: Pattern) -> tuple[tuple[Array, Array, Array | None], ...]:
    """The tiles of complete maps: queries near each other, with the keys that they see.

    Each has the fields of `Tile` as arrays. Queries that see nothing are in no tile.
    """
    found, keys = [], maps.key_positions()
    for query_L in pattern[0].query_tiles(maps):
        seen_LS = visible(maps, pattern, maps.query_positions()[query_L], keys)
        used_S = seen_LS.any(0).nonzero()[0]
        if len(used_S):
            bias_LS = np.where(seen_LS[:, used_S], np.float32(0), np.float32(-np.inf))
            found.append((query_L, used_S, bias_LS if bias_LS.any() else None))
    return tuple(found)


def tile_tensors(query_L: Array, key_S: Array, bias_LS: Array | None, like: Tensor) -> Tile:
    """The tile where `like` is, in its dtype."""
    query, key = (torch.from_numpy(index).to(like.device) for index in (query_L, key_S))
    return Tile(query, key, None if bias_LS is None else torch.from_numpy(bias_LS).to(like))
