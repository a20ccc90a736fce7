"""What every training of a class-conditional VAR shares."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.common.data import Split
from varsearch.models.var import VAR
from varsearch.models.vqvae import VQVAE

LABEL_DROP = 0.1
"""Share of labels replaced by the null class, which guidance needs (arXiv 2207.12598)."""


@torch.no_grad()
def initialise(model: VAR) -> None:
    """Small normal weights; residual outputs shrink with depth and gates start almost closed, as in VAR's code."""
    c = model.config
    std = math.sqrt(1 / c.width / 3)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
    for parameter in (model.pos_start, model.pos_1LC):
        nn.init.trunc_normal_(parameter, std=std)
    for block in model.layers:
        block.attn.proj.weight /= math.sqrt(2 * c.depth)
        block.ffn.fc2.weight /= math.sqrt(2 * c.depth)
    for adaln in [model.shared_ada_lin] if c.shared_adaln else [block.ada_lin for block in model.layers]:
        gates, rest = adaln.get_parameter("1.weight").split((2 * c.width, 4 * c.width))
        gates *= 1e-5
        rest *= 0.5
    model.head.weight *= 0.02
    model.head_nm.ada_lin.get_parameter("1.weight").mul_(0.5)


def drop_labels(labels: Tensor, null: int) -> Tensor:
    """The labels with a random `LABEL_DROP` of them replaced by the null class."""
    return torch.where(torch.rand(len(labels)).to(labels.device) < LABEL_DROP, null, labels)


@torch.no_grad()
def encode(tokenizer: VQVAE, split: Split) -> tuple[Tensor, Tensor]:
    """Tokens of all scales (N, L) int16 and teacher-forcing inputs (N, L - 1, C) float16."""
    tokens, inputs = [], []
    for x in split.images.split(500):
        per_scale = tokenizer.encode(x)
        tokens.append(torch.cat(per_scale, dim=1).short())
        inputs.append(tokenizer.quantize.teacher_input(per_scale).half())
    return torch.cat(tokens), torch.cat(inputs)


@torch.no_grad()
def lesson(tokenizer: VQVAE, images: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Tokens (N, L) to predict and inputs (N, L - 1, C) to predict them from.

    Of each image up to a share of `noise` of the tokens is shown wrong, as that of another image at the same place,
    and the later scales correct it: so the transformer learns to go on from its own errors. It is the self-correction
    of Infinity (arXiv 2412.04431, section 3.4) for codes instead of bits.
    """
    f_NCHW, quantizer, tokens, inputs = tokenizer.latent(images), tokenizer.quantize, [], []
    f_hat_NCHW, last = torch.zeros_like(f_NCHW), len(quantizer.scales) - 1
    share_N1 = torch.rand(len(images), 1) * noise
    for k in range(len(quantizer.scales)):
        z_NChw = quantizer.pool(f_NCHW - f_hat_NCHW, k)
        best_NL = quantizer.nearest(z_NChw.flatten(2).mT.flatten(0, 1)).unflatten(0, (len(images), -1))
        tokens.append(best_NL)
        wrong_NL = (torch.rand(best_NL.shape) < share_N1).to(best_NL.device)
        shown_NL = torch.where(wrong_NL, best_NL.roll(1, dims=0), best_NL)
        f_hat_NCHW = quantizer.accumulate(f_hat_NCHW, quantizer.embedding(shown_NL), k)
        if k < last:
            inputs.append(quantizer.pool(f_hat_NCHW, k + 1).flatten(2).mT)
    return torch.cat(tokens, dim=1), torch.cat(inputs, dim=1)


@torch.no_grad()
def held_out_nll(model: VAR, tokens: Tensor, inputs: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood in nats per token."""
    total = 0.0
    for t, x, y in zip(tokens.split(250), inputs.split(250), labels.split(250), strict=True):
        total += F.cross_entropy(model(y, x.float()).flatten(0, 1), t.long().flatten(), reduction="sum").item()
    return total / tokens.numel()


def groups(model: VAR) -> list[dict[str, object]]:
    """Weight decay for matrices only; embeddings, biases and the attention temperature go without."""
    embeddings = {"pos_start", "pos_1LC", "class_emb.weight", "lvl_embed.weight"}
    decay = [p for name, p in model.named_parameters() if p.ndim == 2 and name not in embeddings]
    plain = [p for name, p in model.named_parameters() if p.ndim != 2 or name in embeddings]
    return [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
