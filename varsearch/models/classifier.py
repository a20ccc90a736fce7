"""Convolutional classifiers whose penultimate layer gives the features of the zoo's Fréchet distances.

Shape suffixes: N images, C channels, H W pixels, D features.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from varsearch.target import Size

Kind = Literal["plain", "residual"]


@dataclass(frozen=True, slots=True)
class ClassifierConfig:
    """Architecture and sizes of a `Classifier`.

    Args:
        kind: "plain" is three convolutional stages, "residual" a residual network of nine layers.
        channels: image channels.
        width: channels of the first stage.
        num_features: dimension of the features.
        classes: number of labels.
        side: height and width of the images; "plain" takes 32 only.
    """

    kind: Kind = "plain"
    channels: Size = 1
    width: Size = 32
    num_features: Size = 64
    classes: Size = 10
    side: Size = 32

    def __post_init__(self) -> None:
        if self.kind == "plain" and self.side != 32:
            raise ValueError(f"a plain classifier takes images of 32x32, not {self.side}x{self.side}")


class Classifier(nn.Module):
    """A feature layer and a head behind the convolutions of a subclass.

    Images are (N, channels, side, side) in [-1, 1].

    `num_features` is the name that torchmetrics looks for.
    """

    embed: nn.Linear
    head: nn.Linear
    dropout = 0.0

    def __init__(self, c: ClassifierConfig) -> None:
        super().__init__()
        self.channels, self.side, self.num_features = c.channels, c.side, c.num_features

    def convolve(self, image_NCHW: Tensor) -> Tensor:
        """What the feature layer `embed` reads."""
        raise NotImplementedError

    def features(self, image_NCHW: Tensor) -> Tensor:
        """Penultimate activations, (N, D)."""
        features_ND: Tensor = self.embed(self.convolve(image_NCHW))
        return features_ND

    def logits(self, features_ND: Tensor) -> Tensor:
        """Class logits, (N, classes), of what `features` returned."""
        logits: Tensor = self.head(F.relu(features_ND))
        return logits

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Class logits, (N, classes)."""
        return self.logits(F.dropout(self.features(image_NCHW), self.dropout, self.training))


class PlainClassifier(Classifier):
    """Three stages of convolution and pooling, each of twice as many channels."""

    dropout = 0.3

    def __init__(self, c: ClassifierConfig) -> None:
        super().__init__(c)
        widths = [c.channels, c.width, 2 * c.width, 4 * c.width]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        self.embed, self.head = nn.Linear(4 * c.width * 16, c.num_features), nn.Linear(c.num_features, c.classes)

    def convolve(self, image_NCHW: Tensor) -> Tensor:
        x = image_NCHW
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.max_pool2d(F.relu(norm(conv(x))), 2)
        return x.flatten(1)


class ConvNorm(nn.Sequential):
    """A 3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class ResidualClassifier(Classifier):
    """Nine layers with two residual pairs (He et al. 2015, arXiv 1512.03385) and maximum pooling."""

    def __init__(self, c: ClassifierConfig) -> None:
        super().__init__(c)
        w = c.width
        self.stem = ConvNorm(c.channels, w)
        self.down = nn.ModuleList(ConvNorm(a, b) for a, b in ((w, 2 * w), (2 * w, 4 * w), (4 * w, 4 * w)))
        self.pair_1 = nn.Sequential(ConvNorm(2 * w, 2 * w), ConvNorm(2 * w, 2 * w))
        self.pair_3 = nn.Sequential(ConvNorm(4 * w, 4 * w), ConvNorm(4 * w, 4 * w))
        self.embed, self.head = nn.Linear(4 * w, c.num_features), nn.Linear(c.num_features, c.classes)

    def convolve(self, image_NCHW: Tensor) -> Tensor:
        first, second, third = self.down
        x = F.max_pool2d(first(self.stem(image_NCHW)), 2)
        x = F.max_pool2d(second(x + self.pair_1(x)), 2)
        x = F.max_pool2d(third(x), 2)
        return F.adaptive_max_pool2d(x + self.pair_3(x), 1).flatten(1)


CLASSIFIERS: dict[Kind, type[PlainClassifier] | type[ResidualClassifier]] = {
    "plain": PlainClassifier,
    "residual": ResidualClassifier,
}


def build_classifier(c: ClassifierConfig) -> Classifier:
    """An untrained classifier."""
    return CLASSIFIERS[c.kind](c)
