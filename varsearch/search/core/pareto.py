"""Pareto fronts of points whose coordinates are all minimized."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Point = Sequence[float]


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


def nearest_to_ideal(points: Sequence[Point], ideal: Point) -> int:
    """Index of the point with the smallest Euclidean distance to `ideal`, the first of equals."""
    return min(range(len(points)), key=lambda i: math.dist(points[i], ideal))
