"""The four places where techniques may act, and their dense defaults.

A model calls these seams and knows nothing of what stands behind them. Beside them, attention may be observed, and
images may part after a scale. A `Plan` is made once per policy, is immutable and holds no tensor of a generation but
its techniques' tables; everything that changes lives in a `LayerState` per layer.

Shape suffixes: B rows (the N images, then, while guidance is on, the same N images unconditionally), L query
tokens of the current scale, S keys, H heads, C head dim, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from types import EllipsisType
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Sublayer = Callable[[Tensor, Tensor], Tensor]
"""(x_BLD, pos_BL) -> output of one residual branch for exactly these rows and tokens, (B, L, D)."""

Softmax = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(scaled q_BHLC, k_BHSC, v_BHSC) -> softmax attention, (B, H, L, C)."""

FUSED: Softmax = partial(F.scaled_dot_product_attention, scale=1.0)

Rows = Callable[[Tensor], Tensor]
"""Picks some rows of any tensor whose first dimension is N images, or those and then their unconditional rows."""


@dataclass(slots=True)
class BranchMemory:
    """What one residual branch of one layer remembers within a generation, of a map of this size.

    `entropy_BL` is the entropy of each token's attention in this layer, in nats.
    """

    y_BLD: Tensor | None = None
    size: tuple[int, int] = (0, 0)
    entropy_BL: Tensor | None = None

    def take(self, rows: Rows) -> BranchMemory:
        """The memory of these rows only."""
        y_BLD, entropy_BL = (t if t is None else rows(t) for t in (self.y_BLD, self.entropy_BL))
        return BranchMemory(y_BLD, self.size, entropy_BL)


@dataclass(slots=True)
class AttentionMemory:
    """What the attention of one layer remembers within a generation; who wrote the tensors knows what they are.

    `noting` are the branches that shall have the entropies of the scale whose attention comes next.
    """

    tensors: tuple[Tensor, ...] = ()
    noting: tuple[BranchMemory, ...] = ()

    def take(self, rows: Rows) -> AttentionMemory:
        """The memory of these rows only."""
        return AttentionMemory(tuple(map(rows, self.tensors)))


class Branch(Protocol):
    """Seam 1: runs one residual branch. `n_images` says how many of the rows are conditional."""

    def __call__(self, fn: Sublayer, x_BLD: Tensor, pos_BL: Tensor, memory: BranchMemory, n_images: int) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class KVView:
    """Keys and values that a group of heads attends to.

    `pos_parts` are (B or 1, H or 1, S_i) tensors of original positions whose S_i add up to S, joined only by who asks.
    `heads` lists the heads of the group in the order of the tensors' head dimension; None stands for all of them.
    `place` is the same as an index on the device.
    """

    k_BHSC: Tensor
    v_BHSC: Tensor
    pos_parts: tuple[Tensor, ...]
    heads: tuple[int, ...] | None = None
    place: Tensor | slice | EllipsisType = ...

    def positions(self) -> Tensor:
        """Original positions of the keys, (B or 1, H or 1, S) int64."""
        rows, heads = (max(p.shape[i] for p in self.pos_parts) for i in (0, 1))
        return torch.cat([p.expand(rows, heads, -1) for p in self.pos_parts], dim=2)


class KVCache(Protocol):
    """Seam 2: what attention sees of earlier scales in one layer, during one generation."""

    def extend(
        self, q_BHLC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, pos_BL: Tensor, *, room: int
    ) -> tuple[KVView, ...]:
        """Views of history plus the new scale; for `room` see `LayerPlan`.

        Fewer rows than the cache holds means that the remaining rows share the new entries.
        """
        ...

    def take(self, rows: Rows) -> KVCache:
        """A cache of these rows only, for generations that go on without the others; shares no memory with this one."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held for later scales."""
        ...


class Attend(Protocol):
    """Seam 3: attention of the current scale's queries over the views; returns (B, H, L, C).

    The model has scaled the queries, so the softmax takes the plain products.
    """

    def __call__(
        self, q_BHLC: Tensor, pos_BL: Tensor, views: tuple[KVView, ...], memory: AttentionMemory
    ) -> Tensor: ...


def run_dense(fn: Sublayer, x_BLD: Tensor, pos_BL: Tensor, memory: BranchMemory, n_images: int) -> Tensor:
    """The default `Branch`: all rows, all tokens."""
    return fn(x_BLD, pos_BL)


def dense_attention(
    q_BHLC: Tensor, pos_BL: Tensor, views: tuple[KVView, ...], memory: AttentionMemory, softmax: Softmax = FUSED
) -> Tensor:
    """The default `Attend`: every query sees every key of its view."""
    if views[0].heads is None:
        return softmax(q_BHLC, views[0].k_BHSC, views[0].v_BHSC)
    out_BHLC = torch.empty_like(q_BHLC)
    for view in views:
        out_BHLC[:, view.place] = softmax(q_BHLC[:, view.place], view.k_BHSC, view.v_BHSC)
    return out_BHLC


class DenseKV:
    """The default `KVCache`: keeps everything, in buffers that are allocated once, and again where images part.

    The entries of the last scale are joined to the history for its own attention and never stored.
    """

    def __init__(self) -> None:
        self.length = 0
        self.buffers: tuple[Tensor, ...] = ()
        self.pos_parts: tuple[Tensor, ...] = ()

    def extend(
        self, q_BHLC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, pos_BL: Tensor, *, room: int
    ) -> tuple[KVView, ...]:
        """See `KVCache.extend`."""
        n, new = len(k_BHLC), (k_BHLC, v_BHLC)
        self._hold_rows(n)
        if room:
            self._append(new, pos_BL[:, None], room)
            k_BHSC, v_BHSC = (buffer[:n, :, : self.length] for buffer in self.buffers)
            return (KVView(k_BHSC, v_BHSC, tuple(p[:n] for p in self.pos_parts)),)
        pos_parts = (*(p[:n] for p in self.pos_parts), pos_BL[:, None])
        if not self.buffers:
            return (KVView(k_BHLC, v_BHLC, pos_parts),)
        k_BHSC, v_BHSC = (
            torch.cat((old[:n, :, : self.length], t), dim=2) for old, t in zip(self.buffers, new, strict=True)
        )
        return (KVView(k_BHSC, v_BHSC, pos_parts),)

    def _hold_rows(self, n: int) -> None:
        # All earlier scales shared this layer between the halves of guidance, and this one does not.
        if self.buffers and len(self.buffers[0]) < n:
            share = n // len(self.buffers[0])
            self.buffers = tuple(buffer.repeat(share, 1, 1, 1) for buffer in self.buffers)
            self.pos_parts = tuple(p if len(p) == 1 else p.repeat(share, 1, 1) for p in self.pos_parts)

    def _append(self, new: tuple[Tensor, Tensor], pos_BHL: Tensor, room: int) -> None:
        rows, heads, count, channels = new[0].shape
        end = self.length + count
        if not self.buffers:
            self.buffers = tuple(t.new_empty(rows, heads, room, channels) for t in new)
        elif end > self.buffers[0].shape[2]:
            self.buffers = tuple(F.pad(buffer, (0, 0, 0, room)) for buffer in self.buffers)
        share = len(self.buffers[0]) // rows
        for buffer, t in zip(self.buffers, new, strict=True):
            buffer[:, :, self.length : end] = t.repeat(share, 1, 1, 1) if share > 1 else t
        self.pos_parts += (pos_BHL if len(pos_BHL) == 1 else pos_BHL.repeat(share, 1, 1),)
        self.length = end

    def take(self, rows: Rows) -> DenseKV:
        """See `KVCache.take`."""
        taken = DenseKV()
        taken.length = self.length
        taken.buffers = tuple(rows(buffer[:, :, : self.length]) for buffer in self.buffers)
        taken.pos_parts = tuple(p if len(p) == 1 else rows(p) for p in self.pos_parts)
        return taken

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(buffer.nbytes for buffer in self.buffers)


class Observe(Protocol):
    """Notes something about the attention of the current scale in the layer's state."""

    def __call__(self, q_BHLC: Tensor, views: tuple[KVView, ...], state: LayerState) -> None: ...


class Decide(Protocol):
    """Asks each image what it does behind this scale; returns, per action, the indices of its images.

    Args:
        before_NCHW: latent estimate before this scale.
        after_NCHW: latent estimate after it.
        states: of all layers.
        decode: images in [-1, 1] of latent estimates of any size.
    """

    def __call__(
        self, before_NCHW: Tensor, after_NCHW: Tensor, states: list[LayerState], decode: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, ...]: ...


class Guidance(Enum):
    """What happens to the unconditional rows of a scale."""

    FULL = "full"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """How one layer runs at one scale; `between` is what some blocks have there: a state-space model, or a text.

    `room` is how many entries the layer stores from this scale on, to the end or to where images part; 0 where no later
    scale needs those of this one.
    """

    attn: Branch = run_dense
    between: Branch = run_dense
    ffn: Branch = run_dense
    attend: Attend = dense_attention
    observe: Observe | None = None
    room: int = 0


@dataclass(frozen=True, slots=True)
class Fork:
    """Where images part: how they are asked, and per action the plans of all scales that follow."""

    decide: Decide
    tails: tuple[tuple[ScalePlan, ...], ...]


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """Seam 4: data that the next-scale loop reads.

    `layers` are those of the refiner where `refined`. The first scale that it runs comes with all earlier ones.
    """

    layers: tuple[LayerPlan, ...]
    run: bool = True
    guidance: Guidance = Guidance.FULL
    fork: Fork | None = None
    refined: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """A lowered policy: one `ScalePlan` per scale, one cache factory per layer, and those of the refiner if any."""

    scales: tuple[ScalePlan, ...]
    new_cache: tuple[Callable[[], KVCache], ...]
    refiner_cache: tuple[Callable[[], KVCache], ...] = ()

    @classmethod
    def dense(cls, n_layers: int, tokens: Sequence[int]) -> Plan:
        """The plan of the unmodified model, whose scales have so many tokens."""
        rooms = (sum(tokens[k:-1]) for k in range(len(tokens)))
        return cls(tuple(ScalePlan((LayerPlan(room=room),) * n_layers) for room in rooms), (DenseKV,) * n_layers)


@dataclass(slots=True)
class LayerState:
    """What one layer remembers within one generation; `recurrence` is what a state-space layer hands on."""

    kv: KVCache
    n_images: int
    recurrence: tuple[Tensor, ...] = ()
    attn: BranchMemory = field(default_factory=BranchMemory)
    between: BranchMemory = field(default_factory=BranchMemory)
    ffn: BranchMemory = field(default_factory=BranchMemory)
    attention: AttentionMemory = field(default_factory=AttentionMemory)

    def take(self, rows: Rows, n_images: int) -> LayerState:
        """The state of these rows only."""
        attn, between, ffn = (branch.take(rows) for branch in (self.attn, self.between, self.ffn))
        recurrence = tuple(map(rows, self.recurrence))
        return LayerState(self.kv.take(rows), n_images, recurrence, attn, between, ffn, self.attention.take(rows))
