"""Gives a policy up after an early look that leaves it little hope.

Optuna cannot prune trials of several objectives, so this is ours. A trial climbs rungs, see
`rungs.py`: the first one predicts its costs, the next ones draw a part of its images. A trial goes
on if it is likely enough to be feasible and not dominated, by the estimate that its rungs give of
its final numbers. Per rung and metric,

    y = offset + slope * x + error * eps,    eps ~ N(0, 1)

is a least-squares line over the trials that have both numbers, where x is the rung's number and y
the final one, both
warped: costs by the logarithm, ΔFID by asinh(ΔFID / FID of dense). The probability is that of
`dominance.py`. A rung whose numbers rank the trials otherwise than the final ones do is switched
off (Spearman's correlation below `RANK`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from varsearch.db import State, TrialRecord
from varsearch.measurement import METRICS, Evidence, Measurement
from varsearch.search.core.dominance import chances, half_width
from varsearch.search.core.objectives import dense_trial
from varsearch.search.core.settings import RunSettings
from varsearch.search.run.events import Standing
from varsearch.search.run.rungs import Rung
from varsearch.search.sampler.gaussian_process import Array

ENOUGH = 0.1
"""Least probability to be on the front with which a trial goes on."""

PAIRS = 12
"""Complete trials with a rung's number that the rung needs before it may stop anything."""

RANK = 0.6
"""Least rank correlation of a rung's number with the final one."""


@dataclass(frozen=True, slots=True)
class Link:
    """From a rung's number to the final one: a line between warped numbers.

    Attributes:
        error: residual standard deviation.
        rank: Spearman's correlation of the two numbers over `pairs` trials.
    """

    slope: float
    offset: float
    error: float
    rank: float
    pairs: int

    @property
    def is_usable(self) -> bool:
        """Whether it may stop trials."""
        return self.pairs >= PAIRS and self.rank >= RANK

    @property
    def is_off(self) -> bool:
        """Whether enough trials show that it ranks badly."""
        return self.pairs >= PAIRS and self.rank < RANK


EXACT = Link(1.0, 0.0, 0.0, 1.0, PAIRS)
"""Where the rung's number is the final one."""

Links = Mapping[str, Link]
"""By final metric; empty without dense."""


def fit_link(early_N: Array, final_N: Array) -> Link:
    """The least-squares line from early to final numbers, both warped; unusable if few."""
    n = len(early_N)
    if n < PAIRS or np.ptp(early_N) == 0 or np.ptp(final_N) == 0:
        return Link(0.0, 0.0, math.inf, 0.0, n)
    slope, offset = np.polyfit(early_N, final_N, 1)
    # Two degrees of freedom are those of the line.
    error = float(np.sqrt(((final_N - offset - slope * early_N) ** 2).sum() / (n - 2)))
    return Link(float(slope), float(offset), error, float(spearmanr(early_N, final_N).statistic), n)


class Pruner:
    """The rungs of a run, their evidence, and the policies that it speaks against.

    Its answers depend on the numbers of trials alone, not on when they came: a run that is
    continued decides as it would have decided.
    """

    def __init__(self, settings: RunSettings, rungs: Sequence[Rung] = ()) -> None:
        self.settings, self.rungs = settings, rungs
        self._evidence: dict[tuple[int, int], Evidence] = {}  # by trial and rung
        self._off: set[str] = set()

    def learn(self, number: int, evidence: Evidence) -> None:
        """Trial `number` has this evidence, of a rung or not."""
        for i, rung in enumerate(self.rungs):
            if evidence.protocol == rung.protocol.digest:
                self._evidence[number, i] = evidence

    def share(self, number: int) -> float:
        """What the rungs that a trial climbed count as, in evaluations."""
        return max((self.rungs[i].share for i in self._climbed(number)), default=0.0)

    def next(self, number: int, trials: Sequence[TrialRecord], *, also_off: bool) -> Rung | None:
        """The rung that trial `number` climbs next; None if it has climbed all that are in use.

        With `also_off` it climbs the others too, as starts do, which draw those images anyway: a
        rung that failed to rank a dozen mild policies, all as good as dense, may rank the stronger
        ones after them.
        """
        links, last = self._links(trials), self._last(number)
        left = (
            rung
            for i, rung in enumerate(self.rungs)
            if i > last and (also_off or not _is_off(links[i]))
        )
        return next(left, None)

    def reason_to_stop(self, number: int, trials: Sequence[TrialRecord]) -> str:
        """Why trial `number` is given up at the rung that it reached; empty if it goes on."""
        estimate = self.estimate(trials[number], trials)
        if estimate is None:
            return ""
        complete = [t for t in trials if t.state is State.COMPLETE]
        probability = chances(self.settings, [*complete, estimate])[-1]
        if probability >= ENOUGH:
            return ""
        rung = self.rungs[self._last(number)].name
        return f"stopped after {rung}: {probability:.0%} probability to be on the front"

    def estimates(self, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
        """The trials stopped after images were drawn, with estimates of their final numbers.

        A trial whose last rung is switched off now has none.
        """
        links, dense = self._links(trials), dense_trial(trials)
        stopped = [t for t in trials if t.state is State.STOPPED and self._has_drawn(t.number)]
        return [self._estimated(t, links, dense) or t for t in stopped]

    def estimate(self, trial: TrialRecord, trials: Sequence[TrialRecord]) -> TrialRecord | None:
        """A trial with estimates of its final numbers; None where its last rung is unusable.

        Before the first image the estimate is that it loses no quality and breaks no bound on it.
        """
        return self._estimated(trial, self._links(trials), dense_trial(trials))

    def _estimated(
        self, trial: TrialRecord, links: Sequence[Links], dense: TrialRecord | None
    ) -> TrialRecord | None:
        climbed = self._climbed(trial.number)
        if dense is None or not climbed:
            return None
        usable = [
            i for i in climbed if links[i] and all(link.is_usable for link in links[i].values())
        ]
        needed = {climbed[-1], *(i for i, rung in enumerate(self.rungs) if rung.kind == "speed")}
        if not needed <= {*usable}:
            return None
        scale, bounds = dense.values["fid"], self.settings.bounds
        hopes = {
            "delta_fid": min(0.0, bounds.get("delta_fid", 0.0)),
            "fid": min(scale, bounds.get("fid", scale)),
        }
        final = {metric: Measurement(metric=metric, value=value) for metric, value in hopes.items()}
        # Later rungs draw more images, so their estimates replace those of earlier ones.
        for i in usable:
            values = self._evidence[trial.number, i].values
            for metric, link in links[i].items():
                final[metric] = final_number(metric, link, values[metric], dense)
        if self._has_drawn(trial.number):
            final["fid"] = _shifted(final["delta_fid"], scale)
        evidence = self._evidence[trial.number, climbed[-1]]
        for kind in ("quality", "speed"):
            measurements = tuple(m for m in final.values() if METRICS[m.metric].kind == kind)
            estimated = evidence.model_copy(update={"kind": kind, "measurements": measurements})
            trial = trial.with_evidence(estimated)
        return trial

    def standing(self, trials: Sequence[TrialRecord]) -> tuple[Standing, ...]:
        """What each rung did, and how well it ranks the trials."""
        stopped = [self._last(t.number) for t in trials if t.state is State.STOPPED]
        standing = []
        for i, (rung, links) in enumerate(zip(self.rungs, self._links(trials), strict=True)):
            is_known = bool(links) and all(link.pairs >= PAIRS for link in links.values())
            rank = min(link.rank for link in links.values()) if is_known else None
            standing.append(Standing(rung.name, stopped.count(i), rank, _is_off(links)))
        return tuple(standing)

    def news(self, standing: Sequence[Standing]) -> str:
        """Which rungs were switched off or on since the last call."""
        before, self._off = self._off, {rung.name for rung in standing if rung.is_off}
        lines = []
        for rung in standing:
            if rung.rank is None or rung.is_off == (rung.name in before):
                continue
            lines.append(
                f"rung of {rung.name} switched {'off' if rung.is_off else 'on'}: its numbers have "
                f"rank correlation {rung.rank:.2f} with the final ones, {RANK} is needed"
            )
        return "; ".join(lines)

    def _climbed(self, number: int) -> list[int]:
        return [i for i in range(len(self.rungs)) if (number, i) in self._evidence]

    def _last(self, number: int) -> int:
        """The last rung that a trial climbed; -1 if none of these is known."""
        return max(self._climbed(number), default=-1)

    def _has_drawn(self, number: int) -> bool:
        """Whether images were drawn for a trial."""
        last = self._last(number)
        return last >= 0 and self.rungs[last].kind == "quality"

    def _links(self, trials: Sequence[TrialRecord]) -> list[Links]:
        """For each rung, final metric to what predicts it; learnt from the complete trials."""
        dense = dense_trial(trials)
        if dense is None:
            return [{} for _ in self.rungs]
        # Dense has no ΔFID by definition, which is no evidence for a line.
        complete = [t for t in trials if t.state is State.COMPLETE and t is not dense]
        return [self._links_of(i, complete, dense) for i in range(len(self.rungs))]

    def _links_of(self, i: int, complete: Sequence[TrialRecord], dense: TrialRecord) -> Links:
        rung = self.rungs[i]
        if rung.protocol == self.settings.speed:
            return dict.fromkeys(rung.metrics, EXACT)
        both = [t for t in complete if (t.number, i) in self._evidence]
        links = {}
        for metric in rung.metrics:
            early = [
                _warped(metric, self._evidence[t.number, i].values[metric], dense) for t in both
            ]
            final = [_warped(metric, t.values[metric], dense) for t in both]
            links[metric] = fit_link(np.array(early), np.array(final))
        return links


def _is_off(links: Links) -> bool:
    """Whether enough trials show that a rung ranks badly."""
    return any(link.is_off for link in links.values())


def final_number(metric: str, link: Link, early: float, dense: TrialRecord) -> Measurement:
    """The estimate of a final number, with its error as the interval, see `standard_error`."""
    if link is EXACT:
        return Measurement(metric=metric, value=early)
    warped, half = (
        link.offset + link.slope * _warped(metric, early, dense),
        half_width(metric) * link.error,
    )
    value, low, high = (_unwarped(metric, warped + step, dense) for step in (0.0, -half, half))
    return Measurement(metric=metric, value=value, low=low, high=high)


def _shifted(delta: Measurement, fid: float) -> Measurement:
    """The FID with this ΔFID to a dense model of FID `fid`."""
    low, high = (None if x is None else x + fid for x in (delta.low, delta.high))
    return Measurement(metric="fid", value=delta.value + fid, low=low, high=high)


def _warped(metric: str, value: float, dense: TrialRecord) -> float:
    """A number on a scale where errors are alike: log of costs, asinh of ΔFID over dense's FID.

    Next to dense ΔFID has an error of its own; far from it the error grows with it.
    """
    if metric == "delta_fid":
        return math.asinh(value / _scale(dense))
    return math.log(max(value, 1e-12))


def _unwarped(metric: str, warped: float, dense: TrialRecord) -> float:
    if metric == "delta_fid":
        # A line through few points can reach far; sinh must not overflow.
        return _scale(dense) * math.sinh(max(min(warped, 20.0), -20.0))
    return math.exp(warped)


def _scale(dense: TrialRecord) -> float:
    return abs(dense.values["fid"]) or 1.0
