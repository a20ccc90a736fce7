"""Which blocks of keys each block of queries meets, from windows and bands, without a matrix of pairs.

A wide window of a large map touches more blocks in raster order, where a block is a row or less, than if blocks are
squares. So tokens of a map are blocked in the order that needs the fewest: raster, tiles, or a Hilbert curve. The
kernel reads and writes them in that order by index; what lies in memory keeps its own, and nothing has to be undone.

How many queries of a block see a key is a sum over a box of a map (or an interval of it), so the blocks of all heads
come from one such sum per pair of scales and reach. All tables are integers, made on the host once per plan.

Shape suffixes: H heads, L queries, M their places in blocks, S keys in order, Q blocks of queries, N places in a list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from varsearch.accel.banded_attention import Band, per_scale
from varsearch.accel.token_maps import Array, Maps
from varsearch.kernels.block_attention import BLOCK

TILE = 8
"""Side of a tile: its cells are a block."""

Size = tuple[int, int]


def raster(size: Size) -> Array:
    """Row after row."""
    return np.arange(size[0] * size[1])


def tiles(size: Size) -> Array:
    """Squares of `TILE` cells a side, each in raster order, as they are themselves."""
    y, x = divmod(raster(size), size[1])
    return np.lexsort((x, y, x // TILE, y // TILE))


def hilbert(size: Size) -> Array:
    """Along the Hilbert curve of the smallest square that holds the map and has a side of a power of two."""
    y, x = divmod(raster(size), size[1])
    side = 1 << (max(size) - 1).bit_length()
    distance, step = np.zeros_like(x), side // 2
    while step:
        right, below = (x & step > 0).astype(int), (y & step > 0).astype(int)
        distance += step * step * ((3 * right) ^ below)
        # Each quarter is the curve again, turned so that ends meet.
        turn, flip = below == 0, (below == 0) & (right == 1)
        x, y = np.where(flip, side - 1 - x, x), np.where(flip, side - 1 - y, y)
        x, y = np.where(turn, y, x), np.where(turn, x, y)
        step //= 2
    return distance.argsort(kind="stable")


ORDERS: dict[str, Callable[[Size], Array]] = {"raster": raster, "tiles": tiles, "hilbert": hilbert}


@lru_cache(maxsize=256)
def order_of(name: str, size: Size) -> Array:
    """Raster indices of a map's cells in this order."""
    return ORDERS[name](size)


class Blocks(NamedTuple):
    """What is computed at one scale.

    Args:
        order: of the tokens of each map.
        query_M: raster index of the query at each place, -1 at places that stay empty.
        key_S: index, among complete keys, of each key in order; None where that is its own index.
        index_HQN: blocks of keys, those seen in full first.
        full_HQ: how many those are.
        count_HQ: how many blocks there are.
    """

    order: str
    query_M: Array
    key_S: Array | None
    index_HQN: Array
    full_HQ: Array
    count_HQ: Array

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key in these blocks, over all heads."""
        return int(self.count_HQ.sum()) * BLOCK * BLOCK


Rules = tuple[object, ...]
"""Windows and bands; see `sparse_attention.Pattern`."""


@lru_cache(maxsize=4096)
def blocks_of(patterns: tuple[Rules, ...], maps: Maps) -> Blocks:
    """The blocks of heads with these patterns, in the order that needs the fewest."""
    return min((in_order(patterns, maps, name) for name in ORDERS), key=lambda found: found.pairs)


def in_order(patterns: Sequence[Rules], maps: Maps, order: str) -> Blocks:
    """The blocks of heads with these patterns, in this order."""
    kinds = {pattern: _seen(pattern, maps, order) for pattern in dict.fromkeys(patterns)}
    any_HQB, all_HQB = (np.stack([kinds[pattern][i] for pattern in patterns]) for i in (0, 1))
    if maps.n_keys % BLOCK:
        # The kernel masks what lies behind the last key in blocks seen in part.
        all_HQB = all_HQB.copy()
        all_HQB[..., -1] = False
    full = any_HQB & all_HQB
    index_HQN = np.where(full, 0, np.where(any_HQB, 1, 2)).argsort(axis=-1, kind="stable")
    count_HQ = any_HQB.sum(-1)
    size = maps.sizes[maps.scale]
    query_L = order_of(order, size)
    query_M = np.pad(query_L, (0, -len(query_L) % BLOCK), constant_values=-1)
    starts = _starts(maps)
    key_S = np.concatenate([starts[j] + order_of(order, maps.sizes[j]) for j in starts])
    return Blocks(
        order,
        query_M,
        None if order == "raster" else key_S,
        index_HQN[..., : max(1, count_HQ.max())],
        full.sum(-1),
        count_HQ,
    )


def _starts(maps: Maps) -> dict[int, int]:
    """Index of the first key of each scale that is seen."""
    found, start = {}, 0
    for j in maps.run:
        if j <= maps.scale:
            found[j] = start
            start += maps.sizes[j][0] * maps.sizes[j][1]
    return found


@lru_cache(maxsize=4096)
def _seen(pattern: Rules, maps: Maps, order: str) -> tuple[Array, Array]:
    """Whether any, and whether each pair of a block is seen, (Q, B); where two rules meet, any is an upper bound."""
    own, starts = maps.sizes[maps.scale], _starts(maps)
    n_queries, n_keys = -(-own[0] * own[1] // BLOCK), -(-maps.n_keys // BLOCK)
    some, every = np.zeros((n_queries, n_keys), dtype=bool), np.ones((n_queries, n_keys), dtype=bool)
    for j, start in starts.items():
        end = start + maps.sizes[j][0] * maps.sizes[j][1]
        part = slice(start // BLOCK, -(-end // BLOCK))
        found = [_piece(own, maps.sizes[j], start % BLOCK, _reach(rule, maps.scale, j), order) for rule in pattern]
        some[:, part] |= np.logical_and.reduce([one for one, _ in found]) if found else True
        every[:, part] &= np.logical_and.reduce([each for _, each in found]) if found else True
    return some, every


Reached = tuple[type, int | None]
"""A kind of rule and its reach on one map; None is the whole map."""


def _reach(rule: object, scale: int, j: int) -> Reached:
    return type(rule), per_scale(rule.reach, scale)[j]  # type: ignore[attr-defined]


@lru_cache(maxsize=2**14)
def _piece(own: Size, size: Size, offset: int, reached: Reached, order: str) -> tuple[Array, Array]:
    """The blocks of one map's keys, of which the first is key `offset` of its block: any and each pair, (Q, b)."""
    kind, reach = reached
    length, count = own[0] * own[1], size[0] * size[1]
    edges = [0, *range(BLOCK - offset, count, BLOCK)]
    members_Q1 = np.minimum(BLOCK, length - np.arange(0, length, BLOCK))[:, None]
    if reach is None:
        whole = np.ones((len(members_Q1), len(edges)), dtype=bool)
        return whole, whole
    seen_QS = (_in_band if kind is Band else _in_window)(own, size, reach, order)[:, order_of(order, size)]
    some = np.maximum.reduceat(seen_QS, edges, axis=1) > 0
    return some, np.minimum.reduceat(seen_QS, edges, axis=1) == members_Q1


def _in_window(own: Size, size: Size, radius: int, order: str) -> Array:
    """How many queries of each block see each cell of a map, (Q, S)."""
    (height, width), (rows, columns) = own, size
    y, x = divmod(order_of(order, own), width)
    block = np.arange(height * width) // BLOCK
    n_blocks = int(block[-1]) + 1
    place = (block * rows + (2 * y + 1) * rows // (2 * height)) * columns + (2 * x + 1) * columns // (2 * width)
    image = np.bincount(place, minlength=n_blocks * rows * columns).reshape(n_blocks, rows, columns)
    for axis, n in ((1, rows), (2, columns)):
        image = _within(image, np.arange(n) - radius, np.arange(n) + radius + 1, axis)
    return image.reshape(n_blocks, -1)


def _within(image: Array, first: Array, end: Array, axis: int) -> Array:
    """Sums from each `first` to before each `end` along an axis."""
    n = image.shape[axis]
    pad = [(0, 0)] * image.ndim
    pad[axis] = (1, 0)
    total = np.pad(image.cumsum(axis), pad)
    return total.take(end.clip(0, n), axis) - total.take(first.clip(0, n), axis)


def _in_band(own: Size, size: Size, width: int, order: str) -> Array:
    """How many queries of each block see each cell of a map in raster order, (Q, S)."""
    length, count = own[0] * own[1], size[0] * size[1]
    query, block = order_of(order, own), np.arange(length) // BLOCK
    # Cells strictly between these bounds are seen.
    first = (query * count // length - width + 1).clip(0, count)
    end = (-(-query * count // length) + width).clip(0, count)
    end = np.maximum(first, end)
    change = np.zeros((int(block[-1]) + 1, count + 1), dtype=int)
    np.add.at(change, (block, first), 1)
    np.add.at(change, (block, end), -1)
    return change[:, :count].cumsum(1)
