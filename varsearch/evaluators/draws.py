"""Features of the images that policies draw, kept so that more images of a policy cost only those that are added."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from varsearch.accel import Accelerated, labels_for
from varsearch.evaluators.extractors import Extractor
from varsearch.evaluators.workload import device_of
from varsearch.models.pictures import to_bytes
from varsearch.target import Noise

BATCH = 64
"""Images generated at a time where there is room for them. Sums in another order may flip a token, so evidence says how
many it were."""

KEPT = 8
"""Policies whose features are kept: the dense one, and those that workers come back to soon."""


class Drawing(NamedTuple):
    """How images are drawn: their seed, their noise, and how many at once."""

    seed: int
    noise: Noise
    at_once: int

    def images(self, accelerated: Accelerated, n: int, first: int = 0) -> Iterator[Tensor]:
        """Images `first` to `first + n - 1`, at most `at_once` in each part, where the model is.

        Image i has label i modulo the classes.
        """
        device = device_of(accelerated.model)
        labels_N = labels_for(first + n, accelerated.model.spec.classes, device)[first:]
        for i in range(0, n, self.at_once):
            yield accelerated.images(labels_N[i : i + self.at_once], self.seed, first + i, self.noise)


@dataclass(slots=True)
class Drawn:
    """Features (BATCH, D) of a policy's first full batches of images, and a hash of the first batch."""

    features: list[Tensor] = field(default_factory=list)
    sha256: str = ""


class Draws:
    """Draws images and keeps their features.

    Args:
        extractor: on the model's device.
    """

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self._kept: OrderedDict[Hashable, Drawn] = OrderedDict()

    def features(self, accelerated: Accelerated, n: int, drawing: Drawing, key: Hashable) -> tuple[Tensor, str]:
        """Features (n, D) of the first `n` images, on the CPU, and the hash of the first `BATCH` as 8-bit images.

        Args:
            accelerated: the model under the policy.
            n: how many.
            drawing: how images are drawn.
            key: of everything that the images depend on besides their number; equal keys share what was drawn.
        """
        drawn = self._kept.setdefault(key, Drawn())
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        for i in range(len(drawn.features), n // BATCH):
            features_BD, sha256 = self._batch(accelerated, BATCH, drawing, i * BATCH)
            drawn.features.append(features_BD)
            drawn.sha256 = drawn.sha256 or sha256
        whole = drawn.features[: n // BATCH]
        if n % BATCH == 0:
            return torch.cat(whole), drawn.sha256
        rest_BD, sha256 = self._batch(accelerated, n % BATCH, drawing, n - n % BATCH)
        return torch.cat([*whole, rest_BD]), drawn.sha256 if whole else sha256

    def _batch(self, accelerated: Accelerated, n: int, drawing: Drawing, first: int) -> tuple[Tensor, str]:
        features, sha256 = [], hashlib.sha256()
        for images in drawing.images(accelerated, n, first):
            sha256.update(to_bytes(images).numpy().tobytes())
            features.append(self.extractor.features(images).cpu())
        return torch.cat(features), sha256.hexdigest()
