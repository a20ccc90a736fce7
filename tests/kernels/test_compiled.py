"""The kernels compiled for GPUs that are not here, with the very arguments of a launch.

Shows that they compile, use the tensor cores, load in wide pieces and fit a GPU's shared memory; not what they compute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.kernels.conftest import SHARED_BYTES
from varsearch.kernels.packing import LAYOUT

pytest.importorskip("triton")
from varsearch.kernels import quantized_linear_triton as kernels

Compile = Callable[..., Any]
each_capability = pytest.mark.parametrize("capability", [89, 90])
each_word = pytest.mark.parametrize("bits", [4, 3], ids=["one byte", "three bytes"])


def operands(
    bits: int, dtype: torch.dtype, rows: int, inputs: int = 1024, outputs: int = 3072, groups: int = 1
) -> tuple[torch.Tensor, ...]:
    n_bytes, n_values = LAYOUT[bits]
    packed = torch.empty(outputs, -(-inputs // n_values) * n_bytes, dtype=torch.uint8)
    shapes = (rows, inputs), (outputs, groups), (outputs,), (rows, outputs)
    x, scale, bias, out = (torch.empty(shape, dtype=dtype) for shape in shapes)
    return x, packed, scale, bias, out


@each_capability
@pytest.mark.parametrize("bits", LAYOUT)
@pytest.mark.parametrize(
    ("dtype", "rows", "groups"), [(torch.float16, 1, 1), (torch.float16, 256, 1), (torch.bfloat16, 256, 8)], ids=str
)
def test_products_use_tensor_cores(
    capability: int, bits: int, dtype: torch.dtype, rows: int, groups: int, compiled: Compile
) -> None:
    x, packed, scale, bias, out = operands(bits, dtype, rows, groups=groups)
    kernel = compiled(capability, kernels.linear, x, packed, scale, bias, bits, out)
    assert kernel.metadata.shared <= SHARED_BYTES[capability]
    code = kernel.asm["ptx"]
    product = "wgmma.mma_async.sync" if capability == 90 and rows == 256 else "mma.sync"
    operand = {torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
    assert f"f32.{operand}.{operand}" in code and product in code
    # Activations travel 16 bytes at a time and ahead of their use; the code has a piece for each of the first stages.
    assert code.count("cp.async.cg.shared.global") >= 3


@each_capability
def test_single_precision_is_not_rounded_for_tensor_cores(capability: int, compiled: Compile) -> None:
    x, packed, scale, _, out = operands(8, torch.float32, 64)
    kernel = compiled(capability, kernels.linear, x, packed, scale, None, 8, out)
    assert kernel.metadata.shared <= SHARED_BYTES[capability]
    assert "fma.rn.f32" in kernel.asm["ptx"]
    assert "mma.sync" not in kernel.asm["ptx"] and "wgmma" not in kernel.asm["ptx"]


@each_capability
@each_word
def test_expansion_writes_wide(capability: int, bits: int, compiled: Compile) -> None:
    _, packed, scale, *_ = operands(bits, torch.float16, 1)
    kernel = compiled(capability, kernels.expand, packed, scale, bits, torch.empty(3072, 1024, dtype=torch.float16))
    assert kernel.metadata.shared <= SHARED_BYTES[capability]
    assert "st.global.v4.b32" in kernel.asm["ptx"]


@each_word
def test_odd_sizes_compile(bits: int, compiled: Compile) -> None:
    x, packed, scale, bias, out = operands(bits, torch.float16, 17, inputs=131, outputs=67)
    assert "mma.sync" in compiled(89, kernels.linear, x, packed, scale, bias, bits, out).asm["ptx"]
