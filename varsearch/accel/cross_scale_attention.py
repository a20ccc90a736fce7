"""Cross-scale attention: the keys that matter at one scale are, moved to the finer maps, those that matter later.

SparVAR's CS4A (arXiv 2602.04361). At the decision scale attention is dense and each head and group of queries sums
the attention that each key receives. At a later scale the groups attend to the best of these keys, to the first scales
(sinks) and to their own neighbourhood. All queries of a group see one list of keys, which is gathered once.

The paper multiplies the key's index by the ratio of sequence lengths, its conference code keeps the index, and its
newer code moves it to the same place of the scale that is as far from the current one as its own was from the decision
scale. Only the last keeps what was observed: that maps look alike at equal distance between scales. We do it per axis,
since a raster index that is not scaled by a whole number loses its column. As in the published code the sparse
attention's error at the decision scale is added to its output at later scales, upsampled. Here groups are equal parts
of a map, so that each has a counterpart at every scale; the published ones are 192 queries long and take the nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from varsearch.accel.block_heads import GroupBlocks
from varsearch.accel.scale_skipping import run_scales
from varsearch.accel.sparse_attention import Window, visible
from varsearch.accel.token_maps import Array, Maps
from varsearch.kernels.attention import KeyList, listed_attention
from varsearch.kernels.attention_backends import DEFAULT, Attention
from varsearch.kernels.block_attention import AttentionInputs, Implementation, KVEntries
from varsearch.kernels.block_attention import attend as attend_blocks
from varsearch.kernels.block_attention import column_mass as mass_of_keys
from varsearch.models.seams import Attend, AttentionMemory, KVView, dense_attention
from varsearch.policy import CrossScale, Policy, share_of
from varsearch.target import ModelSpec

ABSENT, KNOWN = -1.0, -2.0
"""Marks below any attention: keys that were evicted, and keys that the group sees anyway."""


def attend(
    policy: Policy, spec: ModelSpec, scale: int, layer: int, keys: Callable[[CrossScale, Maps], ChosenKeys]
) -> Attend | None:
    """Attention of `layer` at `scale` where the policy makes a choice of keys (by `keys`) or uses one, else None."""
    how, run = policy.layers[layer].attention.cross_scale, run_scales(policy)
    if how is None or scale not in run or scale < how.decision_scale or how.decision_scale == run[-1]:
        return None
    maps = Maps(spec.scales, run, scale)
    return (Deciding if scale == how.decision_scale else Following)(keys(how, maps))


class Template(NamedTuple):
    """What is known of a scale's groups before any data.

    Args:
        bounds: first query and the one after the last, per group.
        always: positions of the keys that a group sees whatever is chosen.
        known_GT: keys of the decision scale that a group cannot choose, seeing their counterpart anyway or having none.
        target_T: position of each key's counterpart.
        n_chosen: keys that each group chooses.
        index_T: index of each position among complete keys, -1 where there is none.
        listed_M: indices of the keys in `always`, group after group.
        seen_GT: whether a key is in `always`.
        group_L: group of each query.
    """

    bounds: tuple[tuple[int, int], ...]
    always: tuple[Array, ...]
    known_GT: Array
    target_T: Array
    n_chosen: int
    index_T: Array
    listed_M: Array
    seen_GT: Array
    group_L: Array


@lru_cache(maxsize=256)
def template(how: CrossScale, maps: Maps) -> Template:
    """The groups of the scale `maps.scale`. T counts the positions up to the decision scale."""
    length = len(maps.query_positions())
    edges = [length * g // how.groups for g in range(how.groups + 1)]
    bounds = tuple(pairwise(edges))
    window = (Window(how.radius[maps.scale - how.decision_scale]),)
    sinks = [maps.positions(k) for k in maps.run if k < min(how.sink_scales, maps.scale)]
    own = maps.query_positions()
    near = [own[visible(maps, window, own[first:end], own).any(0)] for first, end in bounds]
    if maps.scale < how.sink_scales:
        near = [own for _ in bounds]
    always = tuple(np.concatenate([*sinks, part]) for part in near)
    target_T = counterparts(how, maps)
    _, first_T = np.unique(target_T, return_index=True)
    without = target_T < 0
    without[np.setdiff1d(np.arange(len(target_T)), first_T)] = True
    known_GT = np.stack([without | np.isin(target_T, part) for part in always])
    wanted = share_of(how.keys, maps._replace(scale=how.decision_scale).n_keys)
    index_T = np.full(own[-1] + 1, -1)
    index_T[maps.key_positions()] = np.arange(maps.n_keys)
    return Template(
        bounds,
        always,
        known_GT,
        target_T,
        min(wanted, int((~known_GT).sum(1).min())),
        index_T,
        listed_M=index_T[np.concatenate(always)],
        seen_GT=np.stack([np.isin(np.arange(len(index_T)), part) for part in always]),
        group_L=np.repeat(np.arange(how.groups), np.diff(edges)),
    )


def counterparts(how: CrossScale, maps: Maps) -> Array:
    """For each position up to the decision scale the key at the same place as far from the current scale, or -1."""
    later = maps.run.index(maps.scale) - maps.run.index(how.decision_scale)
    found = []
    for j in range(how.decision_scale + 1):
        cells = maps.cells(maps.positions(j))
        if j not in maps.run:
            found.append(np.full_like(cells.y, -1))
            continue
        scale = maps.run[maps.run.index(j) + later]
        (height, width), (old_height, old_width) = maps.sizes[scale], maps.sizes[j]
        y, x = (2 * cells.y + 1) * height // (2 * old_height), (2 * cells.x + 1) * width // (2 * old_width)
        found.append(maps.positions(scale)[y * width + x])
    return np.concatenate(found)


class ChosenKeys:
    """Attention of groups of queries to their lists of keys.

    Where keys and queries are complete each list is gathered and nothing else computed. Otherwise the entries that
    remain differ between rows and heads, and the lists mask them.
    """

    def __init__(self, how: CrossScale, maps: Maps, attention: Attention = DEFAULT) -> None:
        self.how, self.maps, self.template, self.attention = how, maps, template(how, maps), attention
        self.tables: dict[str, Tensor] = {}
        self.blocks: dict[torch.device, GroupBlocks] = {}

    def __call__(self, q_BHLC: Tensor, pos_BL: Tensor, view: KVView, mass_BHGT: Tensor) -> Tensor:
        chosen_BHGN = self.choose(mass_BHGT)
        if self.maps.complete(pos_BL, view):
            if self.attention.blocks is not None:
                return self.listed(q_BHLC, view, chosen_BHGN, self.attention.blocks)
            return listed_attention(q_BHLC, view.k_BHSC, view.v_BHSC, self._lists(chosen_BHGN), self.attention)
        return self.masked(q_BHLC, pos_BL, view, chosen_BHGN)

    def listed(self, q_BHLC: Tensor, view: KVView, chosen_BHGN: Tensor, implementation: Implementation) -> Tensor:
        """The same as one request: each group's list is read entry by entry, and nothing is gathered."""
        blocks, index_BHGN = self._blocks(q_BHLC.device), self._table("index_T", q_BHLC.device)[chosen_BHGN]
        always_BHGN = blocks.always_GN.expand(*index_BHGN.shape[:3], -1)
        index_BHGN = torch.cat((index_BHGN.int(), always_BHGN), dim=-1)
        keys = KVEntries(view.k_BHSC, view.v_BHSC, length_BHG=blocks.length_BHG, index_BHGN=index_BHGN)
        pairs = q_BHLC.shape[1] * blocks.pairs
        return attend_blocks(
            AttentionInputs(q_BHLC, keys, queries=blocks.queries, pairs=pairs), implementation
        ).out_BHLC

    def _blocks(self, device: torch.device) -> GroupBlocks:
        if device not in self.blocks:
            t = self.template
            always_G = [t.index_T[part] for part in t.always]
            self.blocks[device] = GroupBlocks.of(t.bounds, always_G, t.n_chosen, device)
        return self.blocks[device]

    def choose(self, mass_BHGT: Tensor) -> Tensor:
        """Positions of the keys that each group chooses by their mass at the decision scale, (B, H, G, N)."""
        masked_BHGT = mass_BHGT.masked_fill(self._table("known_GT", mass_BHGT.device), KNOWN)
        best = masked_BHGT.topk(self.template.n_chosen, dim=-1)
        # Position 0 is a sink, so naming it for a key that was evicted changes nothing.
        return self._table("target_T", mass_BHGT.device)[best.indices].where(best.values > ABSENT, 0)

    def covers(self, pos_BL: Tensor, view: KVView) -> bool:
        """Whether queries and keys are complete, and the keys are all positions up to this scale's last."""
        return self.maps.complete(pos_BL, view) and self.maps.n_keys == len(self.template.index_T)

    def _table(self, name: str, device: torch.device) -> Tensor:
        """A table of the template where it is needed; it is copied there once."""
        if name not in self.tables:
            self.tables[name] = torch.from_numpy(getattr(self.template, name)).to(device)
        return self.tables[name]

    def _lists(self, chosen_BHGN: Tensor) -> Iterator[KeyList]:
        index_BHGN = self._table("index_T", chosen_BHGN.device)[chosen_BHGN]
        always_G = self._table("listed_M", chosen_BHGN.device).split([len(part) for part in self.template.always])
        groups = zip(self.template.bounds, always_G, index_BHGN.unbind(2), strict=True)
        for (first, end), always_S, chosen_BHN in groups:
            yield KeyList(first, end, torch.cat((always_S.expand(*chosen_BHN.shape[:2], -1), chosen_BHN), dim=-1))

    def masked(self, q_BHLC: Tensor, pos_BL: Tensor, view: KVView, chosen_BHGN: Tensor) -> Tensor:
        """The same by a mask, for any part of the queries and keys."""
        rows, heads = chosen_BHGN.shape[:2]
        seen_BHGT = self._table("seen_GT", q_BHLC.device).repeat(rows, heads, 1, 1)
        seen_BHGT.scatter_(3, chosen_BHGN, True)
        group_BL = self._table("group_L", q_BHLC.device)[pos_BL - self.maps.query_positions()[0]]
        group_BHL1 = group_BL[:, None, :, None].expand(rows, heads, -1, seen_BHGT.shape[3])
        pos_BHLS = view.positions().long()[:, :, None].expand(rows, heads, group_BL.shape[1], -1)
        seen_BHLS = seen_BHGT.gather(2, group_BHL1).gather(3, pos_BHLS)
        return self.attention(q_BHLC, view.k_BHSC, view.v_BHSC, seen_BHLS)


class Deciding:
    """The decision scale: dense attention, the attention that each key receives, and what the chosen keys miss."""

    def __init__(self, keys: ChosenKeys) -> None:
        self.sparse, self.residual = keys, keys.how.residual

    def __call__(self, q_BHLC: Tensor, pos_BL: Tensor, views: tuple[KVView, ...], memory: AttentionMemory) -> Tensor:
        blocks = self.sparse.attention.blocks
        if blocks is not None and len(views) == 1 and self.sparse.covers(pos_BL, views[0]):
            return self._together(q_BHLC, pos_BL, views[0], memory, blocks)
        out_BHLC = dense_attention(q_BHLC, pos_BL, views, memory, self.sparse.attention)
        bounds = self.sparse.template.bounds
        rows, heads = q_BHLC.shape[:2]
        mass_BHGT = q_BHLC.new_full((rows, heads, *self.sparse.template.known_GT.shape), ABSENT)
        residual_BHLC = torch.empty_like(out_BHLC) if self.residual else None
        for view in views:
            chosen = view.place
            q = q_BHLC[:, chosen]
            mass_BHGT[:, chosen] = column_mass(q, view, bounds, mass_BHGT[:, chosen])
            if residual_BHLC is not None:
                sparse_BHLC = self.sparse(q, pos_BL, view, mass_BHGT[:, chosen])
                residual_BHLC[:, chosen] = out_BHLC[:, chosen] - sparse_BHLC
        memory.tensors = (mass_BHGT,) if residual_BHLC is None else (mass_BHGT, residual_BHLC)
        return out_BHLC

    def _together(
        self, q_BHLC: Tensor, pos_BL: Tensor, view: KVView, memory: AttentionMemory, blocks: Implementation
    ) -> Tensor:
        """Attention and its log-sum-exp in one pass, of which the attention that keys receive takes one more."""
        found = attend_blocks(AttentionInputs(q_BHLC, KVEntries(view.k_BHSC, view.v_BHSC), lse=True), blocks)
        assert found.lse_BHL is not None, "it was asked for"
        bounds = [first for first, _ in self.sparse.template.bounds] + [q_BHLC.shape[2]]
        mass_BHGT = mass_of_keys(q_BHLC, view.k_BHSC, found.lse_BHL, bounds, blocks)
        memory.tensors = (mass_BHGT,)
        if self.residual:
            memory.tensors += (found.out_BHLC - self.sparse(q_BHLC, pos_BL, view, mass_BHGT),)
        return found.out_BHLC


def column_mass(q_BHLC: Tensor, view: KVView, bounds: tuple[tuple[int, int], ...], mass_BHGT: Tensor) -> Tensor:
    """`mass_BHGT` with the attention that the keys of `view` receive from each group, at their positions."""
    k_BHCS = view.k_BHSC.mT
    mass_BHGS = torch.stack([(q_BHLC[:, :, a:b] @ k_BHCS).softmax(-1).sum(2) for a, b in bounds], dim=2)
    pos_BHGS = view.positions().long()[:, :, None].expand(mass_BHGS.shape)
    return mass_BHGT.scatter(3, pos_BHGS, mass_BHGS)


class Following:
    """A later scale: the chosen keys, moved here, and the residual of the decision scale."""

    def __init__(self, keys: ChosenKeys) -> None:
        maps = keys.maps
        self.sparse, self.start = keys, int(maps.query_positions()[0])
        self.size, self.old_size = maps.sizes[maps.scale], maps.sizes[keys.how.decision_scale]

    def __call__(self, q_BHLC: Tensor, pos_BL: Tensor, views: tuple[KVView, ...], memory: AttentionMemory) -> Tensor:
        mass_BHGT, *residual = (rows_of(t, len(q_BHLC)) for t in memory.tensors)
        out_BHLC = torch.empty_like(q_BHLC)
        for view in views:
            chosen = view.place
            out_BHLC[:, chosen] = self.sparse(q_BHLC[:, chosen], pos_BL, view, mass_BHGT[:, chosen])
        if residual:
            index_BHLC = (pos_BL - self.start)[:, None, :, None].expand(out_BHLC.shape)
            out_BHLC += self._upsampled(residual[0]).gather(2, index_BHLC)
        return out_BHLC

    def _upsampled(self, t_BHLC: Tensor) -> Tensor:
        heads = t_BHLC.shape[1]
        t_BDhw = t_BHLC.mT.flatten(1, 2).unflatten(2, self.old_size)
        return F.interpolate(t_BDhw, size=self.size, mode="bilinear").flatten(2).unflatten(1, (heads, -1)).mT


def rows_of(t: Tensor, rows: int) -> Tensor:
    """`t` for so many rows: where guidance is shared or off in one place only, the conditional rows stand for all."""
    return t[:rows].repeat(max(1, rows // len(t)), *(1,) * (t.ndim - 1))
