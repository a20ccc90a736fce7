"""Acquisition functions: how promising policies are, given equally likely values of their costs.

Expected hypervolume improvement (EHVI):

    α(x) = E[HV(front ∪ {x}) - HV(front)] = Σ_boxes Π_j E[max(0, u_j - max(l_j, c_j(x)))]

The region that no known point dominates is cut into boxes [l, u]. A point dominates of a box the
product of what it dominates of each side, and expectations of independent factors multiply, so the
sum over boxes is exact (Yang, Emmerich, Deutz and Bäck 2019, "Efficient computation of expected
hypervolume improvement using box decomposition algorithms"). With trials that have errors, the
mean over posterior samples of the front is noisy EHVI (Daulton, Balandat and Bakshy 2021, "Parallel
Bayesian optimization of multiple noisy objectives with expected hypervolume improvement").

Probability to dominate a baseline b:

    α(x) = mean_p Π_j (ε + P[c_j(x) <= c_j(b)])

Both are multiplied by the probability of feasibility (Gardner et al. 2014, "Bayesian optimization
with inequality constraints").

| suffix | meaning                                               |
|--------|-------------------------------------------------------|
| M      | policies                                              |
| B      | boxes                                                 |
| P      | posterior samples                                     |
| Q      | equally likely values of a cost in a posterior sample |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from varsearch.search.core.pareto import Array

Score = Callable[[Sequence[Array]], Array]
"""From equally likely relative costs, (M, P, Q) for each metric, to the worth of policies, (M,)."""


class Acquisition(NamedTuple):
    """An acquisition function.

    Attributes:
        predicted: scores policies of which all costs are predictions.
        exact: scores policies whose known costs are exact.
    """

    predicted: Score
    exact: Score


def expected_hypervolume_improvement(draws: Sequence[Array], boxes: tuple[Array, Array]) -> Array:
    """Exact expectation for independent objectives, (M,).

    Args:
        draws: equally likely values of each objective, (M, Q); Q = 1 where it is known.
        boxes: see `non_dominated_boxes`.
    """
    low_BD, high_BD = boxes
    volume_MB = np.ones((len(draws[0]), len(low_BD)))
    for d, draws_MQ in enumerate(draws):
        side_MB = np.zeros_like(volume_MB)
        # E[max(0, u - max(l, c))], one equally likely value at a time.
        for column_M in draws_MQ.T:
            begin_MB = np.maximum(low_BD[:, d], column_M[:, None])
            side_MB += np.maximum(high_BD[:, d] - begin_MB, 0)
        volume_MB *= side_MB / draws_MQ.shape[1]
    total: Array = volume_MB.sum(1)
    return total


def noisy_expected_hypervolume_improvement(
    draws: Sequence[Array], boxes: Sequence[tuple[Array, Array]]
) -> Array:
    """Mean over posterior samples, (M,), of draws (M, P, Q) and the boxes of each sample."""
    each = []
    for p, boxes_p in enumerate(boxes):
        drawn = [drawn_MPQ[:, p] for drawn_MPQ in draws]
        each.append(expected_hypervolume_improvement(drawn, boxes_p))
    mean: Array = np.mean(each, axis=0)
    return mean


def probability_no_worse(draws_MPQ: Array, baseline_P: Array) -> Array:
    """Probability that a cost is at most that of the baseline, (M, P)."""
    probability: Array = (draws_MPQ <= baseline_P[:, None]).mean(axis=2)
    return probability


def probability_feasible(draws: Sequence[Array], bounds: Mapping[int, float]) -> list[Array]:
    """Probability of each bounded metric that it keeps its bound, (M,) each.

    Args:
        draws: of all metrics.
        bounds: largest cost that is feasible, by index of the metric.
    """
    return [(draws[j] <= bound).mean((1, 2)) for j, bound in bounds.items()]
