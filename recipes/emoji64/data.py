"""The emoji archive as tensors, split by drawing; and what is done to a batch of them before a training step."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from recipes.common.archive import read
from recipes.common.augment import WHITE, cropped, flipped, pierced, recoloured, turned
from recipes.common.data import Split, shuffled

SYMBOLS, FLAGS = 7, 8
"""Classes with writing and with fixed sides: a mirrored one would be wrong."""

PAD, HOLE = 3, 16


def load(path: Path, limit: int | None, held_out: float) -> dict[str, Split]:
    """Splits `train`, `held_out`, `test` and `reference`, each in a fixed random order.

    No emoji is on two sides: both styles of a drawing, and its variants of other skin, go together. The archive's
    own split into training and test is by emoji too. `held_out` and `reference` show every class equally often, as
    generated images do; `reference` is made of test images.

    Args:
        path: an archive as `archive.read` describes, with `train_emoji` and `test_emoji`: which emoji an image shows.
        limit: at most so many training and so many test images.
        held_out: share of the training emoji of every class that nothing trains on, of each at least one.

    Raises:
        UsageError: the file is no such archive.
    """
    parts = read(path, limit, ("emoji",))
    (every, columns), (test, _) = parts["train"], parts["test"]
    held = torch.isin(columns["emoji"], chosen(every.labels, columns["emoji"], held_out))
    return {
        "train": every.take(~held),
        "held_out": balanced(every.take(held)),
        "test": test,
        "reference": balanced(test),
    }


def chosen(labels_N: Tensor, emoji_N: Tensor, share: float) -> Tensor:
    """A fixed random `share` of the emoji of every class, at least one of each."""
    found = []
    for label in labels_N.unique():
        own = emoji_N[labels_N == label].unique()
        found.append(own[shuffled(len(own), seed=1)[: max(1, round(share * len(own)))]])
    return torch.cat(found)


def balanced(split: Split) -> Split:
    """As many images of each class as the largest but one has, classes in turn; smaller classes repeat theirs.

    The largest class of the archive is more than all others together.
    """
    own = [(split.labels == label).nonzero()[:, 0] for label in split.labels.unique()]
    n = sorted(map(len, own))[-2:][0]
    return split.take(torch.stack([index.repeat(-(-n // len(index)))[:n] for index in own], dim=1).flatten())


def sided(images: Tensor, labels: Tensor) -> Tensor:
    """Images mirrored at random where a mirror image is of the same class."""
    return flipped(images, (labels != SYMBOLS) & (labels != FLAGS))


def mixed(images: Tensor, changed: Tensor) -> Tensor:
    """A random half of the images, and the others changed."""
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images, changed)


def for_classifier(images: Tensor, labels: Tensor) -> Tensor:
    """Mirrored, turned, moved, of other colours, and with a hole."""
    images = cropped(turned(sided(images, labels), degrees=12, zoom=0.12), PAD, WHITE)
    return pierced(recoloured(images, hue=0.1, saturation=0.3), HOLE)


def for_tokenizer(images: Tensor, labels: Tensor) -> Tensor:
    """Mirrored, moved and, every second one, of any hue: writing may be mirrored, only pixels matter."""
    images = cropped(flipped(images), PAD, WHITE)
    return mixed(images, recoloured(images, hue=0.5, saturation=0.3))


def for_transformer(images: Tensor, labels: Tensor) -> Tensor:
    """Mirrored, a little moved, scaled and recoloured: what a generated emoji may look like."""
    images = cropped(sided(images, labels), PAD, WHITE)
    return recoloured(mixed(images, turned(images, degrees=4, zoom=0.06)), hue=0.03, saturation=0.1)
