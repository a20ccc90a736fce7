"""A small space and a fast worker whose numbers follow from the policy alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from varsearch.errors import ModelError
from varsearch.measurement import Evidence, Job, Measurement, Origin, Outcome, QualityProtocol, SpeedProtocol
from varsearch.policy import LayerPolicy, Policy, Quantization, ScalePolicy, Weights
from varsearch.search.core.settings import RunSettings
from varsearch.target import Target

QUALITY = QualityProtocol(
    extractor="fake", reference="fake", n_images=2, nll_images=0, seed=0, guidance=1.5, top_k=0, top_p=0.0
)
SPEED = SpeedProtocol(
    target=Target(device="4090", dtype="float16", batch_size=256),
    origin=Origin.PREDICTED,
    machine="4090",
    backend="fake",
    repeats=0,
)
OTHER = SPEED.model_copy(update={"target": Target(device="h100", dtype="float16", batch_size=256), "machine": "h100"})
"""Of another target."""

BITS = (None, 8, 6, 4, 3)


def settings(**changes: object) -> RunSettings:
    objectives = ("delta_fid", "latency_ms", "peak_bytes")
    given = {"model": "fake", "fingerprint": "f" * 64, "quality": QUALITY, "speed": SPEED, "objectives": objectives}
    return RunSettings.model_validate({**given, **changes})


@dataclass(frozen=True)
class FakeSpace:
    """`layers` knobs of five bit-widths and `scales` knobs that drop guidance from a scale on.

    Levels of scales behind the first unguided one mean nothing, so that different vectors are equal policies.
    """

    layers: int = 4
    scales: int = 3

    @property
    def knobs(self) -> dict[str, int]:
        return {f"bits{i}": len(BITS) for i in range(self.layers)} | {f"off{k}": 2 for k in range(self.scales)}

    def decode(self, levels: Mapping[str, int]) -> Policy:
        bits = [BITS[levels[f"bits{i}"]] for i in range(self.layers)]
        off = [any(levels[f"off{j}"] for j in range(k + 1)) for k in range(self.scales)]
        return Policy(
            layers=tuple(LayerPolicy(weights=Weights(qkv=Quantization(bits=b) if b else None)) for b in bits),
            scales=tuple(ScalePolicy(guidance="off" if o else "full") for o in off),
        )

    def nearest(self, policy: Policy) -> dict[str, int]:
        linears = [layer.weights.qkv for layer in policy.layers]
        off = [scale.guidance == "off" for scale in policy.scales]
        return {f"bits{i}": BITS.index(q.bits if q else None) for i, q in enumerate(linears)} | {
            f"off{k}": int(o and not any(off[:k])) for k, o in enumerate(off)
        }


SPACE = FakeSpace()
DENSE = Policy.dense(4, 3)
STARTS = {"seed:dense": DENSE, "seed:w8": SPACE.decode(dict.fromkeys(SPACE.knobs, 0) | {"bits0": 1, "bits1": 1})}


def luck(policy: Policy) -> float:
    """What a policy's ΔFID is higher on other noise: 0 for dense, else from -0.1 to 0.3."""
    return 0.0 if policy == DENSE else int(policy.digest[:4], 16) / 0xFFFF * 0.4 - 0.1


def numbers(policy: Policy, seed: int = QUALITY.seed) -> dict[str, float]:
    """A trade-off: lower bits cost quality quadratically and save memory, dropped guidance saves time."""
    lost = [16 - (layer.weights.qkv.bits if layer.weights.qkv else 16) for layer in policy.layers]
    off = sum(scale.guidance == "off" for scale in policy.scales)
    delta = sum(x * x for x in lost) / 400 + 0.3 * off * off + (0.0 if seed == QUALITY.seed else luck(policy))
    latency = 100.0 - 20 * off - 0.1 * sum(lost)
    return {
        "fid": 4.0 + delta,
        "delta_fid": delta,
        "latency_ms": latency,
        "speedup": 100.0 / latency,
        "peak_bytes": 1e6 - 1e4 * sum(lost),
    }


def evidence(kind: str, policy: Policy, seed: int = QUALITY.seed, **changes: object) -> Evidence:
    """Quality is known up to 0.1 in 95 of 100 cases, and speed exactly."""
    names = ("fid", "delta_fid") if kind == "quality" else ("latency_ms", "speedup", "peak_bytes")
    values, half = numbers(policy, seed), 0.1 if kind == "quality" and policy != DENSE else None
    given = {
        "kind": kind,
        "policy": policy.digest,
        "model": "f" * 64,
        "protocol": (QUALITY if kind == "quality" else SPEED).digest,
        "measurements": [
            Measurement(metric=m, value=values[m], low=half and values[m] - half, high=half and values[m] + half, n=2)
            for m in names
        ],
        "seconds": 0.01,
    }
    return Evidence.model_validate({**given, **changes})


def outcome(job: Job) -> Outcome:
    quality = job.quality and evidence("quality", job.policy, job.quality.seed, protocol=job.quality.digest)
    speed = job.speed and evidence("speed", job.policy, protocol=job.speed.digest)
    return Outcome(number=job.number, quality=quality, speed=speed)


def released(log: Path) -> Path:
    """The file whose presence lets evaluations end that are held."""
    return log.with_suffix(".released")


@dataclass
class FakeWorker:
    """Notes in `log` when an evaluation begins, draws images and ends.

    The first ones wait until `together` processes have begun one, so that no process does all the
    work. The `hold`-th to begin and all later ones wait until `Search.release`.
    """

    log: Path | None = None
    hold: int = 0
    together: int = 1

    def evaluate(self, job: Job) -> Outcome:
        self.note("begin", job)
        if job.quality is not None:
            self.note("draw", job)
        while self.log and not self.may_end(self.log):
            time.sleep(0.05)
        self.note("end", job)
        return outcome(job)

    def may_end(self, log: Path) -> bool:
        """Whether the evaluation that this process began last need not wait any longer."""
        lines = log.read_text().splitlines()
        pids = [int(line.split()[2]) for line in lines if line.startswith("begin")]
        place = max(i for i, pid in enumerate(pids, start=1) if pid == os.getpid())
        held = self.hold and place >= self.hold and not released(log).exists()
        return len(set(pids)) >= self.together and not held

    def note(self, event: str, job: Job) -> None:
        if self.log:
            # One small appending write: lines of several processes do not mix.
            with self.log.open("a") as file:
                file.write(f"{event} {job.number} {os.getpid()}\n")


class Hanging(FakeWorker):
    """Its third trial never ends at the first attempt."""

    def evaluate(self, job: Job) -> Outcome:
        assert self.log is not None
        begun = self.log.read_text().splitlines() if self.log.exists() else []
        if job.number == 2 and not any(line.startswith("begin 2 ") for line in begun):
            self.note("begin", job)
            time.sleep(3600)
        return super().evaluate(job)


def broken() -> FakeWorker:
    """A worker whose model cannot be loaded."""
    raise ModelError("weights of model fake are missing")


def deadly() -> FakeWorker:
    """A worker whose process is killed while it loads the model, as for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")
