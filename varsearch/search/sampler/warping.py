"""The scale on which objectives are modelled: warped Gaussian processes with a fixed warping.

A loss spans four decades from a mild policy to a broken one, so its inverse hyperbolic sine is
modelled: about linear near dense, a logarithm beyond. Of time and memory it is the logarithm, on
which factors add up. (Snelson, Rasmussen and Ghahramani 2003, "Warped Gaussian Processes".)

    loss:  z = asinh((c - c₀) / τ)        time, bytes:  z = log c

| symbol | meaning                                              |
|--------|------------------------------------------------------|
| c, c₀  | relative cost of a policy, of dense (1 or 0)         |
| τ      | `soft`: relative loss where the logarithm takes over |
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from varsearch.db import TrialRecord
from varsearch.measurement import METRICS
from varsearch.search.core.dominance import standard_error
from varsearch.search.core.objectives import relative_costs
from varsearch.search.core.pareto import Array
from varsearch.search.core.settings import RunSettings


class Warping:
    """Relative costs of one run, and their warped values.

    Args:
        settings: objectives.
        dense: metrics of the dense policy.
        soft: τ.
    """

    def __init__(self, settings: RunSettings, dense: Mapping[str, float], soft: float) -> None:
        self.settings, self.dense, self.soft = settings, dense, soft

    def costs(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """Relative costs of all objectives; a ΔFID below 0 stays below 0."""
        costs = list(relative_costs(self.settings, values, self.dense))
        for j, metric in enumerate(self.settings.objectives):
            if metric == "delta_fid":
                costs[j] = values.get("delta_fid", 0.0) / self.dense_fid
        return tuple(costs)

    @property
    def dense_fid(self) -> float:
        """The unit of ΔFID: dense's FID, or 1 where nobody knows it."""
        return self.dense.get("fid") or 1.0

    def cost(self, metric: str, values: Mapping[str, float]) -> float:
        """The relative cost in one metric, of values that may lack others."""
        return self.costs({**self.dense, **values})[self.settings.objectives.index(metric)]

    def warp(self, metric: str, cost: Array) -> Array:
        """Warped relative costs, of any shape."""
        if METRICS[metric].kind == "quality":
            warped: Array = np.arcsinh((cost - self._lossless(metric)) / self.soft)
            return warped
        return np.log(np.maximum(cost, 1e-6))

    def unwarp(self, metric: str, warped: Array) -> Array:
        """Relative costs; of a loss at least 0."""
        if METRICS[metric].kind == "quality":
            excess: Array = self.soft * np.sinh(np.clip(warped, -20, 20))
            return np.maximum(excess + self._lossless(metric), 0)
        return np.exp(warped)

    def noise(self, metric: str, trial: TrialRecord) -> float:
        """The standard error of a trial's warped cost, to first order: |dz/dx| times that of x."""
        measured = trial.metrics.get(metric)
        if measured is None:
            return 0.0
        error, dense = standard_error(measured), self.dense
        if METRICS[metric].kind != "quality":
            return error / measured.value
        if METRICS[metric].direction == "maximize":
            # The relative cost is dense's value divided by the own one.
            cost = self.cost(metric, trial.values)
            slope = cost**2 / abs(dense[metric] or 1.0)
            return error * slope / float(np.hypot(cost - 1, self.soft))
        is_delta = metric == "delta_fid"
        value = measured.value if is_delta else measured.value - dense[metric]
        unit = self.dense_fid if is_delta else dense[metric] or 1.0
        return error / float(np.hypot(value, self.soft * unit))

    def _lossless(self, metric: str) -> float:
        """c₀: 1, or 0 where the metric is a difference to dense."""
        return self.cost(metric, self.dense)
