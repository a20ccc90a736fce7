"""Expected gains against the hypervolume itself."""

from __future__ import annotations

import random

import numpy as np
import pytest

from varsearch.search.core.pareto import hypervolume
from varsearch.search.sampler.acquisition import expected_gains, free_boxes


def points(rng: random.Random, n: int, dimensions: int) -> list[tuple[float, ...]]:
    return [tuple(rng.uniform(-0.1, 1.3) for _ in range(dimensions)) for _ in range(n)]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_free_boxes_fill_what_no_point_dominates(dimensions: int) -> None:
    rng, reference = random.Random(dimensions), (1.1,) * dimensions
    for n in (0, 1, 7, 20):
        known = [tuple(max(x, 0.0) for x in point) for point in points(rng, n, dimensions)]
        low_ND, high_ND = free_boxes(known, reference)
        volume = float((high_ND - low_ND).prod(1).sum())
        assert volume == pytest.approx(1.1**dimensions - hypervolume(known, reference))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_gains_are_those_of_the_hypervolume(dimensions: int) -> None:
    """Of certain objectives, and of uncertain ones the mean over all combinations of their values."""
    rng, reference = random.Random(dimensions), (1.1,) * dimensions
    known = [tuple(max(x, 0.0) for x in point) for point in points(rng, 12, dimensions)]
    boxes, before = free_boxes(known, reference), hypervolume(known, reference)
    draws = [np.array([[rng.uniform(0, 1.2) for _ in range(2)] for _ in range(5)]) for _ in range(dimensions)]
    gains = expected_gains(draws, boxes)
    for c, gain in enumerate(gains):
        grid = np.stack(np.meshgrid(*(draw[c] for draw in draws)), -1).reshape(-1, dimensions)
        each = [hypervolume([*known, tuple(point)], reference) - before for point in grid.tolist()]
        assert gain == pytest.approx(sum(each) / len(each))
