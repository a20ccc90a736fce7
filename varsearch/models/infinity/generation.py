"""The next-scale loop of Infinity. It reads the same plans as that of `sampling.py`, without decisions and refiners.

Shape suffixes: N images, B rows, L tokens of one scale, C latent channels, H W latent map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from varsearch.errors import ModelError
from varsearch.models.batch import Sampler, first_rows
from varsearch.models.infinity.text import Prompts
from varsearch.models.infinity.tokenizer import BitTokenizer
from varsearch.models.infinity.transformer import BlockCondition, Infinity
from varsearch.models.seams import Guidance, LayerState, Plan, ScalePlan


@dataclass(frozen=True, slots=True)
class TextGuidance:
    """How strongly and where images follow their prompts.

    Args:
        weights: per scale, w in `w * conditional + (1 - w) * unconditional`; 1 does not guide.
        temperatures: per scale, what logits are divided by.
        layer: 0 guides the logits; -n guides what leaves the n-th block from the last, for both kinds of rows, and
            the conditional rows' logits are taken as they are.
    """

    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    layer: int = 0

    @classmethod
    def constant(cls, n_scales: int, weight: float, temperature: float = 1.0, layer: int = 0) -> TextGuidance:
        """The same at every scale."""
        return cls((weight,) * n_scales, (temperature,) * n_scales, layer)

    @property
    def guides(self) -> bool:
        """Whether there is any guidance at all, and so unconditional rows."""
        return any(weight != 1 for weight in self.weights)


@torch.inference_mode()
def generate(
    model: Infinity,
    tokenizer: BitTokenizer,
    prompts: Prompts,
    *,
    plan: Plan,
    guidance: TextGuidance,
    sampler: Sampler,
) -> Tensor:
    """Runs all scales of `plan` and returns the latent estimate (N, C, H, W).

    Args:
        model: the transformer.
        tokenizer: turns codes into the latent estimate, and the estimate into the next scale's input.
        plan: which scales run, and how each layer runs at each of them.
        prompts: one per image.
        guidance: strengths and temperatures; nothing but weights of 1 runs the conditional rows only.
        sampler: chooses the bits of each scale, each of which it sees as a token of two codes, (N, L * bits, 2).

    Raises:
        ModelError: the plan has a decision or a refiner, or guidance does not fit the model.
    """
    _check(model, plan, guidance)
    guided = guidance.guides and plan.scales[0].guidance is not Guidance.OFF
    cond_BD, conditions = model.condition(prompts, guided)
    states = [LayerState(new_cache(), len(prompts)) for new_cache in plan.new_cache]
    f_hat_NCHW = tokenizer.quantize.empty(len(prompts))
    loop = _Loop(model, tokenizer, guidance, sampler, cond_BD, conditions, states, f_hat_NCHW, guided)
    for k, scale in enumerate(plan.scales):
        if scale.run:
            if loop.guided and scale.guidance is Guidance.OFF:
                loop.end_guidance()
            loop.step(k, scale)
    return loop.f_hat_NCHW


def _check(model: Infinity, plan: Plan, guidance: TextGuidance) -> None:
    if any(scale.fork is not None or scale.refined for scale in plan.scales):
        raise ModelError("Infinity does not run policies with decisions or with a refiner yet")
    depth, n_scales = model.config.depth, len(model.config.scales)
    if not -depth < guidance.layer <= 0:
        raise ModelError(f"guidance at layer {guidance.layer}: expected 0 or at least {1 - depth}")
    if {len(guidance.weights), len(guidance.temperatures)} != {n_scales}:
        raise ModelError(f"guidance needs {n_scales} weights and temperatures, one per scale")


@dataclass(slots=True)
class _Loop:
    """One generation and everything that its images carry from scale to scale."""

    model: Infinity
    tokenizer: BitTokenizer
    guidance: TextGuidance
    sampler: Sampler
    cond_BD: Tensor
    conditions: list[BlockCondition]
    states: list[LayerState]
    f_hat_NCHW: Tensor
    guided: bool

    def end_guidance(self) -> None:
        """Frees the unconditional rows."""
        rows, self.guided = first_rows(len(self.f_hat_NCHW)), False
        self.cond_BD, self.conditions = rows(self.cond_BD), [c.take(rows) for c in self.conditions]
        for state in self.states:
            state.kv = state.kv.take(rows)

    def step(self, k: int, scale: ScalePlan) -> None:
        """Runs scale `k` and adds its codes to the estimate."""
        model, quantizer, n = self.model, self.tokenizer.quantize, len(self.f_hat_NCHW)
        pooled_NLD = quantizer.pool(self.f_hat_NCHW, k).flatten(2).mT if k else None
        x_BLD, pos_1L = model.embed(pooled_NLD, self.cond_BD, k), self.positions(k)
        last_guided = model.config.depth + self.guidance.layer
        for i, block in enumerate(model.layers):
            x_BLD = block(x_BLD, self.conditions[i], pos_1L, scale.layers[i], self.states[i])
            if i == last_guided and self.guided and self.guidance.weights[k] != 1:
                x_BLD = self.towards_prompts(x_BLD, k).repeat(2, 1, 1)
        rows = len(x_BLD) if self.guidance.layer == 0 else n
        logits = model.logits(x_BLD[:rows], self.cond_BD[:rows]) / self.guidance.temperatures[k]
        logits_NMV = self.towards_prompts(logits, k) if len(logits) > n else logits
        codes_NM1 = self.sampler(logits_NMV, k, quantizer.codebook)
        self.f_hat_NCHW = quantizer.accumulate(self.f_hat_NCHW, codes_NM1, k)

    def towards_prompts(self, t: Tensor, k: int) -> Tensor:
        """The conditional rows of `t`, led away from the unconditional ones."""
        conditional, unconditional = t.chunk(2)
        weight = self.guidance.weights[k]
        return weight * conditional + (1 - weight) * unconditional

    def positions(self, k: int) -> Tensor:
        """Places of the tokens of scale `k` in the full sequence, (1, L)."""
        tokens = [math.prod(size) for size in self.model.config.scales[: k + 1]]
        return torch.arange(sum(tokens[:k]), sum(tokens), device=self.cond_BD.device)[None]
