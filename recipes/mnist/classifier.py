"""Trains the classifier that supplies labels and Fréchet features."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from recipes.common.classifier import accuracy, normalise
from recipes.common.data import Split, batches
from varsearch.models.classifier import Classifier, ClassifierConfig, build_classifier

CONFIG = ClassifierConfig()


def train(train_set: Split, held_out: Split, epochs: float, seed: int = 0) -> Classifier:
    """The trained classifier, in evaluation mode."""
    torch.manual_seed(seed)
    model, size = build_classifier(CONFIG), 128
    steps = max(1, round(epochs * len(train_set) / size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.15)
    for step, index in enumerate(batches(len(train_set), size, steps, seed)):
        images = train_set.images[index]
        shift = torch.randint(-2, 3, (2,)).tolist()
        loss = F.cross_entropy(
            model(torch.roll(images, shift, dims=(2, 3))), train_set.labels[index], label_smoothing=0.05
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"classifier step {step}/{steps} loss {loss.item():.4f}", flush=True)
    normalise(model.eval(), held_out)
    print(f"classifier held-out accuracy {accuracy(model, held_out):.4f}", flush=True)
    return model.eval()
