"""Pareto fronts of points whose coordinates are all minimized."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Point = Sequence[float]
Corner = tuple[float, ...]
Box = tuple[tuple[float, float], ...]
"""The interval of a box along each coordinate."""

Array = NDArray[np.float64]


def dominates(a: Point, b: Point) -> bool:
    """Whether `a` is nowhere worse than `b` and somewhere better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def non_dominated(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other dominates, ascending. Equal points do not dominate each other."""
    front: list[int] = []
    # In lexicographic order a point can be dominated by earlier ones only, and then by one of the front.
    for i in sorted(range(len(points)), key=lambda i: tuple(points[i])):
        if not any(dominates(points[j], points[i]) for j in front):
            front.append(i)
    return sorted(front)


def undominated_with(points: list[tuple[float, ...]], new: tuple[float, ...]) -> list[tuple[float, ...]]:
    """A front after `new` was added to it."""
    if any(dominates(point, new) or point == new for point in points):
        return points
    return [point for point in points if not dominates(new, point)] + [new]


def hypervolume(points: Iterable[Point], reference: Point) -> float:
    """Volume of the region that `points` dominate and that dominates `reference`. Exact, for any dimension.

    Points that are not better than the reference everywhere add nothing. Sweeps the last coordinate and sums slabs,
    each the hypervolume of the points reached so far in one dimension less ("hypervolume by slicing objectives", While
    et al. 2006, IEEE Transactions on Evolutionary Computation 10).
    """
    inside = sorted(
        (tuple(point) for point in points if all(x < r for x, r in zip(point, reference, strict=True))),
        key=lambda point: point[-1],
    )
    if not inside:
        return 0.0
    if len(reference) == 1:
        return reference[0] - inside[0][0]
    ends = [point[-1] for point in inside[1:]] + [reference[-1]]
    reached: list[tuple[float, ...]] = []
    volume = 0.0
    for point, end in zip(inside, ends, strict=True):
        reached = undominated_with(reached, point[:-1])
        volume += (end - point[-1]) * hypervolume(reached, reference[:-1])
    return volume


def non_dominated_boxes(points: Iterable[Point], reference: Point) -> tuple[Array, Array]:
    """Disjoint boxes that fill the part of [0, reference] that no point dominates.

    Exact, for any number D of coordinates. Points below 0 count as 0.

    Returns:
        Lower and upper corners of N boxes, (N, D) each.
    """
    boxes = _boxes([tuple(point) for point in points], tuple(reference))
    corners_ND2 = np.array(boxes, dtype=float).reshape(len(boxes), len(reference), 2)
    return corners_ND2[:, :, 0], corners_ND2[:, :, 1]


def _boxes(points: Sequence[Corner], reference: Corner) -> list[Box]:
    """Sweeps the last coordinate, as `hypervolume` does.

    A box of the other coordinates is open from the point that makes it to the point that cuts it.
    """
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
    reached: list[Corner] = []
    for low in sorted(begins):
        for corner in begins[low]:
            reached = undominated_with(reached, corner)
        now = dict.fromkeys(_boxes(reached, reference[:-1]))
        for box, since in opened.items():
            if box not in now:
                boxes.append((*box, (since, low)))
        # A box that goes on keeps the height where it was opened.
        opened = {box: opened.get(box, low) for box in now}
    for box, since in opened.items():
        boxes.append((*box, (since, end)))
    return boxes


def nearest_to_ideal(points: Sequence[Point], ideal: Point) -> int:
    """Index of the point with the smallest Euclidean distance to `ideal`, the first of equals."""
    return min(range(len(points)), key=lambda i: math.dist(points[i], ideal))
