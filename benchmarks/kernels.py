"""What packed weights cost on this GPU, next to dense half-precision linears: `python -m benchmarks.kernels`.

Ratios are dense time over the time of a variant, so above 1 is faster than dense. `fused` is one kernel for the
product, `expanded` one kernel that expands the weight and then the dense product; the backend takes the first up to
`FUSED_ROWS` rows. Where the two ratios cross, `FUSED_ROWS` should be.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varsearch.accel.quantization import QuantizedLinear
from varsearch.evaluators.speed import machine
from varsearch.kernels.quantized_linear import FUSED_ROWS, expand_weight, fused_linear, supported
from varsearch.policy import Quantization

SHAPES = {
    f"{model} {linear}": (width * inputs, width * outputs)
    for model, width in (("d16", 1024), ("d30", 1920))
    for linear, inputs, outputs in (("qkv", 1, 3), ("proj", 1, 1), ("fc1", 1, 4), ("fc2", 4, 1))
}
"""Inputs and outputs of the linears of VAR-d16 and VAR-d30."""

ROWS = (2, 32, 128, 256, 512, 1024, 8192, 65536)
FORMATS = (Quantization(bits=8), Quantization(bits=6), Quantization(bits=4, group=64), Quantization(bits=3))
HALF = torch.float16


def microseconds(fn: Callable[[], Tensor]) -> float:
    """Median time on the GPU, with the L2 cache flushed before each call."""
    from triton.testing import do_bench

    return 1e3 * float(do_bench(fn, return_mode="median"))


def host_microseconds(fn: Callable[[], Tensor], calls: int = 200) -> float:
    """Time that Python and the driver need to launch one call; short work, so that the queue never fills."""
    fn()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        fn()
    seconds = time.perf_counter() - start
    torch.cuda.synchronize()
    return 1e6 * seconds / calls


def variants(linear: nn.Linear, how: Quantization, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The ways to compute one quantized linear, the definition first."""
    layer = QuantizedLinear(linear, how, "torch")
    packed, scale, bias, bits = layer.packed, layer.scale, layer.bias, how.bits
    return {
        "torch": lambda: layer(x),
        "fused": lambda: fused_linear(x, packed, scale, bias, bits),
        "expanded": lambda: F.linear(x, expand_weight(packed, scale, bits, layer.in_features, HALF), bias),
    }


def check(found: dict[str, Callable[[], Tensor]]) -> None:
    """A wrong kernel has no speed. Weights and sums are rounded differently, by a few units of half precision."""
    want = found["torch"]().float()
    for name, fn in found.items():
        error = (fn().float() - want).norm() / want.norm()
        if not error < 4 * torch.finfo(HALF).eps:
            raise RuntimeError(f"{name} is wrong: relative error {error:.1e}, expected below {4 * 2**-10:.1e}")


@torch.inference_mode()
def main() -> None:
    device = torch.device("cuda")
    if not torch.cuda.is_available():
        print("This benchmark needs a CUDA device; none is here, so nothing was measured.")
        return
    reason = supported(device, HALF)
    if reason:
        print(f"The kernels cannot run here: {reason}. Nothing was measured.")
        return
    import triton

    print(f"{machine(device)}, triton {triton.__version__}, float16, FUSED_ROWS {FUSED_ROWS}")
    print("linear      rows  bits group  dense us   torch   fused  expanded")
    for name, (inputs, outputs) in SHAPES.items():
        linear = nn.Linear(inputs, outputs, device=device, dtype=HALF)
        for rows in ROWS:
            x = torch.randn(rows, inputs, device=device, dtype=HALF)
            dense = microseconds(partial(linear, x))
            for how in FORMATS:
                found = variants(linear, how, x)
                check(found)
                torch_ratio, fused, expanded = (dense / microseconds(fn) for fn in found.values())
                print(
                    f"{name:9s} {rows:6d}  {how.bits:4d} {how.group or '-':>5}  {dense:8.1f} "
                    f"{torch_ratio:6.2f}x {fused:6.2f}x {expanded:8.2f}x",
                    flush=True,
                )
    x = torch.randn(2, inputs, device=device, dtype=HALF)
    print(f"host time per call, 2 rows: dense {host_microseconds(lambda: linear(x)):.1f} us, ", end="")
    print(", ".join(f"{key} {host_microseconds(fn):.1f} us" for key, fn in variants(linear, FORMATS[0], x).items()))


if __name__ == "__main__":
    main()
