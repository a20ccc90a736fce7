"""Small convolutional classifier whose penultimate layer gives the features of the zoo's Fréchet distances."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class Classifier(nn.Module):
    """Three convolutional stages and a feature layer.

    Args:
        channels: image channels; images are (N, channels, 32, 32) in [-1, 1].
        width: channels of the first stage; each further stage doubles them.
        num_features: dimension of the features (the name is what torchmetrics looks for).
        classes: number of labels.
    """

    def __init__(self, channels: int = 1, width: int = 32, num_features: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.num_features = num_features
        widths = [channels, width, 2 * width, 4 * width]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        self.embed = nn.Linear(4 * width * 16, num_features)
        self.head = nn.Linear(num_features, classes)

    def features(self, image_NCHW: Tensor) -> Tensor:
        """Penultimate activations, (N, num_features)."""
        x = image_NCHW
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.max_pool2d(F.relu(norm(conv(x))), 2)
        features: Tensor = self.embed(x.flatten(1))
        return features

    def logits(self, features_ND: Tensor) -> Tensor:
        """Class logits, (N, classes), of what `features` returned."""
        logits: Tensor = self.head(F.relu(features_ND))
        return logits

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Class logits, (N, classes)."""
        return self.logits(F.dropout(self.features(image_NCHW), 0.3, self.training))
