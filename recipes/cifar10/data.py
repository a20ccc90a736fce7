"""CIFAR-10 from its JPEG archive, as tensors; and what is done to a batch of them before a training step."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from recipes.common.archive import read
from recipes.common.augment import cropped, flipped, pierced
from recipes.common.data import Split, separate

PAD, HOLE = 4, 8
"""Pixels that a crop may move, and side of the square that is hidden from the classifier."""


def load(path: Path, limit: int | None, held_out: int) -> dict[str, Split]:
    """Splits `train`, `held_out` and `test`, each in a fixed random order.

    Args:
        path: an archive as `archive.read` describes.
        limit: at most so many training and so many test images.
        held_out: training images that nothing trains on.

    Raises:
        UsageError: the file is no such archive.
    """
    parts = read(path, limit)
    return separate(parts["train"][0], parts["test"][0], held_out)


def mirrored(images: Tensor, labels: Tensor) -> Tensor:
    """Images for tokenizer and transformer."""
    return flipped(images)


def hidden(images: Tensor, labels: Tensor) -> Tensor:
    """Images for the classifier: moved, mirrored and pierced."""
    return pierced(cropped(flipped(images), PAD), HOLE)
