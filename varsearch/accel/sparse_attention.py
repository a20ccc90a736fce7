"""Windowed attention: a query sees the neighbourhood of its own place on the map of every scale.

Local windows on every earlier map are LiteVAR's (arXiv 2411.17178); its windows are bands of the raster order,
these are squares of the map, so that a row's end is not next to the following row's start. Places, not array
indices, decide who sees whom: after pruning or eviction every entry still has its original position.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from varsearch.accel.scale_skipping import run_scales
from varsearch.kernels.attention import Tile, masked_attention, tiled_attention
from varsearch.models.seams import Attend, KVView, dense_attention
from varsearch.policy import Policy
from varsearch.target import ModelSpec

Sizes = tuple[tuple[int, int], ...]
Array = npt.NDArray[Any]


def attend(policy: Policy, spec: ModelSpec, scale: int, layer: int) -> Attend:
    """Attention of `layer` at `scale`: windowed where the policy has windows, dense otherwise."""
    window = policy.layers[layer].attention.window
    if not window or all(radius is None for radius in window[scale]):
        return dense_attention
    return Windowed(window[scale], spec.scales, run_scales(policy), scale)


class Windowed:
    """Attention with one radius per head; None is full attention.

    Where keys and queries are complete (no pruning, no eviction) the work outside the windows is skipped, tile by
    tile. Otherwise the remaining entries differ between rows and heads, and the window masks them.
    """

    def __init__(self, radius_H: tuple[int | None, ...], sizes: Sizes, run: tuple[int, ...], scale: int) -> None:
        self.radius_H, self.scale = radius_H, scale
        self.maps = Maps(sizes, run, scale)
        self.tiles: dict[int, tuple[Tile, ...]] = {}

    def __call__(self, q_BHLC: Tensor, pos_BL: Tensor, views: tuple[KVView, ...]) -> Tensor:
        out_BHLC = torch.empty_like(q_BHLC)
        for view in views:
            heads = view.heads or tuple(range(q_BHLC.shape[1]))
            for radius in sorted({self.radius_H[h] for h in heads}, key=str):
                place = [i for i, h in enumerate(heads) if self.radius_H[h] == radius]
                chosen = [heads[i] for i in place]
                out_BHLC[:, chosen] = self._group(q_BHLC[:, chosen], pos_BL, _heads(view, place), radius)
        return out_BHLC

    def _group(self, q_BHLC: Tensor, pos_BL: Tensor, view: KVView, radius: int | None) -> Tensor:
        if radius is None:
            return dense_attention(q_BHLC, pos_BL, (view,))
        if len(pos_BL) == 1 and view.k_BHSC.shape[2] == self.maps.n_keys:
            if radius not in self.tiles:
                self.tiles[radius] = tuple(tile_tensors(part, q_BHLC.device) for part in tiles(self.maps, radius))
            return tiled_attention(q_BHLC, view.k_BHSC, view.v_BHSC, self.tiles[radius])
        seen = visible(self.maps, radius, pos_BL[:, None], view.positions())
        return masked_attention(q_BHLC, view.k_BHSC, view.v_BHSC, seen)


def _heads(view: KVView, place: list[int]) -> KVView:
    """The part of `view` at these indices of its head dimension, as a view of all its heads."""
    pos_parts = tuple(p if p.shape[1] == 1 else p[:, place] for p in view.pos_parts)
    return KVView(view.k_BHSC[:, place], view.v_BHSC[:, place], pos_parts)


class Maps(NamedTuple):
    """Sizes of the token maps of all scales, the scales that run, and the scale whose queries attend."""

    sizes: Sizes
    run: tuple[int, ...]
    scale: int

    @property
    def n_keys(self) -> int:
        """Number of keys when nothing was pruned or evicted."""
        return sum(self.sizes[k][0] * self.sizes[k][1] for k in self.run if k <= self.scale)


@lru_cache(maxsize=256)
def geometry(maps: Maps) -> tuple[Array, Array, Array]:
    """Per token of the sequence: its scale (T), its cell (T, 2), and its place on every map up to `scale` (T, K, 2).

    The place on another map is the cell under the token's centre; integers only, so it is the same everywhere.
    """
    table_T3 = np.array([(k, y, x) for k, (h, w) in enumerate(maps.sizes) for y in range(h) for x in range(w)])
    scale_T, yx_T2, size_K2 = table_T3[:, 0], table_T3[:, 1:], np.array(maps.sizes)
    place_TK2 = (2 * yx_T2[:, None] + 1) * size_K2[None, : maps.scale + 1] // (2 * size_K2[scale_T][:, None])
    return scale_T, yx_T2, place_TK2


def visible(maps: Maps, radius: int, query_BHL: Tensor, key_BHS: Tensor) -> Tensor:
    """Whether each query sees each key, by their positions in the full token sequence, (B, H, L, S) bool."""
    key_BHS, query_BHL = key_BHS.long(), query_BHL.long()
    scale_T, yx_T2, place_TK2 = (torch.from_numpy(array).to(key_BHS.device) for array in geometry(maps))
    place_BHLK2, scale_BH1S = place_TK2[query_BHL], scale_T[key_BHS][:, :, None]
    shape = torch.broadcast_shapes((*place_BHLK2.shape[:3], 1), scale_BH1S.shape)
    index_BHLS2 = scale_BH1S.expand(shape)[..., None].expand(*shape, 2)
    place_BHLS2 = place_BHLK2.expand(*shape[:3], -1, -1).gather(3, index_BHLS2)
    seen: Tensor = ((place_BHLS2 - yx_T2[key_BHS][:, :, None]).abs() <= radius).all(-1)
    return seen


@lru_cache(maxsize=1024)
def tiles(maps: Maps, radius: int) -> tuple[tuple[Array, Array, Array], ...]:
    """The tiles of complete maps: squares of queries, about as wide as the window, with the keys they see.

    Each is (queries, keys, visibility): the fields of `Tile` as arrays.
    """
    (height, width), side = maps.sizes[maps.scale], max(4, 2 * radius)
    starts = np.cumsum([0, *(h * w for h, w in maps.sizes)])
    scale_T, yx_T2, place_TK2 = geometry(maps)
    key_S = np.concatenate([np.arange(starts[k], starts[k + 1]) for k in maps.run if k <= maps.scale])
    index_hw = np.arange(height * width).reshape(height, width)
    found = []
    for top in range(0, height, side):
        for left in range(0, width, side):
            query_L = index_hw[top : top + side, left : left + side].ravel()
            place_LS2 = place_TK2[query_L + starts[maps.scale]][:, scale_T[key_S]]
            seen_LS = (abs(place_LS2 - yx_T2[key_S]) <= radius).all(-1)
            used_S = seen_LS.any(0).nonzero()[0]
            found.append((query_L, used_S, seen_LS[:, used_S]))
    return tuple(found)


def tile_tensors(tile: tuple[Array, Array, Array], device: torch.device) -> Tile:
    """The tile on `device`, without its visibility where that is complete."""
    query_L, key_S, visible_LS = (torch.from_numpy(part).to(device) for part in tile)
    return Tile(query_L, key_S, None if tile[2].all() else visible_LS)
