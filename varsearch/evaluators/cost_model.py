"""Latency and memory of a policy on any device of the table, predicted from its trace.

Each operator takes the longer of its arithmetic and its traffic at the device's peak rates (the roofline model,
Williams et al. 2009, doi 10.1145/1498765.1498785). Attention counts as one fused kernel that reads its inputs once, as
that of `sdpa`, `cudnn`, `flash-attn` and `triton` is; to fewer keys it is what the kernel of blocks computes. A
prediction ranks policies; it is not a measurement, and is marked.
"""

from __future__ import annotations

import time
from functools import cached_property

import torch

from varsearch.errors import EvaluationError
from varsearch.evaluators.trace import Op, Trace, attention_on, backend_on, trace
from varsearch.measurement import SPEED_VERSION, Evidence, Measurement, Origin, SpeedProtocol
from varsearch.models.image_model import ImageModel
from varsearch.policy import Policy
from varsearch.target import Device, Target, find_device

KINDS = {
    "transcendental": "gelu silu exp log tanh pow sqrt _softmax _safe_softmax _log_softmax",
    "reduction": "native_layer_norm native_group_norm linalg_vector_norm mean sum amax argmax cumsum any all",
    "movement": "cat copy_ clone repeat gather scatter_ index index_put_ embedding _to_copy",
    "selection": "topk sort",
    "sampling": "multinomial exponential_",
    "interpolation": "upsample_bicubic2d upsample_bilinear2d upsample_nearest2d _adaptive_avg_pool2d",
}
"""Operators by kind. Matrix products and convolutions set a device's peak rate, plain arithmetic sets its bandwidth:
those reach all of it. `attention` is a kind too, whatever operators it is made of."""

_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names.split()}


def kind_of(op: Op) -> str:
    """The kind whose efficiency holds for `op`."""
    return "attention" if op.attention else _KIND_OF.get(op.name, "plain")


def work_seconds(op: Op, device: Device, target: Target) -> float:
    """Time of one operator once it runs: the longer of arithmetic and traffic, over the kind's efficiency."""
    rates = {str(dtype): tflops for dtype, tflops in device.tflops.items()}
    arithmetic = op.flops / (rates.get(op.dtype, rates[target.dtype]) * 1e12)
    traffic = op.bytes / (device.gb_per_s * 1e9)
    return max(arithmetic, traffic) / device.efficiency.get(kind_of(op), 1.0)


def latency_seconds(ops: tuple[Op, ...], device: Device, target: Target) -> float:
    """Time of all operators, launched one after another by one thread.

    A CPU finishes each before it starts the next. A GPU works through a queue: an operator starts once it was
    launched and its predecessor is done, so launches cost time only where the queue runs dry.
    """
    launched = done = 0.0
    for op in ops:
        launched = (done if device.kind == "cpu" else launched) + device.launch_us * 1e-6
        done = max(launched, done) + work_seconds(op, device, target)
    return done


def predicted_protocol(target: Target) -> SpeedProtocol:
    """The protocol of predictions for `target`. It names the device's figures, so new figures give new evidence."""
    device = find_device(target.device)
    return SpeedProtocol(
        target=target,
        origin=Origin.PREDICTED,
        machine=f"{device.label}, figures {device.digest[:12]}",
        backend=f"eager torch {torch.__version__.split('+')[0]}, {backend_on(target)} for quantized linears",
        repeats=0,
        version=SPEED_VERSION,
        attention=attention_on(target),
    )


class CostModel:
    """Predicts speed and memory of policies on one target.

    Args:
        model: only its shape matters; it may be on the meta device (see `workload.skeleton`).
        protocol: made by `predicted_protocol`.
    """

    def __init__(self, model: ImageModel, protocol: SpeedProtocol) -> None:
        self.model, self.protocol = model, protocol
        self.device = find_device(protocol.target.device)

    def evaluate(self, policy: Policy) -> Evidence:
        """Latency, speed-up over dense, memory and FLOPs of one batch.

        Raises:
            PolicyError: the policy does not fit the model.
            EvaluationError: the batch would not fit into the device's memory.
        """
        started = time.perf_counter()
        found = trace(self.model, policy, self.protocol.target)
        if found.peak_bytes > self.device.memory_gb * 1e9:
            raise EvaluationError(
                f"a batch of {self.protocol.target.batch_size} needs {found.peak_bytes / 1e9:.1f} GB, "
                f"{self.device.label} has {self.device.memory_gb:g} GB: choose a smaller batch"
            )
        latency = self._latency(found)
        values = {
            "latency_ms": latency * 1e3,
            "speedup": self._dense_latency / latency,
            **memory_and_flops(found),
        }
        return Evidence(
            kind="speed",
            policy=policy.digest,
            model=self.model.spec.identity,
            protocol=self.protocol.digest,
            measurements=tuple(
                Measurement(metric=metric, value=value, origin=Origin.PREDICTED) for metric, value in values.items()
            ),
            seconds=time.perf_counter() - started,
            environment={
                "torch": torch.__version__,
                "device": self.device.label,
                "backend": backend_on(self.protocol.target),
                "attention": self.protocol.attention,
            },
        )

    @cached_property
    def _dense_latency(self) -> float:
        spec = self.model.spec
        return self._latency(trace(self.model, Policy.dense(spec.n_layers, len(spec.scales)), self.protocol.target))

    def _latency(self, found: Trace) -> float:
        return latency_seconds(found.ops, self.device, self.protocol.target)


def memory_and_flops(found: Trace) -> dict[str, float]:
    """The metrics that a trace gives exactly."""
    return {
        "peak_bytes": found.peak_bytes,
        "kv_bytes": found.kv_bytes,
        "weight_bytes": found.weight_bytes,
        "flops": found.flops,
        "attention_flops": found.attention_flops,
    }
