"""Banded attention: a query sees what is near its own place in the raster order of every map.

LiteVAR's multi-diagonal windows (arXiv 2411.17178): query i of L sees key j of another scale's L_j if
|i L_j / L - j| is less than a half-width of that pair of scales, layer and head. The published code multiplies the
logits outside by 0, which leaves those keys in the softmax with the weight of a middling logit, and computes all of
them; here they are outside the softmax and are not computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from varsearch.accel.token_maps import Array, Cells, Maps, look_up
from varsearch.policy import Reach

SHORTEST = 4
"""Queries of a tile at least. Shorter ones save a little work and cost a call each."""


@dataclass(frozen=True, slots=True)
class Band:
    """A half-width for each key scale; None is the whole map, 0 nothing of it."""

    reach: Reach

    def sees(self, maps: Maps, query: Cells, key: Cells) -> Any:
        """Whether each query sees each key; `query` and `key` broadcast."""
        tokens = [h * w for h, w in maps.sizes]
        length = tokens[maps.scale]
        widths = [tokens[j] if w is None else w for j, w in enumerate(per_scale(self.reach, maps.scale))]
        apart = abs(query.index * look_up(tokens, key.scale) - key.index * length)
        return apart < look_up(widths, key.scale) * length

    def query_tiles(self, maps: Maps) -> list[Array]:
        """Raster indices of the queries that share a tile: runs, or all where a map is seen in full or not at all."""
        length = maps.sizes[maps.scale][0] * maps.sizes[maps.scale][1]
        run = max(SHORTEST, length // 16) if any(per_scale(self.reach, maps.scale)) else length
        return [np.arange(first, min(first + run, length)) for first in range(0, length, run)]


def per_scale(reach: Reach, scale: int) -> tuple[int | None, ...]:
    """The reach on the map of each key scale 0..scale."""
    return reach if isinstance(reach, tuple) else (reach,) * (scale + 1)
