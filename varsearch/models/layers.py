"""Layers that the transformers of all families are made of.

State-dict keys are those of the published checkpoints. Shape suffixes: B rows (conditional, then unconditional while
guidance is on), L tokens, D width, H heads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varsearch.linear import Linear
from varsearch.models.seams import KVView, Rows

Place = tuple[nn.Module, str]
"""A module, and the name under which another module is its part."""


class Modulation(NamedTuple):
    """Output of a block's AdaLN, each (B, 1, D), one per branch, with 1 already added to the factors `scales`.

    It depends on the class only, not on the scale.
    """

    gates: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    shifts: tuple[Tensor, ...]

    def take(self, rows: Rows) -> Modulation:
        """The modulation of these rows only."""
        return Modulation(*(tuple(map(rows, part)) for part in self))


class SelfAttention(nn.Module):
    """Projections of self-attention; the attention itself is the `Attend` seam.

    Queries come out scaled: with cosine attention q and k are normalised and q is multiplied by a learnt per-head
    factor; otherwise q is multiplied by 0.25 / sqrt(head dim), as published.
    """

    zero_k_bias: Tensor

    def __init__(self, width: int, heads: int, cosine: bool) -> None:
        super().__init__()
        self.heads, self.cosine = heads, cosine
        self.scale = 0.25 / math.sqrt(width // heads)
        if cosine:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.mat_qkv = Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = Linear(width, width)

    def qkv(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values, each (B, H, L, C)."""
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        q, k, v = (self.mat_qkv(x_BLD) + bias).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if not self.cosine:
            return q * self.scale, k, v
        # The exponent stays in fp32 where the rest is half; see `checkpoints.FP32`.
        factor = self.scale_mul_1H11.clamp_max(math.log(100)).exp().to(q.dtype)
        # Below the least number of fp16 the usual 1e-12 would be 0.
        eps = max(1e-12, torch.finfo(q.dtype).tiny)
        return F.normalize(q, dim=-1, eps=eps) * factor, F.normalize(k, dim=-1, eps=eps), v


class FFN(nn.Module):
    """Two linears around a tanh-approximated GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(width, hidden), Linear(hidden, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        y_BLD: Tensor = self.fc2(F.gelu(self.fc1(x_BLD), approximate="tanh"))
        return y_BLD


class HeadNorm(nn.Module):
    """AdaLN before the classifier head."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.ada_lin = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def forward(self, x_BLD: Tensor, cond_BD: Tensor) -> Tensor:
        scale_B1D, shift_B1D = self.ada_lin(cond_BD)[:, None].chunk(2, dim=-1)
        return F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=self.eps) * (scale_B1D + 1) + shift_B1D


class PassThroughKV:
    """A cache without memory, for the one-pass teacher-forced forward."""

    def extend(self, q: Tensor, k: Tensor, v: Tensor, pos_BL: Tensor, *, room: int) -> tuple[KVView, ...]:
        return (KVView(k, v, (pos_BL[:, None],)),)

    def take(self, rows: Rows) -> PassThroughKV:
        """Nothing is held."""
        return self

    @property
    def nbytes(self) -> int:
        """Nothing is held."""
        return 0
