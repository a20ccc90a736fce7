"""Two-dimensional rotary positions (Su et al. 2021, arXiv 2104.09864) on a grid that all scales share.

Shape suffixes: B rows, H heads, L tokens of one scale, S all tokens, C head dim, P pairs of head channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from varsearch.target import Scales

BASE = 10000.0


class Rotary(NamedTuple):
    """Cosines and signed sines by which channels and their neighbours enter the result, (S, 2, C)."""

    table_S2C: Tensor

    @classmethod
    def of(cls, scales: Scales, grid: tuple[int, int], head_dim: int, like: Tensor) -> Rotary:
        """The table for token maps that are each spread over `grid`, in the dtype and on the device of `like`."""
        angle_SP = angles(scales, grid, head_dim, like.device)
        cos_SP, sin_SP = angle_SP.cos(), angle_SP.sin()
        pairs_S2P2 = torch.stack((cos_SP, cos_SP, -sin_SP, sin_SP), dim=-1).unflatten(-1, (2, 2)).transpose(1, 2)
        return cls(pairs_S2P2.flatten(2).to(like.dtype))

    def turn(self, q_BHLC: Tensor, k_BHLC: Tensor, pos_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys with each pair of neighbouring channels turned by the angle of its token's place."""
        cos_B1LC, sin_B1LC = self.table_S2C[pos_BL][:, None].unbind(-2)
        q, k = (torch.addcmul(t * cos_B1LC, _swapped(t), sin_B1LC) for t in (q_BHLC, k_BHLC))
        return q, k


def angles(scales: Scales, grid: tuple[int, int], head_dim: int, device: torch.device) -> Tensor:
    """The angle of each pair of channels of every token, (S, P): half of them by its row, the others by its column."""
    half = head_dim // 2
    rate_P = 1.0 / BASE ** (torch.arange(0, half, 2, device=device) / half)
    places = []
    for height, width in scales:
        row_h1, column_1w = _cells(height, grid[0], device)[:, None], _cells(width, grid[1], device)[None]
        places.append(torch.stack((row_h1.expand(-1, width), column_1w.expand(height, -1)), dim=-1).flatten(0, 1))
    return (torch.cat(places)[:, :, None] * rate_P).flatten(1)


def _cells(count: int, side: int, device: torch.device) -> Tensor:
    # In fp32, like the published code: some places lie halfway between two cells, and rounding decides.
    return (torch.arange(count, device=device) * (side / count)).round()


def _swapped(x_BHLC: Tensor) -> Tensor:
    return x_BHLC.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
