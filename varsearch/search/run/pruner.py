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
from collections import Counter
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


EXACT = Link(1.0, 0.0, 0.0, 1.0, PAIRS)
"""Where the rung's number is the final one."""


def fit_link(early_N: Array, final_N: Array) -> Link:
    """The least-squares line from early to final numbers, both warped; of rank 0 if few."""
    n = len(early_N)
    # Equal numbers rank nothing.
    if n < PAIRS or np.ptp(early_N) == 0 or np.ptp(final_N) == 0:
        return Link(0.0, 0.0, math.inf, 0.0, n)
    slope, offset = np.polyfit(early_N, final_N, 1)
    residual_N = final_N - offset - slope * early_N
    # The line has two of the degrees of freedom.
    error = float(np.sqrt((residual_N**2).sum() / (n - 2)))
    rank = float(spearmanr(early_N, final_N).statistic)
    return Link(float(slope), float(offset), error, rank, n)


@dataclass(frozen=True, slots=True)
class Links:
    """What a rung says of each final metric that it predicts; nothing without dense."""

    by_metric: Mapping[str, Link]

    @property
    def rank(self) -> float | None:
        """The least rank correlation; None while too few trials have both numbers."""
        links = self.by_metric.values()
        # All metrics of a rung come from the same trials.
        if not links or min(link.pairs for link in links) < PAIRS:
            return None
        return min(link.rank for link in links)

    @property
    def is_usable(self) -> bool:
        """Whether the rung may stop trials."""
        return self.rank is not None and self.rank >= RANK

    @property
    def is_off(self) -> bool:
        """Whether enough trials show that the rung ranks badly."""
        return self.rank is not None and self.rank < RANK


class Pruner:
    """The rungs of a run, their evidence, and the policies that it speaks against.

    Its answers depend on the numbers of trials alone, not on when they came: a run that is
    continued decides as it would have decided.
    """

    def __init__(self, settings: RunSettings, rungs: Sequence[Rung] = ()) -> None:
        self.settings, self.rungs = settings, rungs
        self._evidence: dict[int, dict[int, Evidence]] = {}  # by trial and rung
        self._off: set[str] = set()  # names of rungs that were off at the last `news`

    def learn(self, number: int, evidence: Evidence) -> None:
        """Trial `number` has this evidence, of a rung or not."""
        for i, rung in enumerate(self.rungs):
            if evidence.protocol == rung.protocol.digest:
                self._evidence.setdefault(number, {})[i] = evidence

    def share(self, number: int) -> float:
        """What the rungs that a trial climbed count as, in evaluations."""
        last = self._last(number)
        # The images of a rung are among those of the next one.
        return self.rungs[last].share if last >= 0 else 0.0

    def next(self, number: int, trials: Sequence[TrialRecord], *, also_off: bool) -> Rung | None:
        """The rung that trial `number` climbs next; None if it has climbed all that are in use.

        With `also_off` it climbs the others too, as starts do, which draw those images anyway: a
        rung that failed to rank a dozen mild policies, all as good as dense, may rank the stronger
        ones after them.
        """
        links = self._links(trials)
        for i in range(self._last(number) + 1, len(self.rungs)):
            if also_off or not links[i].is_off:
                return self.rungs[i]
        return None

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
        estimates = []
        for trial in trials:
            # Predicted costs alone say nothing that proposals do not know.
            if trial.state is State.STOPPED and self._has_drawn(trial.number):
                estimates.append(self._estimated(trial, links, dense) or trial)
        return estimates

    def estimate(self, trial: TrialRecord, trials: Sequence[TrialRecord]) -> TrialRecord | None:
        """A trial with estimates of its final numbers; None where its last rung is unusable.

        Before the first image the estimate is that it loses no quality and breaks no bound on it.
        """
        return self._estimated(trial, self._links(trials), dense_trial(trials))

    def _estimated(
        self, trial: TrialRecord, links: Sequence[Links], dense: TrialRecord | None
    ) -> TrialRecord | None:
        climbed, last = self._evidence.get(trial.number, {}), self._last(trial.number)
        if dense is None or not climbed:
            return None
        for i, rung in enumerate(self.rungs):
            # Costs are needed of every trial, and quality from its last rung.
            is_needed = i == last or rung.kind == "speed"
            if is_needed and not (i in climbed and links[i].is_usable):
                return None
        fid, bounds = dense.values["fid"], self.settings.bounds
        # The best that may be hoped for, until a rung with images says more.
        final = {
            "delta_fid": _exact("delta_fid", min(0.0, bounds.get("delta_fid", 0.0))),
            "fid": _exact("fid", min(fid, bounds.get("fid", fid))),
        }
        # Later rungs draw more images, so their estimates replace those of earlier ones.
        for i, evidence in sorted(climbed.items()):
            if not links[i].is_usable:
                continue
            for metric, link in links[i].by_metric.items():
                final[metric] = final_number(metric, link, evidence.values[metric], dense)
        if self._has_drawn(trial.number):
            final["fid"] = _shifted(final["delta_fid"], fid)
        for kind in ("quality", "speed"):
            numbers = tuple(m for m in final.values() if METRICS[m.metric].kind == kind)
            changed = {"kind": kind, "measurements": numbers}
            trial = trial.with_evidence(climbed[last].model_copy(update=changed))
        return trial

    def standing(self, trials: Sequence[TrialRecord]) -> tuple[Standing, ...]:
        """What each rung did, and how well it ranks the trials."""
        stopped = Counter(self._last(t.number) for t in trials if t.state is State.STOPPED)
        standing = []
        for i, links in enumerate(self._links(trials)):
            standing.append(Standing(self.rungs[i].name, stopped[i], links.rank, links.is_off))
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

    def _last(self, number: int) -> int:
        """The last rung that a trial climbed; -1 if none of these is known."""
        return max(self._evidence.get(number, ()), default=-1)

    def _has_drawn(self, number: int) -> bool:
        """Whether images were drawn for a trial."""
        last = self._last(number)
        return last >= 0 and self.rungs[last].kind == "quality"

    def _links(self, trials: Sequence[TrialRecord]) -> list[Links]:
        """The links of each rung, learnt from the complete trials."""
        dense = dense_trial(trials)
        if dense is None:
            return [Links({})] * len(self.rungs)
        # The ΔFID of dense is 0 by definition, which is no evidence for a line.
        complete = [t for t in trials if t.state is State.COMPLETE and t is not dense]
        return [self._links_of(i, complete, dense) for i in range(len(self.rungs))]

    def _links_of(self, i: int, complete: Sequence[TrialRecord], dense: TrialRecord) -> Links:
        rung = self.rungs[i]
        if rung.protocol == self.settings.speed:
            return Links(dict.fromkeys(rung.metrics, EXACT))
        links = {}
        for metric in rung.metrics:
            early, final = [], []
            for trial in complete:
                evidence = self._evidence.get(trial.number, {}).get(i)
                if evidence is not None:
                    early.append(_warped(metric, evidence.values[metric], dense))
                    final.append(_warped(metric, trial.values[metric], dense))
            links[metric] = fit_link(np.array(early), np.array(final))
        return Links(links)


def _exact(metric: str, value: float) -> Measurement:
    return Measurement(metric=metric, value=value)


def final_number(metric: str, link: Link, early: float, dense: TrialRecord) -> Measurement:
    """The estimate of a final number, with its error as the interval, see `standard_error`."""
    if link is EXACT:
        return _exact(metric, early)
    warped = link.offset + link.slope * _warped(metric, early, dense)
    half = half_width(metric) * link.error
    # The warp is monotonic, so the ends of the interval stay its ends.
    return Measurement(
        metric=metric,
        value=_unwarped(metric, warped, dense),
        low=_unwarped(metric, warped - half, dense),
        high=_unwarped(metric, warped + half, dense),
    )


def _shifted(delta: Measurement, fid: float) -> Measurement:
    """The FID with this ΔFID to a dense model of FID `fid`."""
    low = None if delta.low is None else delta.low + fid
    high = None if delta.high is None else delta.high + fid
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
