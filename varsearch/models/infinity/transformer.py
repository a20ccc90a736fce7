"""Text-conditional Infinity transformer (Han et al. 2024, arXiv 2412.04431), with the seams of `seams.py`.

State-dict keys are those of the published checkpoints. Shape suffixes: N images, B rows (conditional, then
unconditional while guidance is on), L tokens of one scale, T text features, D width, H heads, V two values of a bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from varsearch.errors import ModelError
from varsearch.models.infinity.attention import AttentivePool, CrossAttention, TextKV
from varsearch.models.infinity.rotary import Rotary
from varsearch.models.infinity.text import Prompts
from varsearch.models.layers import FFN, HeadNorm, Modulation, PassThroughKV, Place, SelfAttention
from varsearch.models.seams import AttentionMemory, KVView, LayerPlan, LayerState, Rows
from varsearch.target import Count, Ratio, Scales, Side, Size


@dataclass(frozen=True, slots=True)
class InfinityConfig:
    """Hyper-parameters of an `Infinity`.

    Args:
        scales: token maps.
        grid: map that rotary positions lie on, see `schedule.finest_map`.
        depth: number of blocks.
        width: of the residual stream.
        heads: of self-attention and of cross-attention.
        chunks: how many groups the blocks are saved in; in a single one they are saved without a group around them.
        bits: of one token.
        text_channels: of a text feature.
        text_length: most features of a prompt.
        levels: how many scales there are embeddings for.
        mlp_ratio: hidden over residual width, before it is rounded to a multiple of 256.
        norm_eps: of all norms.
    """

    scales: Scales
    grid: tuple[Side, Side]
    depth: Count
    width: Size
    heads: Count
    chunks: Count = 8
    bits: Size = 32
    text_channels: Size = 2048
    text_length: Size = 512
    levels: Count = 15
    mlp_ratio: Ratio = 4.0
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-6

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 4:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width} into multiples of 4 channels")
        if self.depth % self.chunks:
            raise ValueError(f"{self.chunks} chunks do not divide {self.depth} blocks")
        if not self.text_heads or self.width % self.text_heads:
            raise ValueError(f"{self.text_heads} text heads do not divide a width of {self.width}")
        if len(self.scales) > self.levels:
            raise ValueError(f"{len(self.scales)} scales, but embeddings of {self.levels}")

    @property
    def text_heads(self) -> int:
        """Heads of the pooling of text features."""
        return self.text_channels // (64 if self.width > 4096 else 128)

    @property
    def hidden(self) -> int:
        """Hidden width of the FFN."""
        return round(self.width * self.mlp_ratio / 256) * 256

    @property
    def scale_of_token(self) -> tuple[int, ...]:
        """Scale index of every position of the full token sequence."""
        return tuple(k for k, (h, w) in enumerate(self.scales) for _ in range(h * w))


class BlockCondition(NamedTuple):
    """What a block reads beside its tokens; the same at all scales."""

    modulation: Modulation
    text: TextKV
    rotary: Rotary

    def take(self, rows: Rows) -> BlockCondition:
        """The condition of these rows only."""
        return BlockCondition(self.modulation.take(rows), self.text.take(rows), self.rotary)

    def first(self, n: int) -> BlockCondition:
        """The condition of the first `n` rows, which are all or those that a branch runs alone."""
        return self if n == len(self.modulation.gates[0]) else self.take(lambda t: t[:n])


class Block(nn.Module):
    """One transformer block; techniques act through the branches, the cache and the attention of `plan`."""

    def __init__(self, c: InfinityConfig) -> None:
        super().__init__()
        self.norm_eps = c.norm_eps
        self.sa = SelfAttention(c.width, c.heads, cosine=True)
        self.ca_norm = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.ca = CrossAttention(c.width, c.width, c.heads)
        self.ffn = FFN(c.width, c.hidden)
        self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, c.width))

    @property
    def linears(self) -> dict[str, Place]:
        """Where the linears are that a policy may quantize, by the policy's names."""
        return {
            "qkv": (self.sa, "mat_qkv"),
            "proj": (self.sa, "proj"),
            "fc1": (self.ffn, "fc1"),
            "fc2": (self.ffn, "fc2"),
            "text_q": (self.ca, "mat_q"),
            "text_kv": (self.ca, "mat_kv"),
            "text_proj": (self.ca, "proj"),
        }

    def condition(
        self, shared_B16D: Tensor, context_BTD: Tensor, present_BT: Tensor | None, r: Rotary
    ) -> BlockCondition:
        """What this block reads, from the shared AdaLN projection, the text features and the rotary angles."""
        parts = (self.ada_gss + shared_B16D).unbind(2)
        modulation = Modulation(parts[:2], tuple(scale + 1 for scale in parts[2:4]), parts[4:])
        return BlockCondition(modulation, self.ca.text(context_BTD, present_BT), r)

    def normed(self, x_BLD: Tensor, mod: Modulation, branch: int) -> Tensor:
        """Input of a branch."""
        y_BLD = F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=self.norm_eps)
        return torch.addcmul(mod.shifts[branch], y_BLD, mod.scales[branch])

    def forward(
        self, x_BLD: Tensor, condition: BlockCondition, pos_BL: Tensor, plan: LayerPlan, state: LayerState
    ) -> Tensor:
        def attn(x_BLD: Tensor, pos_BL: Tensor) -> Tensor:
            mod, _, rotary = condition.first(len(x_BLD))
            q, k, v = self.sa.qkv(self.normed(x_BLD, mod, 0))
            q, k = rotary.turn(q, k, pos_BL)
            views = state.kv.extend(q, k, v, pos_BL, room=plan.room)
            if plan.observe is not None:
                plan.observe(q, views, state)
            y_BHLC = plan.attend(q, pos_BL, views, state.attention)
            y_BLD: Tensor = self.sa.proj(y_BHLC.transpose(1, 2).flatten(2))
            return y_BLD * mod.gates[0]

        def cross(x_BLD: Tensor, pos_BL: Tensor) -> Tensor:
            return self.ca.read(self.ca_norm(x_BLD), condition.first(len(x_BLD)).text)

        def ffn(x_BLD: Tensor, pos_BL: Tensor) -> Tensor:
            mod = condition.first(len(x_BLD)).modulation
            y_BLD: Tensor = self.ffn(self.normed(x_BLD, mod, 1))
            return y_BLD * mod.gates[1]

        x_BLD = x_BLD + plan.attn(attn, x_BLD, pos_BL, state.attn, state.n_images)
        x_BLD = x_BLD + plan.between(cross, x_BLD, pos_BL, state.between, state.n_images)
        return x_BLD + plan.ffn(ffn, x_BLD, pos_BL, state.ffn, state.n_images)


class Chunk(nn.Module):
    """Blocks that are saved together."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.module = nn.ModuleList(blocks)


class TextPool(nn.Module):
    """Pools the features of a prompt into one vector."""

    def __init__(self, c: InfinityConfig) -> None:
        super().__init__()
        self.ca = AttentivePool(c.width, c.text_channels, c.text_heads)

    def forward(self, text_BTC: Tensor, present_BT: Tensor | None) -> Tensor:
        return self.ca(text_BTC, present_BT)


class Infinity(nn.Module):
    """Predicts the bits of every scale from a prompt and from the coarser scales."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        c = self.config = config
        self.cfg_uncond = nn.Parameter(torch.empty(c.text_length, c.text_channels))
        self.pos_start = nn.Parameter(torch.empty(1, 1, c.width))
        self.text_norm = nn.RMSNorm(c.text_channels, eps=c.norm_eps)
        self.text_proj_for_sos = TextPool(c)
        self.text_proj_for_ca = nn.Sequential(
            nn.Linear(c.text_channels, c.width), nn.GELU(approximate="tanh"), nn.Linear(c.width, c.width)
        )
        self.lvl_embed = nn.Embedding(c.levels, c.width)
        self.word_embed = nn.Linear(c.bits, c.width)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(c.width, 6 * c.width))
        blocks, per_chunk = [Block(c) for _ in range(c.depth)], c.depth // c.chunks
        if c.chunks == 1:
            self.blocks = nn.ModuleList(blocks)
        else:
            self.block_chunks = nn.ModuleList(Chunk(blocks[i : i + per_chunk]) for i in range(0, c.depth, per_chunk))
        self.head_nm = HeadNorm(c.width, c.norm_eps)
        self.head = nn.Linear(c.width, 2 * c.bits)

    @property
    def layers(self) -> list[Block]:
        """The blocks in order, with their type."""
        return [block for block in self.modules() if isinstance(block, Block)]

    def prompts(self, prompts: Prompts, guided: bool) -> Prompts:
        """The rows' texts: with guidance the negative prompts, or learnt ones of the same lengths, follow."""
        if not guided:
            return replace(prompts, negative=None)
        if prompts.negative is not None:
            return prompts.followed_by(prompts.negative)
        n, length, _ = prompts.features_NTC.shape
        empty_NTC = self.cfg_uncond[:length].expand(n, -1, -1)
        return prompts.followed_by(Prompts(empty_NTC, prompts.present_NT))

    def condition(self, prompts: Prompts, guided: bool) -> tuple[Tensor, list[BlockCondition]]:
        """Pooled text (B, D), and what each block reads. Both hold for all scales, so once is enough."""
        c, rows = self.config, self.prompts(prompts, guided)
        if rows.features_NTC.shape[1] > c.text_length:
            raise ModelError(f"{rows.features_NTC.shape[1]} text features, the model was made for {c.text_length}")
        text_BTC = self.text_norm(rows.features_NTC)
        cond_BD: Tensor = self.text_proj_for_sos(text_BTC, rows.present_NT)
        context_BTD, shared_B16D = self.text_proj_for_ca(text_BTC), self.shared(cond_BD)
        rotary = Rotary.of(c.scales, c.grid, c.width // c.heads, cond_BD)
        return cond_BD, [b.condition(shared_B16D, context_BTD, rows.present_NT, rotary) for b in self.layers]

    def shared(self, cond_BD: Tensor) -> Tensor:
        """The part of the AdaLN parameters that all blocks share, (B, 1, 6, D)."""
        return self.shared_ada_lin(cond_BD).unflatten(-1, (1, 6, -1))

    def embed(self, pooled_NLD: Tensor | None, cond_BD: Tensor, scale: int) -> Tensor:
        """Input tokens of one scale, (B, L, D), from the pooled latent estimate; scale 0 reads the text instead."""
        level_D = self.lvl_embed.weight[scale]
        if pooled_NLD is None:
            return cond_BD[:, None] + self.pos_start + level_D
        x_NLD: Tensor = self.word_embed(pooled_NLD.to(level_D.dtype)) + level_D
        return x_NLD.repeat(len(cond_BD) // len(x_NLD), 1, 1)

    def logits(self, x_BLD: Tensor, cond_BD: Tensor) -> Tensor:
        """Unnormalised log-probabilities of every bit, (B, L * bits, 2)."""
        return self.head(self.head_nm(x_BLD, cond_BD)).unflatten(-1, (-1, 2)).flatten(1, 2)

    def forward(self, prompts: Prompts, teacher_NLD: Tensor) -> Tensor:
        """Teacher-forced logits of all scales in one block-causal pass, (N, L_total * bits, 2).

        Args:
            prompts: one per image.
            teacher_NLD: output of `BitQuantizer.teacher_input`, (N, L_total - 1, bits).
        """
        cond_ND, conditions = self.condition(prompts, guided=False)
        sizes = [math.prod(size) for size in self.config.scales]
        inputs = [None, *teacher_NLD.split(sizes[1:], dim=1)]
        x_NLD = torch.cat([self.embed(pooled, cond_ND, k) for k, pooled in enumerate(inputs)], dim=1)
        scale_L = torch.tensor(self.config.scale_of_token, device=x_NLD.device)
        plan = LayerPlan(attend=partial(_block_causal, visible_LL=scale_L[:, None] >= scale_L))
        positions = torch.arange(len(scale_L), device=x_NLD.device)[None]
        for block, condition in zip(self.layers, conditions, strict=True):
            x_NLD = block(x_NLD, condition, positions, plan, LayerState(PassThroughKV(), len(x_NLD)))
        return self.logits(x_NLD, cond_ND)


def _block_causal(
    q_BHLC: Tensor, pos_BL: Tensor, views: tuple[KVView, ...], memory: AttentionMemory, visible_LL: Tensor
) -> Tensor:
    k_BHSC, v_BHSC = views[0].k_BHSC, views[0].v_BHSC
    return F.scaled_dot_product_attention(q_BHLC, k_BHSC, v_BHSC, attn_mask=visible_LL, scale=1.0)
