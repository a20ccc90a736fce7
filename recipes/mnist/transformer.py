"""Trains the class-conditional VAR on tokens computed once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from recipes.common.data import Split, batches
from recipes.common.transformer import drop_labels, encode, groups, held_out_nll, initialise
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
BATCH, LEARNING_RATE = 32, 1.5e-3 * 128
"""The learning rate is divided by the width."""


def build(tokenizer: VQVAE, size: Size, classes: int = 10) -> VAR:
    """An untrained transformer for the tokens of `tokenizer`."""
    c = tokenizer.config
    model = VAR(VARConfig(c.scales, size.depth, size.width, size.heads, classes, c.vocab, c.z_channels))
    initialise(model)
    return model


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
            labels = drop_labels(train_set.labels[index], model.config.classes)
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
