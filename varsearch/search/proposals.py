"""What to try next."""

from __future__ import annotations

import random
from collections.abc import Container

from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from varsearch.policy import Policy
from varsearch.search.settings import RunSettings
from varsearch.search.study import Space, StudyView

ASKS = 10
"""How often the sampler may propose what was tried before."""

MUTATIONS = 1000
"""How many random changes are tried until the space counts as exhausted."""


class Proposer:
    """Asks Optuna's sampler on a copy of the study in memory, where asking costs no transactions.

    A proposal depends on the seed, its number and the trials shown, and on nothing else: a run that was interrupted
    goes on as if it had not been, as long as trials finish in the same order.
    """

    def __init__(self, settings: RunSettings, space: Space) -> None:
        self.view = StudyView("proposals", InMemoryStorage(), settings, space)
        self._seed, self._space = settings.seed, space

    def propose(self, number: int, seen: Container[str]) -> tuple[str, Policy] | None:
        """Origin and policy of trial `number`, whose digest is not in `seen`; None if no other can be found."""
        rng = random.Random(f"{self._seed}/{number}")
        # Multivariate: knobs of one policy act together. The constant liar keeps parallel workers apart. Seeds come
        # before the sampler and are all the variety it needs: random trials would only be spent while none is complete.
        self.view.study.sampler = TPESampler(
            multivariate=True, constant_liar=True, n_startup_trials=1, seed=rng.getrandbits(32)
        )
        for _ in range(ASKS):
            levels = self._ask()
            policy = self._space.decode(levels)
            if policy.digest not in seen:
                return "sampler", policy
        for change in range(MUTATIONS):
            policy = self._space.decode(self._mutated(levels, change / MUTATIONS, rng))
            if policy.digest not in seen:
                return "mutation", policy
        return None

    def _ask(self) -> dict[str, int]:
        """A vector of the sampler. The asked trial is told to have failed: what is evaluated is shown separately.

        Samplers overlook failed trials, and the one that counts has the canonical levels of its policy.
        """
        trial = self.view.study.ask(dict(self.view.distributions))
        self.view.study.tell(trial, state=TrialState.FAIL)
        return trial.params

    def _mutated(self, levels: dict[str, int], share: float, rng: random.Random) -> dict[str, int]:
        """`levels` with at least one knob and `share` of all drawn again."""
        count = 1 + int(share * len(levels))
        drawn = rng.sample(sorted(levels), count)
        return {**levels, **{knob: rng.randrange(self._space.knobs[knob]) for knob in drawn}}
