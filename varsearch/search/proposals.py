"""What to try next."""

from __future__ import annotations

import random
from collections.abc import Container

import optuna
from optuna.samplers import NSGAIISampler
from optuna.samplers.nsgaii import UniformCrossover
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from varsearch.policy import Policy
from varsearch.search.settings import RunSettings
from varsearch.search.study import Space, StudyView

POPULATION = 30
"""Best trials that the next policy may descend from."""

ASKS = 10
"""How often the sampler may propose what was tried before."""

MUTATIONS = 1000
"""How many random changes are tried until the space counts as exhausted."""

GENERATION = "NSGAIISampler:generation"
"""Where Optuna's sampler keeps the generation of a trial."""


class Proposer:
    """Asks Optuna's NSGA-II on a copy of the study in memory, where asking costs no transactions.

    The sampler works in steady state: everything evaluated so far is one generation, whose best `POPULATION` trials
    by rank and crowding are the parents of the next proposal. No worker waits for a generation to fill.

    A proposal depends on the seed, its number and the trials shown, and on nothing else: a run that was interrupted
    goes on as if it had not been, as long as trials finish in the same order.
    """

    def __init__(self, settings: RunSettings, space: Space) -> None:
        self.view = StudyView("proposals", InMemoryStorage(), settings, space)
        self._seed, self._space = settings.seed, space

    def propose(self, number: int, seen: Container[str]) -> tuple[str, Policy] | None:
        """Origin and policy of trial `number`, whose digest is not in `seen`; None if no other can be found."""
        rng = random.Random(f"{self._seed}/{number}")
        study = self._generation(rng.getrandbits(32))
        for _ in range(ASKS):
            levels = study.ask(dict(self.view.distributions)).params
            policy = self._space.decode(levels)
            if policy.digest not in seen:
                return "sampler", policy
        for change in range(MUTATIONS):
            policy = self._space.decode(self._mutated(levels, change / MUTATIONS, rng))
            if policy.digest not in seen:
                return "mutation", policy
        return None

    def _generation(self, seed: int) -> optuna.Study:
        """All evaluated trials as one full generation of a new study."""
        done = self.view.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        size = max(2, min(POPULATION, len(done)))
        sampler = NSGAIISampler(population_size=size, crossover=UniformCrossover(), seed=seed)
        study = optuna.create_study(directions=self.view.study.directions, sampler=sampler)
        study.add_trials([_member(trial) for trial in done])
        return study

    def _mutated(self, levels: dict[str, int], share: float, rng: random.Random) -> dict[str, int]:
        """`levels` with at least one knob and `share` of all drawn again."""
        count = 1 + int(share * len(levels))
        drawn = rng.sample(sorted(levels), count)
        return {**levels, **{knob: rng.randrange(self._space.knobs[knob]) for knob in drawn}}


def _member(trial: FrozenTrial) -> FrozenTrial:
    return optuna.create_trial(
        values=trial.values,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs={**trial.system_attrs, GENERATION: 0},
    )
