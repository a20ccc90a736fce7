"""Triton kernels behind `block_attention`: attention by blocks, and the attention that keys receive.

Imported at the first use, so that everything else works without Triton; see `quantized_linear_triton.py` for what that
settles and for the annotations. Products are kept in base 2, in which the hardware takes exponentials.

Shape suffixes are those of `block_attention.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from varsearch.kernels.block_attention import BLOCK, SCALE_BITS, SIDE_BITS, AttentionInputs
from varsearch.kernels.quantized_linear_triton import operand_dtype

LOG2E, LN2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
CELL_SCALE, CELL_SIDE, SIDE = tl.constexpr(SCALE_BITS), tl.constexpr(SIDE_BITS), tl.constexpr((1 << SIDE_BITS) - 1)


class Warps(NamedTuple):
    """How a kernel is compiled."""

    num_warps: int
    num_stages: int


@triton.jit
def _entries(
    ptr: tl.tensor, entry: tl.tensor, inside: tl.tensor, stride: tl.tensor,
    C: tl.constexpr, CHANNELS: tl.constexpr, BITS: tl.constexpr, MASKED: tl.constexpr, OPERAND: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Rows (N, CHANNELS) of numbers, or of integers as numbers; 0 beyond C, and where MASKED rows are not `inside`."""
    if BITS == 4:
        place = tl.arange(0, CHANNELS // 2)
        rows = ptr + entry[:, None] * stride + place[None, :]
        bytes_ = tl.load(rows, mask=inside[:, None] & (place < C // 2)[None, :], other=136).to(tl.int32)
        return tl.reshape(tl.join(bytes_ & 15, bytes_ >> 4), (entry.shape[0], CHANNELS)).to(OPERAND) - 8.0
    channel = tl.arange(0, CHANNELS)
    rows = ptr + entry[:, None] * stride + channel[None, :]
    if BITS == 8:
        bytes_ = tl.load(rows, mask=inside[:, None] & (channel < C)[None, :], other=128).to(tl.int32)
        return (bytes_ - 128).to(OPERAND)
    if MASKED and CHANNELS != C:
        return tl.load(rows, mask=inside[:, None] & (channel < C)[None, :], other=0.0).to(OPERAND)
    if MASKED:
        return tl.load(rows, mask=inside[:, None], other=0.0).to(OPERAND)
    if CHANNELS != C:
        return tl.load(rows, mask=(channel < C)[None, :], other=0.0).to(OPERAND)
    return tl.load(rows).to(OPERAND)


@triton.jit
def _near(
    seen: tl.tensor, query_cell: tl.tensor, key_cell: tl.tensor, sizes_ptr: tl.tensor, radius_ptr: tl.tensor | None,
    width_ptr: tl.tensor | None, height: tl.tensor, width: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """`seen` (M, N) where queries see keys by place; `radius_ptr` and `width_ptr` are those of the head."""
    scale, ky, kx = key_cell >> CELL_SCALE, key_cell >> CELL_SIDE & SIDE, key_cell & SIDE
    qy, qx = query_cell >> CELL_SIDE & SIDE, query_cell & SIDE
    key_height, key_width = tl.load(sizes_ptr + 2 * scale), tl.load(sizes_ptr + 2 * scale + 1)
    if radius_ptr is not None:
        radius = tl.load(radius_ptr + scale)
        # The query's cell on the key's map is a rounded quotient; these are its bounds, multiplied out.
        y, x = (2 * qy + 1)[:, None] * key_height[None, :], (2 * qx + 1)[:, None] * key_width[None, :]
        seen &= (y >= ((ky - radius) * 2 * height)[None, :]) & (y < ((ky + radius + 1) * 2 * height)[None, :])
        seen &= (x >= ((kx - radius) * 2 * width)[None, :]) & (x < ((kx + radius + 1) * 2 * width)[None, :])
    if width_ptr is not None:
        length = height * width
        apart = (qy * width + qx)[:, None] * (key_height * key_width)[None, :] - ((ky * key_width + kx) * length)[None]
        seen &= tl.abs(apart) < (tl.load(width_ptr + scale) * length)[None, :]
    return seen


@triton.jit
def _softmax_step(
    product: tl.tensor, value: tl.tensor, value_scale: tl.tensor | None,
    top: tl.tensor, total: tl.tensor, energy: tl.tensor, out: tl.tensor, ENTROPY: tl.constexpr, PRECISION: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Adds a block of keys to a softmax in progress: its largest product, denominator, energy and numerators."""
    higher = tl.maximum(top, tl.max(product, 1))
    # Rows that have seen nothing yet; the difference of two infinities is no number.
    level = tl.where(higher == float("-inf"), 0.0, higher)
    weight, shrink = tl.exp2(product - level[:, None]), tl.exp2(top - level)
    if ENTROPY:
        # See `attention_entropy`: the sum of weights times their products, relative to the largest.
        shift = tl.where(top == float("-inf"), 0.0, top - level)
        energy = shrink * (energy + shift * total)
        energy += tl.sum(tl.where(weight > 0, weight * (product - level[:, None]), 0.0), 1)
    total = total * shrink + tl.sum(weight, 1)
    if value_scale is not None:
        weight = weight * value_scale[None, :]
    out = tl.dot(weight.to(value.dtype), value, out * shrink[:, None], input_precision=PRECISION)
    return higher, total, energy, out


@triton.jit
def attention_kernel(
    q_ptr: tl.tensor, k_ptr: tl.tensor, v_ptr: tl.tensor, own_k_ptr: tl.tensor | None, own_v_ptr: tl.tensor | None,
    out_ptr: tl.tensor, lse_ptr: tl.tensor | None, entropy_ptr: tl.tensor | None,
    start_ptr: tl.tensor | None, length_ptr: tl.tensor | None, index_ptr: tl.tensor | None,
    k_scale_ptr: tl.tensor | None, v_scale_ptr: tl.tensor | None,
    query_ptr: tl.tensor | None, group_ptr: tl.tensor | None,
    block_ptr: tl.tensor | None, full_ptr: tl.tensor | None, count_ptr: tl.tensor | None,
    query_cell_ptr: tl.tensor | None, key_cell_ptr: tl.tensor | None, sizes_ptr: tl.tensor | None,
    radius_ptr: tl.tensor | None, width_ptr: tl.tensor | None,
    n_heads: tl.tensor, n_queries: tl.tensor, n_keys: tl.tensor, n_own: tl.tensor, n_scales: tl.tensor,
    height: tl.tensor, width: tl.tensor,
    q_b: tl.tensor, q_h: tl.tensor, q_l: tl.tensor, k_b: tl.tensor, k_h: tl.tensor, k_s: tl.tensor,
    v_b: tl.tensor, v_h: tl.tensor, v_s: tl.tensor,
    own_k_b: tl.tensor, own_k_h: tl.tensor, own_k_s: tl.tensor,
    own_v_b: tl.tensor, own_v_h: tl.tensor, own_v_s: tl.tensor, out_b: tl.tensor, out_h: tl.tensor, out_l: tl.tensor,
    k_scale_b: tl.tensor, k_scale_h: tl.tensor, v_scale_b: tl.tensor, v_scale_h: tl.tensor,
    length_b: tl.tensor, length_h: tl.tensor, length_g: tl.tensor,
    index_b: tl.tensor, index_h: tl.tensor, index_g: tl.tensor,
    block_b: tl.tensor, block_h: tl.tensor, block_q: tl.tensor, count_b: tl.tensor, count_h: tl.tensor,
    query_cell_b: tl.tensor, key_cell_b: tl.tensor, key_cell_h: tl.tensor,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, BITS: tl.constexpr, ENTROPY: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, C: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    """One block of queries of one row and head."""
    part, row, head = tl.program_id(0), tl.program_id(1) // n_heads, tl.program_id(1) % n_heads
    row, head = row.to(tl.int64), head.to(tl.int64)
    place = part * QUERIES + tl.arange(0, QUERIES)
    query = place
    if query_ptr is not None:
        query = tl.load(query_ptr + place)
    asked = (query >= 0) & (query < n_queries)
    # Small enough to be 32 bits wide; rows and heads are what makes addresses large.
    q_ptr += row * q_b + head * q_h
    q = _entries(q_ptr, tl.where(asked, query, 0), asked, q_l, C, CHANNELS, 0, True, OPERAND)
    group = 0
    if group_ptr is not None:
        group = tl.load(group_ptr + part)
    length = n_keys
    if length_ptr is not None:
        length = tl.load(length_ptr + row * length_b + head * length_h + group * length_g)
    first = row * 0
    if start_ptr is not None:
        first = tl.load(start_ptr + row * n_heads + head).to(tl.int64)
    k_ptr += row * k_b + head * k_h + first * k_s
    v_ptr += row * v_b + head * v_h + first * v_s
    if BITS != 0:
        k_scale_ptr += row * k_scale_b + head * k_scale_h + first
        v_scale_ptr += row * v_scale_b + head * v_scale_h + first
    if index_ptr is not None:
        index_ptr += row * index_b + head * index_h + group * index_g
    if block_ptr is not None:
        block_ptr += row * block_b + head * block_h + part * block_q
        n_full = tl.load(full_ptr + row * count_b + head * count_h + part)
        n_blocks = tl.load(count_ptr + row * count_b + head * count_h + part)
    else:
        n_blocks = tl.cdiv(length, KEYS)
        n_full = length // KEYS
        if key_cell_ptr is not None:
            n_full = 0
    query_cell = place
    if key_cell_ptr is not None:
        query_cell = tl.load(query_cell_ptr + row * query_cell_b + place, mask=asked, other=0)
        key_cell_ptr += row * key_cell_b + head * key_cell_h
        if radius_ptr is not None:
            radius_ptr += head * n_scales
        if width_ptr is not None:
            width_ptr += head * n_scales
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    energy = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, CHANNELS], tl.float32)
    for MASKED in tl.static_range(0, 2):
        for i in range(n_full * MASKED, n_blocks * MASKED + n_full * (1 - MASKED)):
            block = i
            if block_ptr is not None:
                block = tl.load(block_ptr + i)
            key = block * KEYS + tl.arange(0, KEYS)
            inside = key < length
            entry = key
            if index_ptr is not None:
                entry = tl.load(index_ptr + key, mask=inside, other=0)
            k = _entries(k_ptr, entry, inside, k_s, C, CHANNELS, BITS, MASKED, OPERAND)
            v = _entries(v_ptr, entry, inside, v_s, C, CHANNELS, BITS, MASKED, OPERAND)
            product = tl.dot(q, tl.trans(k), input_precision=PRECISION) * LOG2E
            value_scale = None
            if BITS != 0:
                product *= tl.load(k_scale_ptr + entry, mask=inside, other=0.0).to(tl.float32)[None, :]
                value_scale = tl.load(v_scale_ptr + entry, mask=inside, other=0.0).to(tl.float32)
            if MASKED:
                seen = asked[:, None] & inside[None, :]
                if key_cell_ptr is not None:
                    key_cell = tl.load(key_cell_ptr + key, mask=inside, other=0)
                    seen = _near(seen, query_cell, key_cell, sizes_ptr, radius_ptr, width_ptr, height, width)
                product = tl.where(seen, product, float("-inf"))
            top, total, energy, out = _softmax_step(
                product, v, value_scale, top, total, energy, out, ENTROPY, PRECISION
            )
    if own_k_ptr is not None:
        own_k_ptr += row * own_k_b + head * own_k_h
        own_v_ptr += row * own_v_b + head * own_v_h
        for i in range(tl.cdiv(n_own, KEYS)):
            key = i * KEYS + tl.arange(0, KEYS)
            inside = key < n_own
            k = _entries(own_k_ptr, key, inside, own_k_s, C, CHANNELS, 0, True, OPERAND)
            v = _entries(own_v_ptr, key, inside, own_v_s, C, CHANNELS, 0, True, OPERAND)
            product = tl.dot(q, tl.trans(k), input_precision=PRECISION) * LOG2E
            product = tl.where(asked[:, None] & inside[None, :], product, float("-inf"))
            top, total, energy, out = _softmax_step(product, v, None, top, total, energy, out, ENTROPY, PRECISION)
    divisor = tl.where(total == 0, 1.0, total)
    out = out / divisor[:, None]
    channel = tl.arange(0, CHANNELS)
    out_ptr += row * out_b + head * out_h
    target = out_ptr + query[:, None] * out_l + channel[None, :]
    tl.store(target, out.to(out_ptr.dtype.element_ty), mask=asked[:, None] & (channel < C)[None, :])
    target = (row * n_heads + head) * n_queries + query
    if lse_ptr is not None:
        lse = tl.where(total == 0, float("-inf"), (top + tl.log2(divisor)) * LN2)
        tl.store(lse_ptr + target, lse, mask=asked)
    if entropy_ptr is not None:
        tl.store(entropy_ptr + target, (tl.log2(divisor) - energy / divisor) * LN2, mask=asked)


@triton.jit
def mass_kernel(
    q_ptr: tl.tensor, k_ptr: tl.tensor, lse_ptr: tl.tensor, bound_ptr: tl.tensor, mass_ptr: tl.tensor,
    n_heads: tl.tensor, n_queries: tl.tensor, n_keys: tl.tensor, n_groups: tl.tensor,
    q_b: tl.tensor, q_h: tl.tensor, q_l: tl.tensor, k_b: tl.tensor, k_h: tl.tensor, k_s: tl.tensor,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, C: tl.constexpr, CHANNELS: tl.constexpr,
) -> None:  # fmt: skip
    """The attention that a block of keys receives from one group of queries of one row and head."""
    group, row, head = tl.program_id(1), tl.program_id(2) // n_heads, tl.program_id(2) % n_heads
    row, head = row.to(tl.int64), head.to(tl.int64)
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    inside = key < n_keys
    q_ptr += row * q_b + head * q_h
    lse_ptr += (row * n_heads + head) * n_queries
    k = _entries(k_ptr + row * k_b + head * k_h, key, inside, k_s, C, CHANNELS, 0, True, OPERAND)
    end = tl.load(bound_ptr + group + 1)
    mass = tl.zeros([KEYS], tl.float32)
    for start in range(tl.load(bound_ptr + group), end, QUERIES):
        query = start + tl.arange(0, QUERIES)
        asked = query < end
        q = _entries(q_ptr, query, asked, q_l, C, CHANNELS, 0, True, OPERAND)
        lse = tl.load(lse_ptr + query, mask=asked, other=float("inf"))
        product = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        mass += tl.sum(tl.exp2((product - lse[None, :]) * LOG2E), 1)
    tl.store(mass_ptr + ((row * n_heads + head) * n_groups + group) * n_keys + key, mass, mask=inside)


def warps(head_dim: int, rich: bool, dtype: torch.dtype) -> Warps:
    """More warps where registers would not do: `rich` requests hold places, scales or more than one loop."""
    if dtype == torch.float32:
        return Warps(8, 1)
    return Warps(8 if rich and head_dim > 64 else 4, 2)


def attention(inputs: AttentionInputs, out_BHLC: Tensor, lse_BHL: Tensor, entropy_BHL: Tensor) -> None:
    """Computes a request into tensors that are there; `lse_BHL` and `entropy_BHL` only where it asks for them."""
    q, keys, own = inputs.q_BHLC, inputs.keys, inputs.own
    queries, blocks, geometry = inputs.queries, inputs.blocks, inputs.geometry
    rows, heads, length, channels = q.shape
    if not q.numel():
        return
    size = BLOCK if queries is None else queries.size
    n_parts = triton.cdiv(length if queries is None else len(queries.index_M), size)
    n_keys = keys.k.shape[2] if keys.start_BH is None else 0
    if keys.index_BHGN is not None:
        n_keys = keys.index_BHGN.shape[3]
    none = (0, 0, 0)
    rich = inputs.entropy or own is not None or geometry is not None or keys.bits is not None
    compiled = warps(channels, rich, q.dtype)
    with torch.cuda.device_of(q):
        attention_kernel[(n_parts, rows * heads)](
            q, keys.k, keys.v, *((None, None) if own is None else (own.k, own.v)),
            out_BHLC, lse_BHL if inputs.lse else None, entropy_BHL if inputs.entropy else None,
            keys.start_BH, keys.length_BHG, keys.index_BHGN, keys.k_scale, keys.v_scale,
            *((None, None) if queries is None else (queries.index_M, queries.group_Q)),
            *((None,) * 3 if blocks is None else (blocks.index_BHQN, blocks.full_BHQ, blocks.count_BHQ)),
            *((None,) * 3 if geometry is None else (geometry.query_cell_BM, geometry.key_cell_BHN, geometry.sizes_K2)),
            *((None,) * 2 if geometry is None else (geometry.radius_HK, geometry.width_HK)),
            heads, length, n_keys, 0 if own is None else own.k.shape[2],
            0 if geometry is None else len(geometry.sizes_K2),
            *((0, 0) if geometry is None else (geometry.height, geometry.width)),
            *q.stride()[:3], *_strides(keys.k), *_strides(keys.v),
            *(none if own is None else _strides(own.k)), *(none if own is None else _strides(own.v)),
            *out_BHLC.stride()[:3],
            *(_strides(keys.k_scale, 2)), *(_strides(keys.v_scale, 2)),
            *_broadcast(keys.length_BHG, 3), *_broadcast(keys.index_BHGN, 3),
            *_broadcast(None if blocks is None else blocks.index_BHQN, 3),
            *_broadcast(None if blocks is None else blocks.count_BHQ, 2),
            *_broadcast(None if geometry is None else geometry.query_cell_BM, 1),
            *_broadcast(None if geometry is None else geometry.key_cell_BHN, 2),
            OPERAND=operand_dtype(q.dtype), PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            BITS=keys.bits or 0, ENTROPY=inputs.entropy,
            QUERIES=size, KEYS=BLOCK if blocks is None else blocks.size,
            C=channels, CHANNELS=max(16, triton.next_power_of_2(channels)),
            num_warps=compiled.num_warps, num_stages=compiled.num_stages, enable_fp_fusion=True,
        )  # fmt: skip


def mass(q_BHLC: Tensor, k_BHSC: Tensor, lse_BHL: Tensor, bounds: Sequence[int], mass_BHGS: Tensor) -> None:
    """Computes the attention that keys receive into a contiguous tensor; `lse_BHL` is contiguous, too."""
    rows, heads, length, channels = q_BHLC.shape
    n_keys, n_groups = k_BHSC.shape[2], len(bounds) - 1
    if not mass_BHGS.numel():
        return
    edges = torch.tensor(bounds, dtype=torch.int32, device=q_BHLC.device)
    compiled = warps(channels, True, q_BHLC.dtype)
    with torch.cuda.device_of(q_BHLC):
        mass_kernel[(triton.cdiv(n_keys, BLOCK), n_groups, rows * heads)](
            q_BHLC, k_BHSC, lse_BHL, edges, mass_BHGS, heads, length, n_keys, n_groups,
            *q_BHLC.stride()[:3], *k_BHSC.stride()[:3],
            OPERAND=operand_dtype(q_BHLC.dtype), PRECISION="ieee" if q_BHLC.dtype == torch.float32 else "tf32",
            QUERIES=BLOCK, KEYS=BLOCK, C=channels, CHANNELS=max(16, triton.next_power_of_2(channels)),
            num_warps=compiled.num_warps, num_stages=compiled.num_stages, enable_fp_fusion=True,
        )  # fmt: skip


def _strides(t: Tensor | None, count: int = 3) -> tuple[int, ...]:
    """Steps between rows, heads and entries; packed entries have none between the first two."""
    if t is None:
        return (0,) * count
    packed = t.ndim < (4 if count == 3 else 3)
    return (0, 0, t.stride(0))[:count] if packed else t.stride()[:count]


def _broadcast(t: Tensor | None, count: int) -> tuple[int, ...]:
    """Steps along the first dimensions, 0 where there is one entry for all."""
    if t is None:
        return (0,) * count
    return tuple(step if size > 1 else 0 for size, step in zip(t.shape[:count], t.stride(), strict=False))
