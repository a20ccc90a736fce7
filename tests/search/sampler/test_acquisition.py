"""Acquisition functions against brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from varsearch.search.core.pareto import Array, hypervolume, non_dominated_boxes
from varsearch.search.sampler.acquisition import (
    expected_hypervolume_improvement,
    noisy_expected_hypervolume_improvement,
    probability_feasible,
    probability_no_worse,
)

DIMENSIONS = pytest.mark.parametrize("dimensions", [1, 2, 3, 4])


def front(rng: np.random.Generator, dimensions: int) -> list[list[float]]:
    known: list[list[float]] = rng.uniform(0.4, 1.3, (12, dimensions)).tolist()
    return known


def improvement(known: list[list[float]], draws: list[Array], candidate: int) -> float:
    """Mean over all combinations of the values of a candidate."""
    reference = (1.1,) * len(draws)
    before = hypervolume(known, reference)
    volumes = []
    for point in product(*(draw[candidate].tolist() for draw in draws)):
        volumes.append(hypervolume([*known, point], reference) - before)
    return float(np.mean(volumes))


@DIMENSIONS
def test_improvement_is_that_of_the_hypervolume(dimensions: int) -> None:
    rng = np.random.default_rng(dimensions)
    known = front(rng, dimensions)
    boxes = non_dominated_boxes(known, (1.1,) * dimensions)
    draws = [rng.uniform(0, 1.2, (5, 2)) for _ in range(dimensions)]
    gains = expected_hypervolume_improvement(draws, boxes)
    expected = [improvement(known, draws, m) for m in range(5)]
    assert gains == pytest.approx(expected) and max(expected) > 0


@DIMENSIONS
def test_noisy_improvement_is_the_mean_over_posterior_samples(dimensions: int) -> None:
    rng = np.random.default_rng(dimensions)
    fronts = [front(rng, dimensions) for _ in range(3)]
    boxes = [non_dominated_boxes(known, (1.1,) * dimensions) for known in fronts]
    draws = [rng.uniform(0, 1.2, (4, 3, 2)) for _ in range(dimensions)]
    gains = noisy_expected_hypervolume_improvement(draws, boxes)
    for m, gain in enumerate(gains):
        each = []
        for p, known in enumerate(fronts):
            each.append(improvement(known, [drawn[:, p] for drawn in draws], m))
        assert gain == pytest.approx(np.mean(each))


def test_probabilities_count_draws() -> None:
    draws_MPQ = np.array([[[0.1, 0.2], [0.3, 0.4]], [[0.5, 0.6], [0.7, 0.8]]])
    assert probability_no_worse(draws_MPQ, np.array([0.1, 0.4])).tolist() == [[0.5, 1.0], [0.0, 0.0]]
    (feasible_M,) = probability_feasible([draws_MPQ, draws_MPQ], {1: 0.3})
    assert feasible_M.tolist() == [0.75, 0.0]
