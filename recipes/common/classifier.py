"""What every classifier of a recipe needs after its training."""

from __future__ import annotations

import torch

from recipes.common.data import Split
from varsearch.models.classifier import Classifier


@torch.no_grad()
def normalise(model: Classifier, split: Split) -> None:
    """Scales the features to a mean variance of 1 over `split`, and the head inversely, so that labels stay the same.

    Fréchet distances grow with the square of the features' scale, which training leaves arbitrary.
    """
    features = torch.cat([model.features(x) for x in split.images.split(500)])
    scale = features.var(dim=0).mean().sqrt()
    model.embed.weight.div_(scale)
    model.embed.bias.div_(scale)
    model.head.weight.mul_(scale)


@torch.no_grad()
def accuracy(model: Classifier, split: Split) -> float:
    """Share of correctly labelled images."""
    model.eval()
    right = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(split.images.split(500), split.labels.split(500), strict=True)
    )
    return right / len(split)
