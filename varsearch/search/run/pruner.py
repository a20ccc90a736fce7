"""When a policy is given up: after an early look at it that leaves little hope.

Optuna cannot stop trials of several objectives, so this is ours. The first rung costs nothing: what the policy saves,
predicted. The next ones draw a part of the images. What a rung says of a final number is learnt from the trials that
have both, by a line; a trial goes on if it is likely enough to be feasible and not dominated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from varsearch.db import State, TrialRecord
from varsearch.measurement import METRICS, Evidence, Measurement
from varsearch.search.core.dominance import chances, half_width
from varsearch.search.core.objectives import dense_trial
from varsearch.search.core.settings import RunSettings
from varsearch.search.run.events import Standing
from varsearch.search.run.rungs import EXACT, PAIRS, RANK, Link, Rung, fit_link

ENOUGH = 0.1
"""Least probability to be on the front with which a trial goes on."""


class Ladder:
    """The rungs of a run, what they found, and what that says.

    What it says depends on the numbers of trials alone, not on when they came: a run that is continued decides as it
    would have decided.
    """

    def __init__(self, settings: RunSettings, rungs: Sequence[Rung]) -> None:
        self.settings, self.rungs = settings, rungs
        self._found: dict[tuple[int, int], Evidence] = {}
        self._off: set[str] = set()

    def note(self, number: int, i: int, evidence: Evidence) -> None:
        """Rung `i` of trial `number` has this evidence."""
        self._found[number, i] = evidence

    def share(self, number: int) -> float:
        """What the rungs that a trial climbed count as, in evaluations."""
        return max((self.rungs[i].share for i in self._climbed(number)), default=0.0)

    def next(self, number: int, trials: Sequence[TrialRecord], also_off: bool) -> Rung | None:
        """The rung that trial `number` climbs next; None if it has climbed all that are in use.

        With `also_off` it climbs the others too, as starts do, which draw those images anyway: a rung that failed to
        rank a dozen mild policies, all as good as dense, may rank the stronger ones after them.
        """
        links, last = self._links(trials), self._reached(number)
        left = (rung for i, rung in enumerate(self.rungs) if i > last and (also_off or not _is_off(links[i])))
        return next(left, None)

    def verdict(self, number: int, trials: Sequence[TrialRecord]) -> str:
        """Why trial `number` is given up at the rung that it reached; empty if it goes on."""
        climbed, estimate = self._climbed(number), self._estimated(trials[number], trials, self._links(trials))
        if not climbed or estimate is None:
            return ""
        complete = [t for t in trials if t.state is State.COMPLETE]
        chance = chances(self.settings, [*complete, estimate])[-1]
        if chance >= ENOUGH:
            return ""
        return f"stopped after {self.rungs[climbed[-1]].name}: {chance:.0%} chance to be on the front"

    def estimates(self, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
        """The trials that were stopped after images were drawn, with what their rungs say of their final numbers.

        Of a rung that says nothing any more they have none.
        """
        links = self._links(trials)
        stopped = (t for t in trials if t.state is State.STOPPED and self._has_drawn(t.number))
        return [self._estimated(t, trials, links) or t for t in stopped]

    def standing(self, trials: Sequence[TrialRecord]) -> tuple[Standing, ...]:
        """What each rung did, and how well it tells the final numbers."""
        stopped = [self._reached(t.number) for t in trials if t.state is State.STOPPED]
        found = []
        for i, (rung, links) in enumerate(zip(self.rungs, self._links(trials), strict=True)):
            known = bool(links) and all(link.pairs >= PAIRS for link in links.values())
            rank = min(link.rank for link in links.values()) if known else None
            found.append(Standing(rung.name, stopped.count(i), rank, _is_off(links)))
        return tuple(found)

    def news(self, standing: Sequence[Standing]) -> str:
        """Which rungs were switched off or on since the last call."""
        old, self._off = self._off, {rung.name for rung in standing if rung.is_off}
        return "; ".join(
            f"rung of {rung.name} switched {'off' if rung.is_off else 'on'}: its numbers have rank correlation "
            f"{rung.rank:.2f} with the final ones, {RANK} is needed"
            for rung in standing
            if rung.rank is not None and rung.is_off != (rung.name in old)
        )

    def _climbed(self, number: int) -> list[int]:
        return [i for i in range(len(self.rungs)) if (number, i) in self._found]

    def _reached(self, number: int) -> int:
        """The last rung that a trial climbed; -1 if none of these is known."""
        return max(self._climbed(number), default=-1)

    def _has_drawn(self, number: int) -> bool:
        """Whether images were drawn for a trial."""
        last = self._reached(number)
        return last >= 0 and self.rungs[last].kind == "quality"

    def _links(self, trials: Sequence[TrialRecord]) -> list[dict[str, Link]]:
        """For each rung, final metric to what tells it; learnt from the complete trials, dense left out."""
        dense = dense_trial(trials)
        if dense is None:
            return [{} for _ in self.rungs]
        complete = [t for t in trials if t.state is State.COMPLETE and t is not dense]
        return [self._links_of(i, complete, dense) for i in range(len(self.rungs))]

    def _links_of(self, i: int, complete: Sequence[TrialRecord], dense: TrialRecord) -> dict[str, Link]:
        rung, links = self.rungs[i], {}
        if rung.protocol == self.settings.speed:
            return dict.fromkeys(rung.metrics, EXACT)
        both = [t for t in complete if (t.number, i) in self._found]
        for metric in rung.metrics:
            early = [_bent(metric, self._found[t.number, i].values[metric], dense) for t in both]
            links[metric] = fit_link(np.array(early), np.array([_bent(metric, t.values[metric], dense) for t in both]))
        return links

    def _estimated(
        self, trial: TrialRecord, trials: Sequence[TrialRecord], links: Sequence[Mapping[str, Link]]
    ) -> TrialRecord | None:
        """A trial with what its rungs say of its final numbers; None where the last rung says nothing.

        Where they say nothing of quality yet, it loses none and breaks no bound on it.
        """
        climbed, dense = self._climbed(trial.number), dense_trial(trials)
        usable = [i for i in climbed if links[i] and all(link.is_usable for link in links[i].values())]
        needed = {*climbed[-1:], *(i for i, rung in enumerate(self.rungs) if rung.kind == "speed")}
        if dense is None or not climbed or not needed <= {*usable}:
            return None
        offset, bounds = dense.values["fid"], self.settings.bounds
        hopes = {"delta_fid": min(0.0, bounds.get("delta_fid", 0.0)), "fid": min(offset, bounds.get("fid", offset))}
        found = {metric: Measurement(metric=metric, value=value) for metric, value in hopes.items()}
        for i in usable:
            for metric, link in links[i].items():
                found[metric] = _told(metric, link, self._found[trial.number, i].values[metric], dense)
        if self._has_drawn(trial.number):
            delta = found["delta_fid"]
            shifted = {
                name: None if x is None else x + offset for name, x in (("low", delta.low), ("high", delta.high))
            }
            found["fid"] = Measurement(metric="fid", value=delta.value + offset, **shifted)
        quality = tuple(m for m in found.values() if METRICS[m.metric].kind == "quality")
        speed = tuple(m for m in found.values() if METRICS[m.metric].kind == "speed")
        evidence = self._found[trial.number, climbed[-1]]
        return replace(
            trial,
            quality=evidence.model_copy(update={"kind": "quality", "measurements": quality}),
            speed=evidence.model_copy(update={"kind": "speed", "measurements": speed}),
        )


def _is_off(links: Mapping[str, Link]) -> bool:
    """Whether enough trials say that a rung tells too little."""
    return any(link.pairs >= PAIRS and link.rank < RANK for link in links.values())


def _bent(metric: str, value: float, dense: TrialRecord) -> float:
    """On a scale where errors are alike: costs by their logarithm, ΔFID by asinh of its ratio to dense's FID.

    Next to dense ΔFID has an error of its own; far from it the error grows with it.
    """
    if metric == "delta_fid":
        return math.asinh(value / _scale(dense))
    return math.log(max(value, 1e-12))


def _told(metric: str, link: Link, early: float, dense: TrialRecord) -> Measurement:
    """The final number with its error, see `standard_error`."""
    if link is EXACT:
        return Measurement(metric=metric, value=early)
    bent, half = link.offset + link.slope * _bent(metric, early, dense), half_width(metric) * link.error
    value, low, high = (_unbent(metric, bent + step, dense) for step in (0.0, -half, half))
    return Measurement(metric=metric, value=value, low=low, high=high)


def _unbent(metric: str, bent: float, dense: TrialRecord) -> float:
    if metric == "delta_fid":
        return _scale(dense) * math.sinh(max(min(bent, 20.0), -20.0))
    return math.exp(bent)


def _scale(dense: TrialRecord) -> float:
    return abs(dense.values["fid"]) or 1.0
