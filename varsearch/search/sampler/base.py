"""Samplers: one protocol for every way to propose policies.

| sampler                  | file            | method                                    |
|--------------------------|-----------------|-------------------------------------------|
| `PortfolioSampler`       | `portfolio`     | all of the following, by their success    |
| `BayesianSampler`        | `bayesian`      | noisy expected hypervolume improvement    |
| `BeatBaselineSampler`    | `beat_baseline` | dominate a published system               |
| `EvolutionarySampler`    | `evolutionary`  | NSGA-II in steady state                   |
| `MutationSampler`        | `mutation`      | random changes of the front               |
| `RandomSampler`          | `random_search` | a trial with knobs drawn again            |

A proposal is a function of the settings, the trials shown, the trial's number and the generator. A
run that was interrupted goes on as if it had not been, as long as trials finish in the same order.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple, Protocol

from varsearch.db import TrialRecord
from varsearch.policy import Policy
from varsearch.profile import Profile
from varsearch.search.core.settings import RunSettings
from varsearch.search.sampler.prior_mean import PriorMean
from varsearch.search.sampler.variation import Variation, VariationConfig
from varsearch.target import ModelSpec

BAYESIAN, EVOLUTIONARY, MUTATION = "surrogate", "sampler", "mutation"
"""Origins of proposals, as databases store them; `core.source.RIVAL` is that of `beat_baseline`."""

CostFunction = Callable[[Policy], Mapping[str, float]]
"""Gives metrics of speed of a policy without evaluating it; `VarsearchError` for one that cannot
run."""

MakeCostFunction = Callable[[], CostFunction]


class Proposal(NamedTuple):
    """A policy to evaluate, and the origin of its trial."""

    origin: str
    policy: Policy


class Sampler(Protocol):
    """Proposes policies."""

    def show(self, trial: TrialRecord) -> None:
        """Takes note of a trial as it is now; the same number may be shown again."""
        ...

    def propose(
        self, number: int, seen: Container[str], rng: random.Random | None = None
    ) -> Proposal | None:
        """A valid policy for trial `number`.

        Args:
            number: of the trial.
            seen: digests that are not to be proposed.
            rng: by default the run's own generator of this number.

        Returns:
            None if the sampler finds no new policy, or cannot be used yet.
        """
        ...


class TrialSampler(ABC):
    """Base of samplers that know the trials of a run.

    Attributes:
        origin: of the proposals.
        trials: by number, in the order in which they were first shown.
    """

    origin: ClassVar[str]

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.trials: dict[int, TrialRecord] = {}

    def show(self, trial: TrialRecord) -> None:
        """Takes note of a trial as it is now."""
        self.trials[trial.number] = trial

    def propose(
        self, number: int, seen: Container[str], rng: random.Random | None = None
    ) -> Proposal | None:
        """See `Sampler`."""
        policy = self._policy(rng or generator(self.settings, number), seen)
        return None if policy is None else Proposal(self.origin, policy)

    @abstractmethod
    def _policy(self, rng: random.Random, seen: Container[str]) -> Policy | None:
        """The policy to propose."""


def generator(settings: RunSettings, number: int) -> random.Random:
    """Random numbers of a trial."""
    return random.Random(f"{settings.seed}/{number}")


@dataclass(frozen=True, slots=True)
class SideInformation:
    """Knowledge of a model besides its trials. Travels to other processes, so it is picklable.

    Args:
        spec: shape of the model.
        siblings: its possible refiners.
        profile: what its settings lose and save; without it, shapes have to do.
        make_costs: makes the function that computes costs without an evaluation: exactly those
            numbers that an evaluation would give.
    """

    spec: ModelSpec
    siblings: tuple[ModelSpec, ...] = ()
    profile: Profile | None = None
    make_costs: MakeCostFunction | None = None


class LoadedInformation:
    """Side information in this process. Its parts take seconds, so each is made when needed."""

    def __init__(self, information: SideInformation, variation: VariationConfig) -> None:
        self._given, self._variation = information, variation

    @cached_property
    def prior_mean(self) -> PriorMean:
        """Expected costs of policies."""
        return PriorMean(self._given.spec, self._given.siblings, self._given.profile)

    @cached_property
    def variation(self) -> Variation:
        """Where new policies come from."""
        return Variation(self.prior_mean, self._variation)

    @cached_property
    def cost_function(self) -> CostFunction | None:
        """Exact costs, if there are any."""
        return None if self._given.make_costs is None else self._given.make_costs()
