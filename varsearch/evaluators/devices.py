"""The device at hand: the table's row of it, or what its driver says of it, and what can run there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import torch

from varsearch.errors import TargetError
from varsearch.kernels.attention_backends import BACKENDS, Request
from varsearch.kernels.quantized_linear import supported
from varsearch.target import (
    GPU,
    LOCAL,
    Device,
    DType,
    ModelSpec,
    check_dtype,
    default_target,
    devices,
    find_device,
    remember,
)

CORES = {7: 64, 8: 128, 9: 128, 10: 128, 12: 128}
"""fp32 multiply-adds per clock and multiprocessor, by major compute capability; 8.0 has 64."""

TENSOR = {7: 512, 8: 256, 9: 2048, 10: 4096, 12: 256}
"""The same of fp16 with fp32 accumulation on tensor cores; 8.0 has 1024."""

NO_FIGURES = "of a GPU that is not in the table: multiprocessors x clock x rates of its compute capability"


def local_device() -> Device | None:
    """The table's row of this machine's GPU, or a row by its properties, or that of the CPU where there is no GPU.

    None if nothing can be said of the GPU.
    """
    if not torch.cuda.is_available():
        return find_device("cpu")
    name = torch.cuda.get_device_name()
    known = next((row for row in devices().values() if row.label == name), None)
    return known or by_properties(name, torch.cuda.get_device_properties(0))


def named(target: str) -> Device:
    """The device that a user names, `local` included.

    Raises:
        TargetError: it is unknown, or `local` where nothing can be said of the GPU.
    """
    if target.lower() != LOCAL:
        local_device()  # a GPU that is not in the table is known by name from now on
        return find_device(target)
    found = local_device()
    if found is None:
        raise TargetError(
            f"nothing is known of {torch.cuda.get_device_name()}: its compute capability is "
            f"{'.'.join(map(str, torch.cuda.get_device_capability()))}, expected 7 to 12"
        )
    return found


def place_of(device: str | None, dtype: str | None, spec: ModelSpec) -> tuple[str, DType]:
    """Where images are drawn, and in which format: by default on a GPU if there is one, in what is usual for the model.

    Raises:
        TargetError: the device is none, or not here; the number format is none.
    """
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = device or usual
    if chosen not in ("cpu", "cuda"):
        raise TargetError(f"unknown device {chosen!r}: expected cpu or cuda")
    if chosen == "cuda" and usual == "cpu":
        raise TargetError("--device cuda: torch sees no GPU here")
    of_kind = next(row for row in devices().values() if row.kind == chosen)
    return chosen, check_dtype(dtype) or default_target(of_kind, spec=spec).dtype


def by_properties(name: str, found: Any) -> Device | None:
    """A row for a GPU that is not in the table, which latency can be measured on; its figures are peaks."""
    major = found.major
    if major not in CORES:
        return None
    cores, tensor = (64, 1024) if (major, found.minor) == (8, 0) else (CORES[major], TENSOR[major])
    # kHz; drivers that no longer tell get a usual clock, and a usual memory.
    clock = getattr(found, "clock_rate", 0) or 1.5e6
    memory_clock, bus = getattr(found, "memory_clock_rate", 0), getattr(found, "memory_bus_width", 0)
    rate = 2 * found.multi_processor_count * clock * 1e3 / 1e12
    half = rate * tensor
    tflops: dict[DType, float] = {"float32": rate * cores, "float16": half}
    if major >= 8:
        tflops["bfloat16"] = half
    row = Device(
        name=f"{GPU}{name}",
        label=name,
        kind="cuda",
        tflops=tflops,
        gb_per_s=2 * memory_clock * 1e3 * bus / 8 / 1e9 or 500.0,
        launch_us=5,
        memory_gb=round(found.total_memory / 1e9, 1),
        sources=dict.fromkeys(("tflops", "gb_per_s", "memory_gb"), NO_FIGURES) | {"launch_us": "as of all GPUs"},
    )
    return remember(row)


def obstacles(device: Device) -> dict[str, str]:
    """What of this package cannot run on `device` here, with the reason; empty if all of it can.

    Of a device that is not here there is one entry, `here`.
    """
    at_hand = local_device()
    if device.kind == "cuda" and (at_hand is None or at_hand.name != device.name):
        return {"here": why_not_here(device)}
    where = torch.device(device.kind)
    dtype: torch.dtype = getattr(torch, default_target(device).dtype)
    asked = Request(where, dtype, head_dim=64)
    found = {f"attention {name}": backend.unsupported(asked) for name, backend in BACKENDS.items()}
    found["triton"] = supported(where, dtype) or no_compiler()
    return {what: reason for what, reason in found.items() if reason}


def why_not_here(device: Device) -> str:
    """Why nothing can be measured for a GPU of the table on this machine."""
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA: pip install torch from the CUDA index"
    if not torch.cuda.is_available():
        return "torch sees no GPU: is the driver there (nvidia-smi), and CUDA_VISIBLE_DEVICES not empty?"
    return f"the GPU here is {torch.cuda.get_device_name()!r}, the row is of {device.label!r}"


def no_compiler(which: Callable[[str], str | None] = shutil.which) -> str | None:
    """Why Triton cannot build its launchers: it compiles a little C at run time. None if it can."""
    import os

    named_by_user = os.environ.get("CC")
    if any(which(name) for name in (named_by_user, "gcc", "clang", "cc") if name):
        return None
    return "Triton needs a C compiler at run time: apt-get install gcc, or set CC"
