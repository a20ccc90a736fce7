"""An instant search problem full of interactions. `benchmarks.search` searches it too."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from functools import cached_property

from varsearch.measurement import Evidence, Measurement, Origin, QualityProtocol, SpeedProtocol
from varsearch.policy import Policy
from varsearch.profile import (
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
from varsearch.search.core.optuna_study import Space
from varsearch.search.core.settings import RunSettings, default_objectives
from varsearch.search.sampler.base import SideInformation
from varsearch.search.sensitivity.warm_start import warm_starts
from varsearch.search.setup.guidance import starts_with
from varsearch.space import SearchSpace
from varsearch.space.changes import changes
from varsearch.space.presets import seeds
from varsearch.space.probes import Chosen, probes
from varsearch.space.units import Setting, compose, settings
from varsearch.target import ModelSpec, Target

SPEC = ModelSpec(
    name="synthetic",
    n_layers=6,
    n_heads=4,
    head_dim=32,
    scales=((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)),
    classes=10,
    image_size=(32, 32),
    fingerprint="5" * 64,
)
QUALITY = QualityProtocol(
    extractor="none", reference="none", n_images=2, nll_images=0, seed=0, guidance=1.5, top_k=0, top_p=0.0
)
SPEED = SpeedProtocol(
    target=Target(device="4090", dtype="float16", batch_size=256),
    origin=Origin.PREDICTED,
    machine="4090",
    backend="none",
    repeats=0,
)
DENSE_FID, DENSE_MS, DENSE_BYTES = 4.0, 10.0, 1e8

WARM_STARTS = 20
"""Policies of the profile among the warm starts, as many as `benchmarks.search` takes."""

SIZES = {"bits": 0.01, "keep": 0.01, "kv_bits": 0.01, "window": 0.006, "tokens": 0.02, "sharing": 0.01}
SIZES |= {"skip": 2.0, "guidance": 0.2, "refiner": 0.3}
"""Usual loss of a kind's strongest setting, in ΔFID."""


class Synthetic:
    """Losses that do not add up.

    Pairs of units cancel or amplify each other, layers and scales break beyond a threshold, and the whole grows faster
    than its sum. The profile sees single settings, with an error of half.

    Args:
        seed: of the losses.
        pairs: how many of the pairs of units interact, as a share of the number of units.
    """

    def __init__(self, seed: int = 0, pairs: float = 3.0) -> None:
        self.space: Space = SearchSpace(SPEC)
        self.settings = RunSettings(
            model=SPEC.name,
            fingerprint=SPEC.fingerprint,
            quality=QUALITY,
            speed=SPEED,
            objectives=default_objectives(Origin.PREDICTED),
        )
        self.published: Mapping[str, Policy] = {f"seed:{name}": policy for name, policy in seeds(SPEC).items()}
        self.seed = seed
        units = sorted({setting.unit for setting in settings(SPEC)})
        rng = random.Random(f"pairs {seed}")
        self._pairs: dict[str, dict[str, float]] = {}
        for _ in range(int(pairs * len(units))):
            a, b = rng.sample(units, 2)
            self._pairs.setdefault(a, {})[b] = rng.choice((-1.0, 4.0))
        self._options: dict[str, list[Setting]] = {}
        for setting in settings(SPEC):
            self._options.setdefault(setting.unit, []).append(setting)

    def _alone(self, setting: Setting) -> float:
        """What one setting loses: of a size by unit, more the stronger it is."""
        options = self._options.get(setting.unit, [setting])
        strength = (1 + options.index(setting)) / len(options) if setting in options else 1.0
        size = SIZES[setting.kind] * math.exp(random.Random(f"{self.seed}/{setting.unit}").gauss(0, 1.2))
        return size * float(strength) ** 2

    def loss(self, chosen: Chosen) -> float:
        """ΔFID of a policy that sets this."""
        alone = {setting.unit: self._alone(setting) for setting in chosen}
        total = sum(alone.values())
        for a, others in self._pairs.items():
            for b, sign in others.items():
                if a in alone and b in alone:
                    total += sign * min(alone[a], alone[b])
        places: dict[str, float] = {}
        for setting in chosen:
            for place in {f"L{setting.layer}", f"S{setting.scale}"} - {"LNone", "SNone"}:
                places[place] = places.get(place, 0.0) + alone[setting.unit]
        broken = sum(max(loss - self._threshold(place), 0.0) for place, loss in places.items())
        return float((max(total, 0.1 * sum(alone.values())) + 2 * broken) ** 1.3)

    def _threshold(self, place: str) -> float:
        return 0.1 * math.exp(random.Random(f"{self.seed}/threshold/{place}").gauss(0, 1))

    def cost(self, policy: Policy) -> Cost:
        """Time of layers at scales, by rows and tokens; weights, caches, and the largest scale's activations."""
        area = sum(SPEC.tokens)
        time = kv = peak = weights = 0.0
        for i, layer in enumerate(policy.layers):
            keep = sum(layer.kv.keep or (1.0,) * SPEC.n_heads) / SPEC.n_heads
            bits = [getattr(layer.weights, name) for name in SPEC.linears]
            weights += sum((q.bits if q else 16) / 16 for q in bits) / len(bits) / SPEC.n_layers
            slow = 1 + 0.1 * sum(q is not None for q in bits) / len(bits)
            for k, scale in enumerate(policy.scales):
                if not scale.run:
                    continue
                guided = scale.guidance != "off"
                pruned = scale.tokens is not None and i in scale.tokens.layers(SPEC.n_layers)
                tokens = SPEC.tokens[k] / area * (scale.tokens.keep_in(i) if pruned and scale.tokens else 1.0)
                rows = 2.0 if guided else 1.0
                attention, ffn = (1.0 if i in s else rows for s in (scale.shared_attention, scale.shared_ffn))
                window = layer.attention.window[k][0] if layer.attention.window else None
                seen = min(1.0, (2 * window + 1) ** 2 / SPEC.tokens[k]) if isinstance(window, int) else 1.0
                time += tokens * (0.3 * attention * (0.5 + 0.5 * keep * seen) + 0.6 * ffn * slow + 0.1 * rows) / 2
                kv += tokens * keep * rows / 2 * (layer.kv.bits or 16) / 16
                peak = max(peak, tokens * rows / 2)
        largest = SPEC.tokens[-1] / area
        share = 0.4 * weights + 0.4 * kv / SPEC.n_layers + 0.2 * peak / largest
        launches = 0.1 * sum(scale.run for scale in policy.scales) / len(policy.scales)
        return Cost(
            latency_ms=DENSE_MS * (0.9 * time / SPEC.n_layers + launches),
            peak_bytes=DENSE_BYTES * share,
            weight_bytes=DENSE_BYTES * 0.4 * weights,
            kv_bytes=DENSE_BYTES * 0.4 * kv / SPEC.n_layers,
            flops=1.0,
        )

    def values(self, policy: Policy) -> dict[str, float]:
        """All metrics; what no unit can say loses a little."""
        found, cost = changes(policy), self.cost(policy)
        loss = self.loss(found.settings) + 0.05 * len(found.rest)
        speed = {"latency_ms": cost.latency_ms, "speedup": DENSE_MS / cost.latency_ms, "peak_bytes": cost.peak_bytes}
        return {"fid": DENSE_FID + loss, "delta_fid": loss, **speed}

    def evaluate(self, policy: Policy) -> tuple[Evidence, Evidence]:
        """Instant."""
        values = self.values(policy)
        parts: tuple[tuple[str, str, tuple[str, ...]], ...] = (
            ("quality", QUALITY.digest, ("fid", "delta_fid")),
            ("speed", SPEED.digest, ("latency_ms", "speedup", "peak_bytes")),
        )
        quality, speed = (
            Evidence.model_validate(
                {"kind": kind, "policy": policy.digest, "model": SPEC.fingerprint, "protocol": digest, "seconds": 0.0}
                | {"measurements": [Measurement(metric=name, value=values[name]) for name in names]}
            )
            for kind, digest, names in parts
        )
        return quality, speed

    @cached_property
    def warm(self) -> dict[str, Policy]:
        """As a run with `--warm-starts` starts."""
        return starts_with(self.published, warm_starts(self.profile, WARM_STARTS))

    def guide(self, profile: bool) -> SideInformation:
        """Exact costs as where they are predicted."""
        return SideInformation(SPEC, (), self.profile if profile else None, lambda: self.values)

    @cached_property
    def profile(self) -> Profile:
        """Losses with an error of half, exact costs."""
        wanted = probes(SPEC)
        effects = {
            name: self._effect(name, chosen)
            for name, chosen in (wanted.singles | wanted.pairs | wanted.policies).items()
        }
        protocol = SensitivityProtocol(
            extractor="none", images=8, seed=0, guidance=1.5, top_k=0, top_p=0.0, settings=str(self.seed)
        )

        def costs(sets: Mapping[str, Chosen]) -> dict[str, Cost]:
            return {name: self.cost(compose(SPEC, chosen)) for name, chosen in {DENSE: (), **sets}.items()}

        return Profile(
            spec=SPEC,
            siblings=(),
            sensitivity=Sensitivity(fingerprint=SPEC.fingerprint, protocol=protocol, effects=effects),
            costs=Costs(
                fingerprint=SPEC.fingerprint,
                protocol=CostProtocol(speed=SPEED, settings=""),
                parts=costs(wanted.parts),
                policies=costs(wanted.policies),
            ),
        )

    def _effect(self, name: str, chosen: Chosen) -> Effect:
        seen = self.loss(chosen) * math.exp(random.Random(f"{self.seed}/effect/{name}").gauss(0, 0.5))
        estimate = Estimate(value=seen, error=seen / 3)
        no_nll = {"skip", "guidance", "sharing"} & {setting.kind for setting in chosen}
        return Effect(shift=estimate, distance=estimate, nll=None if no_nll else estimate)
