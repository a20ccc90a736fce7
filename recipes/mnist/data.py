"""MNIST as tensors: 28x28 images padded to 32x32, scaled to [-1, 1], split once with a fixed seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recipes.common.data import Split, separate, shuffled

HELD_OUT = 4000


def load(folder: Path) -> dict[str, Split]:
    """Splits `train`, `held_out` and `test` of `mnist.npz` in `folder`, each in a fixed random order."""
    with np.load(folder / "mnist.npz") as raw:
        arrays = {name: torch.from_numpy(raw[name]) for name in raw.files}
    train = _split(arrays["train_images"], arrays["train_labels"], seed=0)
    test = _split(arrays["test_images"], arrays["test_labels"], seed=1)
    return separate(train, test, HELD_OUT)


def _split(images: Tensor, labels: Tensor, seed: int) -> Split:
    order = shuffled(len(labels), seed)
    padded = torch.nn.functional.pad(images[order], (2, 2, 2, 2))
    return Split(padded[:, None].float() / 127.5 - 1, labels[order].long())
