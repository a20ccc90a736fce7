"""The ways to choose a token.

Shape suffixes: N images, L tokens of one scale, V codebook entries, C latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor


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
        logits_NLV = logits_NLV.to(torch.promote_types(logits_NLV.dtype, torch.float32))
        nll_NL = F.cross_entropy(logits_NLV.mT, target_NL, reduction="none")
        self.nll_N[self.images_M] += nll_NL.double().sum(1).cpu()
        self.tokens_N[self.images_M] += target_NL.shape[1]
        return codebook_VC[target_NL]

    def take(self, images_M: Tensor) -> TeacherForcing:
        taken = copy(self)
        taken.images_M = self.images_M[images_M.cpu()]
        return taken
