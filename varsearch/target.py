"""What a policy is for: the shape of a model, and the device it should be fast on. Torch-free."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from varsearch.errors import TargetError

DType = Literal["float32", "float16", "bfloat16"]


class Frozen(BaseModel):
    """Base of all data types: immutable, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def canonical(self) -> str:
        """JSON without defaults and with sorted keys: equal values give equal text, today and in later versions."""
        return json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True, separators=(",", ":"))

    @property
    def digest(self) -> str:
        """Sha256 of `canonical()`, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


class ModelSpec(Frozen):
    """The shape of a visual autoregressive model, as far as policies refer to it.

    `scales` are the (height, width) of the token maps, coarse to fine. `fingerprint` is the sha256 of the
    weights: policies, measurements and exported files belong to exactly these.
    """

    name: str
    n_layers: int = Field(ge=1)
    n_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    mlp_ratio: float = 4.0
    shared_adaln: bool = False
    scales: tuple[tuple[int, int], ...] = Field(min_length=1)
    classes: int = Field(ge=1)
    image_size: tuple[int, int]
    fingerprint: str = ""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Number of tokens of every scale."""
        return tuple(math.prod(size) for size in self.scales)

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.n_heads * self.head_dim


class Device(Frozen):
    """One row of the device table. Every figure names where it comes from.

    Args:
        tflops: peak dense multiply-accumulate rate per dtype, 1e12 FLOP/s.
        gb_per_s: memory bandwidth, 1e9 B/s.
        launch_us: time to start one operation from eager PyTorch, microseconds.
        memory_gb: device memory, 1e9 B.
        sources: for each figure, a URL or the command that printed it.
        efficiency: share of the peak that a kind of operation reaches (the kinds are the cost model's); 1 if absent.
    """

    name: str
    label: str
    kind: Literal["cpu", "cuda"]
    tflops: dict[DType, float]
    gb_per_s: float
    launch_us: float
    memory_gb: float
    sources: dict[str, str]
    efficiency: dict[str, float] = {}


class Target(Frozen):
    """Device, number format and batch size that latency and memory refer to."""

    device: str
    dtype: DType
    batch_size: int = Field(ge=1)

    def __str__(self) -> str:
        return f"{self.device}, {self.dtype}, batch {self.batch_size}"


@cache
def devices() -> dict[str, Device]:
    """The device table, by name."""
    rows = tomllib.loads(Path(__file__).with_name("devices.toml").read_text())
    return {name: Device(name=name, **row) for name, row in rows.items()}


def find_device(name: str) -> Device:
    """The table's row `name`, in any case; `TargetError` lists the known names otherwise."""
    table = devices()
    row = table.get(name.lower())
    if row is None:
        raise TargetError(f"unknown target {name!r}: known targets are {', '.join(table)} (see 'varsearch targets')")
    return row


def default_target(device: Device, batch_size: int | None = None) -> Target:
    """CPUs run fp32 in small batches; GPUs run fp16 in batches that are not bound by launches."""
    if device.kind == "cpu":
        return Target(device=device.name, dtype="float32", batch_size=batch_size or 16)
    return Target(device=device.name, dtype="float16", batch_size=batch_size or 256)
