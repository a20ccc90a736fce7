"""Trains the class-conditional VAR on tokens computed once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.mnist.data import Split, batches
from varsearch.models.var import VAR, VARConfig
from varsearch.models.vqvae import VQVAE


@dataclass(frozen=True)
class Size:
    """Shape of a transformer and the epochs it is trained for."""

    depth: int
    width: int
    heads: int
    epochs: float


SIZES = {"mnist": Size(6, 128, 4, 6.0), "mnist-small": Size(4, 64, 2, 3.0)}
BATCH, LEARNING_RATE, LABEL_DROP = 32, 1.5e-3 * 128, 0.1
"""The learning rate is divided by the width."""


def build(tokenizer: VQVAE, size: Size, classes: int = 10) -> VAR:
    """An untrained transformer for the tokens of `tokenizer`."""
    c = tokenizer.config
    model = VAR(VARConfig(c.scales, size.depth, size.width, size.heads, classes, c.vocab, c.z_channels))
    initialise(model)
    return model


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
        gates, rest = block.ada_lin.get_parameter("1.weight").split((2 * c.width, 4 * c.width))
        gates *= 1e-5
        rest *= 0.5
    model.head.weight *= 0.02
    model.head_nm.ada_lin.get_parameter("1.weight").mul_(0.5)


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
def held_out_nll(model: VAR, tokens: Tensor, inputs: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood in nats per token."""
    total = 0.0
    for t, x, y in zip(tokens.split(250), inputs.split(250), labels.split(250), strict=True):
        total += F.cross_entropy(model(y, x.float()).flatten(0, 1), t.long().flatten(), reduction="sum").item()
    return total / tokens.numel()


def train(
    model: VAR, tokenizer: VQVAE, train_set: Split, held_out: Split, epochs: int, checkpoint: Path, seed: int = 0
) -> VAR:
    """Trains for `epochs` passes; `checkpoint` is rewritten after each one and continued from if it exists."""
    rate = LEARNING_RATE / model.config.width
    optimizer = torch.optim.AdamW(groups(model), lr=rate, betas=(0.9, 0.95))
    per_epoch = len(train_set) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=per_epoch * epochs, pct_start=0.03, final_div_factor=1e3
    )
    tokens, inputs = encode(tokenizer, train_set)
    held_tokens, held_inputs = encode(tokenizer, held_out)
    first = resume(checkpoint, model, optimizer, schedule)
    for epoch in range(first, epochs):
        for step, index in enumerate(batches(len(train_set), BATCH, per_epoch, seed=seed + epoch)):
            labels = train_set.labels[index]
            labels = torch.where(torch.rand(len(labels)) < LABEL_DROP, model.config.classes, labels)
            logits = model(labels, inputs[index].float())
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[index].long().flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 200 == 0:
                print(f"transformer epoch {epoch} step {step}/{per_epoch} loss {loss.item():.4f}", flush=True)
        nll = held_out_nll(model, held_tokens, held_inputs, held_out.labels)
        print(f"transformer epoch {epoch} held-out NLL {nll:.4f}", flush=True)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        partial = checkpoint.with_suffix(".partial")
        torch.save({**state, "epoch": epoch + 1}, partial)
        partial.replace(checkpoint)
    return model.eval()


def resume(
    checkpoint: Path, model: VAR, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler
) -> int:
    """Loads `checkpoint` if there is one; the epoch to continue with."""
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return int(state["epoch"])


def groups(model: VAR) -> list[dict[str, object]]:
    """Weight decay for matrices only; embeddings, biases and the attention temperature go without."""
    embeddings = {"pos_start", "pos_1LC", "class_emb.weight", "lvl_embed.weight"}
    decay = [p for name, p in model.named_parameters() if p.ndim == 2 and name not in embeddings]
    plain = [p for name, p in model.named_parameters() if p.ndim != 2 or name in embeddings]
    return [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
