"""Runs of the shipped model whose numbers are made up, so that a report needs no evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from varsearch.db import RunRecord, State, Store, TrialRecord
from varsearch.evaluators.quality import DEVICE_TYPE, SAMPLE, THREADS
from varsearch.measurement import Evidence, Measurement, Origin, QualityProtocol, SpeedProtocol
from varsearch.models import zoo
from varsearch.policy import KVCompression, LayerPolicy, Policy, Quantization, Refiner, ScalePolicy, Weights
from varsearch.search.core.settings import RunSettings
from varsearch.target import Target

SPEC = zoo.manifest("mnist").spec()
DENSE = Policy.dense(SPEC.n_layers, len(SPEC.scales))
W4 = Quantization(bits=4)
UNGUIDED = (ScalePolicy(),) * 5 + (ScalePolicy(guidance="off"),)
SMALL = zoo.manifest("mnist-small").spec()


def layers(**first: object) -> tuple[LayerPolicy, ...]:
    """Six layers, of which the first has these fields."""
    return (LayerPolicy(**first), *DENSE.layers[1:])


POLICIES: dict[str, tuple[Policy, float, float, float]] = {
    "seed:dense": (DENSE, 0.0, 10.0, 200e6),
    "preset:worse": (Policy(layers=layers(weights=Weights(qkv=W4)), scales=DENSE.scales), 0.4, 12.0, 199e6),
    "preset:code": (
        Policy(
            layers=DENSE.layers,
            scales=DENSE.scales,
            refiner=Refiner(model="mnist-small", fingerprint=SMALL.fingerprint, first_scale=4),
        ),
        0.1,
        8.0,
        120e6,
    ),
    "seed:lean": (
        Policy(layers=layers(kv=KVCompression(keep=(0.0, 1.0, 1.0, 1.0)), weights=Weights(fc1=W4)), scales=UNGUIDED),
        0.2,
        6.0,
        60e6,
    ),
    "sampler": (Policy(layers=DENSE.layers, scales=(*DENSE.scales[:4], *(ScalePolicy(run=False),) * 2)), 9.0, 4.0, 9e7),
    "mutation": (Policy(layers=layers(weights=Weights(fc2=W4)), scales=UNGUIDED), 1.5, 9.0, 190e6),
}
"""Origin to policy, ΔFID, latency in ms and peak bytes. The two published systems: one beaten, one on the front."""


def settings(model: str = "mnist", **bounds: float) -> RunSettings:
    """What such a run is about."""
    target = Target(device="4090", dtype="float16", batch_size=256)
    return RunSettings(
        model=model,
        fingerprint=SPEC.fingerprint,
        quality=QualityProtocol(
            extractor="classifier@0", reference="0" * 64, n_images=512, nll_images=256, seed=3, guidance=1.0, top_k=0,
            top_p=0.0,
        ),
        speed=SpeedProtocol(
            target=target, origin=Origin.PREDICTED, machine="NVIDIA GeForce RTX 4090", backend="eager", repeats=0
        ),
        objectives=("delta_fid", "latency_ms", "peak_bytes"),
        bounds=bounds,
    )  # fmt: skip


def make_run(
    storage: Path, name: str, chosen: RunSettings, policies: Mapping[str, tuple[Policy, float, float, float]]
) -> None:
    """Stores a finished run with these trials, and one that failed."""
    with Store(storage) as store:
        run = store.claim(
            RunRecord(
                name,
                chosen.model,
                chosen.fingerprint,
                chosen.quality_digest,
                chosen.speed.digest,
                chosen.model_dump_json(),
            )
        )
        for number, (origin, (policy, *numbers)) in enumerate(policies.items()):
            for found in evidence(policy, chosen, *numbers):
                store.save(found)
            store.write(run, TrialRecord(number, policy, origin, State.COMPLETE, attempts=1, cost=1.0))
        scales = (*DENSE.scales[:5], ScalePolicy(run=False))
        broken = Policy(layers=DENSE.layers, scales=scales)
        store.write(run, TrialRecord(len(policies), broken, "sampler", State.FAIL, error="no", attempts=1, cost=1.0))
        store.leave(run, "finished")


def evidence(policy: Policy, chosen: RunSettings, delta: float, latency: float, peak: float) -> list[Evidence]:
    """Evidence with these numbers, of quality only where it is evaluated."""
    quality = [
        Measurement(metric="fid", value=1 + delta, low=0.9 + delta, high=1.1 + delta, n=512),
        Measurement(metric="delta_fid", value=delta, low=delta - 0.15, high=delta + 0.15, n=512),
    ]
    if all(scale.run for scale in policy.scales):
        quality.append(Measurement(metric="nll", value=1.4 + delta / 10, n=256))
    speed = {"latency_ms": latency, "speedup": 10 / latency, "peak_bytes": peak, "kv_bytes": peak / 2, "flops": 1e9}
    notes = {SAMPLE: "0" * 64, THREADS: "1", DEVICE_TYPE: "cpu", "torch": "2", "device": "a CPU"}
    found = [
        Evidence(
            kind="quality", policy=policy.digest, model=chosen.fingerprint, protocol=chosen.quality_digest,
            measurements=tuple(quality), seconds=30.0, environment=notes,
        ),
        Evidence(
            kind="speed", policy=policy.digest, model=chosen.fingerprint, protocol=chosen.speed.digest,
            measurements=tuple(Measurement(metric=m, value=v, origin=Origin.PREDICTED) for m, v in speed.items()),
            seconds=6.0, environment={"backend": "triton"},
        ),
    ]  # fmt: skip
    return found if chosen.quality else found[1:]
