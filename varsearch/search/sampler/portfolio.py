"""A portfolio of samplers, used the more, the more hypervolume their proposals have added.

A multi-armed bandit with exponentially weighted gains (Hoffman, Brochu and de Freitas 2011,
"Portfolio allocation for Bayesian optimization"). The probability of an arm is

    p_i = f_i + (1 - Σ f) r_i / Σ r,      r_i = (r₀ + Σ γ^(n-t) g_t) / (1 + Σ γ^(n-t))

| symbol | meaning                                                       |
|--------|---------------------------------------------------------------|
| f_i    | least probability of the arm                                  |
| g_t    | hypervolume that trial t of the arm added to the trials before |
| γ      | `memory`: what a gain counts after one more trial             |
| n      | number of the next trial                                      |
| r₀     | the rate of all arms together: an arm without trials has it   |

A fixed share of the proposals is to beat a published system instead.
"""

from __future__ import annotations

import random
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from itertools import takewhile

from varsearch.db import State, TrialRecord
from varsearch.search.core.objectives import dense_trial, front_trials, front_volume
from varsearch.search.core.optuna_study import Space
from varsearch.search.core.settings import RunSettings
from varsearch.search.sampler.base import (
    BAYESIAN,
    EVOLUTIONARY,
    MUTATION,
    LoadedInformation,
    Proposal,
    Sampler,
    SideInformation,
    generator,
)
from varsearch.search.sampler.bayesian import BayesianConfig, BayesianSampler
from varsearch.search.sampler.beat_baseline import BeatBaselineConfig, BeatBaselineSampler
from varsearch.search.sampler.evolutionary import EvolutionaryConfig, EvolutionarySampler
from varsearch.search.sampler.mutation import MutationSampler
from varsearch.search.sampler.random_search import RandomSampler
from varsearch.search.sampler.variation import VariationConfig


@dataclass(frozen=True, slots=True)
class PortfolioConfig:
    """Tuning constants of the portfolio and of its samplers."""

    # Share of the proposals that are to dominate a published system, as long as one may be on the
    # front.
    beat_baseline_share: float = 0.15
    # f, the least probability: of Bayesian, evolutionary, mutation.
    least: tuple[float, float, float] = (0.5, 0.05, 0.05)
    # γ: after 14 more trials a gain counts half.
    memory: float = 0.95
    # How often a mutation may give a policy that was tried before.
    mutation_attempts: int = 10
    # Random changes until the space counts as exhausted.
    random_attempts: int = 1000
    bayesian: BayesianConfig = field(default_factory=BayesianConfig)
    variation: VariationConfig = field(default_factory=VariationConfig)
    beat_baseline: BeatBaselineConfig = field(default_factory=BeatBaselineConfig)
    evolutionary: EvolutionaryConfig = field(default_factory=EvolutionaryConfig)


DEFAULTS = PortfolioConfig()

ARMS = (BAYESIAN, EVOLUTIONARY, MUTATION)
"""Origins of the arms' proposals."""


class PortfolioSampler:
    """Proposes by one of several samplers.

    Args:
        settings: objectives, bounds and seed.
        space: policies as integer vectors.
        information: of the model. Without it, only samplers of knobs propose.
        config: tuning constants.
    """

    def __init__(
        self,
        settings: RunSettings,
        space: Space,
        information: SideInformation | None = None,
        config: PortfolioConfig = DEFAULTS,
    ) -> None:
        self._settings, self._config = settings, config
        self._trials: dict[int, TrialRecord] = {}
        self._gains: list[tuple[TrialRecord, float]] = []
        self._evolutionary = EvolutionarySampler(settings, space, config.evolutionary)
        self._random = RandomSampler(settings, space, config.random_attempts)
        self._beat_baseline: BeatBaselineSampler | None = None
        self._arms: dict[str, Sampler] = {EVOLUTIONARY: self._evolutionary}
        self._samplers: list[Sampler] = [self._evolutionary, self._random]
        if information is not None:
            self._inform(LoadedInformation(information, config.variation))

    def _inform(self, information: LoadedInformation) -> None:
        """Adds the samplers that need a model's shape."""
        settings, config = self._settings, self._config
        bayesian = BayesianSampler(settings, information, config.bayesian)
        mutation = MutationSampler(settings, information, config.mutation_attempts)
        self._beat_baseline = BeatBaselineSampler(
            settings, information, config.bayesian, config.beat_baseline
        )
        self._arms = dict(zip(ARMS, (bayesian, self._evolutionary, mutation), strict=True))
        self._samplers += [bayesian, mutation, self._beat_baseline]

    def show(self, trial: TrialRecord) -> None:
        """Takes note of a trial as it is now."""
        self._trials[trial.number] = trial
        for sampler in self._samplers:
            sampler.show(trial)

    def propose(
        self, number: int, seen: Container[str], rng: random.Random | None = None
    ) -> Proposal | None:
        """See `Sampler`; None if the space is exhausted."""
        rng = rng or generator(self._settings, number)
        beat = self._beat_baseline
        # A random number is drawn only where there is a baseline.
        if beat and beat.has_baseline and rng.random() < self._config.beat_baseline_share:
            proposal = beat.propose(number, seen, rng)
            if proposal is not None:
                return proposal
        for sampler in self._order(number, rng):
            proposal = sampler.propose(number, seen, rng)
            if proposal is not None:
                return proposal
        return self._random.propose(number, seen, rng)

    def _order(self, number: int, rng: random.Random) -> list[Sampler]:
        """The arm that is drawn first, then the others."""
        weights = {EVOLUTIONARY: 1.0}
        # Without dense there is nothing to compare with.
        if len(self._arms) > 1 and dense_trial(self._trials.values()) is not None:
            weights = self.shares(number)
        first = rng.choices(list(weights), list(weights.values()))[0]
        return [self._arms[first], *(self._arms[name] for name in weights if name != first)]

    def shares(self, number: int) -> dict[str, float]:
        """The probability of each arm for trial `number`, by origin; dense must be evaluated."""
        usual = self._rate(number, ARMS, 1e-6)
        least, rates = dict(zip(ARMS, self._config.least, strict=True)), {}
        for arm in ARMS:
            rates[arm] = self._rate(number, (arm,), usual)
        free, total = 1 - sum(least.values()), sum(rates.values())
        return {arm: least[arm] + free * rates[arm] / total for arm in ARMS}

    def _rate(self, number: int, origins: Container[str], prior: float) -> float:
        """r: the mean gain of recent trials of these origins."""
        gained = weight = 0.0
        for trial, gain in self._history():
            if trial.origin in origins:
                counts = self._config.memory ** (number - trial.number)
                gained, weight = gained + counts * gain, weight + counts
        return (prior + gained) / (1 + weight)

    def _history(self) -> list[tuple[TrialRecord, float]]:
        """Complete trials by number, and what each added to the hypervolume of those before."""
        dense = dense_trial(self._trials.values())
        assert dense is not None
        complete = []
        for _, trial in sorted(self._trials.items()):
            if trial.state is State.COMPLETE:
                complete.append(trial)
        # Gains stay as long as the trials before are the same.
        pairs = zip(complete, self._gains, strict=False)
        known = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1][0], pairs))
        del self._gains[known:]
        before = self._volume(complete[:known], dense.values)
        for i in range(known, len(complete)):
            volume = self._volume(complete[: i + 1], dense.values)
            self._gains.append((complete[i], volume - before))
            before = volume
        return self._gains

    def _volume(self, trials: list[TrialRecord], dense: Mapping[str, float]) -> float:
        front = front_trials(self._settings, trials)
        return front_volume(self._settings, [trial.values for trial in front], dense)


Proposer = PortfolioSampler
"""The name until all rooms use the new one."""
