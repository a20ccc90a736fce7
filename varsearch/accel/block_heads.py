"""Tables of requests by blocks; and windows and bands of all heads of a layer as one request.

Where keys and queries are complete the blocks come from `block_lists`. After pruning or eviction rows and heads differ;
then all blocks are computed, under the places of what remains.

Shape suffixes: B rows, H heads, L queries, S keys, C head dim, M places of queries in blocks, K scales.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from varsearch.accel.banded_attention import Band, per_scale
from varsearch.accel.block_lists import blocks_of
from varsearch.accel.sparse_attention import Pattern, Window
from varsearch.accel.token_maps import Array, Maps, Sizes
from varsearch.errors import TargetError
from varsearch.kernels.block_attention import (
    BLOCK,
    SCALE_BITS,
    SIDE_BITS,
    AttentionInputs,
    BlockList,
    Geometry,
    Implementation,
    KVEntries,
    QueryBlocks,
    attend,
)
from varsearch.models.seams import AttentionMemory, KVView
from varsearch.target import MAX_SIDE


class BlockHeads:
    """The `Attend` of heads that see by place, in one launch for all heads of a view."""

    def __init__(self, patterns: tuple[Pattern, ...], maps: Maps, implementation: Implementation) -> None:
        self.patterns, self.maps, self.implementation = patterns, maps, implementation
        self._tables = functools.cache(self._made)

    def __call__(self, q_BHLC: Tensor, pos_BL: Tensor, views: tuple[KVView, ...], memory: AttentionMemory) -> Tensor:
        if views[0].heads is None:
            return self._view(q_BHLC, pos_BL, views[0])
        out_BHLC = torch.empty_like(q_BHLC)
        for view in views:
            out_BHLC[:, view.place] = self._view(q_BHLC[:, view.place], pos_BL, view)
        return out_BHLC

    def _view(self, q_BHLC: Tensor, pos_BL: Tensor, view: KVView) -> Tensor:
        tables = self._tables(view.heads or tuple(range(len(self.patterns))), q_BHLC.device)
        return attend(tables.request(q_BHLC, pos_BL, view), self.implementation).out_BHLC

    def _made(self, heads: tuple[int, ...], device: torch.device) -> BlockTables:
        return BlockTables([self.patterns[h] for h in heads], self.maps, device)


class BlockTables:
    """What heads with these patterns need on a device; made once per plan."""

    def __init__(self, patterns: Sequence[Pattern], maps: Maps, device: torch.device) -> None:
        self.patterns, self.maps, self.device = tuple(patterns), maps, device
        rules = [rule for pattern in patterns for rule in pattern]
        self.sizes_K2 = self._tensor(np.array(maps.sizes))
        self.radius_HK = self._reaches(Window, [2 * MAX_SIDE] * len(maps.sizes), rules)
        self.width_HK = self._reaches(Band, [h * w for h, w in maps.sizes], rules)
        if self.width_HK is not None and max(h * w for h, w in maps.sizes) ** 2 >= 2**31:
            raise TargetError(f"bands on maps of more than {int(2**15.5)} tokens do not fit the kernel's integers")

    def request(self, q_BHLC: Tensor, pos_BL: Tensor, view: KVView) -> AttentionInputs:
        """Attention of queries at these positions to a view of these heads."""
        if self.maps.complete(pos_BL, view):
            order, blocks, geometry, index, pairs = self._complete
            return AttentionInputs(
                q_BHLC, KVEntries(view.k_BHSC, view.v_BHSC, index_BHGN=index), None, order, blocks, geometry, pairs
            )
        cell_T = self._cell_T
        geometry = self._geometry(cell_T[pos_BL.long()], cell_T[view.positions().long()])
        return AttentionInputs(q_BHLC, KVEntries(view.k_BHSC, view.v_BHSC), geometry=geometry)

    @functools.cached_property
    def _complete(self) -> tuple[QueryBlocks, BlockList, Geometry, Tensor | None, int]:
        found, cells, maps = blocks_of(self.patterns, self.maps), cell_codes(self.maps.sizes), self.maps
        key_cells = cells[maps.key_positions()]
        index = None
        if found.key_S is not None:
            key_cells, index = key_cells[found.key_S], self._tensor(found.key_S)[None, None, None]
        # What lies at empty places is read by nobody.
        query_cells = cells[maps.query_positions()][found.query_M]
        index_HQN, full_HQ, count_HQ = (self._tensor(t)[None] for t in (found.index_HQN, found.full_HQ, found.count_HQ))
        geometry = self._geometry(self._tensor(query_cells)[None], self._tensor(key_cells)[None, None])
        blocks = BlockList(index_HQN, full_HQ, count_HQ)
        return QueryBlocks(self._tensor(found.query_M)), blocks, geometry, index, found.pairs

    @functools.cached_property
    def _cell_T(self) -> Tensor:
        return self._tensor(cell_codes(self.maps.sizes))

    def _geometry(self, query_cell_BM: Tensor, key_cell_BHN: Tensor) -> Geometry:
        height, width = self.maps.sizes[self.maps.scale]
        return Geometry(query_cell_BM, key_cell_BHN, self.sizes_K2, self.radius_HK, self.width_HK, height, width)

    def _reaches(self, kind: type, whole: list[int], rules: Sequence[object]) -> Tensor | None:
        """Each head's reach on each scale's map by the rule of this kind; None where no head has one."""
        if not any(isinstance(rule, kind) for rule in rules):
            return None
        table_HK = np.tile(np.array(whole), (len(self.patterns), 1))
        for h, pattern in enumerate(self.patterns):
            for rule in pattern:
                if isinstance(rule, kind):
                    reach = per_scale(rule.reach, self.maps.scale)
                    table_HK[h, : len(reach)] = [
                        most if r is None else min(r, most) for r, most in zip(reach, whole, strict=False)
                    ]
        return self._tensor(table_HK)

    def _tensor(self, table: Array) -> Tensor:
        return on(self.device, table)


class GroupBlocks(NamedTuple):
    """Runs of queries that each have a list of keys, partly known and partly chosen while the model runs.

    Args:
        queries: each run in blocks of its own.
        always_GN: indices of the keys that a run sees whatever is chosen, and anything behind them.
        length_BHG: how many keys each run sees, those that it chooses among them.
        pairs: pairs of a query and a key that one head computes, in whole blocks.
    """

    queries: QueryBlocks
    always_GN: Tensor
    length_BHG: Tensor
    pairs: int

    @classmethod
    def of(
        cls, bounds: Sequence[tuple[int, int]], always: Sequence[Array], n_chosen: int, device: torch.device
    ) -> GroupBlocks:
        """Runs of queries by their bounds, the indices of the keys that they know, and how many they choose."""
        query, group, pairs = [], [], 0
        lengths = [n_chosen + len(part) for part in always]
        for g, ((first, end), length) in enumerate(zip(bounds, lengths, strict=True)):
            n_blocks = -(-(end - first) // BLOCK)
            query.append(np.pad(np.arange(first, end), (0, n_blocks * BLOCK - (end - first)), constant_values=-1))
            group += [g] * n_blocks
            pairs += n_blocks * BLOCK * -(-length // BLOCK) * BLOCK
        always_GN = np.stack([np.pad(part, (0, max(lengths) - n_chosen - len(part))) for part in always])
        query_M, group_Q, known_GN, length_G = (
            on(device, table) for table in (np.concatenate(query), np.array(group), always_GN, np.array(lengths))
        )
        return cls(QueryBlocks(query_M, group_Q), known_GN, length_G[None, None], pairs)


def on(device: torch.device, table: Array) -> Tensor:
    """A table of integers as a tensor of int32."""
    return torch.from_numpy(np.ascontiguousarray(table, dtype=np.int32)).to(device)


@functools.lru_cache(maxsize=64)
def cell_codes(sizes: Sizes) -> Array:
    """The cell of each position as one number; see `block_attention`."""
    scale, y, x = np.array([(k, y, x) for k, (h, w) in enumerate(sizes) for y in range(h) for x in range(w)]).T
    return scale << SCALE_BITS | y << SIDE_BITS | x
