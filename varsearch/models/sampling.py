"""The next-scale loop and the ways to choose a token.

Shape suffixes: N images, B rows, L tokens of one scale, V codebook entries, C latent channels, H W latent map.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from varsearch.models.quantizer import MultiScaleQuantizer
from varsearch.models.seams import Guidance, LayerState, Plan
from varsearch.models.var import VAR


class Sampler(Protocol):
    """Chooses the codes of one scale."""

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        """Codes (N, L, C) drawn from guided logits."""
        ...


@torch.inference_mode()
def generate(
    model: VAR,
    quantizer: MultiScaleQuantizer,
    labels_N: Tensor,
    *,
    plan: Plan,
    guidance: float | None,
    sampler: Sampler,
) -> Tensor:
    """Runs all scales of `plan` and returns the latent estimate (N, C, H, W).

    Args:
        model: the transformer.
        quantizer: turns codes into the latent estimate, and the estimate into the next scale's input.
        plan: which scales run, and how each layer runs at each of them.
        labels_N: class of each image, int64.
        guidance: strength at the last scale; scale k of K uses `guidance * k / (K - 1)`. None runs the
            conditional rows only, from the first scale on (teacher-forced likelihood needs no guidance).
        sampler: chooses the codes of each scale.
    """
    n, last = len(labels_N), len(plan.scales) - 1
    guided = guidance is not None and plan.scales[0].guidance is not Guidance.OFF
    cond_BD = model.condition(labels_N, guided)
    modulations = model.modulations(cond_BD)
    sizes = model.config.scales
    starts = [sum(h * w for h, w in sizes[:k]) for k in range(len(sizes))]
    states = _new_states(plan, sizes, n)
    f_hat_NCHW, pooled_NLC = quantizer.empty(n), None
    for k, scale in enumerate(plan.scales):
        if not scale.run:
            continue
        if guided and scale.guidance is Guidance.OFF:
            guided = False
            cond_BD, modulations = cond_BD[:n].clone(), [m.keep_rows(n) for m in modulations]
            for state in states:
                state.kv.keep_rows(n)
        if k:
            pooled_NLC = quantizer.pool(f_hat_NCHW, k).flatten(2).mT
        x_BLD = model.embed(pooled_NLC, cond_BD, k)
        pos_1L = torch.arange(starts[k], starts[k] + x_BLD.shape[1], device=x_BLD.device)[None]
        for block, mod, layer, state in zip(model.layers, modulations, scale.layers, states, strict=True):
            x_BLD = block(x_BLD, mod, pos_1L, layer, state)
        logits_NLV = model.logits(x_BLD, cond_BD)
        if guided and guidance is not None:
            strength = guidance * k / max(last, 1)
            logits_NLV = (1 + strength) * logits_NLV[:n] - strength * logits_NLV[n:]
        codes_NLC = sampler(logits_NLV, k, quantizer.embedding.weight)
        f_hat_NCHW = quantizer.accumulate(f_hat_NCHW, codes_NLC, k)
    return f_hat_NCHW


def _new_states(plan: Plan, sizes: tuple[tuple[int, int], ...], n_images: int) -> list[LayerState]:
    run = [math.prod(size) for size, scale in zip(sizes, plan.scales, strict=True) if scale.run]
    return [LayerState(new_cache(sum(run[:-1])), n_images) for new_cache in plan.new_cache]


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


class PairedSampler:
    """Draws with noise that belongs to (seed, image, scale) alone.

    Every image has its own stream per scale, so its result depends neither on its neighbours in the batch nor on
    work that a policy skipped, and two policies are compared on the same noise. Codes are chosen by the Gumbel
    maximum, which changes a code only where the logits' order changes enough.
    """

    def __init__(self, seed: int, images: range, top_k: int = 0, top_p: float = 0.0) -> None:
        self.seed, self.images, self.top_k, self.top_p = seed, images, top_k, top_p

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        logits_NLV = filter_logits(logits_NLV, self.top_k, self.top_p)
        return codebook_VC[(logits_NLV + self._gumbel(logits_NLV, scale)).argmax(-1)]

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

    After the loop `nll_N` holds, per image, the sum over all tokens in nats, and `n_tokens` their number.
    """

    def __init__(self, tokens: list[Tensor]) -> None:
        self.tokens = tokens
        self.nll_N = torch.zeros(len(tokens[0]), dtype=torch.float64)
        self.n_tokens = 0

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        target_NL = self.tokens[scale]
        nll_NL = F.cross_entropy(logits_NLV.float().mT, target_NL, reduction="none")
        self.nll_N += nll_NL.double().sum(1).cpu()
        self.n_tokens += target_NL.shape[1]
        return codebook_VC[target_NL]
