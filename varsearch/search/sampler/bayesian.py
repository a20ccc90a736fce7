"""Bayesian optimization: the policy with the largest noisy expected hypervolume improvement.

The surrogate is `surrogate`, its prior mean `prior_mean`, the formula is in `acquisition`, and the
search for the maximum in `optimize_acquisition`. Its candidates descend from the front.
"""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from varsearch.policy import Policy
from varsearch.search.core.objectives import dense_trial
from varsearch.search.core.pareto import Array
from varsearch.search.core.settings import RunSettings
from varsearch.search.sampler.acquisition import (
    Acquisition,
    noisy_expected_hypervolume_improvement,
)
from varsearch.search.sampler.base import BAYESIAN, LoadedInformation, TrialSampler
from varsearch.search.sampler.front_posterior import FrontPosterior
from varsearch.search.sampler.mutation import parents_on_front
from varsearch.search.sampler.optimize_acquisition import AcquisitionOptimizer, OptimizerConfig
from varsearch.search.sampler.surrogate import SurrogateConfig
from varsearch.search.sensitivity.decomposition import settings_of


@dataclass(frozen=True, slots=True)
class BayesianConfig:
    """Tuning constants."""

    surrogate: SurrogateConfig = field(default_factory=SurrogateConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


class BayesianSampler(TrialSampler):
    """Noisy EHVI under a warped Gaussian process. Proposes nothing before dense is evaluated.

    Args:
        settings: objectives and bounds.
        information: of the model.
        config: tuning constants.
    """

    origin = BAYESIAN

    def __init__(
        self, settings: RunSettings, information: LoadedInformation, config: BayesianConfig
    ) -> None:
        super().__init__(settings)
        self._information, self._config = information, config
        self._optimizer = AcquisitionOptimizer(information, config.optimizer)

    def _policy(self, rng: random.Random, seen: Container[str]) -> Policy | None:
        trials = list(self.trials.values())
        if dense_trial(trials) is None:
            return None
        front = FrontPosterior(
            self.settings, self._information.prior_mean, trials, self._config.surrogate
        )
        parents = [settings_of(trial.policy) for trial in parents_on_front(self.settings, trials)]
        return self._optimizer.best(front, improvement(front), parents, seen, rng)


def improvement(front: FrontPosterior) -> Acquisition:
    """Noisy EHVI times the probability of feasibility."""
    n_objectives = len(front.settings.objectives)

    # Costs that are known exactly are draws that do not differ: one formula for both.
    def score(draws: Sequence[Array]) -> Array:
        worth_M = noisy_expected_hypervolume_improvement(draws[:n_objectives], front.boxes)
        return front.feasible(worth_M, draws)

    return Acquisition(score, score)
