"""MNIST as tensors: 28x28 images padded to 32x32, scaled to [-1, 1], split once with a fixed seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HELD_OUT = 4000
"""Training images that no part of the recipe trains on: they decide when to stop and give the real-image FID."""


@dataclass(frozen=True)
class Split:
    """Images (N, 1, 32, 32) in [-1, 1] and labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def load(folder: Path) -> dict[str, Split]:
    """Splits `train`, `held_out` and `test` of `mnist.npz` in `folder`, each in a fixed random order."""
    with np.load(folder / "mnist.npz") as raw:
        arrays = {name: torch.from_numpy(raw[name]) for name in raw.files}
    train = _split(arrays["train_images"], arrays["train_labels"], seed=0)
    test = _split(arrays["test_images"], arrays["test_labels"], seed=1)
    held_out = Split(train.images[:HELD_OUT], train.labels[:HELD_OUT])
    return {"train": Split(train.images[HELD_OUT:], train.labels[HELD_OUT:]), "held_out": held_out, "test": test}


def _split(images: Tensor, labels: Tensor, seed: int) -> Split:
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    padded = torch.nn.functional.pad(images[order], (2, 2, 2, 2))
    return Split(padded[:, None].float() / 127.5 - 1, labels[order].long())


def batches(n: int, size: int, steps: int, seed: int) -> list[Tensor]:
    """Index batches for `steps` steps: whole shuffled passes over n items, the incomplete last batch dropped."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    while len(found) < steps:
        found += [b for b in torch.randperm(n, generator=generator).split(size) if len(b) == size]
    return found[:steps]
