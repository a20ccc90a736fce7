"""Places for labels beside crowded points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

DISTANCES = (8.0, 16.0, 26.0, 38.0, 52.0, 68.0, 86.0, 106.0)
"""Pixels between a point and its label."""

CROWDED = 0.25
"""Pixels of distance worth one square pixel less over points; other labels and the edge count a hundred times that."""

DIRECTIONS = (0, 180, 315, 45, 225, 135, 270, 90, 338, 22, 202, 158)
"""Degrees, clockwise from the right, in the order of preference."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels."""

    left: float
    top: float
    width: float
    height: float

    def overlap(self, other: Box) -> float:
        """Area that two boxes share."""
        wide = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        high = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        return max(0.0, wide) * max(0.0, high)


def place(
    points: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], area: Box, taken: Sequence[Box]
) -> list[Box]:
    """A box of the given size for each point, inside `area`, off other labels and, where there is room, off `taken`.

    Greedy, one point after the other, earlier ones with more choice: nearness against what lies underneath.
    """
    placed: list[Box] = []
    for point, size in zip(points, sizes, strict=True):
        best: tuple[float, Box] | None = None
        for distance, box in _around(point, size):
            outside = box.width * box.height - box.overlap(area)
            hard, soft = outside + sum(map(box.overlap, placed)), sum(map(box.overlap, taken))
            cost = round(distance + CROWDED * (100 * hard + soft), 6)
            if best is None or cost < best[0]:
                best = cost, box
        assert best is not None
        placed.append(best[1])
    return placed


def _around(point: tuple[float, float], size: tuple[float, float]) -> list[tuple[float, Box]]:
    found = []
    for distance in DISTANCES:
        for degrees in DIRECTIONS:
            x, y = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            # The box's own extent in that direction is added, so that `distance` is the gap between point and box.
            centre = point[0] + x * (distance + size[0] / 2), point[1] + y * (distance + size[1] / 2)
            found.append((distance, Box(centre[0] - size[0] / 2, centre[1] - size[1] / 2, *size)))
    return found
