"""The next-scale loop and the ways to choose a token.

Shape suffixes: N images, B rows, L tokens of one scale, V codebook entries, C latent channels, H W latent map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from varsearch.models.batch import Batch, Sampler
from varsearch.models.seams import Guidance, LayerState, Plan, ScalePlan
from varsearch.models.var import VAR
from varsearch.models.vqvae import VQVAE


@torch.inference_mode()
def generate(
    model: VAR,
    tokenizer: VQVAE,
    labels_N: Tensor,
    *,
    plan: Plan,
    guidance: float | None,
    sampler: Sampler,
    refiner: VAR | None = None,
) -> Tensor:
    """Runs all scales of `plan` and returns the latent estimate (N, C, H, W).

    Args:
        model: the transformer.
        tokenizer: turns codes into the latent estimate, the estimate into the next scale's input, and decodes what
            images are asked by where they part.
        plan: which scales run, and how each layer runs at each of them.
        labels_N: class of each image, int64.
        guidance: strength at the last scale; scale k of K uses `guidance * k / (K - 1)`. None runs the
            conditional rows only, from the first scale on (teacher-forced likelihood needs no guidance).
        sampler: chooses the codes of each scale.
        refiner: runs the scales that the plan leaves to it.
    """
    loop = _Loop(plan, (model,) if refiner is None else (model, refiner), tokenizer, guidance or 0.0)
    guided = guidance is not None and plan.scales[0].guidance is not Guidance.OFF
    cond_BD = model.condition(labels_N, guided)
    states = [LayerState(new_cache(), len(labels_N)) for new_cache in plan.new_cache]
    f_hat_NCHW = tokenizer.quantize.empty(len(labels_N))
    batch = Batch(labels_N, cond_BD, model.modulations(cond_BD), states, f_hat_NCHW, sampler, guided, [])
    return loop.run(batch, plan.scales)


@dataclass(frozen=True, slots=True)
class _Loop:
    plan: Plan
    models: tuple[VAR, ...]
    """The model, and the refiner if there is one."""
    tokenizer: VQVAE
    guidance: float

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
        batch.refined, batch.cond_BD = True, refiner.condition(batch.labels_N, batch.guided)
        batch.modulations = refiner.modulations(batch.cond_BD)
        batch.states = [LayerState(new_cache(), n) for new_cache in self.plan.refiner_cache]

    def step(self, batch: Batch, k: int, scale: ScalePlan) -> None:
        """Runs scale `k` and adds its codes to the estimate."""
        model, quantizer, n = self.models[batch.refined], self.tokenizer.quantize, len(batch.f_hat_NCHW)
        batch.inputs.append((k, quantizer.pool(batch.f_hat_NCHW, k).flatten(2).mT if k else None))
        remember = len(self.models) > 1 and not batch.refined
        inputs = batch.inputs[-1:] if remember else batch.inputs
        x_BLD = _joined([model.embed(pooled_NLC, batch.cond_BD, j) for j, pooled_NLC in inputs])
        pos_1L = _joined([self.positions(j, x_BLD.device) for j, _ in inputs])
        for block, mod, layer, state in zip(model.layers, batch.modulations, scale.layers, batch.states, strict=True):
            x_BLD = block(x_BLD, mod, pos_1L, layer, state)
        logits_NLV = model.logits(x_BLD[:, -math.prod(model.config.scales[k]) :], batch.cond_BD)
        if batch.guided:
            strength = self.guidance * k / max(len(model.config.scales) - 1, 1)
            logits_NLV = (1 + strength) * logits_NLV[:n] - strength * logits_NLV[n:]
        codes_NLC = batch.sampler(logits_NLV, k, quantizer.embedding.weight)
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


def filter_logits(logits_NLV: Tensor, top_k: int, top_p: float) -> Tensor:
    """Sets logits outside the top k, then outside the nucleus of mass `top_p`, to -inf. 0 switches a filter off.

    As published: the nucleus drops the ascending tail while its mass stays within 1 - top_p and keeps the best.
    """
    if top_k > 0:
        floor_NL1 = logits_NLV.topk(min(top_k, logits_NLV.shape[-1]), dim=-1).values[..., -1:]
        logits_NLV = logits_NLV.masked_fill(logits_NLV < floor_NL1, -torch.inf)
    if top_p > 0:
        ascending_NLV, order_NLV = logits_NLV.sort(dim=-1, descending=False)
        drop_NLV = ascending_NLV.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        drop_NLV[..., -1:] = False
        logits_NLV = logits_NLV.masked_fill(drop_NLV.scatter(-1, order_NLV, drop_NLV), -torch.inf)
    return logits_NLV


class GreedySampler:
    """The most probable code of every token."""

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        return codebook_VC[logits_NLV.argmax(-1)]

    def take(self, images_M: Tensor) -> GreedySampler:
        return self


class PublishedSampler:
    """Draws as the published code does: one generator per call, one multinomial call per scale.

    Two policies that do different work consume the stream differently, so images are comparable only between
    runs of the same policy; `PairedSampler` is for comparisons.

    Args:
        smooth_scales: when set to the number of scales, codes are Gumbel-softmax mixtures with the annealed
            temperature of the published demo (for pleasing pictures, never for FID).
    """

    def __init__(self, generator: torch.Generator, top_k: int, top_p: float, smooth_scales: int = 0) -> None:
        self.generator, self.top_k, self.top_p, self.smooth_scales = generator, top_k, top_p, smooth_scales

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        n, length, vocab = logits_NLV.shape
        logits_NLV = filter_logits(logits_NLV, self.top_k, self.top_p)
        p_MV = logits_NLV.softmax(dim=-1).view(-1, vocab)
        index_M = torch.multinomial(p_MV, 1, replacement=True, generator=self.generator)
        if not self.smooth_scales:
            return codebook_VC[index_M.view(n, length)]
        ratio = scale / (self.smooth_scales - 1)
        temperature = max(0.27 * (1 - ratio * 0.95), 0.005)
        noise_NLV = torch.empty_like(logits_NLV).exponential_(generator=self.generator).log()
        return ((logits_NLV * (1 + ratio) - noise_NLV) / temperature).softmax(dim=-1) @ codebook_VC

    def take(self, images_M: Tensor) -> PublishedSampler:
        return self


class PairedSampler:
    """Draws with noise that belongs to (seed, image, scale) alone.

    Every image has its own stream per scale, so its result depends neither on its neighbours in the batch nor on
    work that a policy skipped, and two policies are compared on the same noise. Codes are chosen by the Gumbel
    maximum, which changes a code only where the logits' order changes enough.
    """

    def __init__(self, seed: int, images: Sequence[int], top_k: int = 0, top_p: float = 0.0) -> None:
        self.seed, self.images, self.top_k, self.top_p = seed, images, top_k, top_p

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        logits_NLV = filter_logits(logits_NLV, self.top_k, self.top_p)
        return codebook_VC[(logits_NLV + self._gumbel(logits_NLV, scale)).argmax(-1)]

    def take(self, images_M: Tensor) -> PairedSampler:
        return PairedSampler(self.seed, [self.images[i] for i in images_M.tolist()], self.top_k, self.top_p)

    def _gumbel(self, logits_NLV: Tensor, scale: int) -> Tensor:
        noise_NLV = torch.empty(logits_NLV.shape)
        generator = torch.Generator()
        for row_LV, image in zip(noise_NLV, self.images, strict=True):
            # One 63-bit seed per (seed, image, scale); the odd factors keep the three from colliding.
            mixed = (self.seed * 0x9E3779B97F4A7C15 + image * 0xBF58476D1CE4E5B9 + scale * 0x94D049BB133111EB) & (
                2**63 - 1
            )
            row_LV.exponential_(generator=generator.manual_seed(mixed))
        return -noise_NLV.log().to(logits_NLV)


class TeacherForcing:
    """Follows given tokens and collects their negative log-likelihood instead of drawing.

    After the loop `nll_N` holds, per image, the sum over its tokens in nats, and `tokens_N` their number.
    """

    def __init__(self, tokens: list[Tensor]) -> None:
        self.tokens = tokens
        self.nll_N = torch.zeros(len(tokens[0]), dtype=torch.float64)
        self.tokens_N = torch.zeros(len(tokens[0]), dtype=torch.float64)
        self.images_M = torch.arange(len(tokens[0]))

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        target_NL = self.tokens[scale][self.images_M.to(logits_NLV.device)]
        nll_NL = F.cross_entropy(logits_NLV.float().mT, target_NL, reduction="none")
        self.nll_N[self.images_M] += nll_NL.double().sum(1).cpu()
        self.tokens_N[self.images_M] += target_NL.shape[1]
        return codebook_VC[target_NL]

    def take(self, images_M: Tensor) -> TeacherForcing:
        taken = copy(self)
        taken.images_M = self.images_M[images_M.cpu()]
        return taken
