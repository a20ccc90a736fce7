"""Optimizes an acquisition function over policies: an evolutionary search among candidates.

A round draws candidates from parents (`variation`) and scores them by predicted costs. The best of
all rounds are the parents of the next round. Of the best new policies some costs are computed
exactly, where a cost function is known, and these decide.
"""

from __future__ import annotations

import random
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from varsearch.policy import Policy
from varsearch.search.sampler.acquisition import Acquisition
from varsearch.search.sampler.base import LoadedInformation
from varsearch.search.sampler.front_posterior import FrontPosterior
from varsearch.search.sensitivity.decomposition import Chosen, compose


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """Tuning constants of the optimizer."""

    # Candidates of each round.
    rounds: tuple[int, ...] = (300, 150, 150)
    # Best candidates from which the next round descends.
    parents: int = 10
    # Best policies whose costs may be computed exactly: each takes as long as drawing dozens of
    # images.
    exact: int = 3


class AcquisitionOptimizer:
    """Finds policies that an acquisition function prefers.

    Args:
        information: where candidates come from, and the cost function.
        config: tuning constants.
    """

    def __init__(self, information: LoadedInformation, config: OptimizerConfig) -> None:
        self._information, self._config = information, config

    def best(
        self,
        front: FrontPosterior,
        acquisition: Acquisition,
        parents: Sequence[Chosen],
        seen: Container[str],
        rng: random.Random,
    ) -> Policy | None:
        """The best policy whose digest is not in `seen`; None if all candidates are."""
        ranked = self._ranked(front, acquisition, parents, rng)
        spec = self._information.prior_mean.spec
        best: dict[Policy, Chosen] = {}
        for chosen in ranked:
            policy = compose(spec, chosen)
            if policy.digest not in seen:
                best.setdefault(policy, chosen)
            if len(best) == self._config.exact:
                break
        return self._by_exact_costs(front, acquisition, best) if best else None

    def _ranked(
        self,
        front: FrontPosterior,
        acquisition: Acquisition,
        parents: Sequence[Chosen],
        rng: random.Random,
    ) -> list[Chosen]:
        """All candidates of all rounds, best first."""
        variation, known = self._information.variation, set[Chosen]()
        ranked: list[tuple[float, Chosen]] = []
        for n in self._config.rounds:
            new: list[Chosen] = []
            for chosen in variation.candidates(parents, rng, n):
                # A hash takes long, so each candidate is hashed once.
                before = len(known)
                known.add(chosen)
                if len(known) > before:
                    new.append(chosen)
            if new:
                scores = acquisition.predicted(front.surrogate.draws(new)).tolist()
                ranked += zip(scores, new, strict=True)
                ranked.sort(key=itemgetter(0), reverse=True)
            parents = [chosen for _, chosen in ranked[: self._config.parents]]
        return [chosen for _, chosen in ranked]

    def _by_exact_costs(
        self, front: FrontPosterior, acquisition: Acquisition, best: Mapping[Policy, Chosen]
    ) -> Policy:
        policies, cost_function = list(best), self._information.cost_function
        if cost_function is None:
            return policies[0]
        draws = front.surrogate.draws(list(best.values()))
        expected = acquisition.predicted(draws)
        winner, highest = 0, -1.0
        for i, policy in enumerate(policies):
            # Policies come best first: no later one is expected to beat this.
            if highest >= expected[i]:
                break
            for j, cost in front.exact_costs(policy, cost_function).items():
                draws[j][i] = cost
            score = float(acquisition.exact([drawn[i : i + 1] for drawn in draws])[0])
            if score > highest:
                winner, highest = i, score
        return policies[winner]
