"""Hand-made policies that every search starts from: each technique alone, then combinations.

"lean" is made of what needs no bookkeeping, "mild" and "strong" of more.
"""

from __future__ import annotations

from varsearch.policy import Policy
from varsearch.space.optuna_view import BITS, HEAD_KEEP, KV_BITS, TOKEN_KEEP, SearchSpace
from varsearch.target import ModelSpec


def seeds(spec: ModelSpec) -> dict[str, Policy]:
    """Policies by name, the dense one first, all inside `SearchSpace(spec)`."""
    space = SearchSpace(spec)
    last = len(spec.scales) - 1
    half = len(space.from_layers) // 2
    w8, w4 = _weights(spec, 8, 8), _weights(spec, 4, 8)
    kv_half, kv_quarter, kv_none = _kv(spec, 0.5, None), _kv(spec, 0.25, 8), _kv(spec, 0.0, None)
    share = {f"L{layer}.share": 2 for layer in range(spec.n_layers)}
    prune_last = {f"S{last}.tokens": TOKEN_KEEP.index(0.5), f"S{last}.prune_from": half}
    window = {f"L{layer}.attention": 1 for layer in range(spec.n_layers)}
    window |= {f"S{k}.radius": 1 for k in range(len(spec.scales))}
    levels: dict[str, dict[str, int]] = {
        "dense": {},
        "w8": w8,
        "w4": w4,
        "kv-half": kv_half,
        "kv-quarter-int8": kv_quarter,
        "kv-none": kv_none,
        "unguided-last": {"unguided_scales": 1},
        "unguided-last-2": {"unguided_scales": 2},
        "shared-last": {f"S{last}.share": 1, **share},
        "shared-last-3": {**{f"S{k}.share": 1 for k in range(last - 2, last + 1)}, **share},
        "prune-last": prune_last,
        "window": window,
        "lean": {"unguided_scales": 2, **kv_none},
        "mild": {"unguided_scales": 1, **w8, **kv_half},
        "strong": {"unguided_scales": 2, **w4, **kv_quarter, **prune_last},
    }
    found = {
        name: space.decode({k: v for k, v in chosen.items() if k in space.knobs}) for name, chosen in levels.items()
    }
    distinct = {policy.digest: name for name, policy in reversed(found.items())}
    return {name: policy for name, policy in found.items() if distinct[policy.digest] == name}


def _weights(spec: ModelSpec, bits: int, fc2_bits: int) -> dict[str, int]:
    chosen = {"bits": bits, "fc2_bits": fc2_bits, "ada_bits": fc2_bits, "text_bits": bits, "ssm_bits": bits}
    return {f"L{layer}.{name}": BITS.index(b) for layer in range(spec.n_layers) for name, b in chosen.items()}


def _kv(spec: ModelSpec, keep: float, bits: int | None) -> dict[str, int]:
    pairs = [(layer, head) for layer in range(spec.n_layers) for head in range(spec.n_heads)]
    budgets = {f"L{layer}H{head}.keep": HEAD_KEEP.index(keep) for layer, head in pairs}
    return budgets | {f"L{layer}.kv_bits": KV_BITS.index(bits) for layer in range(spec.n_layers)}
