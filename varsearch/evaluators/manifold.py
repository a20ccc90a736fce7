"""Precision and recall of generated images (Kynkäänniemi et al. 2019, arXiv 1904.06991).

Shape suffixes: N samples, M reference features, P points asked about, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from varsearch.evaluators.per_image import measured, share
from varsearch.measurement import Measurement

NEIGHBOURS = 3
ROWS = 1024
"""Rows of a distance matrix held at a time."""


class Manifold:
    """The union of balls around points, each reaching to the point's third nearest neighbour among the others.

    Args:
        points_ND: at least four feature vectors.
    """

    def __init__(self, points_ND: Tensor) -> None:
        self.points_ND = points_ND.double()
        # The nearest of all is the point itself, at distance zero.
        nearest = (torch.cdist(rows, self.points_ND).kthvalue(NEIGHBOURS + 1) for rows in self.points_ND.split(ROWS))
        self.radii_N = torch.cat([found.values for found in nearest])

    def contains(self, points_PD: Tensor) -> Tensor:
        """Which of the points lie in at least one ball, (P,) bool."""
        parts = points_PD.double().split(ROWS)
        return torch.cat([(torch.cdist(rows, self.points_ND) <= self.radii_N).any(1) for rows in parts])


def precision_recall(samples_ND: Tensor, real: Manifold) -> tuple[Measurement, Measurement]:
    """Share of samples inside the real images' manifold, and of real images inside the samples' manifold.

    Recall has no interval: samples drawn with repetition have no neighbours, so they cannot be resampled.
    """
    covered = Manifold(samples_ND).contains(real.points_ND)
    recall = measured("recall", covered.double().mean().item(), len(samples_ND))
    return share("precision", real.contains(samples_ND)), recall
