"""Beating a baseline: a policy that is to dominate a published system.

Hypervolume alone prefers policies that lose a little more and save much more, but whoever uses a
published system wants to know whether another policy is nowhere worse. Two steps:

1. Combine the system with settings of trials that were measured as harmless on the dense model.
   This trusts measurements of whole policies, where a surrogate sums up their parts.
2. Where nothing is left to combine, maximize the probability to dominate the system
   (`acquisition`), from candidates that descend from it and from the front.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varsearch.db import State, TrialRecord
from varsearch.measurement import METRICS, Measurement
from varsearch.policy import Policy
from varsearch.search.core.dominance import dominated, domination
from varsearch.search.core.objectives import dense_trial
from varsearch.search.core.pareto import Array
from varsearch.search.core.settings import RunSettings
from varsearch.search.core.source import PRESET, RIVAL
from varsearch.search.sampler.acquisition import Acquisition, probability_no_worse
from varsearch.search.sampler.base import LoadedInformation, TrialSampler
from varsearch.search.sampler.bayesian import BayesianConfig
from varsearch.search.sampler.front_posterior import FrontPosterior
from varsearch.search.sampler.mutation import parents_on_front
from varsearch.search.sampler.optimize_acquisition import AcquisitionOptimizer
from varsearch.search.sensitivity.decomposition import (
    Setting,
    compose,
    effective,
    other_fields,
    settings_of,
)
from varsearch.target import ModelSpec


@dataclass(frozen=True, slots=True)
class BeatBaselineConfig:
    """Tuning constants."""

    # Share of posterior samples on whose front a published system must be.
    standing: float = 0.2
    # Least probability to dominate dense of settings that are added to a system; about one half for
    # settings that lose nothing.
    likely: float = 0.3
    # Probability that a system loses more with something added than alone, from which on nothing
    # that includes it is added.
    harmful: float = 0.95
    # Predicted cost relative to the system's that is still called as good, of metrics that are
    # computed exactly before the choice. Predictions are off by more; a candidate that has to seem
    # cheaper pays for it with another loss, see docs/log.md.
    slack: float = 1.02
    # Ε, added to the probability that an objective is no worse: where all candidates are hopeless
    # in one objective, the others still count.
    faint: float = 0.01


DEFAULTS = BeatBaselineConfig()


class BeatBaselineSampler(TrialSampler):
    """Proposes against a published system that may be on the front; nothing without one.

    Args:
        settings: objectives and bounds.
        information: of the model.
        bayesian: constants of the surrogate and of the search for the maximum.
        config: tuning constants.
    """

    origin = RIVAL

    def __init__(
        self,
        settings: RunSettings,
        information: LoadedInformation,
        bayesian: BayesianConfig,
        config: BeatBaselineConfig,
    ) -> None:
        super().__init__(settings)
        self._information, self._bayesian, self._config = information, bayesian, config
        self._optimizer = AcquisitionOptimizer(information, bayesian.optimizer)

    @property
    def has_baseline(self) -> bool:
        """Whether dense and a published system are evaluated."""
        complete = [t for t in self.trials.values() if t.state is State.COMPLETE]
        published = any(t.origin.startswith(PRESET) for t in complete)
        return published and dense_trial(complete) is not None

    def _policy(self, rng: random.Random, seen: Container[str]) -> Policy | None:
        if not self.has_baseline:
            return None
        trials, settings = list(self.trials.values()), self.settings
        prior_mean = self._information.prior_mean
        front = FrontPosterior(settings, prior_mean, trials, self._bayesian.surrogate)
        index = standing_baseline(front, self._config, rng)
        if index is None:
            return None
        baseline = Baseline(front, index, self._information, self._config)
        system = baseline.trial
        together = combined(
            settings, prior_mean.spec, system, trials, seen, baseline.fits, self._config
        )
        if together is not None:
            return together
        ancestors = [system, *parents_on_front(settings, trials)]
        parents = [settings_of(trial.policy) for trial in ancestors]
        return self._optimizer.best(front, baseline.domination, parents, seen, rng)


def standing_baseline(
    front: FrontPosterior, config: BeatBaselineConfig, rng: random.Random
) -> int | None:
    """Draws a published system by its probability to be on the front; index in `complete`.

    Only systems on the front of `standing` of the posterior samples can be drawn.
    """
    least, likely = config.standing * len(front.fronts), {}
    for i, trial in enumerate(front.complete):
        if trial.origin.startswith(PRESET):
            n_samples = int(_is_on_front(front, i).sum())
            # A system that surely is dominated is not worth beating.
            if n_samples >= max(least, 1):
                likely[i] = n_samples
    if not likely:
        return None
    return rng.choices(list(likely), list(likely.values()))[0]


def _is_on_front(front: FrontPosterior, index: int) -> NDArray[np.bool_]:
    """In which posterior samples a trial is on the front, (P,)."""
    return np.array([index in front.counted_N[members] for members in front.fronts])


class Baseline:
    """A published system, and how likely policies dominate it.

    It counts in the posterior samples on whose front it is: policies that dominate it in the
    others would do so again.

    Args:
        front: of the run.
        index: of the system among the complete trials.
        information: of the model.
        config: tuning constants.
    """

    def __init__(
        self,
        front: FrontPosterior,
        index: int,
        information: LoadedInformation,
        config: BeatBaselineConfig,
    ) -> None:
        self.trial = front.complete[index]
        self._front, self._information, self._config = front, information, config
        self._samples = np.flatnonzero(_is_on_front(front, index))
        self._costs_PD = front.costs_NPD[index, self._samples]
        self._exact: dict[int, float] = {}
        if information.cost_function is not None:
            self._exact = front.exact_costs(self.trial.policy, information.cost_function)

    @property
    def domination(self) -> Acquisition:
        """About the probability to dominate the system, times that of feasibility."""
        return Acquisition(
            lambda draws: self._score(draws, is_exact=False),
            lambda draws: self._score(draws, is_exact=True),
        )

    def _score(self, draws: Sequence[Array], *, is_exact: bool) -> Array:
        """Metrics that are computed later count by their medians, with some slack."""
        no_worse = []
        for j, baseline_P in enumerate(self._costs_PD.T):
            drawn_MPQ = draws[j][:, self._samples]
            if is_exact or j not in self._exact:
                probability_MP = probability_no_worse(drawn_MPQ, baseline_P)
            else:
                median_MP = np.median(drawn_MPQ, axis=2)
                is_no_worse_MP = median_MP <= self._config.slack * baseline_P
                probability_MP = is_no_worse_MP.astype(float)
            no_worse.append(probability_MP)
        worth_M: Array = np.prod(np.array(no_worse) + self._config.faint, axis=0).mean(1)
        return self._front.feasible(worth_M, draws)

    def fits(self, policy: Policy) -> bool:
        """Whether a policy, by its exact costs, costs no more than the system and the bounds."""
        if self._information.cost_function is None:
            return True
        costs = self._front.exact_costs(policy, self._information.cost_function)
        for j, cost in costs.items():
            own, bound = self._exact.get(j, cost), self._front.bounds.get(j, cost)
            if cost > min(own, bound):
                return False
        return True


def combined(
    settings: RunSettings,
    spec: ModelSpec,
    system: TrialRecord,
    trials: Sequence[TrialRecord],
    seen: Container[str],
    fits: Callable[[Policy], bool] = lambda policy: True,
    config: BeatBaselineConfig = DEFAULTS,
) -> Policy | None:
    """A system and, where it sets nothing, the trial that dominates dense most likely.

    Not added are trials that would leave settings of the system without effect, as a smaller model
    at its scales does, and trials that include settings which already harmed the system. Where no
    quality counts, nothing is added.

    Args:
        settings: objectives and bounds.
        spec: the model's shape.
        system: a published one; nothing is added to one that settings cannot express.
        trials: of the run, dense among them.
        seen: digests that are not to be proposed.
        fits: whether the exact costs of a policy speak for it.
        config: tuning constants.
    """
    names = dict.fromkeys((*settings.objectives, *settings.bounds))
    quality = tuple(name for name in names if METRICS[name].kind == "quality")
    if other_fields(system.policy) or not quality:
        return None
    complete, harmless = _complete(trials), []
    for trial in complete:
        if settings.is_feasible(trial.values) and not other_fields(trial.policy):
            harmless.append(trial)
    own = settings_of(system.policy)
    harmful = _harmful(settings, quality, system, complete, config)
    dense = dense_trial(complete)
    assert dense is not None
    for probability, trial in _by_domination(settings, quality, harmless, dense):
        # All that follow are less likely.
        if probability < config.likely:
            break
        # At a unit that both set, the system's setting counts.
        genes = {s.unit: s for s in (*settings_of(trial.policy), *own)}
        chosen = effective(genes.values())
        is_whole = set(own) <= set(chosen)
        if is_whole and not any(harm <= set(chosen) for harm in harmful):
            policy = compose(spec, chosen)
            if policy.digest not in seen and fits(policy):
                return policy
    return None


def _complete(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    complete = [trial for trial in trials if trial.state is State.COMPLETE]
    return sorted(complete, key=lambda trial: trial.number)


def _by_domination(
    settings: RunSettings,
    quality: Sequence[str],
    trials: Sequence[TrialRecord],
    dense: TrialRecord,
) -> list[tuple[float, TrialRecord]]:
    """Trials with their probability to dominate dense, the likeliest first.

    Dense's own numbers count as exact.
    """
    # Its errors would be counted for every trial at once.
    exact = {name: Measurement(metric=name, value=value) for name, value in dense.values.items()}
    objectives = tuple(dict.fromkeys((*settings.objectives, *quality)))
    compared = settings.model_copy(update={"objectives": objectives})
    probabilities = domination(compared, [trial.metrics for trial in trials], exact)
    return sorted(zip(probabilities, trials, strict=True), key=lambda pair: -pair[0])


def _harmful(
    settings: RunSettings,
    quality: tuple[str, ...],
    system: TrialRecord,
    complete: Sequence[TrialRecord],
    config: BeatBaselineConfig,
) -> list[set[Setting]]:
    """Settings of trials that set all that the system does, and surely lose more quality."""
    own, extended = set(settings_of(system.policy)), []
    for trial in complete:
        if not other_fields(trial.policy) and own < set(settings_of(trial.policy)):
            extended.append(trial)
    # Costs of an extended system are known to be lower: only quality tells harm.
    compared = settings.model_copy(update={"objectives": quality})
    probabilities = dominated(compared, [trial.metrics for trial in extended], system.metrics)
    harmful = []
    for probability, trial in zip(probabilities, extended, strict=True):
        if probability > config.harmful:
            harmful.append(set(settings_of(trial.policy)))
    return harmful
