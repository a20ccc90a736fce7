"""The next-scale loop, the same for all families of models.

Shape suffixes: N images, B rows, L tokens of one scale, V codebook entries, C latent channels, H W latent map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from varsearch.errors import ModelError
from varsearch.models.batch import Batch, Sampler
from varsearch.models.families import Asked, Tokenizer, Transformer, condition
from varsearch.models.seams import Guidance, LayerState, Plan, ScalePlan


@dataclass(frozen=True, slots=True)
class GuidanceSchedule:
    """How strongly, how freely and where images follow what they are asked for.

    Args:
        strengths: per scale, t in `(1 + t) * conditional - t * unconditional`.
        temperatures: per scale, what logits are divided by.
        layer: 0 guides the logits; -n guides what leaves the n-th block from the last, for both kinds of rows, and
            the conditional rows' logits are taken as they are.
    """

    strengths: tuple[float, ...]
    temperatures: tuple[float, ...]
    layer: int = 0

    @classmethod
    def ramp(cls, n_scales: int, strength: float) -> GuidanceSchedule:
        """As published with VAR: scale k of K has `strength * k / (K - 1)`."""
        return cls(tuple(strength * k / max(n_scales - 1, 1) for k in range(n_scales)), (1.0,) * n_scales)

    @classmethod
    def constant(cls, n_scales: int, weight: float, temperature: float = 1.0, layer: int = 0) -> GuidanceSchedule:
        """As published with Infinity: `weight * conditional + (1 - weight) * unconditional` at every scale."""
        return cls((weight - 1,) * n_scales, (temperature,) * n_scales, layer)

    @classmethod
    def none(cls, n_scales: int) -> GuidanceSchedule:
        """The conditional rows alone."""
        return cls.ramp(n_scales, 0.0)

    @property
    def guides(self) -> bool:
        """Whether there is any guidance at all, and so unconditional rows."""
        return any(self.strengths)

    def apply(self, t: Tensor, k: int) -> Tensor:
        """The conditional rows of `t`, led away from the unconditional ones as scale `k` asks."""
        conditional, unconditional = t.chunk(2)
        return (1 + self.strengths[k]) * conditional - self.strengths[k] * unconditional

    def check(self, depth: int, n_scales: int) -> None:
        """Raises `ModelError` unless a model of so many blocks and scales can be guided so."""
        if not -depth <= self.layer <= 0:
            raise ModelError(f"guidance at layer {self.layer}: a model of {depth} blocks has 0 to {-depth}")
        if {len(self.strengths), len(self.temperatures)} != {n_scales}:
            raise ModelError(f"guidance needs {n_scales} strengths and temperatures, one per scale")


@torch.inference_mode()
def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    asked: Asked,
    *,
    plan: Plan,
    guidance: GuidanceSchedule,
    sampler: Sampler,
    refiner: Transformer | None = None,
) -> Tensor:
    """Runs all scales of `plan` and returns the latent estimate (N, C, H, W).

    Args:
        model: the transformer.
        tokenizer: turns codes into the latent estimate, the estimate into the next scale's input, and decodes what
            images are asked by where they part.
        asked: class of each image (N,) int64, or N prompts.
        plan: which scales run, and how each layer runs at each of them.
        guidance: if it does not guide at all, only the conditional rows run.
        sampler: chooses the codes of each scale. Of a bitwise model it sees each bit as a token of two codes.
        refiner: runs the scales that the plan leaves to it.

    Raises:
        ModelError: guidance does not fit the model.
    """
    models = (model,) if refiner is None else (model, refiner)
    for part in models:
        guidance.check(part.config.depth, len(plan.scales))
    loop = _Loop(plan, models, tokenizer, guidance)
    guided = guidance.guides and plan.scales[0].guidance is not Guidance.OFF
    cond_BD, conditions = condition(model, asked, guided)
    states = [LayerState(new_cache(), len(asked)) for new_cache in plan.new_cache]
    f_hat_NCHW = tokenizer.quantize.empty(len(asked))
    return loop.run(Batch(asked, cond_BD, conditions, states, f_hat_NCHW, sampler, guided, []), plan.scales)


@dataclass(frozen=True, slots=True)
class _Loop:
    plan: Plan
    models: tuple[Transformer, ...]
    """The model, and the refiner if there is one."""
    tokenizer: Tokenizer
    guidance: GuidanceSchedule

    def run(self, batch: Batch, scales: tuple[ScalePlan, ...]) -> Tensor:
        """The latent estimate after `scales`, the last ones of all."""
        first = len(self.plan.scales) - len(scales)
        for k, scale in enumerate(scales, start=first):
            if not scale.run:
                continue
            before_NCHW = batch.f_hat_NCHW
            if scale.refined and not batch.refined:
                # Before guidance ends, which would copy them.
                batch.states.clear()
            if batch.guided and scale.guidance is Guidance.OFF:
                batch.end_guidance()
            if scale.refined and not batch.refined:
                self.hand_over(batch)
            self.step(batch, k, scale)
            if scale.fork is not None:
                images = scale.fork.decide(before_NCHW, batch.f_hat_NCHW, batch.states, self.tokenizer.decode)
                del before_NCHW
                return self.part(batch, images, scale.fork.tails)
        return batch.f_hat_NCHW

    def part(self, batch: Batch, images: tuple[Tensor, ...], tails: tuple[tuple[ScalePlan, ...], ...]) -> Tensor:
        """Each set of images through its own tail, one after the other, and put back in order."""
        asked = [(images_M, tail) for images_M, tail in zip(images, tails, strict=True) if len(images_M)]
        parts = batch.split([images_M for images_M, _ in asked])
        done_NCHW = [self.run(parts.pop(0), tail) for _, tail in asked]
        if len(asked) == 1:
            return done_NCHW[0]
        place_N = torch.cat([images_M for images_M, _ in asked]).argsort()
        return torch.cat(done_NCHW).index_select(0, place_N)

    def hand_over(self, batch: Batch) -> None:
        """The refiner takes over; its first step reads the inputs of all scales that ran, and that of its own."""
        refiner, n = self.models[1], len(batch.f_hat_NCHW)
        batch.refined = True
        batch.cond_BD, batch.conditions = condition(refiner, batch.asked, batch.guided)
        batch.states = [LayerState(new_cache(), n) for new_cache in self.plan.refiner_cache]

    def step(self, batch: Batch, k: int, scale: ScalePlan) -> None:
        """Runs scale `k` and adds its codes to the estimate."""
        model, quantizer, n = self.models[batch.refined], self.tokenizer.quantize, len(batch.f_hat_NCHW)
        batch.inputs.append((k, quantizer.pool(batch.f_hat_NCHW, k).flatten(2).mT if k else None))
        remember = len(self.models) > 1 and not batch.refined
        inputs = batch.inputs[-1:] if remember else batch.inputs
        x_BLD = _joined([model.embed(pooled_NLC, batch.cond_BD, j) for j, pooled_NLC in inputs])
        pos_1L = _joined([self.positions(j, x_BLD.device) for j, _ in inputs])
        guided_block = len(model.layers) + self.guidance.layer if batch.guided else len(model.layers)
        # Not in a function of its own, whose caller would keep the first block's input alive.
        for i, (block, layer) in enumerate(zip(model.layers, scale.layers, strict=True)):
            x_BLD = block(x_BLD, batch.conditions[i], pos_1L, layer, batch.states[i])
            if i == guided_block and self.guidance.strengths[k]:
                x_BLD = self.guidance.apply(x_BLD, k).repeat(2, 1, 1)
        # Where a layer was guided, both kinds of rows are equal from there on, but only the conditional ones count.
        rows = n if self.guidance.layer else len(x_BLD)
        x_BLD = x_BLD[:rows, -math.prod(model.config.scales[k]) :]
        logits_NLV = model.logits(x_BLD, batch.cond_BD[:rows])
        # Half-precision logits would tie.
        logits_NLV = logits_NLV.to(torch.promote_types(logits_NLV.dtype, torch.float32))
        if self.guidance.temperatures[k] != 1:
            logits_NLV = logits_NLV / self.guidance.temperatures[k]
        if len(logits_NLV) > n:
            logits_NLV = self.guidance.apply(logits_NLV, k)
        codes_NLC = batch.sampler(logits_NLV, k, quantizer.codebook)
        batch.f_hat_NCHW = quantizer.accumulate(batch.f_hat_NCHW, codes_NLC, k)
        if not remember:
            batch.inputs.clear()

    def positions(self, k: int, device: torch.device) -> Tensor:
        """Places of the tokens of scale `k` in the full sequence, (1, L)."""
        tokens = [math.prod(size) for size in self.models[0].config.scales[: k + 1]]
        return torch.arange(sum(tokens[:k]), sum(tokens), device=device)[None]


def _joined(parts: list[Tensor]) -> Tensor:
    """Tensors (., L, ...) one behind the other; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
