"""Valid policies drawn from all fields, also from those that no search proposes."""

from __future__ import annotations

import random
from typing import Any

from pydantic import ValidationError

from varsearch.policy import Policy
from varsearch.target import ModelSpec

SHARES = (0.0, 0.25, 0.5, 0.7, 0.9, 1.0)


def random_policy(spec: ModelSpec, rng: random.Random) -> Policy:
    """A policy whose every part is drawn, valid by itself and with the rest."""
    n = len(spec.scales)
    layers = [_valid(spec, rng, _layer) for _ in range(spec.n_layers)]
    scales: list[dict[str, Any]] = [{}] * n
    fields: dict[str, Any] = {"layers": [{}] * spec.n_layers, "scales": scales}
    for k in range(1, n):
        scales = [*scales[:k], _scale(spec, rng), *scales[k + 1 :]]
        fields = _grown(fields, {"scales": scales})
        scales = fields["scales"]
    for i, layer in enumerate(layers):
        fields = _grown(fields, {"layers": [*fields["layers"][:i], layer, *fields["layers"][i + 1 :]]})
    if rng.random() < 0.3:
        refiner = {"model": "little", "fingerprint": "f" * 64, "first_scale": rng.randrange(1, n)}
        fields = _grown(fields, {"refiner": refiner})
    for _ in range(4):
        decisions = [*fields.get("decisions", []), _decision(n, rng)]
        fields = _grown(fields, {"decisions": decisions})
    return Policy.model_validate(fields)


def _grown(fields: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """With these fields, unless they contradict the rest."""
    try:
        Policy.model_validate(fields | more)
    except ValidationError:
        return fields
    return fields | more


def _valid(spec: ModelSpec, rng: random.Random, draw: Any) -> dict[str, Any]:
    """A layer that is valid with dense scales."""
    while True:
        drawn: dict[str, Any] = draw(spec, rng)
        fields = {"layers": [drawn], "scales": [{}] * len(spec.scales)}
        if _grown({}, fields):
            return drawn


def _layer(spec: ModelSpec, rng: random.Random) -> dict[str, Any]:
    return {"weights": _weights(spec, rng), "kv": _kv(spec, rng), "attention": _attention(spec, rng)}


def _weights(spec: ModelSpec, rng: random.Random) -> dict[str, Any]:
    def drawn() -> dict[str, Any]:
        groups, activations = rng.choice((None, 32)), rng.choice((None, 8, 4))
        return {"bits": rng.choice((8, 6, 4, 3)), "group": groups, "activation_bits": activations}

    return {linear: drawn() for linear in spec.linears if rng.random() < 0.3}


def _kv(spec: ModelSpec, rng: random.Random) -> dict[str, Any]:
    n, kv = len(spec.scales), dict[str, Any]()

    def shares(least: float = 0.0) -> list[float]:
        return [rng.choice([s for s in SHARES if s >= least]) for _ in range(spec.n_heads)]

    kept = rng.randrange(4)
    if kept == 1:
        kv["keep"] = shares()
    if kept >= 2:  # the same after every scale, or not
        same = shares()
        kv["cache_budget"] = [same if kept == 2 else shares() for _ in range(n)]
    if rng.random() < 0.3:
        kv["attention_budget"] = [shares(0.25) for _ in range(n)]
    if rng.random() < 0.5:
        rules = ({}, {"queries": 32}, {"grid": True, "pool": "mean"})
        kv["selection"] = [rng.choice(rules) for _ in range(spec.n_heads)]
    if rng.random() < 0.3:
        kv["bits"] = rng.choice((8, 4))
    return kv


def _attention(spec: ModelSpec, rng: random.Random) -> dict[str, Any]:
    n, attention = len(spec.scales), dict[str, Any]()
    if rng.random() < 0.3:
        first = rng.randrange(1, n)
        radius = [rng.randrange(3) for _ in range(n - first)]
        attention["cross_scale"] = {
            "decision_scale": first, "keys": 0.25, "sink_scales": 1, "radius": radius, "groups": 1,
        }  # fmt: skip
    for name in ("window", "band"):
        if rng.random() < 0.3:
            attention[name] = [_row(k, spec.n_heads, rng) for k in range(n)]
    return attention


def _row(k: int, heads: int, rng: random.Random) -> list[Any]:
    def reach() -> Any:
        kind = rng.randrange(3)
        return (None, rng.randrange(4), [rng.choice((None, 0, 1, 2)) for _ in range(k + 1)])[kind]

    if rng.random() < 0.5:
        return [reach()] * heads
    return [reach() for _ in range(heads)]


def _scale(spec: ModelSpec, rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.1:
        return {"run": False}
    scale: dict[str, Any] = {}
    guidance = rng.choice(("full", "full", "shared", "off"))
    if guidance == "off":
        scale["guidance"] = "off"
    if guidance == "shared":
        some = [i for i in range(spec.n_layers) if rng.random() < 0.5] or [0]
        scale |= {"guidance": "shared", rng.choice(("shared_attention", "shared_ffn")): some}
    if rng.random() < 0.4:
        first = rng.randrange(spec.n_layers)
        last = rng.choice((None, *range(first, spec.n_layers)))
        n = (spec.n_layers if last is None else last + 1) - first
        keep = [rng.choice(SHARES[1:]) for _ in range(n - 1)]
        keep.insert(rng.randrange(n), 0.5)
        scale["tokens"] = {
            "keep": min(keep), "first_layer": first, "last_layer": last,
            "layer_keep": keep, "score": rng.choice(("distance", "entropy")),
        }  # fmt: skip
    return scale


def _decision(n: int, rng: random.Random) -> dict[str, Any]:
    after = rng.randrange(1, n - 1)
    tail = rng.choice(([{"guidance": "off"}], [{"run": False}], [{}])) * (n - after - 1)
    return {
        "after": after,
        "feature": "low_entropy",
        "actions": [{"weights": [0.5], "share": 0.5}, {"weights": [1], "share": 0.5, "scales": tail}],
    }
