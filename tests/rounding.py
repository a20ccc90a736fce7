"""Stands in for another processor: rounds otherwise what libraries round differently from machine to machine.

On one machine a library gives the same result for the same shapes. For other shapes, such as another
batch, and on another machine the last places differ. So the noise here depends on the operator, the
shape and a seed alone. `pytest --rounding SEED` installs it.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

OPERATORS = (
    "aten::mm",
    "aten::bmm",
    "aten::addmm",
    "aten::mkldnn_convolution",
    "aten::native_layer_norm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "mkldnn::_linear_pointwise",
)
"""Sums of many terms, in an order that depends on the width of the processor's registers."""

PLACES = 2.0
"""Half-width of the noise, in units in the last place of a number and of a typical one beside it."""


def install(seed: int) -> list[torch.library.Library]:
    """Replaces the operators' kernels for CPUs until the result is destroyed."""
    libraries = {name: torch.library.Library(name, "IMPL") for name in ("aten", "mkldnn")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="[^$]*Overriding a previously registered kernel")
        for name in OPERATORS:
            namespace, _, operator = name.partition("::")
            kernel = torch.library.get_kernel(name, "CPU")
            replacement = _replacement(name, kernel, seed)
            libraries[namespace].impl(operator, replacement, "CPU", with_keyset=True)
    return [*libraries.values()]


def _replacement(name: str, kernel: Any, seed: int) -> Callable[..., Any]:
    def replacement(keys: Any, *args: Any, **kwargs: Any) -> Any:
        found = kernel.call_boxed(keys, *args, **kwargs)
        if isinstance(found, Tensor):
            return otherwise(found, f"{seed} {name}")
        return otherwise(found[0], f"{seed} {name}"), *found[1:]

    return replacement


def otherwise(result: Tensor, key: str) -> Tensor:
    """The result as another processor might round it."""
    if result.dtype not in (torch.float32, torch.float64) or not result.numel():
        return result
    generator = torch.Generator().manual_seed(zlib.crc32(f"{key} {tuple(result.shape)}".encode()))
    noise = 2 * torch.rand(result.shape, generator=generator, dtype=result.dtype) - 1
    size = result.abs() + result.square().mean().sqrt()
    return result + PLACES * torch.finfo(result.dtype).eps * size * noise
