"""Random changes of policies on the front: (μ + 1) evolution without a model.

It needs no predictions, so it goes on where the surrogate is wrong.
"""

from __future__ import annotations

import random
from collections.abc import Container, Sequence

from varsearch.db import TrialRecord
from varsearch.policy import Policy
from varsearch.search.core.objectives import WORST, dense_trial, front_trials, relative_costs
from varsearch.search.core.settings import RunSettings
from varsearch.search.sampler.base import MUTATION, LoadedInformation, TrialSampler
from varsearch.search.sensitivity.decomposition import compose, settings_of


class MutationSampler(TrialSampler):
    """A member of the front with a few units changed, see `Variation.mutated`.

    Args:
        settings: objectives and bounds.
        information: of the model.
        attempts: how often a change may give a policy that was tried before.
    """

    origin = MUTATION

    def __init__(
        self, settings: RunSettings, information: LoadedInformation, attempts: int
    ) -> None:
        super().__init__(settings)
        self._information, self._attempts = information, attempts

    def _policy(self, rng: random.Random, seen: Container[str]) -> Policy | None:
        trials = list(self.trials.values())
        if dense_trial(trials) is None:
            return None
        parents = parents_on_front(self.settings, trials)
        spec, variation = self._information.prior_mean.spec, self._information.variation
        # Changes of a setting without effect give a policy that is known.
        for _ in range(self._attempts):
            parent = settings_of(rng.choice(parents).policy)
            policy = compose(spec, variation.mutated(parent, rng))
            if policy.digest not in seen:
                return policy
        return None


def parents_on_front(settings: RunSettings, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The front, without trials that cost too much to count for the hypervolume.

    Where no other trial is on the front they stay; without a front, dense is the parent.
    """
    dense = dense_trial(trials)
    assert dense is not None
    front, counted = front_trials(settings, trials), []
    for trial in front:
        if max(relative_costs(settings, trial.values, dense.values)) < WORST:
            counted.append(trial)
    return counted or front or [dense]
