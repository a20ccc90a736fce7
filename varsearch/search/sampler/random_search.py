"""Random search around a trial: the fallback that finds a new policy wherever there is one.

More and more knobs of a trial are drawn again, so a small space is searched to its end.
"""

from __future__ import annotations

import random
from collections.abc import Container

from varsearch.policy import Policy
from varsearch.search.core.optuna_study import Space
from varsearch.search.core.settings import RunSettings
from varsearch.search.sampler.base import MUTATION, TrialSampler


class RandomSampler(TrialSampler):
    """A trial with random knobs.

    Args:
        settings: of the run.
        space: policies as integer vectors.
        attempts: changes that are tried until the space counts as exhausted.
    """

    origin = MUTATION

    def __init__(self, settings: RunSettings, space: Space, attempts: int) -> None:
        super().__init__(settings)
        self._space, self._attempts = space, attempts

    def _policy(self, rng: random.Random, seen: Container[str]) -> Policy | None:
        space = self._space
        known = [trial.policy for trial in self.trials.values()]
        levels = space.nearest(rng.choice(known)) if known else dict.fromkeys(space.knobs, 0)
        for attempt in range(self._attempts):
            # At least one knob, in the end all of them.
            count = 1 + int(attempt / self._attempts * len(levels))
            changed = dict(levels)
            for knob in rng.sample(sorted(levels), count):
                changed[knob] = rng.randrange(space.knobs[knob])
            policy = space.decode(changed)
            if policy.digest not in seen:
                return policy
        return None
