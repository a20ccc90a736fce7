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
from typing import NamedTuple

from varsearch.accel import (
    attention_entropy,
    cross_scale_attention,
    guidance,
    kv_compression,
    refiner,
    sparse_attention,
    token_pruning,
)
from varsearch.accel.block_heads import BlockHeads
from varsearch.accel.cross_scale_attention import ChosenKeys
from varsearch.accel.decision import Asked
from varsearch.accel.scale_skipping import run_scales
from varsearch.accel.sparse_attention import LocalAttention, Pattern
from varsearch.accel.token_maps import Maps
from varsearch.kernels.attention_backends import DEFAULT, Attention
from varsearch.models.seams import Attend, DenseKV, Fork, LayerPlan, Plan, ScalePlan, dense_attention
from varsearch.policy import CrossScale, Policy
from varsearch.target import ModelSpec


def lower(policy: Policy, spec: ModelSpec, refiner_layers: int = 0, attention: Attention = DEFAULT) -> Plan:
    """The plan of `policy`, whose refiner has so many layers; raises `PolicyError` if it does not fit `spec`."""
    policy.check(spec)
    shared = Shared.of(attention)
    decisions = {decision.after: decision for decision in policy.decisions}
    paths, n = [policy], len(policy.scales)
    scales: tuple[ScalePlan, ...] = ()

    def of_scale(paths: Sequence[Policy], k: int) -> ScalePlan:
        if policy.refined(k):
            return refiner.scale(paths[0], spec, k, refiner_layers, attention)
        return _scale(paths, spec, k, shared)

    for k in reversed(range(n)):
        leaving = [policy.path(decisions[k], action) for action in decisions[k].actions[1:]] if k in decisions else []
        paths += leaving
        plan = of_scale(paths, k)
        if leaving:
            tails = (tuple(of_scale([path], j) for j in range(k + 1, n)) for path in leaving)
            full = [layer for layer in range(spec.n_layers) if not policy.prunes(k, layer)]
            plan = replace(plan, fork=Fork(Asked(decisions[k], full), (scales, *tails)))
        scales = (plan, *scales)
    caches = (kv_compression.new_cache(policy, spec, layer) for layer in range(spec.n_layers))
    return Plan(scales, tuple(cache or DenseKV for cache in caches), (DenseKV,) * refiner_layers)


class Shared(NamedTuple):
    """What layers share: dense attention, and makers that make each attention once, so that tables are made once.

    `blocks` and `entropies` make the attention that is a request by blocks; None where tiles stand for it.
    """

    dense: Attend
    local: Callable[[Pattern, Maps], LocalAttention]
    keys: Callable[[CrossScale, Maps], ChosenKeys]
    blocks: Callable[[tuple[Pattern, ...], Maps], Attend] | None = None
    entropies: Attend | None = None

    @classmethod
    def of(cls, attention: Attention) -> Shared:
        """What runs on these back-ends."""
        shared = cls(
            functools.partial(dense_attention, softmax=attention),
            functools.cache(functools.partial(LocalAttention, attention=attention)),
            functools.cache(functools.partial(ChosenKeys, attention=attention)),
        )
        if attention.blocks is None:
            return shared
        blocks = functools.cache(functools.partial(BlockHeads, implementation=attention.blocks))
        return shared._replace(blocks=blocks, entropies=attention_entropy.WithEntropy(attention.blocks))

    def attend(self, policy: Policy, spec: ModelSpec, scale: int, layer: int) -> Attend | None:
        """Attention to fewer keys, where the policy asks for it."""
        return cross_scale_attention.attend(policy, spec, scale, layer, self.keys) or sparse_attention.attend(
            policy, spec, scale, layer, self.local, self.blocks
        )


def _scale(paths: Sequence[Policy], spec: ModelSpec, k: int, shared: Shared) -> ScalePlan:
    """The plan of scale `k` for images that can go through `paths`, which are equal up to this scale."""
    scale = paths[0].scales[k]
    return ScalePlan(
        layers=tuple(_layer(paths, spec, k, layer, shared) for layer in range(spec.n_layers)),
        run=scale.run,
        guidance=guidance.of_scale(scale),
    )


def _layer(paths: Sequence[Policy], spec: ModelSpec, scale: int, layer: int, shared: Shared) -> LayerPlan:
    pruned, attend = token_pruning.branch(paths, spec, scale, layer), shared.attend(paths[0], spec, scale, layer)
    together = attend is None and shared.entropies is not None
    note = attention_entropy.ask_for_entropy if together else attention_entropy.note_entropy
    observe = attention_entropy.observe(paths, scale, layer, note)
    if attend is None:
        attend = shared.entropies if observe and shared.entropies else shared.dense
    return LayerPlan(
        attn=guidance.branch(paths[0], scale, layer, "attn", pruned),
        # Never shared: a text is what the halves of guidance differ in.
        between=pruned,
        ffn=guidance.branch(paths[0], scale, layer, "ffn", pruned),
        attend=attend,
        observe=observe,
        room=_room(paths[0], spec, scale, layer),
    )


def _room(policy: Policy, spec: ModelSpec, scale: int, layer: int) -> int:
    """See `LayerPlan`; an action may keep other tokens of later scales than `policy`, so a decision ends the sum."""
    run = run_scales(policy)
    end = next((decision.after + 1 for decision in policy.decisions if decision.after >= scale), run[-1])
    return sum(token_pruning.kept(policy, spec, k, layer) for k in run if scale <= k < end)
