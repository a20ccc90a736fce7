"""KV compression: budgets per head and scale with physical compaction, and low-bit storage.

At each scale every head ranks its entries, history and the scale's own, once (see `kv_selection.py`). The best, as many
as the attention budget allows, are what the scale's queries attend to; the best, as many as the cache budget allows,
stay for later scales. HACK (arXiv 2504.09261) takes the same set for both, HACK++ (arXiv 2606.08302) a smaller one for
the cache, and ScaleKV (arXiv 2505.19602) attends to all.

Rows and heads select separately. Heads of equal budgets and rules are stored together, so memory follows the sum of the
budgets and not the largest one, and each entry keeps its original position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from varsearch.accel.kv_selection import Scorer, Sizes, best, take
from varsearch.accel.scale_skipping import run_scales
from varsearch.kernels.packing import pack, quantize, unpack
from varsearch.models.seams import KVCache, KVView, Rows
from varsearch.policy import KVCompression, Policy, Selection, share_of
from varsearch.target import ModelSpec


class Budget(NamedTuple):
    """At one scale: how many entries its queries attend to, and how many stay for later scales."""

    scale: int
    attended: int
    cached: int


class Head(NamedTuple):
    """What one head does: its budgets at the scales that run, and the rule that fills them."""

    budget_K: tuple[Budget, ...]
    rule: Selection = Selection()


def new_cache(policy: Policy, spec: ModelSpec, layer: int) -> Callable[[], KVCache] | None:
    """Factory of the layer's cache, or None where the dense cache does."""
    kv = policy.layers[layer].kv
    if kv == KVCompression():
        return None
    groups = grouped(_heads(kv, spec, run_scales(policy)), spec.scales)
    return lambda: CompressedKV(groups, kv.bits)


def _heads(kv: KVCompression, spec: ModelSpec, run: tuple[int, ...]) -> list[Head]:
    budgets, seen = [], 0
    for k in run:
        seen += spec.tokens[k]
        shares = zip(kv.attended(k, spec.n_heads), kv.cached(k, spec.n_heads), strict=True)
        budgets.append([Budget(k, share_of(attended, seen), share_of(cached, seen)) for attended, cached in shares])
    rules = kv.selection or (Selection(),) * spec.n_heads
    return [Head(budget_K, rule) for budget_K, rule in zip(zip(*budgets, strict=True), rules, strict=True)]


class Group(NamedTuple):
    """Heads that are stored together; None stands for all heads of the layer.

    `places` holds the heads as an index, by device: a list would be copied there at each use.
    """

    heads: tuple[int, ...] | None
    budget_K: tuple[Budget, ...]
    scorer: Scorer
    position_dtype: torch.dtype
    places: dict[torch.device, Tensor]

    def place(self, device: torch.device) -> Tensor | slice:
        """The heads as an index: a slice, and so a view, where they are neighbours."""
        if self.heads is None:
            return slice(None)
        first, last = self.heads[0], self.heads[-1]
        if last - first == len(self.heads) - 1:
            return slice(first, last + 1)
        if device not in self.places:
            self.places[device] = torch.tensor(self.heads, device=device)
        return self.places[device]


def grouped(heads: Sequence[Head], sizes: Sizes) -> tuple[Group, ...]:
    """Heads of the same budgets and of rules that differ in nothing but the prior's numbers, together."""
    groups: dict[object, list[int]] = {}
    for i, head in enumerate(heads):
        rule = head.rule.model_copy(update={"prior": ()})
        groups.setdefault((head.budget_K, rule, bool(head.rule.prior)), []).append(i)
    total = sum(prod(size) for size in sizes)
    position_dtype = torch.int16 if total <= torch.iinfo(torch.int16).max else torch.int32
    return tuple(
        Group(
            None if len(groups) == 1 else tuple(chosen),
            heads[chosen[0]].budget_K,
            Scorer([heads[i].rule for i in chosen], sizes),
            position_dtype,
            {},
        )
        for chosen in groups.values()
    )


class CompressedKV:
    """A cache of one layer; `bits` is the storage precision of keys and values, None keeps the compute dtype."""

    def __init__(self, groups: Sequence[Group], bits: int | None) -> None:
        self.groups = [HeadGroup(group, bits) for group in groups]

    def extend(
        self, q_BHLC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, pos_BL: Tensor, *, room: int
    ) -> tuple[KVView, ...]:
        """See `KVCache.extend`."""
        return tuple(group.extend(q_BHLC, k_BHLC, v_BHLC, pos_BL, store=room > 0) for group in self.groups)

    def take(self, rows: Rows) -> CompressedKV:
        """See `KVCache.take`."""
        taken = copy(self)
        taken.groups = [group.take(rows) for group in self.groups]
        return taken

    @property
    def nbytes(self) -> int:
        """Bytes held: keys, values, their scales and positions."""
        return sum(group.nbytes for group in self.groups)


class Entries(NamedTuple):
    """Keys and values, each with its position in the full token sequence (B or 1, H or 1, S)."""

    k_BHSC: Tensor
    v_BHSC: Tensor
    pos_BHS: Tensor

    def chosen(self, index_BHN: Tensor | None) -> Entries:
        """The entries at these indices; None stands for all."""
        if index_BHN is None:
            return self
        return Entries(take(self.k_BHSC, index_BHN), take(self.v_BHSC, index_BHN), self.positions(index_BHN))

    def positions(self, index_BHN: Tensor | None) -> Tensor:
        """The positions of the entries at these indices; None stands for all."""
        if index_BHN is None:
            return self.pos_BHS
        return self.pos_BHS.expand(*index_BHN.shape[:2], -1).gather(2, index_BHN)


class HeadGroup:
    """The entries of one group that later scales will see.

    `stored` are tensors (B, H, S, ...) that together encode keys and values; `pos_BHS` are their positions.
    """

    def __init__(self, group: Group, bits: int | None) -> None:
        self.group, self.bits = group, bits
        self.scales_seen = 0
        self.stored: tuple[Tensor, ...] = ()
        self.pos_BHS: Tensor | None = None

    def extend(self, q_BHLC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, pos_BL: Tensor, store: bool) -> KVView:
        """This group's view of history plus the new scale; see `KVCache.extend`."""
        n, place = len(k_BHLC), self.group.place(k_BHLC.device)
        self._hold_rows(n)
        # The conditional rows' entries may be for the unconditional ones too, which rank them beside their own history.
        rows = len(self.stored[0]) if store and self.stored else n
        q_BHLC, k_BHLC, v_BHLC = (_rows(t[:, place], rows) for t in (q_BHLC, k_BHLC, v_BHLC))
        pos_BHL = pos_BL[:, None].to(self.group.position_dtype)
        new = Entries(k_BHLC, v_BHLC, pos_BHL if len(pos_BHL) == 1 else _rows(pos_BHL, rows))
        joined = self._joined(new)
        budget = self._next_budget(joined.k_BHSC.shape[2], store)
        attended_BHN, cached_BHN = self._ranked(budget, q_BHLC, joined)
        seen = joined.chosen(attended_BHN)
        if store:
            self._store(new, joined, seen, budget, cached_BHN)
        return KVView(seen.k_BHSC[:n], seen.v_BHSC[:n], (seen.pos_BHS[:n],), self.group.heads, place)

    def take(self, rows: Rows) -> HeadGroup:
        """The entries of these rows only."""
        taken = copy(self)
        taken.stored = tuple(map(rows, self.stored))
        if self.pos_BHS is not None and len(self.pos_BHS) > 1:
            taken.pos_BHS = rows(self.pos_BHS)
        return taken

    @property
    def nbytes(self) -> int:
        """Bytes of entries and positions."""
        tensors = self.stored if self.pos_BHS is None else (*self.stored, self.pos_BHS)
        return sum(t.nbytes for t in tensors)

    def _hold_rows(self, n: int) -> None:
        if self.stored and len(self.stored[0]) < n:
            # All earlier scales shared this layer between the halves of guidance, and this one does not.
            self.stored = tuple(_rows(t, n) for t in self.stored)
            assert self.pos_BHS is not None
            self.pos_BHS = self.pos_BHS if len(self.pos_BHS) == 1 else _rows(self.pos_BHS, n)

    def _joined(self, new: Entries) -> Entries:
        """History and `new`, as many rows as `new` has."""
        if self.pos_BHS is None:
            return new
        rows = len(new.k_BHSC)
        k_old, v_old = self._decoded(tuple(t[:rows] for t in self.stored), new.k_BHSC)
        parts = self.pos_BHS[:rows], new.pos_BHS
        shape = [max(p.shape[i] for p in parts) for i in (0, 1)]
        return Entries(
            torch.cat((k_old, new.k_BHSC), dim=2),
            torch.cat((v_old, new.v_BHSC), dim=2),
            torch.cat([p.expand(*shape, -1) for p in parts], dim=2),
        )

    def _next_budget(self, length: int, store: bool) -> Budget:
        """The next scale's, of the `length` entries that there are."""
        scale, attended, cached = self.group.budget_K[self.scales_seen]
        self.scales_seen += 1
        return Budget(scale, min(attended, length), min(cached, length) if store else 0)

    def _ranked(self, budget: Budget, q_BHLC: Tensor, joined: Entries) -> tuple[Tensor | None, Tensor | None]:
        """Indices of the entries to attend to and of those to keep, ascending, (B, H, count); None stands for all."""
        length = joined.k_BHSC.shape[2]
        index: dict[int, Tensor | None] = dict.fromkeys((0, length))
        partial = {budget.attended, budget.cached} - index.keys()
        if partial:
            index |= best(self.group.scorer(budget.scale, q_BHLC, *joined), partial)
        return index[budget.attended], index[budget.cached]

    def _store(self, new: Entries, joined: Entries, seen: Entries, budget: Budget, index_BHN: Tensor | None) -> None:
        if not budget.cached:
            self.stored, self.pos_BHS = (), None
            return
        if self.bits is None:
            kept = seen if budget.cached == budget.attended else joined.chosen(index_BHN)
            self.stored = kept[:2]
            if kept is new:
                # These may be slices of the qkv projection and would keep all of it alive.
                self.stored = tuple(t.clone() for t in self.stored)
        else:
            parts = self._encoded(new)
            if self.stored:
                parts = tuple(torch.cat(pair, dim=2) for pair in zip(self.stored, parts, strict=True))
            self.stored = parts if index_BHN is None else tuple(take(t, index_BHN) for t in parts)
        self.pos_BHS = joined.positions(index_BHN)

    def _encoded(self, new: Entries) -> tuple[Tensor, ...]:
        assert self.bits is not None
        parts: list[Tensor] = []
        for t in (new.k_BHSC, new.v_BHSC):
            q, scale = quantize(t, self.bits)
            parts += [pack(q, self.bits), scale]
        return tuple(parts)

    def _decoded(self, stored: tuple[Tensor, ...], like: Tensor) -> tuple[Tensor, Tensor]:
        if self.bits is None:
            return stored[0], stored[1]
        k, k_scale, v, v_scale = stored
        k, v = (unpack(t, self.bits, like.shape[-1], like.dtype) for t in (k, v))
        return k.mul_(k_scale), v.mul_(v_scale)


def _rows(t: Tensor, rows: int) -> Tensor:
    """`t` with its rows repeated up to `rows`: the unconditional half shares the conditional entries."""
    return t if len(t) == rows else t.repeat(rows // len(t), *(1,) * (t.ndim - 1))
