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
    """Cosine and sine of every token's angles, (S, P): half of the pairs turn by row, the others by column."""

    cos_SP: Tensor
    sin_SP: Tensor

    @classmethod
    def of(cls, scales: Scales, grid: tuple[int, int], head_dim: int, like: Tensor) -> Rotary:
        """The tables for token maps that are each spread over `grid`, in the dtype and on the device of `like`."""
        half, device = head_dim // 2, like.device
        rate_P = 1.0 / BASE ** (torch.arange(0, half, 2, device=device) / half)
        angles = []
        for height, width in scales:
            row_h1, column_1w = _cells(height, grid[0], device)[:, None], _cells(width, grid[1], device)[None]
            angles.append(torch.stack((row_h1.expand(-1, width), column_1w.expand(height, -1)), dim=-1).flatten(0, 1))
        angle_SP = (torch.cat(angles)[:, :, None] * rate_P).flatten(1)
        return cls(angle_SP.cos().to(like.dtype), angle_SP.sin().to(like.dtype))

    def at(self, pos_BL: Tensor) -> Rotary:
        """The angles of tokens at these places of the full sequence, (B, 1, L, P), for `turn`."""
        return Rotary(self.cos_SP[pos_BL][:, None], self.sin_SP[pos_BL][:, None])

    def turn(self, x_BHLC: Tensor) -> Tensor:
        """`x_BHLC` with each pair of neighbouring channels turned by its angle; for the result of `at`."""
        cos_B1LP, sin_B1LP = self
        even, odd = x_BHLC.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((cos_B1LP * even - sin_B1LP * odd, sin_B1LP * even + cos_B1LP * odd), dim=-1)
        return turned.flatten(-2)


def _cells(count: int, side: int, device: torch.device) -> Tensor:
    # In fp32, like the published code: some places lie halfway between two cells, and rounding decides.
    return (torch.arange(count, device=device) * (side / count)).round()
