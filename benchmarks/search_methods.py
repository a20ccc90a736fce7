"""Ways to search a problem, for `benchmarks.search`: each asks for policies and is told their numbers."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Protocol

import optuna
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial

from benchmarks.search_problem import Problem
from varsearch.db import State, TrialRecord
from varsearch.errors import EvaluationError
from varsearch.policy import Policy
from varsearch.search.front import dense_trial, front_trials, front_volume
from varsearch.search.proposals import Proposer

REPEATS = 50
"""How often a method may ask for what was tried before; this is not counted."""


class Method(Protocol):
    """Proposes a policy for a trial number that was not seen, and learns from trials."""

    def propose(self, number: int, seen: Container[str]) -> tuple[str, Policy] | None:
        """Origin and policy."""
        ...

    def show(self, trial: TrialRecord) -> None:
        """A trial that was evaluated."""
        ...


class Sampler:
    """An Optuna sampler on the knobs of the space."""

    def __init__(self, problem: Problem, sampler: BaseSampler | None, seed: int) -> None:
        warnings.simplefilter("ignore")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.problem, self.rng = problem, random.Random(seed)
        directions = [optuna.study.StudyDirection.MINIMIZE for _ in problem.settings.objectives]
        self.study = None if sampler is None else optuna.create_study(directions=directions, sampler=sampler)
        self.knobs = {name: IntDistribution(0, n - 1) for name, n in problem.space.knobs.items()}
        self._asked: dict[int, optuna.Trial] = {}
        self._known: dict[str, TrialRecord] = {}

    def propose(self, number: int, seen: Container[str]) -> tuple[str, Policy] | None:
        """As the sampler says; a policy that is known is answered and costs nothing."""
        for _ in range(REPEATS):
            if self.study is None:
                levels = {name: self.rng.randrange(n) for name, n in self.problem.space.knobs.items()}
                policy = self.problem.space.decode(levels)
                if policy.digest not in seen:
                    return "random", policy
                continue
            trial = self.study.ask(dict(self.knobs))
            policy = self.problem.space.decode(trial.params)
            if policy.digest not in seen:
                self._asked[number] = trial
                return "sampler", policy
            known = self._known[policy.digest]
            self.study.tell(trial, self._losses(known), state=_state(known))
        return None

    def _losses(self, trial: TrialRecord) -> tuple[float, ...] | None:
        return self.problem.settings.losses(trial.values) if trial.state is State.COMPLETE else None

    def show(self, trial: TrialRecord) -> None:
        """Tells the sampler; what it did not ask for counts as its nearest knobs."""
        self._known[trial.policy.digest] = trial
        if self.study is None:
            return
        asked = self._asked.pop(trial.number, None)
        if asked is not None:
            self.study.tell(asked, self._losses(trial), state=_state(trial))
        elif trial.state is State.COMPLETE:
            self.study.add_trial(self._frozen(trial))

    def _frozen(self, trial: TrialRecord) -> FrozenTrial:
        levels = self.problem.space.nearest(trial.policy)
        values = self.problem.settings.losses(trial.values)
        return optuna.create_trial(values=list(values), params=levels, distributions=dict(self.knobs))


def _state(trial: TrialRecord) -> optuna.trial.TrialState:
    return optuna.trial.TrialState.COMPLETE if trial.state is State.COMPLETE else optuna.trial.TrialState.FAIL


Make = Callable[[Problem, int], tuple[Method, Mapping[str, Policy]]]
"""From problem and seed: the method and what it starts from."""


def _dense(problem: Problem) -> dict[str, Policy]:
    return {"seed:dense": problem.published["seed:dense"]}


def _ours(problem: Problem, seed: int, profile: bool = True, surrogate: bool = True) -> Method:
    settings = problem.settings.model_copy(update={"seed": seed})
    return Proposer(settings, problem.space, problem.guide(profile) if surrogate else None)


METHODS: dict[str, Make] = {
    "random": lambda p, s: (Sampler(p, None, s), _dense(p)),
    "TPE cold": lambda p, s: (Sampler(p, TPESampler(multivariate=True, seed=s), s), _dense(p)),
    "NSGA-II cold": lambda p, s: (Sampler(p, NSGAIISampler(population_size=20, seed=s), s), _dense(p)),
    "TPE warm": lambda p, s: (
        Sampler(p, TPESampler(multivariate=True, n_startup_trials=len(p.warm), seed=s), s),
        p.warm,
    ),
    "ours": lambda p, s: (_ours(p, s), p.warm),
    "ours, no profile": lambda p, s: (_ours(p, s, profile=False), p.published),
    "ours, no warm start": lambda p, s: (_ours(p, s), p.published),
    "ours, no surrogate": lambda p, s: (_ours(p, s, surrogate=False), p.warm),
}


def search(problem: Problem, method: str, seed: int, budget: int) -> list[TrialRecord]:
    """The trials of `budget` different policies."""
    made, starts = METHODS[method](problem, seed)
    return list(_trials(problem, made, starts, budget))


def _trials(problem: Problem, method: Method, starts: Mapping[str, Policy], budget: int) -> Iterator[TrialRecord]:
    seen: set[str] = set()
    waiting = iter(starts.items())
    for number in range(budget):
        start = next(((origin, policy) for origin, policy in waiting if policy.digest not in seen), None)
        proposal = start or method.propose(number, seen)
        if proposal is None:
            return
        origin, policy = proposal
        seen.add(policy.digest)
        try:
            quality, speed = problem.evaluate(policy)
            trial = TrialRecord(number, policy, origin, State.COMPLETE, attempts=1, quality=quality, speed=speed)
        except EvaluationError as error:
            trial = TrialRecord(number, policy, origin, State.FAIL, error=str(error), attempts=1)
        method.show(trial)
        yield trial


def volumes(problem: Problem, trials: list[TrialRecord], at: list[int]) -> list[float]:
    """Hypervolume of the front after so many evaluations."""
    dense = dense_trial(trials)
    assert dense is not None
    fronts = [front_trials(problem.settings, trials[:n]) for n in at]
    return [front_volume(problem.settings, [t.values for t in front], dense.values) for front in fronts]
