"""The four places where techniques may act, and their dense defaults.

A model calls these seams and knows nothing of what stands behind them. A `Plan` is made once per policy, is
immutable and holds no tensor; everything that changes during a generation lives in a `GenerationState`.

Shape suffixes: B rows (the N images, then, while guidance is on, the same N images unconditionally), L query
tokens of the current scale, S keys, H heads, C head dim, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Sublayer = Callable[[Tensor, Tensor], Tensor]
"""(x_BLD, pos_BL) -> output of one residual branch for exactly these rows and tokens, (B, L, D)."""


@dataclass(slots=True)
class BranchMemory:
    """What one residual branch of one layer remembers within a generation."""

    y_BLD: Tensor | None = None
    size: tuple[int, int] = (0, 0)


class Branch(Protocol):
    """Seam 1: runs one residual branch. `n_images` says how many of the rows are conditional."""

    def __call__(self, fn: Sublayer, x_BLD: Tensor, pos_BL: Tensor, memory: BranchMemory, n_images: int) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class KVView:
    """Keys and values that a group of heads attends to, each with its place in the full token sequence.

    `pos_parts` are (B or 1, H or 1, S_i) tensors of original positions whose S_i add up to S. They are joined only
    by techniques that ask, so the dense path never pays for them. `heads` lists the heads of the group in
    the order of the tensors' head dimension; None stands for all of them.
    """

    k_BHSC: Tensor
    v_BHSC: Tensor
    pos_parts: tuple[Tensor, ...]
    heads: tuple[int, ...] | None = None

    def positions(self) -> Tensor:
        """Original positions of the keys, (B or 1, H or 1, S) int64."""
        rows, heads = (max(p.shape[i] for p in self.pos_parts) for i in (0, 1))
        return torch.cat([p.expand(rows, heads, -1) for p in self.pos_parts], dim=2)


class KVCache(Protocol):
    """Seam 2: what attention sees of earlier scales in one layer, during one generation."""

    def extend(
        self, q_BHLC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, pos_BL: Tensor, *, store: bool
    ) -> tuple[KVView, ...]:
        """Views of history plus the new scale; `store` says whether a later scale will need the new entries.

        Fewer rows than the cache holds means that the remaining rows share the new entries.
        """
        ...

    def keep_rows(self, n: int) -> None:
        """Guidance ended: frees all rows but the first `n`."""
        ...


class Attend(Protocol):
    """Seam 3: attention of the current scale's queries over the views; returns (B, H, L, C)."""

    def __call__(self, q_BHLC: Tensor, pos_BL: Tensor, views: tuple[KVView, ...], scale: float) -> Tensor: ...


def run_dense(fn: Sublayer, x_BLD: Tensor, pos_BL: Tensor, memory: BranchMemory, n_images: int) -> Tensor:
    """The default `Branch`: all rows, all tokens."""
    return fn(x_BLD, pos_BL)


def dense_attention(q_BHLC: Tensor, pos_BL: Tensor, views: tuple[KVView, ...], scale: float) -> Tensor:
    """The default `Attend`: every query sees every key of its view."""
    if views[0].heads is None:
        return F.scaled_dot_product_attention(q_BHLC, views[0].k_BHSC, views[0].v_BHSC, scale=scale)
    out_BHLC = torch.empty_like(q_BHLC)
    for view in views:
        heads = list(view.heads or ())
        out_BHLC[:, heads] = F.scaled_dot_product_attention(q_BHLC[:, heads], view.k_BHSC, view.v_BHSC, scale=scale)
    return out_BHLC


class DenseKV:
    """The default `KVCache`: keeps everything, in buffers allocated once.

    The entries of the last scale are joined to the history for its own attention and never stored.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self.k_BHSC: Tensor | None = None
        self.v_BHSC: Tensor | None = None
        self.pos_parts: tuple[Tensor, ...] = ()

    def extend(
        self, q_BHLC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, pos_BL: Tensor, *, store: bool
    ) -> tuple[KVView, ...]:
        n, new_pos = len(k_BHLC), pos_BL[:, None]
        if store:
            self._append(k_BHLC, v_BHLC, new_pos)
            assert self.k_BHSC is not None and self.v_BHSC is not None
            k_BHSC, v_BHSC = self.k_BHSC[:n, :, : self.length], self.v_BHSC[:n, :, : self.length]
            return (KVView(k_BHSC, v_BHSC, tuple(p[:n] for p in self.pos_parts)),)
        if self.k_BHSC is None or self.v_BHSC is None:
            return (KVView(k_BHLC, v_BHLC, (new_pos,)),)
        k_BHSC = torch.cat((self.k_BHSC[:n, :, : self.length], k_BHLC), dim=2)
        v_BHSC = torch.cat((self.v_BHSC[:n, :, : self.length], v_BHLC), dim=2)
        return (KVView(k_BHSC, v_BHSC, (*(p[:n] for p in self.pos_parts), new_pos)),)

    def _append(self, k_BHLC: Tensor, v_BHLC: Tensor, pos_BHL: Tensor) -> None:
        if self.k_BHSC is None or self.v_BHSC is None:
            rows, heads, _, channels = k_BHLC.shape
            self.k_BHSC = k_BHLC.new_empty(rows, heads, self.capacity, channels)
            self.v_BHSC = v_BHLC.new_empty(rows, heads, self.capacity, channels)
        share = len(self.k_BHSC) // len(k_BHLC)
        end = self.length + k_BHLC.shape[2]
        self.k_BHSC.unflatten(0, (share, -1))[:, :, :, self.length : end] = k_BHLC
        self.v_BHSC.unflatten(0, (share, -1))[:, :, :, self.length : end] = v_BHLC
        self.pos_parts += (pos_BHL if len(pos_BHL) == 1 else pos_BHL.repeat(share, 1, 1),)
        self.length = end

    def keep_rows(self, n: int) -> None:
        if self.k_BHSC is None or self.v_BHSC is None or len(self.k_BHSC) <= n:
            return
        # A slice would keep the whole buffer alive; the copy is what frees the unconditional half.
        self.k_BHSC, self.v_BHSC = self.k_BHSC[:n].clone(), self.v_BHSC[:n].clone()
        self.pos_parts = tuple(p[:n] for p in self.pos_parts)


class Guidance(Enum):
    """What happens to the unconditional rows of a scale."""

    FULL = "full"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """How one layer runs at one scale."""

    attn: Branch = run_dense
    ffn: Branch = run_dense
    attend: Attend = dense_attention
    store: bool = True


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """Seam 4: data that the next-scale loop reads."""

    layers: tuple[LayerPlan, ...]
    run: bool = True
    guidance: Guidance = Guidance.FULL


@dataclass(frozen=True, slots=True)
class Plan:
    """A lowered policy: one `ScalePlan` per scale and one cache factory (taking a capacity) per layer."""

    scales: tuple[ScalePlan, ...]
    new_cache: tuple[Callable[[int], KVCache], ...]

    @classmethod
    def dense(cls, n_layers: int, n_scales: int) -> Plan:
        """The plan of the unmodified model."""
        stored, last = LayerPlan(), LayerPlan(store=False)
        scales = tuple(ScalePlan(((last if k == n_scales - 1 else stored),) * n_layers) for k in range(n_scales))
        return cls(scales, (DenseKV,) * n_layers)


@dataclass(slots=True)
class LayerState:
    """Everything one layer remembers within one generation."""

    kv: KVCache
    n_images: int
    attn: BranchMemory = field(default_factory=BranchMemory)
    ffn: BranchMemory = field(default_factory=BranchMemory)
