"""Images with labels, and the order in which a training sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images (N, C, H, W) in [-1, 1] and labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, n: int) -> Split:
        """At most the first `n` images."""
        return Split(self.images[:n], self.labels[:n])

    def take(self, index: Tensor) -> Split:
        """The images of an index or of a mask."""
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> Split:
        """The same on a device."""
        return Split(self.images.to(device), self.labels.to(device))


def shuffled(n: int, seed: int) -> Tensor:
    """A fixed random order of n items."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def separate(train: Split, test: Split, held_out: int) -> dict[str, Split]:
    """Splits `train`, `held_out` and `test`.

    The first `held_out` training images are those that no part of a recipe trains on: they decide when to stop and
    give the Fréchet distance of real images.
    """
    return {
        "train": Split(train.images[held_out:], train.labels[held_out:]),
        "held_out": train.first(held_out),
        "test": test,
    }


def batches(n: int, size: int, steps: int, seed: int) -> list[Tensor]:
    """Index batches for `steps` steps: whole shuffled passes over n items, the incomplete last batch dropped."""
    generator, size = torch.Generator().manual_seed(seed), min(size, n)
    found: list[Tensor] = []
    while len(found) < steps:
        found += [b for b in torch.randperm(n, generator=generator).split(size) if len(b) == size]
    return found[:steps]


class Batches(Protocol):
    """Index batches without end."""

    def batch(self, step: int) -> Tensor:
        """The batch of this step, whichever were asked for before."""
        ...


class Passes:
    """Index batches without end: shuffled passes over n items, the incomplete last batch of each dropped."""

    def __init__(self, n: int, size: int, device: torch.device) -> None:
        self.n, self.size, self.device = n, min(size, n), device
        self.number, self.order = -1, torch.empty(0, dtype=torch.long)

    def batch(self, step: int) -> Tensor:
        """The batch of this step, whichever were asked for before."""
        number, place = divmod(step, self.n // self.size)
        if number != self.number:
            self.number, self.order = number, shuffled(self.n, number).to(self.device)
        return self.order[place * self.size :][: self.size]


class Draws:
    """Index batches without end, with replacement: of a class of n images in proportion to n ** `power`."""

    def __init__(self, labels: Tensor, size: int, power: float) -> None:
        count_A = labels.bincount().double()
        self.size, self.weight_N = size, (count_A ** (power - 1))[labels]

    def batch(self, step: int) -> Tensor:
        """The batch of this step, whichever were asked for before."""
        generator = torch.Generator().manual_seed(step)
        return torch.multinomial(self.weight_N, self.size, replacement=True, generator=generator)
