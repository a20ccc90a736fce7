"""Profiles of models that do not exist: losses and costs that add up, as far as a test does not say otherwise."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial

from varsearch.measurement import Origin, SpeedProtocol
from varsearch.sensitivity_profile import (
    DENSE,
    Cost,
    CostProtocol,
    Costs,
    Effect,
    Estimate,
    Profile,
    Sensitivity,
    SensitivityProtocol,
)
from varsearch.space.one_at_a_time import probes
from varsearch.space.settings import Chosen, Setting
from varsearch.target import ModelSpec, Target

SPEC = ModelSpec(
    name="small",
    n_layers=2,
    n_heads=2,
    head_dim=32,
    scales=((1, 1), (2, 2), (3, 3), (4, 4)),
    classes=10,
    image_size=(32, 32),
    fingerprint="f" * 64,
)
SIBLING = SPEC.model_copy(update={"name": "little", "n_layers": 1})
BATCH = Cost(latency_ms=100.0, peak_bytes=1e6, weight_bytes=2e5, kv_bytes=4e5, flops=1e9)
SAVED = {"bits": (1.0, 1e4), "keep": (0.5, 5e4), "kv_bits": (-1.0, 1e5), "window": (1.0, 0.0), "tokens": (2.0, 0.0)}
SAVED |= {"sharing": (1.5, 0.0), "skip": (20.0, 0.0), "guidance": (15.0, 0.0), "refiner": (20.0, 0.0)}
"""By kind: milliseconds, and bytes of weights or caches."""


def change(chosen: Chosen) -> Cost:
    """What a batch takes with these settings: dense, less what each saves of what others leave for it."""
    whole, local = ([SAVED[s.kind][0] for s in chosen if (s.layer is None) is outer] for outer in (True, False))
    ms = BATCH.latency_ms - math.prod(1 - saved / 100 for saved in whole) * (BATCH.latency_ms - sum(local))
    weights = sum(SAVED[s.kind][1] for s in chosen if s.kind == "bits")
    caches = sum(map(partial(_cache_bytes, chosen), range(SPEC.n_layers)))
    return BATCH.model_copy(
        update={
            "latency_ms": BATCH.latency_ms - ms,
            "peak_bytes": BATCH.peak_bytes - weights - caches,
            "weight_bytes": BATCH.weight_bytes - weights,
            "kv_bytes": BATCH.kv_bytes - caches,
        }
    )


def _cache_bytes(chosen: Chosen, layer: int) -> float:
    whole = BATCH.kv_bytes / SPEC.n_layers
    entries, bits = (
        sum(SAVED[s.kind][1] for s in chosen if (s.kind, s.layer) == (kind, layer)) for kind in ("keep", "kv_bits")
    )
    return entries + bits - entries * bits / whole


def random_loss(seed: int = 0) -> Callable[[Setting], float]:
    """A loss of its own for every setting."""
    return lambda setting: random.Random(f"{seed}/{setting.name}").uniform(0.001, 0.1)


def effect(loss: float, with_nll: bool = True) -> Effect:
    """An effect that every metric agrees about, known to three digits."""
    estimate = Estimate(value=loss, error=loss / 1000)
    return Effect(shift=estimate, distance=estimate, nll=estimate if with_nll else None)


def synthetic(
    loss: Callable[[Setting], float],
    whole: Callable[[Chosen], Cost] = change,
    cost: Callable[[Chosen], Cost] = change,
) -> Profile:
    """A profile where settings have this loss, parts and whole policies these costs."""
    wanted = probes(SPEC, [SIBLING])
    target = Target(device="cpu", dtype="float32", batch_size=16)
    speed = SpeedProtocol(target=target, origin=Origin.PREDICTED, machine="m", backend="b", repeats=0)
    quality = SensitivityProtocol(extractor="e", images=8, seed=0, guidance=1.5, top_k=0, top_p=0.0, settings="")
    no_nll = {"skip", "guidance", "sharing"}
    return Profile(
        spec=SPEC,
        siblings=(SIBLING,),
        sensitivity=Sensitivity(
            fingerprint=SPEC.fingerprint,
            protocol=quality,
            effects={
                name: effect(sum(map(loss, chosen)), not no_nll & {s.kind for s in chosen})
                for name, chosen in (wanted.singles | wanted.pairs | wanted.policies).items()
            },
        ),
        costs=Costs(
            fingerprint=SPEC.fingerprint,
            protocol=CostProtocol(speed=speed, settings=""),
            parts={name: cost(part) for name, part in ({DENSE: ()} | wanted.parts).items()},
            policies={name: whole(chosen) for name, chosen in ({DENSE: ()} | wanted.policies).items()},
        ),
    )
