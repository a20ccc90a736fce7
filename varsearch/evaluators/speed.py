"""Latency and memory measured on the device at hand."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from varsearch.accel import Accelerated, apply, attention_for, default_backend
from varsearch.accel.lower import lower
from varsearch.errors import TargetError, UsageError
from varsearch.evaluators.cost_model import memory_and_flops, predicted_protocol
from varsearch.evaluators.devices import named
from varsearch.evaluators.extractors import check_finite
from varsearch.evaluators.trace import record
from varsearch.evaluators.workload import cast, default_sampler, device_of, run_batch, with_tensors
from varsearch.kernels.attention_backends import Request, choose
from varsearch.measurement import SPEED_VERSION, Evidence, Measurement, Origin, SpeedProtocol
from varsearch.models.image_model import ImageModel
from varsearch.policy import Policy
from varsearch.target import AttentionName, Device, Target, find_device

REPEATS = {"cpu": 9, "cuda": 31}
"""Timed rounds: enough for the order statistics of a 95 % interval, few enough for a search on a CPU."""

LARGEST_KEPT = 31 * 2**20
"""Bytes to take and give back before anything is timed. glibc has the system map, and clear, every block above a
threshold, and gives back the top of its heap beyond twice that; the threshold is the largest mapped block that was
given back so far, up to 32 MiB. In a process that has drawn few images dense takes a quarter longer by that, and what
is smaller less so. Without glibc it does nothing."""


@cache
def cpu_name() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def machine(device: torch.device) -> str:
    """What numbers measured on `device` depend on: hardware, threads of this process, PyTorch's version."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        n = torch.get_num_threads()
        features = torch.backends.cpu.get_cpu_capability()
        hardware = f"{cpu_name()} ({features}), {n} thread{'s' if n > 1 else ''}"
    return f"{hardware}, torch {torch.__version__}"


def is_local(device: Device) -> bool:
    """Whether this machine can measure for `device`: any machine for `cpu`, else the GPU of exactly that name."""
    return device.kind == "cpu" or (torch.cuda.is_available() and torch.cuda.get_device_name() == device.label)


def protocol_for(target: Target, attention: AttentionName = "sdpa", head_dim: int = 64) -> SpeedProtocol:
    """How numbers for `target` come about on this machine: measured if it is the target, predicted otherwise.

    The number of CPU threads is part of it: ask in the process that measures, or one with as many. `attention` computes
    that of a model whose heads have `head_dim` channels.

    Raises:
        TargetError: `attention` was named and cannot run here.
        UsageError: it was named, and numbers for `target` are predicted.
    """
    device = named(target.device)
    if not is_local(device):
        predicted = predicted_protocol(target)
        if attention not in ("auto", "sdpa", predicted.attention):
            raise UsageError(
                f"speed on {target.device} is predicted here, for attention {predicted.attention!r}: "
                f"measure {attention!r} there"
            )
        return predicted
    here, dtype = torch.device(device.kind), getattr(torch, target.dtype)
    return SpeedProtocol(
        target=target,
        origin=Origin.MEASURED,
        machine=machine(here),
        backend=f"eager, {default_backend(here, dtype)} for quantized linears",
        repeats=REPEATS[device.kind],
        version=SPEED_VERSION,
        attention=choose(attention, Request(here, dtype, head_dim)).name,
    )


@dataclass(frozen=True, slots=True)
class Timing:
    """Paired rounds of the dense model and of a policy, in seconds per batch; `attention` is what ran."""

    machine: str
    attention: str
    dense_s: tuple[float, ...]
    policy_s: tuple[float, ...]

    @property
    def quartiles_ms(self) -> tuple[float, float, float]:
        """Lower quartile, median and upper quartile of the policy's latency."""
        low, middle, high = (1e3 * float(t) for t in np.quantile(self.policy_s, (0.25, 0.5, 0.75)))
        return low, middle, high

    @property
    def latency_ms(self) -> float:
        """Median latency of the policy."""
        return self.quartiles_ms[1]

    @property
    def dense_latency_ms(self) -> float:
        """Median latency of the dense model."""
        return 1e3 * statistics.median(self.dense_s)

    @property
    def ratios(self) -> list[float]:
        """Dense over policy, round by round."""
        return [d / p for d, p in zip(self.dense_s, self.policy_s, strict=True)]

    @property
    def speedup(self) -> float:
        """Median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def low(self) -> float:
        """Lower end of the speed-up's 95 % interval."""
        return median_interval(self.ratios)[0]

    @property
    def high(self) -> float:
        """Upper end of the speed-up's 95 % interval."""
        return median_interval(self.ratios)[1]


def time_against_dense(model: ImageModel, policy: Policy, batch_size: int, attention: AttentionName = "sdpa") -> Timing:
    """Times `policy` next to the dense model where `model` is, in its dtype, both with this attention.

    Raises:
        PolicyError: the policy does not fit the model.
        TargetError: the attention cannot run there.
    """
    dense = dense_twin(model, attention)
    with apply(model, policy, attention=attention) as applied:
        return interleaved(dense, applied, batch_size, REPEATS[device_of(model).type])


def dense_twin(model: ImageModel, attention: AttentionName = "sdpa") -> Accelerated:
    """The dense model on the same weights; quantization swaps modules of `model`, and this one has its own."""
    twin, chosen = with_tensors(model, lambda name, t: t), attention_for(model, attention)
    plan = lower(Policy.dense(model.spec.n_layers, len(model.spec.scales)), model.spec, attention=chosen)
    return Accelerated(twin, plan, attention=chosen.label)


def interleaved(dense: Accelerated, applied: Accelerated, batch_size: int, repeats: int) -> Timing:
    """Times both in turn, after one warm-up each; who goes first alternates, so that drift hits both alike."""
    runs = (dense, applied)
    seconds: tuple[list[float], list[float]] = ([], [])
    torch.empty(LARGEST_KEPT, dtype=torch.uint8, device="cpu")
    for one in runs:
        batch_seconds(one, batch_size)
    for i in range(repeats):
        for which in (0, 1) if i % 2 else (1, 0):
            seconds[which].append(batch_seconds(runs[which], batch_size))
    return Timing(machine(device_of(dense.model)), applied.attention, tuple(seconds[0]), tuple(seconds[1]))


def batch_seconds(applied: Accelerated, batch_size: int) -> float:
    """Wall-clock time of one batch, decoding included."""
    sampler = default_sampler(applied.model)
    _synchronize(applied.model)
    start = time.perf_counter()
    run_batch(applied, batch_size, sampler)
    _synchronize(applied.model)
    return time.perf_counter() - start


class SpeedEvaluator:
    """Measures policies on this machine, each against the dense model in the same loop.

    Args:
        model: any device and dtype; a copy moves to the target's.
        protocol: made by `protocol_for` on this machine.

    Raises:
        TargetError: the protocol's target, or the machine or the kernels it names, are not those here.
    """

    def __init__(self, model: ImageModel, protocol: SpeedProtocol) -> None:
        target = protocol.target
        here = protocol_for(target, protocol.attention, model.spec.head_dim)
        if protocol.origin is not Origin.MEASURED or here.origin is not Origin.MEASURED:
            raise TargetError(f"{target.device} cannot be measured here, on {here_is()}: predict it instead")
        asked, found = (f"{p.machine}, {p.backend}" for p in (protocol, here))
        if asked != found:
            raise TargetError(f"the protocol asks for {asked}, but this is {found}: measure there")
        self.protocol = protocol
        self.model = cast(model, find_device(target.device).kind, getattr(torch, target.dtype))
        self.dense = dense_twin(self.model, protocol.attention)

    def evaluate(self, policy: Policy) -> Evidence:
        """Latency with quartiles, speed-up over dense with a 95 % interval, memory and FLOPs of one batch.

        Raises:
            PolicyError: the policy does not fit the model.
            EvaluationError: images are not finite.
        """
        started = time.perf_counter()
        batch_size, n = self.protocol.target.batch_size, self.protocol.repeats
        with apply(self.model, policy, attention=self.protocol.attention) as applied:
            if device_of(self.model).type != "cpu":  # there `multinomial` refuses such logits itself
                check_finite(run_batch(applied, batch_size, default_sampler(self.model)), "images")
            exact = memory_and_flops(record(applied, batch_size))
            if device_of(self.model).type == "cuda":
                exact["peak_bytes"] = exact["weight_bytes"] + cuda_peak(applied, batch_size)
            timing = interleaved(self.dense, applied, batch_size, n)
        low, middle, high = timing.quartiles_ms
        timed = (
            Measurement(metric="latency_ms", value=middle, low=low, high=high, n=n, note="interval: quartiles"),
            Measurement(metric="speedup", value=timing.speedup, low=timing.low, high=timing.high, n=n),
        )
        return Evidence(
            kind="speed",
            policy=policy.digest,
            model=self.model.spec.identity,
            protocol=self.protocol.digest,
            measurements=(*timed, *(Measurement(metric=metric, value=value) for metric, value in exact.items())),
            seconds=time.perf_counter() - started,
            environment={
                "torch": torch.__version__,
                "device": self.protocol.machine,
                "backend": applied.backend,
                "attention": applied.attention,
            },
        )


def cuda_peak(applied: Accelerated, batch_size: int) -> int:
    """Most bytes above what is resident before the batch, by the CUDA allocator's own statistics."""
    device = device_of(applied.model)
    _synchronize(applied.model)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run_batch(applied, batch_size, default_sampler(applied.model))
    return int(torch.cuda.max_memory_allocated(device) - before)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Distribution-free 95 % interval of the median: the narrowest symmetric pair of order statistics that covers it.

    With fewer than six values no pair does, and the range is given.
    """
    ordered, n = sorted(values), len(values)
    outside, k = 2 / 2**n, 0
    while outside + 2 * math.comb(n, k + 1) / 2**n <= 0.05:
        k += 1
        outside += 2 * math.comb(n, k) / 2**n
    return ordered[k], ordered[n - 1 - k]


def here_is() -> str:
    """This machine, by its GPU if it has one."""
    return machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _synchronize(model: ImageModel) -> None:
    if device_of(model).type == "cuda":
        torch.cuda.synchronize(device_of(model))
