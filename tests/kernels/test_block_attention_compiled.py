"""The attention kernels compiled for GPUs that are not here: no spills, tensor cores, and shared memory that fits."""

from __future__ import annotations

import dataclasses
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.block_cases import Case, made
from tests.kernels.conftest import SHARED_BYTES

triton = pytest.importorskip("triton")
from varsearch.kernels import block_attention_triton as kernels  # noqa: E402

Compile = Callable[..., Any]
FP16, BF16 = torch.float16, torch.bfloat16
WINDOWS = Case(BF16, queries=256, keys=256, channels=128, blocks=True, order=True, index=True, window=True, band=True,
               block_size=64)  # fmt: skip
CASES = {
    "dense": (Case(BF16, channels=128, queries=256, keys=256), False),
    "dense, narrow heads": (Case(FP16, channels=64, queries=256, keys=256), False),
    "entropy": (Case(BF16, channels=128, queries=256, keys=256), True),
    "blocks of windows and bands": (WINDOWS, False),
    "lists of entries": (
        Case(BF16, channels=128, queries=256, keys=256, groups=2, index=True, lengths=True, block_size=64),
        False,
    ),
    "ragged, in places": (Case(FP16, channels=64, packed=True, lengths=True, window=True, rows=2, seed=1), False),
    "8 bits": (Case(BF16, channels=128, packed=True, lengths=True, bits=8, own=256), False),
    "4 bits": (Case(FP16, channels=128, packed=True, lengths=True, bits=4, own=256), False),
}
"""Requests as techniques make them, and whether they ask for entropies."""


def resources(kernel: Any, folder: Path) -> dict[str, int]:
    """Registers, bytes of stack (which is what spilled) and the like, as the assembler left them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip(f"this Triton comes without {tool.name}")
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    text = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", text)}


RICH = ("blocks of windows and bands", "8 bits")
"""Those that need the most registers: the others are compiled for two of the four architectures."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "name"), [(c, name) for c in SHARED_BYTES for name in CASES if name in RICH or c >= 89]
)
def test_attention_fits_the_device(capability: int, name: str, compiled: Compile, tmp_path: Path) -> None:
    case, entropy = CASES[name]
    inputs = dataclasses.replace(made(case), entropy=entropy, lse=entropy)
    one = torch.empty(inputs.q_BHLC.shape[:3])
    out = torch.empty_like(inputs.q_BHLC)
    check(compiled(capability, kernels.attention, inputs, out, one, one), capability, case.dtype, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_the_sum_over_queries_fits_the_device(capability: int, compiled: Compile, tmp_path: Path) -> None:
    q, k = torch.empty(2, 4, 256, 128, dtype=BF16), torch.empty(2, 4, 320, 128, dtype=BF16)
    lse, mass = torch.empty(2, 4, 256), torch.empty(2, 4, 2, 320)
    check(compiled(capability, kernels.mass, q, k, lse, [0, 128, 256], mass), capability, BF16, tmp_path)


def check(kernel: Any, capability: int, dtype: torch.dtype, folder: Path) -> None:
    assert kernel.metadata.shared <= SHARED_BYTES[capability]
    assert resources(kernel, folder)["STACK"] == 0
    code, operand = kernel.asm["ptx"], {FP16: "f16", BF16: "bf16"}[dtype]
    product = "wgmma.mma_async.sync" if capability == 90 else "mma.sync"
    assert product in code and f"f32.{operand}.{operand}" in code
    # Keys travel 16 bytes at a time and ahead of their use.
    assert "cp.async.cg.shared.global" in code
