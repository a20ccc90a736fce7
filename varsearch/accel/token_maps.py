"""Where the tokens of a sequence lie: tables that say who sees whom are made from these, in integers and in numpy.

Tensors would not do: the cost model traces on tensors without content, and must know how many keys a tile has.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from varsearch.models.seams import KVView

Sizes = tuple[tuple[int, int], ...]
Array = npt.NDArray[Any]


class Cells(NamedTuple):
    """Scale, row, column and raster index of some tokens: integer arrays or tensors of one shape."""

    scale: Any
    y: Any
    x: Any
    index: Any

    def queries(self) -> Cells:
        """With an axis for keys, (..., L, 1)."""
        return Cells(*(field[..., :, None] for field in self))

    def keys(self) -> Cells:
        """With an axis for queries, (..., 1, S)."""
        return Cells(*(field[..., None, :] for field in self))


class Maps(NamedTuple):
    """Sizes of the token maps of all scales, the scales that run, and the scale whose queries attend."""

    sizes: Sizes
    run: tuple[int, ...]
    scale: int

    @property
    def n_keys(self) -> int:
        """Number of keys when nothing was pruned or evicted."""
        return sum(self.sizes[k][0] * self.sizes[k][1] for k in self.run if k <= self.scale)

    def positions(self, scale: int) -> Array:
        """Positions of a scale's tokens in the full sequence."""
        start = sum(h * w for h, w in self.sizes[:scale])
        return np.arange(start, start + self.sizes[scale][0] * self.sizes[scale][1])

    def query_positions(self) -> Array:
        """Positions of all queries."""
        return self.positions(self.scale)

    def key_positions(self) -> Array:
        """Positions of all keys when nothing was pruned or evicted."""
        return np.concatenate([self.positions(k) for k in self.run if k <= self.scale])

    def complete(self, pos_BL: Tensor, view: KVView) -> bool:
        """Whether the queries at `pos_BL` and the keys of `view` are all that there are, the same for all rows."""
        return len(pos_BL) == 1 and view.k_BHSC.shape[2] == self.n_keys

    def cells(self, positions: Array | Tensor) -> Cells:
        """Where the tokens at these positions lie, as arrays or tensors like `positions`."""
        table_4T = _cells(self.sizes)
        if isinstance(positions, Tensor):
            return Cells(*torch.from_numpy(table_4T).to(positions.device)[:, positions.long()])
        return Cells(*table_4T[:, positions])


@lru_cache(maxsize=64)
def _cells(sizes: Sizes) -> Array:
    tokens = [(k, y, x, y * w + x) for k, (h, w) in enumerate(sizes) for y in range(h) for x in range(w)]
    return np.array(tokens).T.copy()


def look_up(values: Sequence[int], index: Any) -> Any:
    """`values` at an array or a tensor of indices."""
    table = np.array(values)
    return torch.from_numpy(table).to(index.device)[index] if isinstance(index, Tensor) else table[index]
