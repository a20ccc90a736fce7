"""KV compression: per-head budgets with physical compaction, and low-bit storage.

After each scale every head keeps its most attended entries, as many as its budget allows for the next scale. The
score is the attention that evenly spaced observation queries of the current scale give to each entry (ScaleKV,
arXiv 2505.19602, and SnapKV use such a window; the softmax is in ScaleKV's paper and missing from its code). Rows
and heads select separately. Heads of equal budgets are stored together, so memory follows the sum of the budgets
and not the largest one, and each entry keeps its original position.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import torch
from torch import Tensor

from varsearch.accel.scale_skipping import run_scales
from varsearch.kernels.packing import pack, quantize, unpack
from varsearch.models.seams import KVCache, KVView, Rows
from varsearch.policy import KVCompression, Policy, share_of
from varsearch.target import ModelSpec

OBSERVED = 16
"""Number of observation queries per scale (ScaleKV uses 16, HACK 32)."""


def new_cache(policy: Policy, spec: ModelSpec, layer: int) -> Callable[[int], KVCache] | None:
    """Factory of the layer's cache, or None where the dense cache does."""
    kv = policy.layers[layer].kv
    if kv == KVCompression():
        return None
    tokens = [spec.tokens[k] for k in run_scales(policy)]
    seen = [sum(tokens[: i + 1]) for i in range(len(tokens))]
    keep = kv.keep or (1.0,) * spec.n_heads
    budgets = [tuple(share_of(share, s) for s in seen) for share in keep]
    return lambda capacity: CompressedKV(budgets, kv.bits)


class CompressedKV:
    """A cache of one layer.

    Args:
        budgets_HK: per head, the number of entries kept after each scale that runs.
        bits: storage precision of keys and values; None keeps the compute dtype.
    """

    def __init__(self, budgets_HK: list[tuple[int, ...]], bits: int | None) -> None:
        groups: dict[tuple[int, ...], list[int]] = {}
        for head, budget in enumerate(budgets_HK):
            groups.setdefault(budget, []).append(head)
        whole = len(groups) == 1
        self.groups = [HeadGroup(None if whole else tuple(h), budget, bits) for budget, h in groups.items()]

    def extend(
        self, q_BHLC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, pos_BL: Tensor, *, store: bool
    ) -> tuple[KVView, ...]:
        """See `KVCache.extend`."""
        return tuple(group.extend(q_BHLC, k_BHLC, v_BHLC, pos_BL, store) for group in self.groups)

    def take(self, rows: Rows) -> CompressedKV:
        """See `KVCache.take`."""
        taken = copy(self)
        taken.groups = [group.take(rows) for group in self.groups]
        return taken

    @property
    def nbytes(self) -> int:
        """Bytes held: keys, values, their scales and positions."""
        return sum(group.nbytes for group in self.groups)


class HeadGroup:
    """The entries of heads with the same budgets.

    `entries` are tensors (B, H, S, ...) that together encode keys and values; `pos_BHS` are their positions.
    """

    def __init__(self, heads: tuple[int, ...] | None, budget_K: tuple[int, ...], bits: int | None) -> None:
        self.heads, self.budget_K, self.bits = heads, budget_K, bits
        self.scales_seen = 0
        self.entries: tuple[Tensor, ...] = ()
        self.pos_BHS: Tensor | None = None

    def extend(self, q_BHLC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, pos_BL: Tensor, store: bool) -> KVView:
        """This group's view of history plus the new scale; see `KVCache.extend`."""
        if self.heads is not None:
            q_BHLC, k_BHLC, v_BHLC = (t[:, list(self.heads)] for t in (q_BHLC, k_BHLC, v_BHLC))
        pos_BHL = pos_BL[:, None].to(torch.int32)
        view = self._view(k_BHLC, v_BHLC, pos_BHL)
        if store and any(self.budget_K):
            self._append(self._encode(k_BHLC, v_BHLC), pos_BHL)
            self._compact(q_BHLC)
        return view

    def take(self, rows: Rows) -> HeadGroup:
        """The entries of these rows only."""
        taken = copy(self)
        taken.entries = tuple(map(rows, self.entries))
        if self.pos_BHS is not None and len(self.pos_BHS) > 1:
            taken.pos_BHS = rows(self.pos_BHS)
        return taken

    @property
    def nbytes(self) -> int:
        """Bytes of entries and positions."""
        tensors = self.entries if self.pos_BHS is None else (*self.entries, self.pos_BHS)
        return sum(t.nbytes for t in tensors)

    def _view(self, k_BHLC: Tensor, v_BHLC: Tensor, pos_BHL: Tensor) -> KVView:
        if self.pos_BHS is None:
            return KVView(k_BHLC, v_BHLC, (pos_BHL,), self.heads)
        n = len(k_BHLC)
        if len(self.entries[0]) < n:
            # All earlier scales shared this layer between the halves of guidance, and this one does not.
            self.entries = tuple(_rows(t, n) for t in self.entries)
            self.pos_BHS = self.pos_BHS if len(self.pos_BHS) == 1 else _rows(self.pos_BHS, n)
        k_old, v_old = self._decode(tuple(t[:n] for t in self.entries), k_BHLC)
        k_BHSC, v_BHSC = torch.cat((k_old, k_BHLC), dim=2), torch.cat((v_old, v_BHLC), dim=2)
        return KVView(k_BHSC, v_BHSC, (self.pos_BHS[:n], pos_BHL), self.heads)

    def _append(self, new: tuple[Tensor, ...], pos_BHL: Tensor) -> None:
        if self.pos_BHS is None:
            # Copies, since these may be slices of the qkv projection and would keep all of it alive.
            self.entries, self.pos_BHS = tuple(t.clone() for t in new), pos_BHL
            return
        rows, heads = len(self.entries[0]), self.pos_BHS.shape[1]
        self.entries = tuple(torch.cat((old, _rows(t, rows)), dim=2) for old, t in zip(self.entries, new, strict=True))
        if max(len(self.pos_BHS), len(pos_BHL)) > 1:
            self.pos_BHS, pos_BHL = _rows(self.pos_BHS, rows), _rows(pos_BHL, rows)
        self.pos_BHS = torch.cat((self.pos_BHS, pos_BHL.expand(-1, heads, -1)), dim=2)

    def _compact(self, q_BHLC: Tensor) -> None:
        assert self.pos_BHS is not None
        budget = self.budget_K[self.scales_seen]
        self.scales_seen += 1
        if budget >= self.entries[0].shape[2]:
            return
        if budget == 0:
            self.entries, self.pos_BHS = (), None
            return
        rows, heads = self.entries[0].shape[:2]
        k_BHSC, _ = self._decode(self.entries, q_BHLC)
        index_BHS = select(_rows(q_BHLC, rows), k_BHSC, budget)
        self.entries = tuple(t.gather(2, index_BHS[..., None].expand(-1, -1, -1, t.shape[3])) for t in self.entries)
        self.pos_BHS = self.pos_BHS.expand(rows, heads, -1).gather(2, index_BHS)

    def _encode(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        if self.bits is None:
            return k, v
        parts: list[Tensor] = []
        for t in (k, v):
            q, scale = quantize(t, self.bits)
            parts += [pack(q, self.bits), scale]
        return tuple(parts)

    def _decode(self, entries: tuple[Tensor, ...], like: Tensor) -> tuple[Tensor, Tensor]:
        if self.bits is None:
            return entries[0], entries[1]
        k, k_scale, v, v_scale = entries
        k, v = (unpack(t, self.bits, like.shape[-1], like.dtype) for t in (k, v))
        return k.mul_(k_scale), v.mul_(v_scale)


def _rows(t: Tensor, rows: int) -> Tensor:
    """`t` with its rows repeated up to `rows`: the unconditional half shares the conditional entries."""
    return t if len(t) == rows else t.repeat(rows // len(t), *(1,) * (t.ndim - 1))


def select(q_BHLC: Tensor, k_BHSC: Tensor, budget: int) -> Tensor:
    """Indices of the `budget` entries that observation queries attend to most, ascending, (B, H, budget)."""
    length = q_BHLC.shape[2]
    step = max(1, length // OBSERVED)
    observed_BHLC = q_BHLC[:, :, step // 2 :: step]
    attention_BHLS = (observed_BHLC @ k_BHSC.mT).softmax(dim=-1)
    return attention_BHLS.mean(dim=2).topk(budget, dim=-1).indices.sort(dim=-1).values
