"""Attention that is described by blocks and lengths: one request for every pattern, and who can compute it.

Keys lie in dense or packed storage with a length per row and head. Queries come in blocks, of which each names the
blocks of keys that it meets; a block of pairs is seen in full, or in part by the places of queries and keys on their
maps, and never by a matrix. `reference` is the definition, by masks. `triton` is a kernel of our own
(`block_attention_triton.py`): each request is one launch.

What is known of `triton`: in Triton's interpreter its results are the reference's up to rounding, and it compiles for
compute capability 8.0 to 9.0 to tensor-core code without spills. It has not run on a GPU: not measured.

Shape suffixes: B rows, H heads, L queries, S keys as stored, T keys of all rows and heads, C head dim, M places of
queries in blocks, Q blocks of queries, N places in a list, G groups of query blocks, K scales. Tables may have one row
or head for all. Queries come scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from varsearch.errors import TargetError
from varsearch.kernels import triton_support

BLOCK = 64
"""Queries and keys of a block: what four warps compute at once, and small enough to leave most of a map out."""

SCALE_BITS, SIDE_BITS = 16, 8
"""A cell is one number: its scale from bit 16 on, its row from bit 8 on, its column."""


@dataclass(frozen=True, slots=True)
class KVEntries:
    """Keys and values, and which of them each row, head and group of queries sees.

    Args:
        k: (B, H, S, C), or packed (T, C), a row's heads one behind the other; any strides but 1 between channels. With
            `bits` the bytes of `packing.pack` stand for the channels.
        v: like `k`.
        start_BH: of packed storage, where the entries of a row and head begin, int32.
        length_BHG: keys that are seen, int32; None stands for all of S.
        index_BHGN: which entry the n-th key is, int32; None stands for the n-th.
        bits: 8 or 4 where entries are integers; None where they are numbers.
        k_scale: factors of the integers, shaped as `k` without its last dimension.
        v_scale: like `k_scale`.
    """

    k: Tensor
    v: Tensor
    start_BH: Tensor | None = None
    length_BHG: Tensor | None = None
    index_BHGN: Tensor | None = None
    bits: int | None = None
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None


@dataclass(frozen=True, slots=True)
class QueryBlocks:
    """The order of queries in blocks of `size`.

    Args:
        index_M: query at each place, -1 where there is none, int32.
        group_Q: the group of each block, int32; None where all blocks are one group.
        size: places of a block.
    """

    index_M: Tensor
    group_Q: Tensor | None = None
    size: int = BLOCK


@dataclass(frozen=True, slots=True)
class BlockList:
    """The blocks of keys that each block of queries meets: first those seen in full, then those seen in part.

    Args:
        index_BHQN: number of each block of keys, int32.
        full_BHQ: how many are seen in full, int32.
        count_BHQ: how many there are, int32.
        size: keys of a block.
    """

    index_BHQN: Tensor
    full_BHQ: Tensor
    count_BHQ: Tensor
    size: int = BLOCK


@dataclass(frozen=True, slots=True)
class Geometry:
    """Who sees whom by place, where a block is seen in part: windows, and bands in raster order.

    A query at row y of a map of height h looks at row floor((2 y + 1) h_j / (2 h)) of scale j's map, and sees the rows
    within `radius_HK`; so for columns. Query i of L sees key k of L_j where |i L_j / L - k| is below `width_HK`.

    Args:
        query_cell_BM: cell of the query at each place, int32.
        key_cell_BHN: cell of each key in the order in which it is seen, int32.
        sizes_K2: height and width of each scale's map, int32.
        radius_HK: int32; None where there are no windows.
        width_HK: int32; None where there are no bands.
        height: rows of the queries' own map.
        width: its columns.
    """

    query_cell_BM: Tensor
    key_cell_BHN: Tensor
    sizes_K2: Tensor
    radius_HK: Tensor | None
    width_HK: Tensor | None
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """All that one call of attention takes.

    Args:
        q_BHLC: queries, scaled.
        keys: what they attend to.
        own: more keys and values (B, H, S, C) that all of them see, in the dtype of the queries; for histories in low
            precision.
        queries: their blocks; None where they come in order, as one group.
        blocks: the blocks of `keys` that are computed; None stands for all.
        geometry: what is seen of blocks in part, and of all blocks where there is no list.
        pairs: pairs of a query and a key that one row computes, over all heads, whole blocks; for cost models, which
            see shapes only. None stands for all of `keys` and `own`.
        lse: whether to return the logarithm of each softmax's denominator.
        entropy: whether to return each softmax's entropy.
    """

    q_BHLC: Tensor
    keys: KVEntries
    own: KVEntries | None = None
    queries: QueryBlocks | None = None
    blocks: BlockList | None = None
    geometry: Geometry | None = None
    pairs: int | None = None
    lse: bool = False
    entropy: bool = False


class AttentionOutputs(NamedTuple):
    """Attention (B, H, L, C); per query the log-sum-exp and the entropy in nats, (B, H, L) float32 or wider.

    A query that sees nothing gets zeros, and -inf as its log-sum-exp.
    """

    out_BHLC: Tensor
    lse_BHL: Tensor | None = None
    entropy_BHL: Tensor | None = None


Implementation = Literal["reference", "triton"]
HEAD_DIMS = range(16, 129)
"""Channels of a head that the kernel takes."""


def attend(inputs: AttentionInputs, name: Implementation) -> AttentionOutputs:
    """Computes a request by the implementation of this name."""
    if name == "reference":
        from varsearch.kernels.block_reference import reference

        return reference(inputs)
    out, lse, entropy = block_attention(inputs.q_BHLC, *flattened(inputs))
    return AttentionOutputs(out, lse if inputs.lse else None, entropy if inputs.entropy else None)


def column_mass(q_BHLC: Tensor, k_BHSC: Tensor, lse_BHL: Tensor, bounds: Sequence[int], name: Implementation) -> Tensor:
    """The attention that each key receives from groups of queries, (B, H, G, S), in the dtype of `lse_BHL`.

    Args:
        q_BHLC: queries.
        k_BHSC: keys, all of which all queries see.
        lse_BHL: log-sum-exp of the queries' softmax over them.
        bounds: first query of each group, and the number of queries.
        name: who computes it.
    """
    if name == "reference":
        from varsearch.kernels.block_reference import column_mass as by_definition

        return by_definition(q_BHLC, k_BHSC, lse_BHL, bounds)
    mass_BHGS: Tensor = mass_of_columns(q_BHLC, k_BHSC, lse_BHL, list(bounds))
    return mass_BHGS


def unsupported(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why `triton` cannot run there, or None if it can."""
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"it computes in float16, bfloat16 or float32, not in {str(dtype).removeprefix('torch.')}"
    if head_dim not in HEAD_DIMS:
        return f"it takes heads of {HEAD_DIMS[0]} to {HEAD_DIMS[-1]} channels, not of {head_dim}"
    return triton_support.refusal(device)


def flattened(inputs: AttentionInputs) -> tuple[list[Tensor | None], list[int]]:
    """All of a request but its queries, as an operator takes it; `restored` is the inverse."""
    keys, own, queries, blocks, geometry = inputs.keys, inputs.own, inputs.queries, inputs.blocks, inputs.geometry
    tensors: list[Tensor | None] = [keys.k, keys.v, keys.start_BH, keys.length_BHG, keys.index_BHGN]
    tensors += [keys.k_scale, keys.v_scale]
    tensors += [None, None] if own is None else [own.k, own.v]
    tensors += [None, None] if queries is None else [queries.index_M, queries.group_Q]
    tensors += [None] * 3 if blocks is None else [blocks.index_BHQN, blocks.full_BHQ, blocks.count_BHQ]
    if geometry is None:
        tensors += [None] * 5
    else:
        tensors += [geometry.query_cell_BM, geometry.key_cell_BHN, geometry.sizes_K2]
        tensors += [geometry.radius_HK, geometry.width_HK]
    numbers = [
        keys.bits or 0,
        BLOCK if queries is None else queries.size,
        BLOCK if blocks is None else blocks.size,
        *((0, 0) if geometry is None else (geometry.height, geometry.width)),
        -1 if inputs.pairs is None else inputs.pairs,
        inputs.lse,
        inputs.entropy,
    ]
    return tensors, [int(n) for n in numbers]


def restored(q_BHLC: Tensor, tensors: Sequence[Tensor | None], numbers: Sequence[int]) -> AttentionInputs:
    """The request that `flattened` took apart."""
    k, v, start, length, index, k_scale, v_scale, own_k, own_v, query, group, block, full, count, *places = tensors
    bits, block_q, block_k, height, width, pairs, lse, entropy = numbers
    assert k is not None and v is not None, "every request has keys and values"
    query_cell, key_cell, sizes, radius, reach = places
    return AttentionInputs(
        q_BHLC,
        KVEntries(k, v, start, length, index, bits or None, k_scale, v_scale),
        None if own_k is None or own_v is None else KVEntries(own_k, own_v),
        None if query is None else QueryBlocks(query, group, block_q),
        None if block is None or full is None or count is None else BlockList(block, full, count, block_k),
        None
        if query_cell is None or key_cell is None or sizes is None
        else Geometry(query_cell, key_cell, sizes, radius, reach, height, width),
        None if pairs < 0 else pairs,
        bool(lse),
        bool(entropy),
    )


@torch.library.custom_op("varsearch::block_attention", mutates_args=())
def block_attention(
    q_BHLC: Tensor, tensors: Sequence[Tensor | None], numbers: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """A request in one launch, one operator for tracers and compilers. What is not asked for is empty."""
    require_supported(q_BHLC)
    from varsearch.kernels import block_attention_triton

    out, lse, entropy = _block_attention_fake(q_BHLC, tensors, numbers)
    block_attention_triton.attention(restored(q_BHLC, tensors, numbers), out, lse, entropy)
    return out, lse, entropy


@torch.library.custom_op("varsearch::mass_of_columns", mutates_args=())
def mass_of_columns(q_BHLC: Tensor, k_BHSC: Tensor, lse_BHL: Tensor, bounds: Sequence[int]) -> Tensor:
    """`column_mass` in one launch."""
    require_supported(q_BHLC)
    from varsearch.kernels import block_attention_triton

    mass_BHGS = _mass_of_columns_fake(q_BHLC, k_BHSC, lse_BHL, bounds)
    block_attention_triton.mass(q_BHLC, k_BHSC, lse_BHL, bounds, mass_BHGS)
    return mass_BHGS


def require_supported(q_BHLC: Tensor) -> None:
    """Raises `TargetError` with the reason if `triton` cannot run where `q_BHLC` is."""
    reason = unsupported(q_BHLC.device, q_BHLC.dtype, q_BHLC.shape[-1])
    if reason:
        raise TargetError(f"attention 'triton' cannot run here: {reason}; use attention 'sdpa'")


def _block_attention_fake(
    q_BHLC: Tensor, tensors: Sequence[Tensor | None], numbers: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    rows, heads, length, channels = q_BHLC.shape
    # What follows joins the heads of a token, so they lie side by side.
    out_BHLC = q_BHLC.new_empty(rows, length, heads, channels).transpose(1, 2)
    lse, entropy = (
        q_BHLC.new_empty((rows, heads, length) if asked else (0,), dtype=torch.float32) for asked in numbers[-2:]
    )
    return out_BHLC, lse, entropy


def _mass_of_columns_fake(q_BHLC: Tensor, k_BHSC: Tensor, lse_BHL: Tensor, bounds: Sequence[int]) -> Tensor:
    return lse_BHL.new_empty(*q_BHLC.shape[:2], len(bounds) - 1, k_BHSC.shape[2])


def _block_attention_flops(
    q: torch.Size, tensors: Sequence[torch.Size | None], numbers: Sequence[int], *_: object, **__: object
) -> int:
    rows, heads, length, channels = q
    keys, own, pairs = tensors[0], tensors[7], numbers[5]
    if pairs < 0:
        assert keys is not None, "every request has keys"
        pairs = heads * length * (keys[2] + (0 if own is None else own[2]))
    return 4 * rows * pairs * channels


def _mass_of_columns_flops(q: torch.Size, k: torch.Size, *_: object, **__: object) -> int:
    return 2 * q.numel() * k[2]


block_attention.register_fake(_block_attention_fake)
mass_of_columns.register_fake(_mass_of_columns_fake)
register_flop_formula(torch.ops.varsearch.block_attention)(_block_attention_flops)
register_flop_formula(torch.ops.varsearch.mass_of_columns)(_mass_of_columns_flops)
