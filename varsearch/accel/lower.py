"""Turns a declarative `Policy` into an executable `Plan`.

Order of composition, outermost first: guidance sharing (rows), token pruning (tokens), the sublayer. Attention sees
what the KV cache gives it, through windows, bands or a choice of keys. Weight quantization is not part of
the plan: it swaps modules.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from varsearch.accel import cross_scale_attention, guidance, kv_compression, sparse_attention, token_pruning
from varsearch.accel.scale_skipping import run_scales
from varsearch.accel.sparse_attention import LocalAttention, Pattern
from varsearch.accel.token_maps import Maps
from varsearch.models.seams import DenseKV, LayerPlan, Plan, ScalePlan
from varsearch.policy import Policy
from varsearch.target import ModelSpec


def lower(policy: Policy, spec: ModelSpec) -> Plan:
    """The plan of `policy`; raises `PolicyError` if it does not fit `spec`."""
    policy.check(spec)
    run = run_scales(policy)
    # Layers that see the same share the tiles.
    local = functools.cache(LocalAttention)
    scales = tuple(
        ScalePlan(
            layers=tuple(_layer(policy, spec, k, layer, local, store=k != run[-1]) for layer in range(spec.n_layers)),
            run=k in run,
            guidance=guidance.of_scale(scale),
        )
        for k, scale in enumerate(policy.scales)
    )
    caches = (kv_compression.new_cache(policy, spec, layer) for layer in range(spec.n_layers))
    return Plan(scales, tuple(cache or DenseKV for cache in caches))


def _layer(
    policy: Policy,
    spec: ModelSpec,
    scale: int,
    layer: int,
    local: Callable[[tuple[Pattern, ...], Maps], LocalAttention],
    store: bool,
) -> LayerPlan:
    pruned = token_pruning.branch(policy, spec, scale, layer)
    return LayerPlan(
        attn=guidance.branch(policy, scale, layer, "attn", pruned),
        ffn=guidance.branch(policy, scale, layer, "ffn", pruned),
        attend=cross_scale_attention.attend(policy, spec, scale, layer)
        or sparse_attention.attend(policy, spec, scale, layer, local),
        store=store,
    )
