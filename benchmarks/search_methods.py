"""Ways to search a problem, for `benchmarks.search`: each asks for policies and is told their numbers."""

from __future__ import annotations

import random
import tempfile
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace

import optuna
from optuna.distributions import IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial

from benchmarks.search_problem import Problem
from varsearch.db import State, Store, TrialRecord
from varsearch.errors import EvaluationError, UsageError
from varsearch.measurement import Job, Outcome
from varsearch.policy import Policy
from varsearch.search.core.objectives import dense_trial, front_trials, front_volume
from varsearch.search.core.settings import RunSettings
from varsearch.search.run.driver import run
from varsearch.search.run.events import Event, Progress
from varsearch.search.sampler.portfolio import PortfolioConfig

REPEATS = 50
"""How often a method may ask for what was tried before; this is not counted."""


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


Make = Callable[[Problem, int], tuple[Sampler, Mapping[str, Policy]]]
"""From problem and seed: the method and what it starts from."""

Costed = list[tuple[float, TrialRecord]]
"""Trials in their order, each with the evaluations that were spent when it had its outcome."""


def _dense(problem: Problem) -> dict[str, Policy]:
    return {"seed:dense": problem.published["seed:dense"]}


def _seeded(problem: Problem, seed: int) -> RunSettings:
    return problem.settings.model_copy(update={"seed": seed})


@dataclass(frozen=True)
class Ours:
    """As `varsearch run` searches, by its broker.

    Attributes:
        profile: whether it knows what single settings do.
        warm: whether it starts from `WARM_STARTS` policies of the profile too, as `varsearch run --warm-starts` does.
        surrogate: whether there is one; without it NSGA-II alone proposes.
        rungs: whether it gives policies up after a few images, as `varsearch run --rungs` does.
        config: tuning constants of its samplers.
    """

    profile: bool = True
    warm: bool = False
    surrogate: bool = True
    rungs: bool = False
    config: PortfolioConfig = field(default_factory=PortfolioConfig)


METHODS: dict[str, Make | Ours] = {
    "random": lambda p, s: (Sampler(p, None, s), _dense(p)),
    "TPE cold": lambda p, s: (Sampler(p, TPESampler(multivariate=True, seed=s), s), _dense(p)),
    "NSGA-II cold": lambda p, s: (Sampler(p, NSGAIISampler(population_size=20, seed=s), s), _dense(p)),
    "TPE warm": lambda p, s: (
        Sampler(p, TPESampler(multivariate=True, n_startup_trials=len(p.warm), seed=s), s),
        p.warm,
    ),
    "ours": Ours(),
    "ours, rungs": Ours(rungs=True),
    "ours, no profile": Ours(profile=False),
    "ours, warm starts": Ours(warm=True),
    "ours, no surrogate": Ours(surrogate=False),
}


def search(problem: Problem, method: str, seed: int, budget: int) -> Costed:
    """The trials that a method spends `budget` evaluations on, no policy twice."""
    make = METHODS[method]
    if isinstance(make, Ours):
        return _run(problem, make, seed, budget)
    return list(enumerate(_trials(problem, *make(problem, seed), budget), start=1))


def _run(problem: Problem, parts: Ours, seed: int, budget: int) -> Costed:
    spent: dict[int, float] = {}
    worker = Answering(problem)

    def note(event: Event) -> None:
        if isinstance(event, Progress):
            spent[event.trial.number] = event.status.spent

    with tempfile.TemporaryDirectory() as folder:
        storage = f"{folder}/run.db"
        run(
            _seeded(problem, seed), problem.space, problem.warm if parts.warm else problem.published, lambda: worker,
            storage=storage, budget=budget, guide=problem.guide(parts.profile) if parts.surrogate else None,
            sampler=parts.config, rungs=problem.rungs if parts.rungs else (), on_event=note,
        )  # fmt: skip
        if worker.lacking is not None:
            raise worker.lacking
        with Store(storage) as store:
            trials = {t.number: t for t in store.trials(store.runs()[0])}
    return [(cost, trials[number]) for number, cost in spent.items()]


@dataclass
class Answering:
    """A worker that answers what the problem knows.

    Attributes:
        lacking: what it does not know. A run takes errors of workers for failures of policies, which this is not.
    """

    problem: Problem
    lacking: UsageError | None = None

    def evaluate(self, job: Job) -> Outcome:
        """What the problem says."""
        try:
            return self.problem.answer(job)
        except UsageError as error:
            self.lacking = error
            raise


def _trials(problem: Problem, method: Sampler, starts: Mapping[str, Policy], budget: int) -> Iterator[TrialRecord]:
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


def volumes(problem: Problem, found: Costed, at: list[int]) -> tuple[list[float], list[float]]:
    """Hypervolume of the front after so many evaluations: by the search's numbers, and by confirmed ones."""
    by_number = {t.number: t for _, t in found}
    dense = dense_trial(by_number.values())
    assert dense is not None
    fronts = [front_trials(problem.settings, [t for cost, t in found if cost <= n]) for n in at]
    claimed = [front_volume(problem.settings, [t.values for t in front], dense.values) for front in fronts]
    fresh = {t.number: _confirmed(problem, t) for front in fronts for t in (*front, dense)}
    again = [front_trials(problem.settings, [fresh[t.number] for t in front]) for front in fronts]
    base = fresh[dense.number].values
    return claimed, [front_volume(problem.settings, [t.values for t in front], base) for front in again]


def _confirmed(problem: Problem, trial: TrialRecord) -> TrialRecord:
    quality, speed = problem.confirmed(trial.policy)
    return replace(trial, quality=quality, speed=speed)
