"""How much hypervolume a policy is expected to add, where its objectives are known or independent random numbers.

The region that no known point dominates is cut into boxes. A point dominates of a box the product of what it dominates
of each side, and expectations of independent factors multiply: the sum over all boxes is exact (Yang, Emmerich, Deutz,
Bäck 2019, "Efficient computation of expected hypervolume improvement using box decomposition algorithms").
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from varsearch.search.pareto import Point, dominates
from varsearch.search.regression import Array


def free_boxes(points: Sequence[Point], reference: Point) -> tuple[Array, Array]:
    """Lower and upper corners, (N, D) each, of disjoint boxes: all of [0, reference] that no point dominates."""
    boxes = _free([tuple(point) for point in points], tuple(reference))
    corners = np.array(boxes, dtype=float).reshape(len(boxes), len(reference), 2)
    return corners[:, :, 0], corners[:, :, 1]


def _free(points: list[tuple[float, ...]], reference: tuple[float, ...]) -> list[tuple[tuple[float, float], ...]]:
    """Slabs along the last coordinate, in each of which the points reached so far bound the others."""
    end = reference[-1]
    if len(reference) == 1:
        first = max(0.0, min([end, *(point[0] for point in points)]))
        return [((0.0, first),)] if first > 0 else []
    cuts = sorted({0.0, end} | {point[-1] for point in points if 0 < point[-1] < end})
    boxes = []
    for low, high in pairwise(cuts):
        reached = {point[:-1] for point in points if point[-1] <= low}
        least = [a for a in reached if not any(dominates(b, a) for b in reached)]
        boxes += [(*box, (low, high)) for box in _free(least, reference[:-1])]
    return boxes


def expected_gains(draws: Sequence[Array], boxes: tuple[Array, Array]) -> Array:
    """Expected hypervolume improvement of C candidates, (C,).

    Args:
        draws: for each objective equally likely values, (C, K); K = 1 where it is known.
        boxes: see `free_boxes`.
    """
    low_ND, high_ND = boxes
    gain_CN = np.ones((len(draws[0]), len(low_ND)))
    for d, draws_CK in enumerate(draws):
        side_CN = np.zeros_like(gain_CN)
        for column_C in draws_CK.T:
            side_CN += np.maximum(high_ND[:, d] - np.maximum(low_ND[:, d], column_C[:, None]), 0)
        gain_CN *= side_CN / draws_CK.shape[1]
    total: Array = gain_CN.sum(1)
    return total
