"""Numbers with their unit, interval and origin; what an evaluation is asked and what it answers. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Container
from enum import StrEnum
from typing import Literal, NamedTuple

from pydantic import Field

from varsearch.policy import Policy
from varsearch.target import AttentionBackend, DType, Frozen, Noise, Target

Kind = Literal["quality", "speed"]
"""What an evaluation finds out about a policy: how its images are, and what drawing them takes."""


class Metric(NamedTuple):
    """Definition of a measured quantity; `direction` says which way is better, `kind` which evaluation gives it."""

    name: str
    kind: Kind
    unit: str
    direction: Literal["minimize", "maximize"]
    meaning: str


METRICS = {
    m.name: m
    for m in (
        Metric(
            "fid", "quality", "", "minimize", "Fréchet distance of the extractor's features to the reference statistics"
        ),
        Metric("delta_fid", "quality", "", "minimize", "fid minus the fid of the dense model on the same noise"),
        Metric(
            "kid", "quality", "", "minimize", "kernel distance of the extractor's features to the reference features"
        ),
        Metric(
            "precision",
            "quality",
            "",
            "maximize",
            "share of samples inside the k-NN manifold of the reference features",
        ),
        Metric(
            "recall", "quality", "", "maximize", "share of reference features inside the k-NN manifold of the samples"
        ),
        Metric("feature_distance", "quality", "", "minimize", "mean squared feature change against dense, same noise"),
        Metric("nll", "quality", "nats/token", "minimize", "teacher-forced negative log-likelihood of held-out tokens"),
        Metric(
            "label_agreement",
            "quality",
            "",
            "maximize",
            "share of samples that the classifier gives the requested label",
        ),
        Metric("latency_ms", "speed", "ms", "minimize", "time of one batch, all scales and decoding"),
        Metric("speedup", "speed", "x", "maximize", "latency of dense over latency of the policy, same target"),
        Metric("peak_bytes", "speed", "B", "minimize", "most memory in use at once: weights, cache and activations"),
        Metric("kv_bytes", "speed", "B", "minimize", "largest size of the key/value caches of all layers together"),
        Metric("weight_bytes", "speed", "B", "minimize", "parameters as stored"),
        Metric(
            "flops", "speed", "FLOP", "minimize", "floating-point operations of one batch, a multiply-add counting two"
        ),
        Metric(
            "attention_flops",
            "speed",
            "FLOP",
            "minimize",
            "the part of flops in the transformer's attention, scoring included",
        ),
    )
}

TIMES = ("latency_ms", "speedup")
"""Metrics of speed that vary from one measurement to the next."""


class Origin(StrEnum):
    """How a number came about. Latency of different origins never meets on one front."""

    MEASURED = "measured"
    PREDICTED = "predicted"


class Measurement(Frozen):
    """One number. `low` and `high` bound a 95 % interval (for latency the quartiles); `n` counts samples or repeats."""

    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int = 1
    origin: Origin = Origin.MEASURED
    note: str = ""


class QualityProtocol(Frozen):
    """Everything that a quality number depends on besides the model and the policy.

    `noise` and `dtype` are what images are drawn with and in; a protocol of old, which does not say, is of `mt19937`
    and float32.
    """

    extractor: str
    reference: str
    n_images: int = Field(ge=2)
    nll_images: int = Field(ge=0)
    seed: int
    guidance: float
    top_k: int
    top_p: float
    temperature: float = 1.0
    guidance_layer: int = 0
    noise: Noise = "mt19937"
    dtype: DType = "float32"
    version: int = 1


SPEED_VERSION = 3
"""Rises when the same policy would get other numbers. 2: caches have room for what is stored and no more, and attention
FLOPs are the transformer's, scoring included. 3: logits are fp32 in every format, and factors of cosine attention."""


class SpeedProtocol(Frozen):
    """Everything that a latency or memory number depends on besides the model and the policy.

    `machine` names the hardware, `backend` and `attention` the kernels that really ran; `repeats` counts timed rounds
    (0 where the cost model predicts, which assumes that attention is one fused kernel).
    """

    target: Target
    origin: Origin
    machine: str
    backend: str
    repeats: int = Field(ge=0)
    version: int = 1
    attention: AttentionBackend = "sdpa"


class Evidence(Frozen):
    """What is known of a policy under one protocol; found again by (policy, model, protocol)."""

    kind: Kind
    policy: str
    model: str
    protocol: str
    measurements: tuple[Measurement, ...]
    seconds: float
    environment: dict[str, str] = Field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, Measurement]:
        """Metric name to number with its interval."""
        return {m.metric: m for m in self.measurements}

    @property
    def values(self) -> dict[str, float]:
        """Metric name to value."""
        return {m.metric: m.value for m in self.measurements}

    def objection(self, policy: str, model: str, protocols: Container[str]) -> str:
        """Why it is no evidence of this policy, model and one of these protocols, by digests; empty if it is."""
        if (self.policy, self.model) != (policy, model) or self.protocol not in protocols:
            return f"the worker's {self.kind} evidence is for another policy, model or protocol"
        odd = (f"{name} = {value}" for name, value in self.values.items() if not math.isfinite(value))
        return next((f"the evaluation gave {text}" for text in odd), "")


class Job(Frozen):
    """One policy to evaluate, and how; None asks for nothing of that kind.

    An evaluation that takes longer than `seconds` has hung; None sets no limit.
    """

    number: int
    policy: Policy
    quality: QualityProtocol | None = None
    speed: SpeedProtocol | None = None
    seconds: float | None = None


class Outcome(Frozen):
    """Answer to a `Job`. `error` is one line; without it all evidence that the job asks for is there."""

    number: int
    quality: Evidence | None = None
    speed: Evidence | None = None
    error: str = ""

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """What was found, in the order of the fields."""
        return tuple(found for found in (self.quality, self.speed) if found)

    @property
    def values(self) -> dict[str, float]:
        """All metrics of both pieces of evidence."""
        return {**(self.quality.values if self.quality else {}), **(self.speed.values if self.speed else {})}
