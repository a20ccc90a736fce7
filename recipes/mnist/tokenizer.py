"""Trains the multi-scale VQ-VAE of MNIST on a CPU."""

from __future__ import annotations

import torch

from recipes.common.data import Split, batches
from recipes.common.tokenizer import (
    IDLE_STEPS,
    LAST_REVIVAL,
    REVIVE_EVERY,
    WARM_UP,
    initialise_codebook,
    loss_of,
    revive,
)
from varsearch.models.vqvae import VQVAE, TokenizerConfig

CONFIG = TokenizerConfig(
    scales=((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)),
    vocab=128,
    z_channels=8,
    ch=16,
    ch_mult=(1, 2, 4),
    res_blocks=1,
    image_channels=1,
    norm_groups=8,
)
LEARNING_RATE = 1.5e-3


def train(train_set: Split, epochs: float, config: TokenizerConfig = CONFIG, seed: int = 0) -> VQVAE:
    """The trained tokenizer, in evaluation mode."""
    torch.manual_seed(seed)
    model, size = VQVAE(config), 64
    steps = max(10, round(epochs * len(train_set) / size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps, pct_start=0.03)
    idle_V = torch.zeros(config.vocab, dtype=torch.long)
    for step, index in enumerate(batches(len(train_set), size, steps, seed)):
        images = train_set.images[index]
        warm = step < WARM_UP * steps
        if step and warm != (step - 1 < WARM_UP * steps):
            initialise_codebook(model, train_set.images[:512])
            idle_V.zero_()
        loss, tokens, latent = loss_of(model, images, quantized=not warm)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        idle_V += 1
        for t in tokens:
            idle_V[t.unique()] = 0
        if not warm and step < LAST_REVIVAL * steps and step % REVIVE_EVERY == 0:
            revive(model.quantize, idle_V, latent)
        if step % 100 == 0:
            print(
                f"tokenizer step {step}/{steps} loss {loss.item():.4f} idle {(idle_V > IDLE_STEPS).sum()}", flush=True
            )
    return model.eval()
