"""Integers of 3, 4, 6 or 8 bits packed densely into bytes along the last dimension.

Words of one byte (4 and 8 bits) or three bytes (3 and 6 bits) hold a whole number of values, so no bit is lost but
the padding of the last word.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LAYOUT = {8: (1, 1), 4: (1, 2), 6: (3, 4), 3: (3, 8)}
"""Bits per value -> (bytes, values) of one word."""


def pack(q: Tensor, bits: int) -> Tensor:
    """Packs signed integers of at most 2**(bits - 1) - 1 in magnitude; (..., n) any dtype -> (..., bytes) uint8."""
    n_bytes, n_values = LAYOUT[bits]
    unsigned = F.pad(q.to(torch.int32) + 2 ** (bits - 1), (0, -q.shape[-1] % n_values))
    values = unsigned.unflatten(-1, (-1, n_values))
    word = torch.zeros_like(values[..., 0])
    for i in range(n_values):
        word |= values[..., i] << (bits * i)
    return torch.stack([(word >> (8 * i)) & 255 for i in range(n_bytes)], dim=-1).to(torch.uint8).flatten(-2)


def unpack(packed: Tensor, bits: int, n: int, dtype: torch.dtype) -> Tensor:
    """Inverse of `pack`: the first `n` values of each row as signed numbers of `dtype`, (..., n)."""
    n_bytes, n_values = LAYOUT[bits]
    offset = 2 ** (bits - 1)
    if n_values == 1:
        return packed.to(dtype) - offset
    words = packed.unflatten(-1, (-1, n_bytes))
    word = words[..., 0].to(torch.int32)
    for i in range(1, n_bytes):
        word |= words[..., i].to(torch.int32) << (8 * i)
    shifts = torch.arange(0, bits * n_values, bits, dtype=torch.int32, device=packed.device)
    values = (word[..., None] >> shifts) & (2**bits - 1)
    return values.flatten(-2)[..., :n].to(dtype) - offset


def quantize(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Symmetric rounding to `bits`, one scale per row: (..., n) -> integers of x's dtype (..., n), scale (..., 1)."""
    limit = 2 ** (bits - 1) - 1
    scale = (x.abs().amax(dim=-1, keepdim=True) / limit).clamp_min(torch.finfo(x.dtype).tiny)
    return (x / scale).round_().clamp_(-limit, limit), scale
