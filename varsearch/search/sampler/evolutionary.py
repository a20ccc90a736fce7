"""NSGA-II in steady state (Deb, Pratap, Agarwal and Meyarivan 2002), by Optuna's sampler.

All evaluated trials are one generation. Its best trials, by rank and crowding distance, are the
parents of the next proposal, so no worker waits for a generation to fill (Durillo, Nebro, Luna and
Alba 2009, "On the effect of the steady-state selection scheme in multi-objective genetic
algorithms"). The sampler is asked on a copy of the study in memory, where asking costs no
transactions.
"""

from __future__ import annotations

import random
from collections.abc import Container
from dataclasses import dataclass

import optuna
from optuna.samplers import NSGAIISampler
from optuna.samplers.nsgaii import UniformCrossover
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from varsearch.db import TrialRecord
from varsearch.policy import Policy
from varsearch.search.core.optuna_study import Space, StudyView
from varsearch.search.core.settings import RunSettings
from varsearch.search.sampler.base import EVOLUTIONARY, TrialSampler

GENERATION = "NSGAIISampler:generation"
"""Where Optuna's sampler keeps the generation of a trial."""


@dataclass(frozen=True, slots=True)
class EvolutionaryConfig:
    """Tuning constants."""

    # Best trials from which the next policy may descend.
    population: int = 30
    # How often the sampler may propose a policy that was tried before.
    attempts: int = 10


class EvolutionarySampler(TrialSampler):
    """NSGA-II over the knobs of the space, so also over fields that no setting expresses.

    Args:
        settings: objectives and bounds.
        space: policies as integer vectors.
        config: tuning constants.
    """

    origin = EVOLUTIONARY

    def __init__(self, settings: RunSettings, space: Space, config: EvolutionaryConfig) -> None:
        super().__init__(settings)
        self._space, self._config = space, config
        self._view = StudyView("proposals", InMemoryStorage(), settings, space)

    def show(self, trial: TrialRecord) -> None:
        """Takes note of a trial as it is now."""
        super().show(trial)
        self._view.show(trial)

    def _policy(self, rng: random.Random, seen: Container[str]) -> Policy | None:
        study = self._generation(rng.getrandbits(32))
        for _ in range(self._config.attempts):
            asked = study.ask(dict(self._view.distributions))
            policy = self._space.decode(asked.params)
            if policy.digest not in seen:
                return policy
        return None

    def _generation(self, seed: int) -> optuna.Study:
        """All evaluated trials as one full generation of a new study."""
        done = self._view.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        size = max(2, min(self._config.population, len(done)))
        sampler = NSGAIISampler(population_size=size, crossover=UniformCrossover(), seed=seed)
        # A full generation: the sampler selects parents among all of its trials.
        study = optuna.create_study(directions=self._view.study.directions, sampler=sampler)
        study.add_trials([_member(trial) for trial in done])
        return study


def _member(trial: FrozenTrial) -> FrozenTrial:
    return optuna.create_trial(
        values=trial.values,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs={**trial.system_attrs, GENERATION: 0},
    )
