"""Class-conditional VAR transformer (Tian et al. 2024, arXiv 2404.02905), with the seams of `seams.py`.

State-dict keys are those of the published checkpoints. Shape suffixes: N images, B rows (conditional, then
unconditional while guidance is on), L tokens, C latent channels, D width, H heads, V codebook entries.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from varsearch.linear import Linear
from varsearch.models.layers import FFN, HeadNorm, Modulation, PassThroughKV, Place, SelfAttention
from varsearch.models.seams import AttentionMemory, KVView, LayerPlan, LayerState
from varsearch.target import Count, Ratio, Scales, Size


@dataclass(frozen=True, slots=True)
class VARConfig:
    """Hyper-parameters of a `VAR`."""

    scales: Scales
    depth: Count
    width: Size
    heads: Count
    classes: Size = 1000
    vocab: Size = 4096
    z_channels: Size = 32
    mlp_ratio: Ratio = 4.0
    shared_adaln: bool = False
    cosine_attention: bool = True
    norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-6

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}")

    @property
    def scale_of_token(self) -> tuple[int, ...]:
        """Scale index of every position of the full token sequence."""
        return tuple(k for k, (h, w) in enumerate(self.scales) for _ in range(h * w))


class Block(nn.Module):
    """One transformer block; techniques act through the branches, the cache and the attention of `plan`.

    `branches` is the number of residual branches; attention is the first, the feed-forward network the last.
    """

    branches: ClassVar[int] = 2

    def __init__(self, c: VARConfig) -> None:
        super().__init__()
        self.norm_eps = c.norm_eps
        self.attn = SelfAttention(c.width, c.heads, c.cosine_attention)
        self.ffn = FFN(c.width, round(c.width * c.mlp_ratio))
        if c.shared_adaln:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 3 * self.branches, c.width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), Linear(c.width, 3 * self.branches * c.width))

    @property
    def linears(self) -> dict[str, Place]:
        """Where the linears are that a policy may quantize, by the policy's names."""
        places: dict[str, Place] = {
            "qkv": (self.attn, "mat_qkv"),
            "proj": (self.attn, "proj"),
            "fc1": (self.ffn, "fc1"),
            "fc2": (self.ffn, "fc2"),
        }
        return places if hasattr(self, "ada_gss") else places | {"ada": (self.ada_lin, "1")}

    def modulation(self, cond_BD: Tensor, shared_B16D: Tensor | None) -> Modulation:
        """AdaLN parameters of this block from the class embedding (and the shared projection, if there is one)."""
        if shared_B16D is not None:
            parts = (self.ada_gss + shared_B16D).unbind(2)
        else:
            parts = self.ada_lin(cond_BD).unflatten(-1, (1, 3 * self.branches, -1)).unbind(2)
        n = self.branches
        return Modulation(parts[:n], tuple(scale + 1 for scale in parts[n : 2 * n]), parts[2 * n :])

    def normed(self, x_BLD: Tensor, mod: Modulation, branch: int) -> Tensor:
        """Input of a branch, for the first rows of a batch."""
        n = len(x_BLD)
        y_BLD = F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=self.norm_eps)
        return torch.addcmul(mod.shifts[branch][:n], y_BLD, mod.scales[branch][:n])

    def run_attention(
        self, x_BLD: Tensor, mod: Modulation, pos_BL: Tensor, plan: LayerPlan, state: LayerState
    ) -> Tensor:
        """The stream after the attention branch."""

        def attn(x_BLD: Tensor, pos_BL: Tensor) -> Tensor:
            q, k, v = self.attn.qkv(self.normed(x_BLD, mod, 0))
            views = state.kv.extend(q, k, v, pos_BL, room=plan.room)
            if plan.observe is not None:
                plan.observe(q, views, state)
            y_BHLC = plan.attend(q, pos_BL, views, state.attention)
            y_BLD: Tensor = self.attn.proj(y_BHLC.transpose(1, 2).flatten(2))
            return y_BLD * mod.gates[0][: len(y_BLD)]

        return x_BLD + plan.attn(attn, x_BLD, pos_BL, state.attn, state.n_images)

    def run_ffn(self, x_BLD: Tensor, mod: Modulation, pos_BL: Tensor, plan: LayerPlan, state: LayerState) -> Tensor:
        """The stream after the feed-forward branch."""

        def ffn(x_BLD: Tensor, pos_BL: Tensor) -> Tensor:
            y_BLD: Tensor = self.ffn(self.normed(x_BLD, mod, -1))
            return y_BLD * mod.gates[-1][: len(y_BLD)]

        return x_BLD + plan.ffn(ffn, x_BLD, pos_BL, state.ffn, state.n_images)

    def forward(self, x_BLD: Tensor, mod: Modulation, pos_BL: Tensor, plan: LayerPlan, state: LayerState) -> Tensor:
        x_BLD = self.run_attention(x_BLD, mod, pos_BL, plan, state)
        return self.run_ffn(x_BLD, mod, pos_BL, plan, state)


class VAR(nn.Module):
    """Predicts the tokens of every scale from the class and from the coarser scales."""

    lvl_1L: Tensor
    attn_bias_for_masking: Tensor

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        c = self.config = config
        of_token = torch.tensor(c.scale_of_token)
        self.word_embed = Linear(c.z_channels, c.width)
        self.class_emb = nn.Embedding(c.classes + 1, c.width)
        self.pos_start = nn.Parameter(torch.empty(1, 1, c.width))
        self.pos_1LC = nn.Parameter(torch.empty(1, len(of_token), c.width))
        self.lvl_embed = nn.Embedding(len(c.scales), c.width)
        self.register_buffer("lvl_1L", of_token[None])
        hidden = of_token[:, None] < of_token[None]
        self.register_buffer(
            "attn_bias_for_masking", torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)[None, None]
        )
        if c.shared_adaln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), Linear(c.width, 6 * c.width))
        self.blocks = nn.ModuleList(self.new_block() for _ in range(c.depth))
        self.head_nm = HeadNorm(c.width, c.norm_eps)
        self.head = Linear(c.width, c.vocab)

    def new_block(self) -> Block:
        """A block of this model's kind."""
        return Block(self.config)

    @property
    def layers(self) -> list[Block]:
        """The blocks in order, with their type."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def condition(self, labels_N: Tensor, guided: bool) -> tuple[Tensor, list[Modulation]]:
        """Class embedding (B, D), and the AdaLN parameters of every block.

        With guidance the rows of the null class follow those of the labels. The published code recomputes the
        parameters at every scale; once is enough.
        """
        null = torch.full_like(labels_N, self.config.classes)
        cond_BD: Tensor = self.class_emb(torch.cat((labels_N, null)) if guided else labels_N)
        shared = self.shared_ada_lin(cond_BD).unflatten(-1, (1, 6, -1)) if self.config.shared_adaln else None
        return cond_BD, [block.modulation(cond_BD, shared) for block in self.layers]

    def embed(self, pooled_NLC: Tensor | None, cond_BD: Tensor, scale: int) -> Tensor:
        """Input tokens of one scale, (B, L, D), from the pooled latent estimate; scale 0 reads the class instead."""
        start = sum(h * w for h, w in self.config.scales[:scale])
        length = math.prod(self.config.scales[scale])
        place_1LD = self.lvl_embed.weight[scale] + self.pos_1LC[:, start : start + length]
        if pooled_NLC is None:
            return cond_BD[:, None] + self.pos_start + place_1LD
        x_NLD: Tensor = self.word_embed(pooled_NLC) + place_1LD
        return x_NLD.repeat(len(cond_BD) // len(x_NLD), 1, 1)

    def logits(self, x_BLD: Tensor, cond_BD: Tensor) -> Tensor:
        """Unnormalised log-probabilities over the codebook, (B, L, V)."""
        logits_BLV: Tensor = self.head(self.head_nm(x_BLD, cond_BD))
        return logits_BLV

    def forward(self, labels_N: Tensor, teacher_NLC: Tensor) -> Tensor:
        """Teacher-forced logits of all scales in one pass, (N, L_total, V).

        Args:
            labels_N: class of each image; `config.classes` is the null class.
            teacher_NLC: output of `MultiScaleQuantizer.teacher_input`, (N, L_total - 1, C).
        """
        cond_ND, modulations = self.condition(labels_N, guided=False)
        x_NLD = torch.cat((cond_ND[:, None] + self.pos_start, self.word_embed(teacher_NLC)), dim=1)
        x_NLD = x_NLD + self.lvl_embed(self.lvl_1L) + self.pos_1LC
        plan, positions = LayerPlan(attend=self.attend_all), torch.arange(x_NLD.shape[1], device=x_NLD.device)[None]
        for block, mod in zip(self.layers, modulations, strict=True):
            x_NLD = block(x_NLD, mod, positions, plan, LayerState(PassThroughKV(), len(x_NLD)))
        return self.logits(x_NLD, cond_ND)

    def attend_all(self, q_BHLC: Tensor, pos_BL: Tensor, views: tuple[KVView, ...], memory: AttentionMemory) -> Tensor:
        """Attention of all scales at once: each scale sees itself and earlier ones."""
        k_BHSC, v_BHSC = views[0].k_BHSC, views[0].v_BHSC
        lengths = [h * w for h, w in self.config.scales]
        # Each scale sees all keys up to its own last one, so no product needs a mask and the rest is not computed.
        parts = [
            F.scaled_dot_product_attention(q_BHlC, k_BHSC[:, :, :end], v_BHSC[:, :, :end], scale=1.0)
            for q_BHlC, end in zip(q_BHLC.split(lengths, dim=2), itertools.accumulate(lengths), strict=True)
        ]
        return torch.cat(parts, dim=2)
