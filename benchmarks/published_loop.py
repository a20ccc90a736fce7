"""VAR's loop as its paper and code do it, on the same weights as ours: what `benchmarks/dense.py` compares with.

AdaLN is computed in every block at every scale, keys are normalised and cached in float32, each scale's keys and values
are joined to all earlier ones, those of the last scale too, and both halves of guidance run as one batch (VAR, arXiv
2404.02905). Attention is PyTorch's, as ours is. Shape suffixes are those of `varsearch/models/var.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varsearch.models.image_model import ImageModel
from varsearch.models.layers import SelfAttention
from varsearch.models.quantizer import MultiScaleQuantizer
from varsearch.models.var import VAR, Block


class JoinedCache:
    """Keys and values of one layer, joined anew at each scale."""

    def __init__(self) -> None:
        self.k_BHSC: Tensor | None = None
        self.v_BHSC: Tensor | None = None

    def extend(self, k_BHLC: Tensor, v_BHLC: Tensor) -> tuple[Tensor, Tensor]:
        """All entries so far, the new ones included."""
        if self.k_BHSC is not None and self.v_BHSC is not None:
            k_BHLC, v_BHLC = torch.cat((self.k_BHSC, k_BHLC), dim=2), torch.cat((self.v_BHSC, v_BHLC), dim=2)
        self.k_BHSC, self.v_BHSC = k_BHLC, v_BHLC
        return k_BHLC, v_BHLC

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(t.nbytes for t in (self.k_BHSC, self.v_BHSC) if t is not None)


@dataclass(frozen=True, slots=True)
class PublishedLoop:
    """Samples images of a class-conditional VAR with cosine attention and AdaLN of its own in each block."""

    model: ImageModel

    @torch.inference_mode()
    def latent(self, labels_N: Tensor, seed: int) -> tuple[Tensor, list[Tensor], int]:
        """Latent estimate (N, C, H, W), tokens (N, L) of each scale, and bytes of all caches at the end."""
        var, quantizer, sampling = self.model.transformer, self.model.tokenizer.quantize, self.model.sampling
        assert isinstance(var, VAR) and isinstance(quantizer, MultiScaleQuantizer)
        scales, n = var.config.scales, len(labels_N)
        generator = torch.Generator(labels_N.device).manual_seed(seed)
        cond_BD = var.class_emb(torch.cat((labels_N, torch.full_like(labels_N, var.config.classes))))
        place_1LD = var.lvl_embed(var.lvl_1L) + var.pos_1LC
        x_BLD = cond_BD[:, None] + var.pos_start + place_1LD[:, :1]
        f_hat_NCHW = quantizer.empty(n)
        caches = [JoinedCache() for _ in var.layers]
        tokens: list[Tensor] = []
        start = 0
        for k, size in enumerate(scales):
            start += math.prod(size)
            for block, cache in zip(var.layers, caches, strict=True):
                x_BLD = run_block(block, x_BLD, cond_BD, cache)
            scale_BD, shift_BD = ada(var.head_nm.ada_lin, cond_BD)[:, None].chunk(2, dim=-1)
            logits_BLV = plain(var.head, normed(x_BLD, var.config.norm_eps) * (1 + scale_BD) + shift_BD)
            strength = sampling.guidance * k / (len(scales) - 1)
            logits_NLV = (1 + strength) * logits_BLV[:n] - strength * logits_BLV[n:]
            tokens.append(draw(logits_NLV, generator, sampling.top_k, sampling.top_p))
            f_hat_NCHW = add_codes(quantizer, f_hat_NCHW, tokens[-1], k)
            if k < len(scales) - 1:
                following = math.prod(scales[k + 1])
                pooled_NCL = F.interpolate(f_hat_NCHW, size=scales[k + 1], mode="area").flatten(2)
                x_NLD = plain(var.word_embed, pooled_NCL.mT) + place_1LD[:, start : start + following]
                x_BLD = x_NLD.repeat(2, 1, 1)
        return f_hat_NCHW, tokens, sum(cache.nbytes for cache in caches)


def plain(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer as PyTorch computes it by itself."""
    assert isinstance(layer, nn.Linear)
    return F.linear(x, layer.weight, layer.bias)


def ada(layers: nn.Module, cond_BD: Tensor) -> Tensor:
    """AdaLN parameters."""
    assert isinstance(layers, nn.Sequential)
    return plain(layers[1], F.silu(cond_BD))


def normed(x_BLD: Tensor, eps: float) -> Tensor:
    """Layer norm without weights."""
    return F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=eps)


def run_block(block: Block, x_BLD: Tensor, cond_BD: Tensor, cache: JoinedCache) -> Tensor:
    """The stream after one block."""
    parts = ada(block.ada_lin, cond_BD).view(len(cond_BD), 1, 6, -1).unbind(2)
    gate_1, gate_2, scale_1, scale_2, shift_1, shift_2 = parts
    y_BLD = attention(block.attn, normed(x_BLD, block.norm_eps) * (scale_1 + 1) + shift_1, cache)
    x_BLD = x_BLD + y_BLD * gate_1
    y_BLD = plain(block.ffn.fc1, normed(x_BLD, block.norm_eps) * (scale_2 + 1) + shift_2)
    return x_BLD + plain(block.ffn.fc2, F.gelu(y_BLD, approximate="tanh")) * gate_2


def attention(attn: SelfAttention, x_BLD: Tensor, cache: JoinedCache) -> Tensor:
    """Cosine attention of one layer; queries and keys are normalised in float32, and so are the keys in the cache."""
    bias = torch.cat((attn.q_bias, attn.zero_k_bias, attn.v_bias))
    qkv = F.linear(x_BLD, attn.mat_qkv.weight, bias).view(*x_BLD.shape[:2], 3, attn.heads, -1)
    q_BHLC, k_BHLC, v_BHLC = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    factor = attn.scale_mul_1H11.clamp_max(math.log(100)).exp()
    q_BHLC = F.normalize(q_BHLC.float(), dim=-1) * factor
    k_BHSC, v_BHSC = cache.extend(F.normalize(k_BHLC.float(), dim=-1), v_BHLC)
    q_BHLC, k_BHSC = q_BHLC.to(v_BHSC.dtype), k_BHSC.to(v_BHSC.dtype)
    y_BHLC = F.scaled_dot_product_attention(q_BHLC, k_BHSC, v_BHSC, scale=1.0)
    return plain(attn.proj, y_BHLC.transpose(1, 2).reshape(x_BLD.shape))


def draw(logits_NLV: Tensor, generator: torch.Generator, top_k: int, top_p: float) -> Tensor:
    """Tokens (N, L): top-k, then the nucleus, then one draw of all of the scale's tokens."""
    if top_k:
        logits_NLV = logits_NLV.masked_fill(
            logits_NLV < logits_NLV.topk(top_k).values.amin(-1, keepdim=True), -torch.inf
        )
    if top_p:
        ascending, order = logits_NLV.sort(dim=-1)
        drop = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        drop[..., -1:] = False
        logits_NLV = logits_NLV.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    p_MV = logits_NLV.softmax(-1).flatten(0, 1)
    return torch.multinomial(p_MV, 1, replacement=True, generator=generator).view(logits_NLV.shape[:2])


def add_codes(quantizer: MultiScaleQuantizer, f_hat_NCHW: Tensor, tokens_NL: Tensor, k: int) -> Tensor:
    """The latent estimate with the codes of scale `k`."""
    h_NLC: Tensor = quantizer.embedding(tokens_NL)
    h_NChw = h_NLC.mT.unflatten(2, quantizer.scales[k])
    if quantizer.scales[k] != quantizer.scales[-1]:
        h_NChw = F.interpolate(h_NChw, size=quantizer.scales[-1], mode="bicubic")
    sum_NCHW: Tensor = f_hat_NCHW + quantizer.quant_resi(h_NChw, k)
    return sum_NCHW
