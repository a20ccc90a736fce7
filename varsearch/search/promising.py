"""The policy that is expected to add most hypervolume, or is likeliest to dominate a given one, of many candidates."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter

import numpy as np

from varsearch.db import State, TrialRecord
from varsearch.errors import VarsearchError
from varsearch.measurement import METRICS
from varsearch.policy import Policy
from varsearch.search.acquisition import expected_gains, free_boxes
from varsearch.search.chances import measurement_of, standard_error
from varsearch.search.front import WORST, dense_trial, front_trials, relative_costs
from varsearch.search.moves import Moves, candidates
from varsearch.search.pareto import non_dominated
from varsearch.search.regression import Array
from varsearch.search.settings import RunSettings
from varsearch.search.surrogate import Surrogate
from varsearch.space.changes import changes
from varsearch.space.probes import Chosen
from varsearch.space.units import compose

ROUNDS = (300, 150, 150)
"""Candidates at once: the best of a round are parents of the next."""

BEST = 10
"""Parents of the next round."""

EXACT = 3
"""How many of the best may have their costs computed exactly: each takes as long as drawing dozens of images."""

FAINT = 0.01
"""Added to the probability that an objective is no worse: where all are hopeless in one, the others still count."""


def promising(
    settings: RunSettings,
    moves: Moves,
    trials: Sequence[TrialRecord],
    rng: random.Random,
    seen: Container[str],
    costs: Callable[[Policy], Mapping[str, float]] | None,
    rival: TrialRecord | None = None,
) -> Policy | None:
    """The best candidate whose digest is not in `seen`; None if all are.

    Args:
        settings: objectives and bounds.
        moves: where candidates come from.
        trials: of the run; those without an outcome count as evaluated at what is predicted for them.
        rng: of the candidates.
        seen: digests of all trials.
        costs: exact metrics of speed, where they can be had; `VarsearchError` for a policy that cannot run.
        rival: the best candidate is the likeliest to be nowhere worse than this trial; without it, the best adds most
            hypervolume. Candidates descend from the front, and from the rival.
    """
    search = _Search(settings, moves, trials, rival)
    ancestors = [*([] if rival is None else [rival]), *inside(settings, trials)]
    parents = [changes(trial.policy).settings for trial in ancestors]
    known: set[Chosen] = set()
    ranked: list[tuple[float, Chosen]] = []
    for n in ROUNDS:
        if found := list(_new(candidates(moves, parents, rng, n), known)):
            ranked += zip(search.gains(search.surrogate.draws(found)).tolist(), found, strict=True)
            ranked.sort(key=itemgetter(0), reverse=True)
        parents = [chosen for _, chosen in ranked[:BEST]]
    fresh: dict[Chosen, Policy] = {}
    for _, chosen in ranked:
        policy = compose(moves.outlook.spec, chosen)
        if policy.digest not in seen:
            fresh[chosen] = policy
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
    """The surrogate of all objectives and bounded metrics, and the region that nothing known dominates."""

    def __init__(
        self, settings: RunSettings, moves: Moves, trials: Sequence[TrialRecord], rival: TrialRecord | None
    ) -> None:
        dense = dense_trial(trials)
        assert dense is not None
        self.settings, self.dense = settings, dense.values
        ordered = sorted(trials, key=lambda trial: trial.number)
        complete = [t for t in ordered if t.state is State.COMPLETE]
        stopped = [t for t in ordered if t.state is State.STOPPED and not settings.missing(t.values)]  # estimated
        pending = [changes(t.policy) for t in ordered if not t.state.is_final]
        bounded = [name for name in settings.bounds if name not in settings.objectives]
        self.metrics = (*settings.objectives, *bounded)
        predicted = settings.model_copy(update={"objectives": self.metrics})
        self.surrogate = Surrogate(moves.outlook, predicted, dense.values, [*complete, *stopped], pending)
        known = self._believed([t for t in complete if settings.is_feasible(t.values)])
        if pending:
            draws = self.surrogate.draws([c.settings for c in pending], [c.rest for c in pending])
            known = [np.vstack(pair) for pair in zip(known, draws[: len(known)], strict=True)]
        points = list(zip(*(np.median(costs_NK, axis=1).tolist() for costs_NK in known), strict=True))
        self.boxes = free_boxes([points[i] for i in non_dominated(points)], (WORST,) * len(settings.objectives))
        index = {metric: j for j, metric in enumerate(self.metrics)}
        worst = {name: self.surrogate.cost({**self.dense, name: limit}) for name, limit in settings.bounds.items()}
        self.limits = {index[name]: cost[index[name]] for name, cost in worst.items()}
        self.rival = [] if rival is None else [costs_1K[0] for costs_1K in self._believed([rival])]

    def _believed(self, trials: Sequence[TrialRecord]) -> list[Array]:
        """Equally likely relative costs of evaluated trials in each objective, (N, K).

        What has an error is smoothed by the surrogate, which knows all trials: the best of many noisy numbers were
        lucky, and what had to beat them would be given up.
        """
        own = [changes(trial.policy) for trial in trials]
        found = self.surrogate.draws([c.settings for c in own], [c.rest for c in own])[: len(self.settings.objectives)]
        costs = [relative_costs(self.settings, t.values, self.dense) for t in trials]
        for j, metric in enumerate(self.settings.objectives):
            for costs_K, trial, cost in zip(found[j], trials, costs, strict=True):
                if not standard_error(measurement_of(trial, metric)):
                    costs_K[:] = cost[j]
        return found

    def gains(self, draws: Sequence[Array]) -> Array:
        """Expected hypervolume that each candidate adds, or about its probability to be nowhere worse than the rival.

        Either times the probability that it meets the bounds.
        """
        counted = draws[: len(self.settings.objectives)]
        if self.rival:
            pairs = zip(counted, self.rival, strict=True)
            as_good = [(drawn_CK[:, :, None] <= rival_K).mean((1, 2)) for drawn_CK, rival_K in pairs]
            gains: Array = np.prod(np.array(as_good) + FAINT, axis=0)
        else:
            gains = expected_gains(counted, self.boxes)
        for j, limit in self.limits.items():
            gains = gains * (draws[j] <= limit).mean(1)
        return gains

    def best(self, fresh: Mapping[Chosen, Policy], costs: Callable[[Policy], Mapping[str, float]] | None) -> Policy:
        """The best one, by exact costs where they can be had."""
        policies = list(fresh.values())
        if costs is None:
            return policies[0]
        draws = self.surrogate.draws(list(fresh))
        expected, best = self.gains(draws), (-1.0, 0)
        for i, policy in enumerate(policies):
            if best[0] >= expected[i]:  # and so than all that follow
                break
            try:
                known = self.surrogate.cost({**self.dense, **costs(policy)})
            except VarsearchError:
                known = (WORST,) * len(draws)
            for j, metric in enumerate(self.metrics):
                if METRICS[metric].kind == "speed":
                    draws[j][i] = known[j]
            best = max(best, (float(self.gains([drawn[i : i + 1] for drawn in draws])[0]), -i))
        return policies[-best[1]]
