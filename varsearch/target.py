"""What a policy is for: the shape of a model, and the device it should be fast on. Torch-free."""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from varsearch.errors import TargetError

DType = Literal["float32", "float16", "bfloat16"]
AttentionBackend = Literal[
    "reference", "sdpa", "cudnn", "flash-attn", "triton", "sdpa+triton", "cudnn+triton", "flash-attn+triton"
]
"""Who computes attention, and behind a plus who where not all pairs count; see `kernels/attention_backends.py`."""

AttentionName = Literal[AttentionBackend, "auto"]

Noise = Literal["mt19937", "philox"]
"""What images draw their noise with; see `models/noise.py`."""

# Far above any model there is: a damaged or hostile file must not ask for more memory or time than there is.
MAX_BATCH, MAX_SIDE, MAX_THREADS = 2**16, 256, 1024
Count = Annotated[int, Field(ge=1, le=1024)]
"""Number of layers, heads and other parts."""

Size = Annotated[int, Field(ge=1, le=2**20)]
"""Number of channels, classes, codes or pixels."""

Ratio = Annotated[float, Field(ge=1, le=64)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Scales = Annotated[tuple[tuple[Side, Side], ...], Field(min_length=1, max_length=64)]
"""(height, width) of the token maps, coarse to fine."""

Family = Literal["var", "mvar", "infinity"]
"""What a model's blocks are made of: attention alone, a state-space branch beside it, or attention to a text."""

Strength = Annotated[float, Field(ge=0, le=100)]
TopK = Annotated[int, Field(ge=0)]
TopP = Annotated[float, Field(ge=0, le=1)]
"""Guidance and filters of the sampler; 0 switches each off."""

Temperature = Annotated[float, Field(gt=0, le=100)]
GuidanceLayer = Annotated[int, Field(ge=-1024, le=0)]


USUAL_SIDE = 64
"""Images of up to so many pixels squared come in the usual batches."""


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

    Args:
        mlp_ratio: hidden over residual width of the feed-forward network.
        shared_adaln: whether all layers share one AdaLN projection.
        classes: how many things can be asked for; prompts count as classes.
        fingerprint: sha256 of the weights: policies, measurements and exported files belong to exactly these.
        ssm_expand: inner over residual width of the state-space branch.
        prompts: sha256 of what can be asked for, where that comes from a file.
    """

    name: str
    n_layers: Count
    n_heads: Count
    head_dim: Size
    mlp_ratio: Ratio = 4.0
    shared_adaln: bool = False
    scales: Scales
    classes: Size
    image_size: tuple[Size, Size]
    fingerprint: str = ""
    family: Family = "var"
    ssm_expand: Count = 2
    prompts: str = ""

    @property
    def identity(self) -> str:
        """What evidence belongs to: the weights, and the prompts that images and their cost depend on."""
        if not self.prompts:
            return self.fingerprint
        return hashlib.sha256(f"{self.fingerprint} {self.prompts}".encode()).hexdigest()

    @property
    def linears(self) -> dict[str, int]:
        """The linears of a layer that a policy may quantize, with their numbers of inputs."""
        of_family = {
            "var": {},
            "mvar": {"ssm_in": self.width, "ssm_out": self.ssm_expand * self.width},
            "infinity": dict.fromkeys(("text_q", "text_kv", "text_proj"), self.width),
        }
        own = dict.fromkeys(("qkv", "proj", "fc1"), self.width) | {"fc2": round(self.width * self.mlp_ratio)}
        return own | ({} if self.shared_adaln else {"ada": self.width}) | of_family[self.family]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Number of tokens of every scale."""
        return tuple(math.prod(size) for size in self.scales)

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.n_heads * self.head_dim

    @property
    def size(self) -> int:
        """Grows as the parameters of the blocks do: tells the smaller of two models."""
        return self.n_layers * self.width**2


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
    batch_size: int = Field(ge=1, le=MAX_BATCH)

    def __str__(self) -> str:
        return f"{self.device}, {self.dtype}, batch {self.batch_size}"


@cache
def devices() -> dict[str, Device]:
    """The device table, by name."""
    rows = tomllib.loads(Path(__file__).with_name("devices.toml").read_text())
    return {name: Device(name=name, **row) for name, row in rows.items()}


LOCAL = "local"
"""What users call the device at hand; runs name it by what it is."""

GPU = "gpu:"
"""Before the driver's name of a GPU that is not in the table."""

_met: dict[str, Device] = {}


def remember(device: Device) -> Device:
    """Makes `find_device` know a GPU that is not in the table, for this process."""
    return _met.setdefault(device.name, device)


def find_device(name: str) -> Device:
    """The table's row `name`, in any case, or that of a GPU that this process met.

    Raises:
        TargetError: there is none; the message lists the known names.
    """
    table = devices()
    row = table.get(name.lower()) or _met.get(name)
    if row is None and name.startswith(GPU):
        raise TargetError(f"{name.removeprefix(GPU)} is not in the table of devices, and no GPU of that name is here")
    if row is None:
        known = ", ".join((*table, LOCAL))
        raise TargetError(f"unknown target {name!r}: known targets are {known} (see 'varsearch targets')")
    return row


def label_of(name: str) -> str:
    """The driver's name of a device that a run names; of a GPU that is not in the table too, wherever it is."""
    return name.removeprefix(GPU) if name.startswith(GPU) else find_device(name).label


def check_dtype(name: str | None) -> DType | None:
    """`name`, if it is a number format; raises `TargetError` otherwise."""
    for dtype in get_args(DType):
        if name == dtype:
            return dtype
    if name is None:
        return None
    raise TargetError(f"unknown number format {name!r}: expected one of {', '.join(get_args(DType))}")


def default_target(
    device: Device, batch_size: int | None = None, dtype: DType | None = None, spec: ModelSpec | None = None
) -> Target:
    """CPUs run fp32 in small batches; GPUs run half precision in batches that are not bound by launches.

    Larger images come in smaller batches. Infinity was published in bfloat16, and overflows in float16.
    """
    height, width = spec.image_size if spec else (1, 1)
    usual, usual_dtype = (16, "float32") if device.kind == "cpu" else (256, "float16")
    if device.kind == "cuda" and spec and spec.family == "infinity":
        usual_dtype = "bfloat16"
    fitting = max(1, usual * USUAL_SIDE**2 // max(height * width, USUAL_SIDE**2))
    return Target(device=device.name, dtype=dtype or usual_dtype, batch_size=batch_size or fitting)
