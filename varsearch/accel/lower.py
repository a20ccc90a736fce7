"""Turns a declarative `Policy` into an executable `Plan`.

Order of composition, outermost first: guidance sharing (rows), token pruning (tokens), the sublayer. Attention sees
what the KV cache gives it, through windows, bands or a choice of keys. Where images part, each action has plans of its
own for the scales that follow. A refiner's scales have none of this. Weight quantization is not part of the plan: it
swaps modules.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

from varsearch.accel import (
    attention_entropy,
    cross_scale_attention,
    guidance,
    kv_compression,
    refiner,
    sparse_attention,
    token_pruning,
)
from varsearch.accel.decision import Asked
from varsearch.accel.scale_skipping import run_scales
from varsearch.accel.sparse_attention import LocalAttention, Pattern
from varsearch.accel.token_maps import Maps
from varsearch.models.seams import DenseKV, Fork, LayerPlan, Plan, ScalePlan
from varsearch.policy import Decision, Policy
from varsearch.target import ModelSpec


def lower(policy: Policy, spec: ModelSpec, refiner_layers: int = 0) -> Plan:
    """The plan of `policy`, whose refiner has so many layers; raises `PolicyError` if it does not fit `spec`."""
    policy.check(spec)
    # Layers that see the same share the tiles.
    local = functools.cache(LocalAttention)
    decisions = {decision.after: decision for decision in policy.decisions}
    paths, n = [policy.model_copy(update={"decisions": ()})], len(policy.scales)
    scales: tuple[ScalePlan, ...] = ()

    def of_scale(paths: Sequence[Policy], k: int, decision: Decision | None = None) -> ScalePlan:
        if policy.refined(k):
            return refiner.scale(paths[0], spec, k, refiner_layers)
        return _scale(paths, spec, k, local, decision)

    for k in reversed(range(n)):
        leaving = [policy.path(decisions[k], action) for action in decisions[k].actions[1:]] if k in decisions else []
        paths += leaving
        plan = of_scale(paths, k, decisions.get(k))
        if leaving:
            tails = (tuple(of_scale([path], j) for j in range(k + 1, n)) for path in leaving)
            full = [layer for layer in range(spec.n_layers) if not policy.prunes(k, layer)]
            plan = replace(plan, fork=Fork(Asked(decisions[k], full), (scales, *tails)))
        scales = (plan, *scales)
    caches = (kv_compression.new_cache(policy, spec, layer) for layer in range(spec.n_layers))
    return Plan(scales, tuple(cache or DenseKV for cache in caches), (DenseKV,) * refiner_layers)


Local = Callable[[tuple[Pattern, ...], Maps], LocalAttention]


def _scale(
    paths: Sequence[Policy], spec: ModelSpec, k: int, local: Local, decision: Decision | None = None
) -> ScalePlan:
    """The plan of scale `k` for images that can go through `paths`, which are equal up to this scale."""
    scale = paths[0].scales[k]
    return ScalePlan(
        layers=tuple(_layer(paths, spec, k, layer, local, decision) for layer in range(spec.n_layers)),
        run=scale.run,
        guidance=guidance.of_scale(scale),
    )


def _layer(
    paths: Sequence[Policy], spec: ModelSpec, scale: int, layer: int, local: Local, decision: Decision | None
) -> LayerPlan:
    pruned = token_pruning.branch(paths, spec, scale, layer)
    asked = decision is not None and decision.feature == "low_entropy"
    return LayerPlan(
        attn=guidance.branch(paths[0], scale, layer, "attn", pruned),
        ffn=guidance.branch(paths[0], scale, layer, "ffn", pruned),
        attend=cross_scale_attention.attend(paths[0], spec, scale, layer)
        or sparse_attention.attend(paths[0], spec, scale, layer, local),
        observe=attention_entropy.observe(paths, scale, layer, asked),
        store=scale != run_scales(paths[0])[-1],
    )
