"""Calibrations of models that do not exist."""

from __future__ import annotations

import random

from varsearch.calibration import Calibration, CalibrationProtocol, widths
from varsearch.errors import UsageError
from varsearch.policy import Decision
from varsearch.space.presets.skipvar import untrained
from varsearch.target import ModelSpec


def random_calibration(spec: ModelSpec, seed: int = 0) -> Calibration:
    """Every statistic of the right shape, drawn at random."""
    rng = random.Random(seed)
    layers, heads, scales = range(spec.n_layers), range(spec.n_heads), range(len(spec.scales))

    def masses(k: int) -> tuple[float, ...]:
        parts = [rng.random() + 1e-3 for _ in range(k + 1)]
        return tuple(p / sum(parts) for p in parts)

    def band(j: int) -> tuple[float, ...]:
        return (*sorted(rng.random() for _ in widths(spec.tokens[j])[1:]), 1.0)

    def by_layer() -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(rng.random() for _ in layers) for _ in scales)

    return Calibration(
        fingerprint=spec.fingerprint,
        protocol=CalibrationProtocol(images=5, guidance=1.5, top_k=0, top_p=0.0),
        column_variance=tuple(tuple(rng.random() for _ in heads) for _ in layers),
        scale_mass=tuple(tuple(tuple(masses(k) for _ in heads) for _ in layers) for k in scales),
        band_mass=tuple(
            tuple(tuple(tuple(band(j) for j in range(k + 1)) for _ in heads) for _ in layers) for k in scales
        ),
        history_top=by_layer(),
        entropy_ratio=tuple(tuple(1 + 9 * x for x in row) for row in by_layer()),
        half_distance=by_layer(),
        low_entropy=tuple(tuple(rng.random() for _ in range(5)) for _ in scales),
        skipvar=_skipvar(spec),
        sqnr=tuple({"qkv": {4: 20.0}} for _ in layers),
        seconds=1.0,
    )


def _skipvar(spec: ModelSpec) -> dict[float, Decision]:
    try:
        found = untrained(spec)
    except UsageError:
        return {}
    first, *others = found.actions
    eager = found.model_copy(update={"actions": (first.model_copy(update={"bias": -1.0}), *others)})
    return {0.84: eager, 0.86: eager, 0.88: found}
