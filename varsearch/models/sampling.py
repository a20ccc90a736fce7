"""The ways to choose a token.

Shape suffixes: N images, L tokens of one scale, V codebook entries, C latent channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from varsearch.models.noise import gumbel, taken
from varsearch.target import Noise


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
    """Draws as the published code does: one generator per call, one draw per token and scale.

    Two policies that do different work consume the stream differently, so images are comparable only between
    runs of the same policy; `PairedSampler` is for comparisons.

    Args:
        smooth_scales: when set to the number of scales, codes are Gumbel-softmax mixtures with the annealed
            temperature of the published demo (for pleasing pictures, never for FID).
    """

    def __init__(self, generator: torch.Generator, top_k: int, top_p: float, smooth_scales: int = 0) -> None:
        self.generator, self.top_k, self.top_p, self.smooth_scales = generator, top_k, top_p, smooth_scales

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        kept_NLV = filter_logits(logits_NLV, self.top_k, self.top_p)
        p_NLV = kept_NLV.softmax(dim=-1)
        if p_NLV.device.type == "cpu":
            codes_NLC = codebook_VC[multinomial(p_NLV, self.generator)]
        else:
            codes_NLC = marked(codebook_VC[race(p_NLV, self.generator)], logits_NLV)
        if not self.smooth_scales:
            return codes_NLC
        ratio = scale / (self.smooth_scales - 1)
        temperature = max(0.27 * (1 - ratio * 0.95), 0.005)
        noise_NLV = torch.empty_like(kept_NLV).exponential_(generator=self.generator).log()
        return ((kept_NLV * (1 + ratio) - noise_NLV) / temperature).softmax(dim=-1) @ codebook_VC

    def take(self, images_M: Tensor) -> PublishedSampler:
        return self


def multinomial(p_NLV: Tensor, generator: torch.Generator) -> Tensor:
    """One code per token, (N, L) int64, with these probabilities; the published code's draws, to the bit.

    Raises:
        RuntimeError: a probability is NaN. On a GPU that is an assertion on the device, which ends every later call of
            the process; there `race` draws.
    """
    index_M = torch.multinomial(p_NLV.flatten(0, 1), 1, replacement=True, generator=generator)
    return index_M.view(p_NLV.shape[:2])


def race(p_NLV: Tensor, generator: torch.Generator) -> Tensor:
    """One code per token, (N, L) int64, with these probabilities, without an assertion.

    The code wins that waits the shortest, with exponential waiting times of rate p; `multinomial` does so inside.
    """
    waiting_NLV = torch.empty_like(p_NLV).exponential_(generator=generator)
    return (p_NLV / waiting_NLV).argmax(-1)


def marked(codes_NLC: Tensor, logits_NLV: Tensor) -> Tensor:
    """The codes, but NaN for images one of whose logits is NaN or infinite.

    The best of such logits is a code like any other, and the image would look sound. So its pixels show it, and who
    evaluates images asks for them once per batch: no scale waits for the device.
    """
    nothing_N = logits_NLV.sum((1, 2)) * 0
    return codes_NLC + nothing_N.to(codes_NLC.dtype)[:, None, None]


class PairedSampler:
    """Draws with noise that belongs to (seed, image, scale) alone; see `noise`.

    An image depends neither on its neighbours in the batch nor on work that a policy skipped, and two policies are
    compared on the same noise. Codes are chosen by the Gumbel maximum, which changes a code only where the order of the
    logits changes enough.

    Args:
        seed: of all images.
        images: index of each image of the batch.
        top_k: most codes to choose from; 0 for all.
        top_p: probability of the codes to choose from; 0 for all.
        noise: what is drawn with.
    """

    def __init__(
        self, seed: int, images: Sequence[int] | Tensor, top_k: int = 0, top_p: float = 0.0, noise: Noise = "mt19937"
    ) -> None:
        self.seed, self.images, self.top_k, self.top_p, self.noise = seed, images, top_k, top_p, noise

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        kept_NLV = filter_logits(logits_NLV, self.top_k, self.top_p)
        noise_NLV = gumbel(self.noise, self.seed, self.images, scale, logits_NLV)
        return marked(codebook_VC[(kept_NLV + noise_NLV).argmax(-1)], logits_NLV)

    def take(self, images_M: Tensor) -> PairedSampler:
        return PairedSampler(self.seed, taken(self.noise, self.images, images_M), self.top_k, self.top_p, self.noise)


class TeacherForcing:
    """Follows given tokens and collects their negative log-likelihood instead of drawing.

    After the loop `nll_N` holds, per image, the sum over its tokens in nats, and `tokens_N` their number.
    """

    def __init__(self, tokens: list[Tensor]) -> None:
        self.tokens = tokens
        self.nll_N = torch.zeros(len(tokens[0]), dtype=torch.float64, device=tokens[0].device)
        self.tokens_N = torch.zeros_like(self.nll_N)
        self.images_M = torch.arange(len(tokens[0]), device=tokens[0].device)

    def __call__(self, logits_NLV: Tensor, scale: int, codebook_VC: Tensor) -> Tensor:
        target_NL = self.tokens[scale][self.images_M]
        logits_NLV = logits_NLV.to(torch.promote_types(logits_NLV.dtype, torch.float32))
        nll_NL = F.cross_entropy(logits_NLV.mT, target_NL, reduction="none")
        self.nll_N[self.images_M] += nll_NL.double().sum(1)
        self.tokens_N[self.images_M] += target_NL.shape[1]
        return codebook_VC[target_NL]

    def take(self, images_M: Tensor) -> TeacherForcing:
        some = copy(self)
        some.images_M = self.images_M[images_M]
        return some
