from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varsearch.search.core.pareto import dominates, hypervolume, nearest_to_ideal, non_dominated

POINTS = st.integers(1, 3).flatmap(
    lambda d: st.lists(st.tuples(*[st.integers(0, 6)] * d), min_size=1, max_size=12)
)  # a coarse grid, so that coordinates often coincide


def cells(points: list[tuple[int, ...]], reference: tuple[int, ...]) -> int:
    """Hypervolume of integer points by counting unit cells."""
    return sum(
        any(all(x <= c for x, c in zip(point, cell, strict=True)) for point in points)
        for cell in itertools.product(*map(range, reference))
    )


@given(POINTS)
def test_front_is_what_nothing_dominates(points: list[tuple[int, ...]]) -> None:
    front = non_dominated(points)
    assert front == [i for i, p in enumerate(points) if not any(dominates(q, p) for q in points)]
    assert front


@given(POINTS, st.integers(1, 7))
def test_hypervolume_counts_the_dominated_cells(points: list[tuple[int, ...]], edge: int) -> None:
    reference = (edge,) * len(points[0])
    assert hypervolume(points, reference) == cells(points, reference)


@given(POINTS)
def test_hypervolume_is_that_of_the_front_and_grows_with_it(points: list[tuple[int, ...]]) -> None:
    reference = (7,) * len(points[0])
    whole = hypervolume(points, reference)
    assert hypervolume([points[i] for i in non_dominated(points)], reference) == whole
    assert hypervolume(points[1:], reference) <= whole


def test_hypervolume_agrees_with_sampling() -> None:
    rng = random.Random(0)
    points = [tuple(rng.random() for _ in range(3)) for _ in range(30)]
    draws = [tuple(rng.random() for _ in range(3)) for _ in range(20_000)]
    share = sum(any(all(x <= y for x, y in zip(p, d, strict=True)) for p in points) for d in draws) / len(draws)
    # Four standard deviations of a share over 20,000 draws.
    assert hypervolume(points, (1.0, 1.0, 1.0)) == pytest.approx(share, abs=4 * math.sqrt(0.25 / len(draws)))


def test_points_at_the_reference_and_beyond_add_nothing() -> None:
    assert hypervolume([(1.0, 0.0), (2.0, -5.0)], (1.0, 1.0)) == 0
    assert hypervolume([], (1.0, 1.0)) == 0
    assert hypervolume([(0.5, 0.5), (1.0, 0.0)], (1.0, 1.0)) == 0.25


@given(POINTS)
def test_nearest_to_ideal(points: list[tuple[int, ...]]) -> None:
    ideal = (0,) * len(points[0])
    best = nearest_to_ideal(points, ideal)
    assert math.hypot(*points[best]) == min(math.hypot(*point) for point in points)
