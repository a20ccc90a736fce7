"""What to try next: a portfolio of ways to propose, used the more the more hypervolume they have gained."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Mapping
from functools import cached_property
from itertools import takewhile

import optuna
from optuna.samplers import NSGAIISampler
from optuna.samplers.nsgaii import UniformCrossover
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from varsearch.db import State, TrialRecord
from varsearch.policy import Policy
from varsearch.search.core.objectives import dense_trial, front_trials, front_volume
from varsearch.search.core.optuna_study import Space, StudyView
from varsearch.search.core.settings import RunSettings
from varsearch.search.core.source import SourceKind, kind_of
from varsearch.search.sampler.bayesian import inside, promising
from varsearch.search.sampler.mutation import Moves
from varsearch.search.sampler.prior_mean import Outlook
from varsearch.search.sampler.side_information import Costs, Guide
from varsearch.space.settings import composable, settings_of

POPULATION = 30
"""Best trials that the next policy may descend from."""

ASKS = 10
"""How often the sampler, or a change of the front, may propose what was tried before."""

MUTATIONS = 1000
"""How many random changes are tried until the space counts as exhausted."""

GENERATION = "NSGAIISampler:generation"
"""Where Optuna's sampler keeps the generation of a trial."""

SURROGATE, SAMPLER, MUTATION = SourceKind.SURROGATE, SourceKind.SAMPLER, SourceKind.MUTATION
"""Origins of proposals, beside `SourceKind.BASELINE`."""

RIVALRY = 0.15
"""Share of the proposals that are to dominate a published system, as long as one may be on the front. Hypervolume alone
prefers what loses a little more and saves much more, but whoever uses that system wants to know."""

FLOOR = {SURROGATE: 0.5, SAMPLER: 0.05, MUTATION: 0.05}
"""Least share of each in the proposals."""

MEMORY = 0.95
"""What a gain counts after one more trial."""


class Proposer:
    """Proposes policies by three ways: a surrogate, Optuna's NSGA-II, and random changes of the front.

    Now and then the surrogate is asked for what dominates a published system instead.

    NSGA-II is asked on a copy of the study in memory, where asking costs no transactions. It works in steady state:
    everything evaluated so far is one generation, whose best `POPULATION` trials by rank and crowding are the parents
    of the next proposal. No worker waits for a generation to fill.

    A proposal depends on the seed, its number and the trials shown, and on nothing else: a run that was interrupted
    goes on as if it had not been, as long as trials finish in the same order.

    Args:
        guide: the model's shape and what is known of it; without it, only the sampler and changes of knobs propose.
    """

    def __init__(self, settings: RunSettings, space: Space, guide: Guide | None = None) -> None:
        self._settings, self._space, self._guide = settings, space, guide
        self._view = StudyView("proposals", InMemoryStorage(), settings, space)
        self._trials: dict[int, TrialRecord] = {}
        self._gains: list[tuple[TrialRecord, float]] = []

    def show(self, trial: TrialRecord) -> None:
        """Takes note of a trial as it is now."""
        self._trials[trial.number] = trial
        self._view.show(trial)

    def propose(self, number: int, seen: Container[str]) -> tuple[str, Policy] | None:
        """Origin and policy of trial `number`, whose digest is not in `seen`; None if no other can be found."""
        rng = random.Random(f"{self._settings.seed}/{number}")
        policy = self._against_a_rival(rng, seen)
        if policy is not None:
            return SourceKind.BASELINE, policy
        ways = self._ways()
        weights = self.shares(number) if len(ways) > 1 else dict.fromkeys(ways, 1.0)
        first = rng.choices(list(ways), [weights[way] for way in ways])[0]
        for origin in (first, *(way for way in ways if way != first)):
            policy = ways[origin](rng, seen)
            if policy is not None:
                return origin, policy
        policy = self._any(rng, seen)
        return None if policy is None else (MUTATION, policy)

    def _ways(self) -> dict[str, Callable[[random.Random, Container[str]], Policy | None]]:
        """Those that can be used now; without dense there is nothing to compare with."""
        if self._guide is None or dense_trial(self._trials.values()) is None:
            return {SAMPLER: self._sampled}
        return {SURROGATE: self._promising, SAMPLER: self._sampled, MUTATION: self._mutant}

    def shares(self, number: int) -> dict[str, float]:
        """The probability of each way: its floor, and of the rest a part by the mean gain of its recent proposals.

        A way that was not used yet counts as good as the others together.
        """
        gains = self._history()
        weight = {trial.number: MEMORY ** (number - trial.number) for trial, _ in gains}

        def mean(origins: Container[str], prior: float) -> float:
            own = [(weight[t.number], gain) for t, gain in gains if t.origin in origins]
            return (prior + sum(w * g for w, g in own)) / (1 + sum(w for w, _ in own))

        usual = mean(FLOOR, 1e-6)
        rates = {way: mean((way,), usual) for way in FLOOR}
        free = 1 - sum(FLOOR.values())
        return {way: least + free * rates[way] / sum(rates.values()) for way, least in FLOOR.items()}

    def _history(self) -> list[tuple[TrialRecord, float]]:
        """Complete trials by number, and how much each added to the hypervolume of those before it."""
        dense = dense_trial(self._trials.values())
        assert dense is not None
        complete = [t for _, t in sorted(self._trials.items()) if t.state is State.COMPLETE]
        known = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1][0], zip(complete, self._gains, strict=False)))
        del self._gains[known:]
        before = self._volume(complete[:known], dense.values)
        for i in range(known, len(complete)):
            volume = self._volume(complete[: i + 1], dense.values)
            self._gains.append((complete[i], volume - before))
            before = volume
        return self._gains

    def _volume(self, trials: list[TrialRecord], dense: Mapping[str, float]) -> float:
        return front_volume(self._settings, [t.values for t in front_trials(self._settings, trials)], dense)

    @cached_property
    def _moves(self) -> Moves:
        assert self._guide is not None
        return Moves(Outlook(self._guide.spec, self._guide.siblings, self._guide.profile))

    @cached_property
    def _costs(self) -> Costs | None:
        return self._guide.make_costs() if self._guide is not None and self._guide.make_costs is not None else None

    def _promising(self, rng: random.Random, seen: Container[str]) -> Policy | None:
        return promising(self._settings, self._moves, list(self._trials.values()), rng, seen, self._costs)

    def _against_a_rival(self, rng: random.Random, seen: Container[str]) -> Policy | None:
        """Now and then, what may dominate a published system that is on the front as far as one can tell."""
        trials = list(self._trials.values())
        complete = [t for t in trials if t.state is State.COMPLETE]
        published = any(kind_of(t.origin) is SourceKind.PRESET for t in complete)
        if self._guide is None or not published or dense_trial(complete) is None or rng.random() >= RIVALRY:
            return None
        return promising(self._settings, self._moves, trials, rng, seen, self._costs, against_a_rival=True)

    def _sampled(self, rng: random.Random, seen: Container[str]) -> Policy | None:
        study = self._generation(rng.getrandbits(32))
        asked = (study.ask(dict(self._view.distributions)).params for _ in range(ASKS))
        return next((p for p in map(self._space.decode, asked) if p.digest not in seen), None)

    def _mutant(self, rng: random.Random, seen: Container[str]) -> Policy | None:
        """A member of the front with a few units changed."""
        parents = inside(self._settings, list(self._trials.values()))
        spec = self._moves.outlook.spec
        for _ in range(ASKS):
            parent = settings_of(rng.choice(parents).policy)
            policy = composable(spec, self._moves.edited(parent, rng))
            if policy is not None and policy.digest not in seen:
                return policy
        return None

    def _any(self, rng: random.Random, seen: Container[str]) -> Policy | None:
        """A trial with more and more of its knobs drawn again."""
        known = [trial.policy for trial in self._trials.values()]
        levels = self._space.nearest(rng.choice(known)) if known else dict.fromkeys(self._space.knobs, 0)
        for change in range(MUTATIONS):
            policy = self._space.decode(self._mutated(levels, change / MUTATIONS, rng))
            if policy.digest not in seen:
                return policy
        return None

    def _generation(self, seed: int) -> optuna.Study:
        """All evaluated trials as one full generation of a new study."""
        done = self._view.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        size = max(2, min(POPULATION, len(done)))
        sampler = NSGAIISampler(population_size=size, crossover=UniformCrossover(), seed=seed)
        study = optuna.create_study(directions=self._view.study.directions, sampler=sampler)
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
