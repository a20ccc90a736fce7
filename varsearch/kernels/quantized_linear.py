"""`y = x @ weight.T + bias` with a weight that is stored in 3, 4, 6 or 8 bits.

Backend "torch" is the definition: it expands the weight with plain operators, then multiplies. Backend "triton" never
holds integers as wide as numbers: for few rows one kernel reads the packed bytes, expands them in registers and
multiplies on the tensor cores; for many rows one kernel expands the weight and the device's own product follows.

What is known of "triton": in Triton's interpreter its results are those of the definition up to rounding, and it
compiles for compute capability 8.9 and 9.0 to tensor-core code that fits their shared memory. It has not yet run on a
GPU, so nothing is known of its speed; `benchmarks/kernels.py` measures it.

Shape suffixes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from varsearch.errors import TargetError, UsageError
from varsearch.kernels import triton_support
from varsearch.kernels.packing import LAYOUT, unpack
from varsearch.linear import linear

Backend = Literal["torch", "triton"]

FUSED_ROWS = 256
"""Up to so many rows the product expands the weight itself.

Each tile of rows expands it anew; beyond, writing the expanded weight once is cheaper. By instruction counts of the
compiled kernels both cost the same somewhere between 200 rows (4 bits, H100) and 1400 (8 bits, RTX 4090): an estimate,
not a measurement.
"""


def quantized_linear(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    bits: int,
    in_features: int,
    backend: Backend = "torch",
) -> Tensor:
    """Linear layer with packed weights.

    Args:
        x: activations (..., K); float16, bfloat16 or float32 (the torch backend takes any).
        packed: output of `packing.pack`, (N, bytes) uint8, contiguous.
        scale: one number per group of inputs, (N, groups) contiguous; `weight = q * scale`, rounded to x's dtype.
        bias: (N), or None.
        bits: 3, 4, 6 or 8.
        in_features: K, which `packed` alone does not tell.
        backend: "triton" needs a CUDA device, and never falls back.

    Returns:
        (..., N) in x's dtype.

    Raises:
        TargetError: "triton" cannot run for x; the message says why.
        UsageError: x has another number of inputs.
    """
    if x.shape[-1] != in_features:
        raise UsageError(f"got activations with {x.shape[-1]} inputs, expected the layer's {in_features}")
    if backend == "torch":
        return linear(x, expand(packed, scale, bits, in_features, x.dtype), bias)
    x_MK = x.reshape(-1, in_features)
    if len(x_MK) > FUSED_ROWS:
        return F.linear(x, expand_weight(packed, scale, bits, in_features, x.dtype), bias)
    out_MN: Tensor = fused_linear(x_MK, packed, scale, bias, bits)
    return out_MN.view(*x.shape[:-1], len(packed))


def expand(packed: Tensor, scale: Tensor, bits: int, in_features: int, dtype: torch.dtype) -> Tensor:
    """The weight (N, K) that `packed` stands for."""
    q = unpack(packed, bits, in_features, dtype)
    return q.view(*scale.shape, -1).mul_(scale[..., None]).flatten(1)


def supported(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why backend "triton" cannot run there, or None if it can."""
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"it computes in float16, bfloat16 or float32, not in {str(dtype).removeprefix('torch.')}"
    return triton_support.refusal(device)


def require_supported(device: torch.device, dtype: torch.dtype) -> None:
    """Raises `TargetError` with the reason if backend "triton" cannot run there."""
    reason = supported(device, dtype)
    if reason:
        raise TargetError(f"backend 'triton' cannot run here: {reason}; use backend 'torch'")


@torch.library.custom_op("varsearch::quantized_linear", mutates_args=())
def fused_linear(x_MK: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    """The product for few rows, one operator for tracers, FLOP counters and compilers."""
    require_supported(x_MK.device, x_MK.dtype)
    from varsearch.kernels import quantized_linear_triton

    out_MN = _fused_linear_fake(x_MK, packed, scale, bias, bits)
    quantized_linear_triton.linear(x_MK, packed, scale, bias, bits, out_MN)
    return out_MN


@torch.library.custom_op("varsearch::expand_weight", mutates_args=())
def expand_weight(packed: Tensor, scale: Tensor, bits: int, in_features: int, dtype: torch.dtype) -> Tensor:
    """`expand` in one pass over memory."""
    require_supported(packed.device, dtype)
    from varsearch.kernels import quantized_linear_triton

    weight_NK = _expand_weight_fake(packed, scale, bits, in_features, dtype)
    quantized_linear_triton.expand(packed, scale, bits, weight_NK)
    return weight_NK


def _fused_linear_fake(x_MK: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None, bits: int) -> Tensor:
    _check_bytes(packed, bits, x_MK.shape[1])
    return x_MK.new_empty(len(x_MK), len(packed))


def _expand_weight_fake(packed: Tensor, scale: Tensor, bits: int, in_features: int, dtype: torch.dtype) -> Tensor:
    _check_bytes(packed, bits, in_features)
    return packed.new_empty(len(packed), in_features, dtype=dtype)


def _check_bytes(packed: Tensor, bits: int, in_features: int) -> None:
    """A kernel that trusts wrong sizes would read memory that is not its own."""
    n_bytes, n_values = LAYOUT[bits]
    expected = -(-in_features // n_values) * n_bytes
    if packed.shape[1] != expected:
        raise UsageError(f"got {packed.shape[1]} bytes per output, expected {expected}: {in_features} of {bits} bits")


def _fused_linear_flops(x_shape: torch.Size, packed_shape: torch.Size, *_: object, **__: object) -> int:
    return 2 * x_shape.numel() * packed_shape[0]


fused_linear.register_fake(_fused_linear_fake)
expand_weight.register_fake(_expand_weight_fake)
register_flop_formula(torch.ops.varsearch.quantized_linear)(_fused_linear_flops)
