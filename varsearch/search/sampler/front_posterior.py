"""The front of a run as far as it is known: one front for each posterior sample of the surrogate.

Trials are measured with errors, so nobody knows which of them form the front. In a posterior sample
all true values are known: this is the "noisy" in noisy EHVI.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from varsearch.db import State, TrialRecord
from varsearch.errors import VarsearchError
from varsearch.measurement import METRICS
from varsearch.policy import Policy
from varsearch.search.core.objectives import WORST, dense_trial
from varsearch.search.core.pareto import Array, non_dominated, non_dominated_boxes
from varsearch.search.core.settings import RunSettings
from varsearch.search.sampler.acquisition import probability_feasible
from varsearch.search.sampler.base import CostFunction
from varsearch.search.sampler.prior_mean import PriorMean
from varsearch.search.sampler.surrogate import Surrogate, SurrogateConfig


class FrontPosterior:
    """Surrogate of all objectives and bounded metrics, and the fronts of its posterior samples.

    Args:
        settings: objectives and bounds.
        prior_mean: of the surrogate.
        trials: dense among them; those without an outcome count as evaluated at their predictions.
        config: of the surrogate.

    Attributes:
        complete: trials with an outcome, by number.
        metrics: objectives, then metrics that are only bounded.
        bounds: largest relative cost that is feasible, by index of the metric.
        costs_NPD: relative costs of trials and pending policies; `complete` come first.
        counted_N: indices of those that are feasible or pending.
        fronts: for each posterior sample the front among `counted_N`, as indices into it.
    """

    def __init__(
        self,
        settings: RunSettings,
        prior_mean: PriorMean,
        trials: Sequence[TrialRecord],
        config: SurrogateConfig,
    ) -> None:
        dense = dense_trial(trials)
        assert dense is not None
        self.settings, self._dense = settings, dense.values
        self.complete: list[TrialRecord] = []
        estimated, pending = [], []
        for trial in sorted(trials, key=lambda trial: trial.number):
            if trial.state is State.COMPLETE:
                self.complete.append(trial)
            elif trial.state is State.STOPPED and not settings.missing(trial.values):
                # A pruned trial has estimates, but no claim to be on the front.
                estimated.append(trial)
            elif not trial.state.is_final:
                pending.append(trial.policy)
        only_bounded = [name for name in settings.bounds if name not in settings.objectives]
        self.metrics = (*settings.objectives, *only_bounded)
        predicted = settings.model_copy(update={"objectives": self.metrics})
        evaluated = [*self.complete, *estimated]
        # Posterior samples change with every trial, and are the same after a restart.
        seed = settings.seed, len(trials)
        self.surrogate = Surrogate(
            prior_mean, predicted, dense.values, evaluated, pending, seed, config
        )
        costs = self.surrogate.known_costs()[: len(settings.objectives)]
        self.costs_NPD = np.stack(costs, axis=-1)
        counted = [settings.is_feasible(trial.values) for trial in self.complete]
        counted += [False] * len(estimated) + [True] * len(pending)
        self.counted_N = np.flatnonzero(counted)
        self.fronts = []
        for costs_ND in self.costs_NPD[self.counted_N].transpose(1, 0, 2):
            self.fronts.append(non_dominated(costs_ND.tolist()))
        # Bounds on the same scale as predictions.
        self.bounds: dict[int, float] = {}
        for name, limit in settings.bounds.items():
            j = self.metrics.index(name)
            self.bounds[j] = self.surrogate.warping.costs({**self._dense, name: limit})[j]

    @cached_property
    def boxes(self) -> list[tuple[Array, Array]]:
        """For each posterior sample, the region that no counted point dominates."""
        reference = (WORST,) * len(self.settings.objectives)
        boxes = []
        for p, front in enumerate(self.fronts):
            points = self.costs_NPD[self.counted_N[front], p]
            boxes.append(non_dominated_boxes(points.tolist(), reference))
        return boxes

    def feasible(self, worth_M: Array, draws: Sequence[Array]) -> Array:
        """Worth of policies times the probability that they keep the bounds, (M,)."""
        for probability_M in probability_feasible(draws, self.bounds):
            worth_M = worth_M * probability_M
        return worth_M

    def exact_costs(self, policy: Policy, cost_function: CostFunction) -> dict[int, float]:
        """Relative costs that need no evaluation, by index of the metric.

        A policy that cannot run costs the worst.
        """
        speed = [j for j, name in enumerate(self.metrics) if METRICS[name].kind == "speed"]
        try:
            known = cost_function(policy)
        except VarsearchError:
            return dict.fromkeys(speed, WORST)
        relative = self.surrogate.warping.costs({**self._dense, **known})
        return {j: relative[j] for j in speed if self.metrics[j] in known}
