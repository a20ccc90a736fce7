"""Collaborative decoding: a smaller model runs the late scales, which hold most tokens and need the least of a model.

CoDe (arXiv 2411.17787). Where the refiner takes over it reads the inputs of all scales so far in one block-causal pass,
which fills its cache and gives the logits of its first scale. The published code masks that pass; here each scale's
queries attend to the keys up to their own, so that what a mask would hide is not computed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from varsearch.accel import guidance
from varsearch.errors import PolicyError
from varsearch.models.image_model import ImageModel
from varsearch.models.seams import Attend, AttentionMemory, KVView, LayerPlan, ScalePlan, Softmax, dense_attention
from varsearch.policy import Policy
from varsearch.target import ModelSpec


def with_refiner(model: ImageModel, policy: Policy) -> ImageModel:
    """The model and the refiner of `policy`, which a model that already has it keeps.

    Raises:
        ModelError: no model of this name shares the tokenizer.
        PolicyError: the policy does not fit the model, or the refiner's weights are not the policy's.
    """
    policy.check(model.spec)
    wanted, own = policy.refiner, model.refiner
    if wanted is None or (own is not None and own.spec.fingerprint == wanted.fingerprint):
        return model
    found = model.sibling(wanted.model)
    if found.spec.fingerprint != wanted.fingerprint:
        raise PolicyError(
            f"refiner {wanted.model} has other weights than the policy's: "
            f"{found.spec.fingerprint[:12]}…, expected {wanted.fingerprint[:12]}…"
        )
    return replace(model, refiner=found)


def scale(policy: Policy, spec: ModelSpec, k: int, n_layers: int, softmax: Softmax) -> ScalePlan:
    """How a refiner of `n_layers`, whose attention `softmax` computes, runs scale `k` for images of `policy`."""
    run = [j for j, setting in enumerate(policy.scales) if setting.run]
    read = [j for j in run if j <= k]
    first = not any(policy.refined(j) for j in read[:-1])
    attend: Attend = partial(dense_attention, softmax=softmax)
    if first:
        attend = BlockCausal(tuple(spec.tokens[j] for j in read), softmax)
    # The first pass stores all that it reads. See `LayerPlan` for where the sum ends.
    end = next((decision.after + 1 for decision in policy.decisions if decision.after >= k), run[-1])
    room = sum(spec.tokens[j] for j in run if (first or j >= k) and j < end) if k < run[-1] else 0
    return ScalePlan(
        layers=(LayerPlan(attend=attend, room=room),) * n_layers,
        run=policy.scales[k].run,
        guidance=guidance.of_scale(policy.scales[k]),
        refined=True,
    )


@dataclass(frozen=True, slots=True)
class BlockCausal:
    """Attention of so many tokens of each of several scales, in one call: each scale sees itself and earlier ones."""

    tokens: tuple[int, ...]
    softmax: Softmax

    def __call__(self, q_BHLC: Tensor, pos_BL: Tensor, views: tuple[KVView, ...], memory: AttentionMemory) -> Tensor:
        k_BHSC, v_BHSC = views[0].k_BHSC, views[0].v_BHSC
        parts, end = [], 0
        for part_BHLC in q_BHLC.split(self.tokens, dim=2):
            end += part_BHLC.shape[2]
            parts.append(self.softmax(part_BHLC, k_BHSC[:, :, :end], v_BHSC[:, :, :end]))
        return torch.cat(parts, dim=2)
