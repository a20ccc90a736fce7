"""How much hypervolume a policy is expected to add, where its objectives are known or independent random numbers.

The region that no known point dominates is cut into boxes. A point dominates of a box the product of what it dominates
of each side, and expectations of independent factors multiply: the sum over all boxes is exact (Yang, Emmerich, Deutz,
Bäck 2019, "Efficient computation of expected hypervolume improvement using box decomposition algorithms").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import numpy as np

from varsearch.search.core.pareto import Point, undominated_with
from varsearch.search.sampler.gaussian_process import Array

Corner = tuple[float, ...]
Box = tuple[tuple[float, float], ...]
"""Its interval along each coordinate."""


def free_boxes(points: Sequence[Point], reference: Point) -> tuple[Array, Array]:
    """Lower and upper corners, (N, D) each, of disjoint boxes: all of [0, reference] that no point dominates."""
    boxes = _free(map(tuple, points), tuple(reference))
    corners = np.array(boxes, dtype=float).reshape(len(boxes), len(reference), 2)
    return corners[:, :, 0], corners[:, :, 1]


def _free(points: Iterable[Corner], reference: Corner) -> list[Box]:
    """Slabs along the last coordinate: a box of the others reaches from where a point opens it to where one cuts it."""
    end = reference[-1]
    if len(reference) == 1:
        first = max(0.0, min([end, *(point[0] for point in points)]))
        return [((0.0, first),)] if first > 0 else []
    begins: dict[float, list[Corner]] = {0.0: []}
    for point in points:
        if point[-1] < end:
            begins.setdefault(max(0.0, point[-1]), []).append(point[:-1])
    boxes: list[Box] = []
    opened: dict[Box, float] = {}
    least: list[Corner] = []
    for low in sorted(begins):
        least = reduce(undominated_with, begins[low], least)
        now = dict.fromkeys(_free(least, reference[:-1]))
        boxes += [(*box, (since, low)) for box, since in opened.items() if box not in now]
        opened = {box: opened.get(box, low) for box in now}
    return boxes + [(*box, (since, end)) for box, since in opened.items()]


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
