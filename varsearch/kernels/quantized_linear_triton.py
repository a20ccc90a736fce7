"""Triton kernels behind `quantized_linear`: a product that expands its weights in registers, and the expansion alone.

Imported at the first use, so that everything else works without Triton. Whether kernels are compiled or run in the
interpreter (`TRITON_INTERPRET=1`) is settled by this import.

All arguments that are not constants are annotated as tensors, integers too: `int` would fix their type, Triton would no
longer see that a stride is 1, and loads would not be vectorized.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from varsearch.kernels.packing import LAYOUT


class Tile(NamedTuple):
    """What one program computes, rows times outputs in steps of so many inputs, and how it is compiled."""

    rows: int
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int


EXPANDED_AT_ONCE = (32, 128)
"""Outputs and inputs that one program of `expand_kernel` writes."""


@triton.jit
def _unpack(
    packed_ptr: tl.tensor, outputs: tl.tensor, start: tl.tensor, N: tl.tensor, row_bytes: tl.tensor,
    BITS: tl.constexpr, WORD_BYTES: tl.constexpr, WORD_VALUES: tl.constexpr, INPUTS: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Integers (outputs, INPUTS) from input `start` on; arbitrary where a row has ended."""
    words = start // WORD_VALUES + tl.arange(0, INPUTS // WORD_VALUES)
    first_byte = words[None, :] * WORD_BYTES
    inside = (outputs[:, None] < N) & (first_byte < row_bytes)
    place = packed_ptr + outputs[:, None] * row_bytes + first_byte
    word = tl.load(place, mask=inside, other=0).to(tl.int32)
    for i in tl.static_range(1, WORD_BYTES):
        word |= tl.load(place + i, mask=inside, other=0).to(tl.int32) << (8 * i)
    shifts = tl.arange(0, WORD_VALUES) * BITS
    unsigned = (word[:, :, None] >> shifts[None, None, :]) & ((1 << BITS) - 1)
    return tl.reshape(unsigned, (outputs.shape[0], INPUTS)) - (1 << (BITS - 1))


@triton.jit
def _scale(scale_ptr: tl.tensor, outputs: tl.tensor, group: tl.tensor, N: tl.tensor, n_groups: tl.tensor) -> tl.tensor:
    return tl.load(scale_ptr + outputs * n_groups + group, mask=outputs < N, other=0.0).to(tl.float32)


@triton.jit
def linear_kernel(
    x_ptr: tl.tensor, packed_ptr: tl.tensor, scale_ptr: tl.tensor, bias_ptr: tl.tensor | None, out_ptr: tl.tensor,
    M: tl.tensor, N: tl.tensor, K: tl.tensor, x_stride_m: tl.tensor, x_stride_k: tl.tensor, row_bytes: tl.tensor,
    n_groups: tl.tensor, GROUP: tl.constexpr, OPERAND: tl.constexpr,
    BITS: tl.constexpr, WORD_BYTES: tl.constexpr, WORD_VALUES: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
) -> None:  # fmt: skip
    """One tile of `out (M, N) = x (M, K) @ weight (N, K).T + bias (N)`, accumulated in float32.

    GROUP counts the inputs per scale, a multiple of INPUTS; None means all of them.
    """
    # Programs of the same outputs follow one another, so that they find the packed weights in the L2 cache.
    tiles_m = tl.cdiv(M, ROWS)
    rows = (tl.program_id(0) % tiles_m * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    outputs = tl.program_id(0) // tiles_m * OUTPUTS + tl.arange(0, OUTPUTS)
    product = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, K, INPUTS):
        inputs = start + tl.arange(0, INPUTS)
        # Inputs beyond K count as 0, whatever weights they meet.
        inside = (rows[:, None] < M) & (inputs[None, :] < K)
        x = tl.load(x_ptr + rows[:, None] * x_stride_m + inputs[None, :] * x_stride_k, mask=inside, other=0.0)
        weight = _unpack(packed_ptr, outputs, start, N, row_bytes, BITS, WORD_BYTES, WORD_VALUES, INPUTS)
        if GROUP is not None:
            weight = weight.to(tl.float32) * _scale(scale_ptr, outputs, start // GROUP, N, n_groups)[:, None]
        product = tl.dot(x.to(OPERAND), tl.trans(weight.to(OPERAND)), product, input_precision="ieee")
    if GROUP is None:
        product *= _scale(scale_ptr, outputs, 0, N, n_groups)[None, :]
    if bias_ptr is not None:
        product += tl.load(bias_ptr + outputs, mask=outputs < N, other=0.0).to(tl.float32)[None, :]
    inside = (rows[:, None] < M) & (outputs[None, :] < N)
    tl.store(out_ptr + rows[:, None] * N + outputs[None, :], product.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def expand_kernel(
    packed_ptr: tl.tensor, scale_ptr: tl.tensor, weight_ptr: tl.tensor,
    N: tl.tensor, K: tl.tensor, row_bytes: tl.tensor, n_groups: tl.tensor, group: tl.tensor,
    BITS: tl.constexpr, WORD_BYTES: tl.constexpr, WORD_VALUES: tl.constexpr,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
) -> None:  # fmt: skip
    """One tile of `weight (N, K)`; INPUTS divides `group`, the number of inputs per scale, or is the only step."""
    outputs, start = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS), tl.program_id(1) * INPUTS
    inputs = start + tl.arange(0, INPUTS)
    q = _unpack(packed_ptr, outputs, start, N, row_bytes, BITS, WORD_BYTES, WORD_VALUES, INPUTS)
    weight = q.to(tl.float32) * _scale(scale_ptr, outputs, start // group, N, n_groups)[:, None]
    inside = (outputs[:, None] < N) & (inputs[None, :] < K)
    place = weight_ptr + outputs[:, None] * K + inputs[None, :]
    tl.store(place, weight.to(weight_ptr.dtype.element_ty), mask=inside)


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, on CPU tensors."""
    return not isinstance(linear_kernel, triton.JITFunction)


def tile_for(rows: int, dtype: torch.dtype) -> Tile:
    """Few rows wait for memory: narrow tiles occupy the whole device, long steps keep many loads in flight."""
    if dtype == torch.float32:
        return Tile(rows=16 if rows <= 16 else 32, outputs=32, inputs=64, num_warps=4, num_stages=2)
    if rows <= 32:
        return Tile(rows=16 if rows <= 16 else 32, outputs=32, inputs=128, num_warps=4, num_stages=3)
    return Tile(rows=64, outputs=64, inputs=64, num_warps=4, num_stages=3)


def operand_dtype(dtype: torch.dtype) -> tl.dtype:
    """What is multiplied: numbers of the activations' dtype, but for the interpreter, which gets bfloat16 wrong."""
    if dtype == torch.bfloat16 and interpreted():
        return tl.float32
    return {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}[dtype]


def linear(x_MK: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, bits: int, out_MN: Tensor) -> None:
    """Writes the product into `out_MN`; all but `x_MK` must be contiguous. Operands are those of `quantized_linear`."""
    (rows, inputs), (outputs, n_groups) = x_MK.shape, scale.shape
    tile, (word_bytes, word_values) = tile_for(rows, x_MK.dtype), LAYOUT[bits]
    grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs),)
    with torch.cuda.device_of(x_MK):
        linear_kernel[grid](
            x_MK, packed, scale, bias, out_MN,
            rows, outputs, inputs, *x_MK.stride(), packed.shape[1], n_groups,
            GROUP=None if n_groups == 1 else inputs // n_groups, OPERAND=operand_dtype(x_MK.dtype),
            BITS=bits, WORD_BYTES=word_bytes, WORD_VALUES=word_values,
            ROWS=tile.rows, OUTPUTS=tile.outputs, INPUTS=_step(tile.inputs, inputs, n_groups),
            num_warps=tile.num_warps, num_stages=tile.num_stages, enable_fp_fusion=True,
        )  # fmt: skip


def expand(packed: Tensor, scale: Tensor, bits: int, weight_NK: Tensor) -> None:
    """Writes the expanded weight into `weight_NK`; all must be contiguous."""
    (outputs, inputs), n_groups = weight_NK.shape, scale.shape[1]
    word_bytes, word_values = LAYOUT[bits]
    step = _step(EXPANDED_AT_ONCE[1], inputs, n_groups)
    grid = (triton.cdiv(outputs, EXPANDED_AT_ONCE[0]), triton.cdiv(inputs, step))
    with torch.cuda.device_of(packed):
        expand_kernel[grid](
            packed, scale, weight_NK, outputs, inputs, packed.shape[1], n_groups, inputs // n_groups,
            BITS=bits, WORD_BYTES=word_bytes, WORD_VALUES=word_values,
            OUTPUTS=EXPANDED_AT_ONCE[0], INPUTS=step, enable_fp_fusion=True,
        )  # fmt: skip


def _step(most: int, inputs: int, n_groups: int) -> int:
    """Inputs per step: within one group, so that an output has one scale."""
    return most if n_groups == 1 else min(most, inputs // n_groups)
