"""The policy that is expected to add most hypervolume of many candidates, or what may dominate a given one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from operator import itemgetter

import numpy as np

from varsearch.db import State, TrialRecord
from varsearch.errors import VarsearchError
from varsearch.measurement import METRICS
from varsearch.policy import Policy
from varsearch.search.core.objectives import WORST, dense_trial, front_trials, relative_costs
from varsearch.search.core.pareto import non_dominated
from varsearch.search.core.settings import RunSettings
from varsearch.search.core.source import SourceKind, kind_of
from varsearch.search.sampler.acquisition import expected_gains, free_boxes
from varsearch.search.sampler.beat_baseline import combined
from varsearch.search.sampler.gaussian_process import Array
from varsearch.search.sampler.mutation import Moves, candidates
from varsearch.search.sampler.side_information import Costs
from varsearch.search.sampler.surrogate import Surrogate
from varsearch.space.settings import Chosen, composable, settings_of

ROUNDS = (300, 150, 150)
"""Candidates at once: the best of a round are parents of the next."""

BEST = 10
"""Parents of the next round."""

EXACT = 3
"""How many of the best may have costs computed exactly: each takes as long as drawing dozens of images."""

SLACK = 1.02
"""How much more than a published system a candidate may seem to cost in what is then computed exactly. A guess is wrong
by more, and a candidate that has to seem to cost less pays for that with something else, see docs/log.md."""

STANDING = 0.2
"""Share of worlds on whose front a published system is that is one to dominate."""

FAINT = 0.01
"""Added to the probability that an objective is no worse: where all are hopeless in one, the others still count."""


def promising(
    settings: RunSettings,
    moves: Moves,
    trials: Sequence[TrialRecord],
    rng: random.Random,
    seen: Container[str],
    costs: Costs | None,
    against_a_rival: bool = False,
) -> Policy | None:
    """The best candidate whose digest is not in `seen`; None if all are, or there is no rival.

    Args:
        settings: objectives and bounds.
        moves: where candidates come from.
        trials: of the run; those without an outcome count as evaluated at what is predicted for them.
        rng: of the candidates.
        seen: digests of all trials.
        costs: those metrics of speed that can be had exactly; `VarsearchError` for a policy that cannot run.
        against_a_rival: the best candidate is the likeliest to be nowhere worse than a published system that may be on
            the front; without it, it adds most hypervolume. Candidates descend from the front, and from the rival. The
            rival with what does dense no harm comes first, as long as there is any that is new, see `combined`.
    """
    search = _Search(settings, moves, trials)
    if against_a_rival:
        if not search.choose_rival(rng, costs):
            return None
        fits = partial(search.fits, costs=costs)
        together = combined(settings, moves.outlook.spec, search.rivals[0], trials, seen, fits)
        if together is not None:
            return together
    ancestors = [*search.rivals, *inside(settings, trials)]
    parents = [settings_of(trial.policy) for trial in ancestors]
    known: set[Chosen] = set()
    ranked: list[tuple[float, Chosen]] = []
    for n in ROUNDS:
        if found := list(_new(candidates(moves, parents, rng, n), known)):
            ranked += zip(search.gains(search.surrogate.draws(found), guessed=True).tolist(), found, strict=True)
            ranked.sort(key=itemgetter(0), reverse=True)
        parents = [chosen for _, chosen in ranked[:BEST]]
    fresh: dict[Policy, Chosen] = {}
    for _, chosen in ranked:
        policy = composable(moves.outlook.spec, chosen)
        if policy is not None and policy.digest not in seen:
            fresh.setdefault(policy, chosen)
        if len(fresh) == EXACT:
            break
    return search.best(fresh, costs) if fresh else None


def _new(found: Iterable[Chosen], known: set[Chosen]) -> Iterator[Chosen]:
    """Those that are not known, which then are. To hash one takes long, so it is done once."""
    for chosen in found:
        before = len(known)
        known.add(chosen)
        if len(known) > before:
            yield chosen


def inside(settings: RunSettings, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The front, without what costs too much to count for the hypervolume, as long as anything else is on it."""
    dense, front = dense_trial(trials), front_trials(settings, trials)
    assert dense is not None
    near = [t for t in front if max(relative_costs(settings, t.values, dense.values)) < WORST]
    return near or front or [dense]


class _Search:
    """The surrogate of all objectives and bounded metrics, and the region that nothing known dominates in each world.

    Attributes:
        rivals: the published system that is to be dominated, if there is one.
    """

    def __init__(self, settings: RunSettings, moves: Moves, trials: Sequence[TrialRecord]) -> None:
        dense = dense_trial(trials)
        assert dense is not None
        self.settings, self.dense, self.rivals = settings, dense.values, list[TrialRecord]()
        ordered = sorted(trials, key=lambda trial: trial.number)
        self._complete = [t for t in ordered if t.state is State.COMPLETE]
        stopped = [t for t in ordered if t.state is State.STOPPED and not settings.missing(t.values)]  # estimated
        pending = [settings_of(t.policy) for t in ordered if not t.state.is_final]
        bounded = [name for name in settings.bounds if name not in settings.objectives]
        self.metrics = (*settings.objectives, *bounded)
        predicted = settings.model_copy(update={"objectives": self.metrics})
        evaluated = [*self._complete, *stopped]
        seed = (settings.seed, len(trials))
        self.surrogate = Surrogate(moves.outlook, predicted, dense.values, evaluated, pending, seed)
        self._known = np.stack(self.surrogate.known()[: len(settings.objectives)], axis=-1)
        feasible = [t.state is State.COMPLETE and settings.is_feasible(t.values) for t in evaluated]
        self._counted = np.flatnonzero([*feasible, *(True for _ in pending)])
        self._fronts = [non_dominated(points.tolist()) for points in self._known[self._counted].transpose(1, 0, 2)]
        worst = (WORST,) * len(settings.objectives)
        self.boxes = [free_boxes(self._known[self._counted[front], w], worst) for w, front in enumerate(self._fronts)]
        index = {metric: j for j, metric in enumerate(self.metrics)}
        limits = {name: self.surrogate.cost({**self.dense, name: limit}) for name, limit in settings.bounds.items()}
        self.limits = {index[name]: cost[index[name]] for name, cost in limits.items()}

    def choose_rival(self, rng: random.Random, costs: Costs | None = None) -> bool:
        """Takes a published system that is on the front of `STANDING` of the worlds or more, if there is one."""
        members = Counter(chain.from_iterable(self._counted[front].tolist() for front in self._fronts))
        published = (i for i, t in enumerate(self._complete) if kind_of(t.origin) is SourceKind.PRESET)
        likely = {i: members[i] for i in published if members[i] >= STANDING * len(self._fronts)}
        if likely:
            (chosen,) = rng.choices(list(likely), list(likely.values()))
            self.rivals = [self._complete[chosen]]
            # What already dominates it in the other worlds would do so again.
            self._stands = [w for w, front in enumerate(self._fronts) if chosen in self._counted[front]]
            self._rival = self._known[chosen, self._stands]
            self._computable = frozenset(self._computed(self.rivals[0].policy, costs) if costs else ())
        return bool(likely)

    def gains(self, draws: Sequence[Array], guessed: bool = False) -> Array:
        """Expected hypervolume that each candidate adds, or about its probability to be nowhere worse than the rival.

        Either times the probability that it meets the bounds. The rival counts in the worlds on whose front it is.

        Args:
            draws: by objective and bounded metric.
            guessed: whether they still are guesses in what is computed exactly before a choice.
        """
        counted = draws[: len(self.settings.objectives)]
        if self.rivals:
            unsure = self._computable if guessed else frozenset()
            as_good = [self._as_good(drawn, j, lenient=j in unsure) for j, drawn in enumerate(counted)]
            gains: Array = np.prod(np.array(as_good) + FAINT, axis=0).mean(1)
        else:
            each = [expected_gains([drawn[:, w] for drawn in counted], boxes) for w, boxes in enumerate(self.boxes)]
            gains = np.mean(each, axis=0)
        for j, limit in self.limits.items():
            gains = gains * (draws[j] <= limit).mean((1, 2))
        return gains

    def _as_good(self, drawn_CWK: Array, j: int, lenient: bool) -> Array:
        """In which share of the draws each candidate is no worse than the rival in an objective, by world."""
        there_CWK, rival_W = drawn_CWK[:, self._stands], self._rival[:, j]
        if lenient:
            return np.where(np.median(there_CWK, axis=2) <= SLACK * rival_W, 1.0, 0.0)
        return (there_CWK <= rival_W[:, None]).mean(axis=2)

    def best(self, fresh: Mapping[Policy, Chosen], costs: Costs | None) -> Policy:
        """The best one, by exact costs where they can be had."""
        policies = list(fresh)
        if costs is None:
            return policies[0]
        draws = self.surrogate.draws(list(fresh.values()))
        expected, best = self.gains(draws, guessed=True), (-1.0, 0)
        for i, policy in enumerate(policies):
            if best[0] >= expected[i]:  # and so than all that follow
                break
            for j, cost in self._computed(policy, costs).items():
                draws[j][i] = cost
            best = max(best, (float(self.gains([drawn[i : i + 1] for drawn in draws])[0]), -i))
        return policies[-best[1]]

    def fits(self, policy: Policy, costs: Costs | None) -> bool:
        """Whether it costs no more than the rival and keeps to the bounds, in what is known without evaluating it."""
        if costs is None:
            return True
        own, limits = self._computed(self.rivals[0].policy, costs), self.limits
        return all(x <= min(own[j], limits.get(j, x)) for j, x in self._computed(policy, costs).items())

    def _computed(self, policy: Policy, costs: Costs) -> dict[int, float]:
        """What is known of a policy without evaluating it, by index of the metric."""
        speed = [j for j, metric in enumerate(self.metrics) if METRICS[metric].kind == "speed"]
        try:
            known = costs(policy)
        except VarsearchError:
            return dict.fromkeys(speed, WORST)
        relative = self.surrogate.cost({**self.dense, **known})
        return {j: relative[j] for j in speed if self.metrics[j] in known}
