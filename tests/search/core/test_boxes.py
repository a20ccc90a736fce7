"""Hypervolume and the boxes that no point dominates, for one to four objectives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from varsearch.search.core.pareto import Point, dominates, hypervolume, non_dominated, non_dominated_boxes

coordinate = st.one_of(st.floats(0, 1.3), st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.1]))
fronts = st.integers(1, 4).flatmap(lambda d: st.tuples(st.just(d), st.lists(st.tuples(*[coordinate] * d), max_size=9)))


@settings(max_examples=50, deadline=None)
@given(fronts)
def test_hypervolume_is_that_of_optuna(drawn: tuple[int, list[Point]]) -> None:
    dimensions, points = drawn
    inside = [point for point in points if max(point) < 1.1]
    expected = 0.0
    if inside:
        expected = compute_hypervolume(np.array(inside), np.full(dimensions, 1.1))
    assert hypervolume(points, (1.1,) * dimensions) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(fronts, st.integers(0, 2**32))
def test_boxes_are_disjoint_and_hold_what_no_point_dominates(drawn: tuple[int, list[Point]], seed: int) -> None:
    dimensions, points = drawn
    low_BD, high_BD = non_dominated_boxes(points, (1.1,) * dimensions)
    assert (low_BD < high_BD).all()
    for place in np.random.default_rng(seed).uniform(0, 1.1, (50, dimensions)):
        is_inside_B = ((low_BD < place) & (place < high_BD)).all(axis=1)
        is_free = not any(dominates(point, place.tolist()) for point in points)
        assert is_inside_B.sum() == is_free


@settings(max_examples=50, deadline=None)
@given(fronts)
def test_boxes_and_hypervolume_fill_the_reference_box(drawn: tuple[int, list[Point]]) -> None:
    dimensions, points = drawn
    low_BD, high_BD = non_dominated_boxes(points, (1.1,) * dimensions)
    volume = float((high_BD - low_BD).prod(axis=1).sum())
    assert volume == pytest.approx(1.1**dimensions - hypervolume(points, (1.1,) * dimensions))


@settings(max_examples=50, deadline=None)
@given(fronts)
def test_dominated_points_change_nothing(drawn: tuple[int, list[Point]]) -> None:
    dimensions, points = drawn
    reference = (1.1,) * dimensions
    front = [points[i] for i in non_dominated(points)]
    assert hypervolume(front, reference) == pytest.approx(hypervolume(points, reference))
    sides = []
    for known in (front, points):
        low_BD, high_BD = non_dominated_boxes(known, reference)
        sides.append(float((high_BD - low_BD).prod(axis=1).sum()))
    assert sides[0] == pytest.approx(sides[1])
