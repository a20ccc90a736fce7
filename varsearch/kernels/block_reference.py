"""The definition of block attention: a softmax under a mask of all pairs, in float32 or wider.

Shape suffixes are those of `block_attention.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from varsearch.kernels.block_attention import (
    BLOCK,
    SCALE_BITS,
    SIDE_BITS,
    AttentionInputs,
    AttentionOutputs,
    BlockList,
    Geometry,
    KVEntries,
)
from varsearch.kernels.packing import unpack


def reference(inputs: AttentionInputs) -> AttentionOutputs:
    """See `block_attention.attend`."""
    q_BHLC, wide = inputs.q_BHLC, torch.promote_types(inputs.q_BHLC.dtype, torch.float32)
    lse_BHL = torch.full(q_BHLC.shape[:3], -torch.inf, dtype=wide, device=q_BHLC.device)
    entropy_BHL, out_BHLC = torch.zeros_like(lse_BHL), torch.zeros_like(q_BHLC, dtype=wide)
    for g in range(_n_groups(inputs)):
        k_BHSC, v_BHSC, seen_BHLS = _pairs(inputs, g, wide)
        product_BHLS = (q_BHLC.to(wide) @ k_BHSC.mT).masked_fill(~seen_BHLS, -torch.inf)
        sees_BHL, lse = seen_BHLS.any(-1), product_BHLS.logsumexp(-1)
        surprise_BHLS = lse[..., None] - product_BHLS
        weight_BHLS = torch.where(seen_BHLS, (-surprise_BHLS).exp(), 0.0)
        entropy = torch.where(seen_BHLS, weight_BHLS * surprise_BHLS, 0.0).sum(-1)
        lse_BHL, entropy_BHL = torch.where(sees_BHL, lse, lse_BHL), torch.where(sees_BHL, entropy, entropy_BHL)
        out_BHLC = torch.where(sees_BHL[..., None], weight_BHLS @ v_BHSC, out_BHLC)
    found = lse_BHL if inputs.lse else None, entropy_BHL if inputs.entropy else None
    return AttentionOutputs(out_BHLC.to(q_BHLC.dtype), *found)


def column_mass(q_BHLC: Tensor, k_BHSC: Tensor, lse_BHL: Tensor, bounds: Sequence[int]) -> Tensor:
    """See `block_attention.column_mass`."""
    wide = lse_BHL.dtype
    weight_BHLS = (q_BHLC.to(wide) @ k_BHSC.to(wide).mT - lse_BHL[..., None]).exp()
    return torch.stack([weight_BHLS[:, :, a:b].sum(2) for a, b in pairwise(bounds)], dim=2)


def sees(geometry: Geometry, query_cell_BL: Tensor, count: int) -> Tensor:
    """Which queries see which of the first `count` keys by their places, (B or 1, H, L, N)."""
    query, key = query_cell_BL.long()[:, None, :, None], geometry.key_cell_BHN[..., :count].long()[:, :, None]
    (qy, qx), (ky, kx) = _row_column(query), _row_column(key)
    scale, sizes = key >> SCALE_BITS, geometry.sizes_K2.long()
    key_height, key_width = sizes[scale, 0], sizes[scale, 1]
    seen = torch.ones((), dtype=torch.bool, device=query.device)
    if geometry.radius_HK is not None:
        radius = _per_head(geometry.radius_HK, scale)
        near_y = (2 * qy + 1) * key_height // (2 * geometry.height) - ky
        near_x = (2 * qx + 1) * key_width // (2 * geometry.width) - kx
        seen = seen & (near_y.abs() <= radius) & (near_x.abs() <= radius)
    if geometry.width_HK is not None:
        length, key_length = geometry.height * geometry.width, key_height * key_width
        apart = ((qy * geometry.width + qx) * key_length - (ky * key_width + kx) * length).abs()
        seen = seen & (apart < _per_head(geometry.width_HK, scale) * length)
    return seen


def _row_column(cell: Tensor) -> tuple[Tensor, Tensor]:
    side = (1 << SIDE_BITS) - 1
    return cell >> SIDE_BITS & side, cell & side


def _per_head(table_HK: Tensor, scale_BH1N: Tensor) -> Tensor:
    heads = torch.arange(len(table_HK), device=table_HK.device)[None, :, None, None]
    return table_HK.long()[heads, scale_BH1N]


def _n_groups(inputs: AttentionInputs) -> int:
    if inputs.queries is None or inputs.queries.group_Q is None:
        return 1
    return int(inputs.queries.group_Q.max()) + 1


def _pairs(inputs: AttentionInputs, g: int, wide: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values in the order in which group `g` sees them, and which of its queries sees which, (B, H, L, S)."""
    rows, heads, length, channels = inputs.q_BHLC.shape
    keys, own, queries, geometry = inputs.keys, inputs.own, inputs.queries, inputs.geometry
    index_BHN, inside_BHN = _entries(keys, rows, heads, g)
    k, v = (
        _numbers(keys, t, s, index_BHN, channels, wide) for t, s in ((keys.k, keys.k_scale), (keys.v, keys.v_scale))
    )
    place_L, count = _places(inputs), index_BHN.shape[2]
    seen_BHLN = inside_BHN[:, :, None].expand(rows, heads, length, count)
    near_BHLN = seen_BHLN
    if geometry is not None:
        near_BHLN = seen_BHLN & sees(geometry, geometry.query_cell_BM[:, place_L], count)
    if inputs.blocks is None:
        seen_BHLN = near_BHLN
    else:
        block_L = place_L // (BLOCK if queries is None else queries.size)
        full_BHLN, part_BHLN = (t[:, :, block_L] for t in _listed(inputs.blocks, count))
        seen_BHLN = (seen_BHLN & full_BHLN) | (near_BHLN & part_BHLN)
    if own is not None:
        k, v = torch.cat((k, own.k.to(wide)), dim=2), torch.cat((v, own.v.to(wide)), dim=2)
        seen_BHLN = F.pad(seen_BHLN, (0, own.k.shape[2]), value=True)
    if queries is not None and queries.group_Q is not None:
        seen_BHLN = seen_BHLN & (queries.group_Q[place_L // queries.size] == g)[:, None]
    return k, v, seen_BHLN


def _places(inputs: AttentionInputs) -> Tensor:
    """The place in the blocks of each query, (L)."""
    length, device = inputs.q_BHLC.shape[2], inputs.q_BHLC.device
    if inputs.queries is None:
        return torch.arange(length, device=device)
    index_M = inputs.queries.index_M.long()
    filled = (index_M >= 0).nonzero()[:, 0]
    return torch.empty(length, dtype=torch.long, device=device).scatter_(0, index_M[filled], filled)


def _entries(keys: KVEntries, rows: int, heads: int, g: int) -> tuple[Tensor, Tensor]:
    """Stored entry of each key that group `g` sees, and which of these keys there are, both (B, H, N)."""
    device, index, length = keys.k.device, keys.index_BHGN, keys.length_BHG
    if index is not None:
        index_BHN = index[:, :, min(g, index.shape[2] - 1)].expand(rows, heads, -1).long()
    else:
        most = keys.k.shape[2] if length is None else int(length.max())
        index_BHN = torch.arange(most, device=device).expand(rows, heads, -1)
    if length is None:
        return index_BHN, torch.ones_like(index_BHN, dtype=torch.bool)
    length_BH = length[:, :, min(g, length.shape[2] - 1)].expand(rows, heads)
    inside_BHN = torch.arange(index_BHN.shape[2], device=device) < length_BH[..., None]
    return index_BHN.where(inside_BHN, 0), inside_BHN


def _numbers(
    keys: KVEntries, t: Tensor, scale: Tensor | None, index_BHN: Tensor, channels: int, wide: torch.dtype
) -> Tensor:
    """The entries at these indices as numbers, (B, H, N, C)."""
    place: tuple[Tensor, ...]
    if keys.start_BH is not None:
        place = ((index_BHN + keys.start_BH[..., None]).clamp_max(len(t) - 1),)
    else:
        row, head = (torch.arange(n, device=t.device) for n in index_BHN.shape[:2])
        place = (row[:, None, None], head[:, None], index_BHN)
    if keys.bits is None or scale is None:
        return t[place].to(wide)
    return unpack(t[place], keys.bits, channels, wide) * scale[place][..., None].to(wide)


def _listed(blocks: BlockList, count: int) -> tuple[Tensor, Tensor]:
    """Which keys are in blocks seen in full, and which in blocks seen in part, (B, H, Q, N) each."""
    index, n_blocks = blocks.index_BHQN.long(), -(-count // blocks.size)
    place_N = torch.arange(index.shape[-1], device=index.device)
    full = place_N < blocks.full_BHQ[..., None]
    part = (place_N < blocks.count_BHQ[..., None]) & ~full
    found = []
    for chosen in (full, part):
        # Places beyond the list count for a block that there is not.
        at = index.where(chosen, n_blocks)
        table = torch.zeros(*index.shape[:-1], n_blocks + 1, dtype=torch.bool, device=index.device).scatter_(
            -1, at, True
        )
        found.append(table[..., :n_blocks].repeat_interleave(blocks.size, dim=-1)[..., :count])
    return found[0], found[1]
