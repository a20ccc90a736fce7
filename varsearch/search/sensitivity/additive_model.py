"""What a profile says about any settings together: their loss of quality and their cost, and how far to trust both."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
from scipy.optimize import nnls

from varsearch.sensitivity_profile import DENSE, Cost, Effect, Estimate, Profile
from varsearch.space.one_at_a_time import Probes, cost_parts, named, probes
from varsearch.space.settings import Chosen, Setting

FACTOR_ERROR = 3.0
"""How far a kind may be from the relation between precise metrics and the shift that holds for all kinds."""

LEAST = 0.1
"""Part of the expected loss of a setting that remains of it whatever noise says: nothing is free of loss."""


def _place(setting: Setting) -> tuple[int, str]:
    return -1 if setting.layer is None else setting.layer, setting.kind


@dataclass(frozen=True, slots=True)
class LinearFit:
    """y = intercept + slope x by least squares.

    `r2` is the share of y's variance that it explains, `median_error` the median of |error| / y, or of
    |error| where y is a logarithm.
    """

    intercept: float
    slope: float
    r2: float
    median_error: float

    @classmethod
    def of(cls, x: Sequence[float], y: Sequence[float], *, is_log: bool = False) -> LinearFit:
        """Raises `statistics.StatisticsError` unless there are two different x."""
        slope, intercept = statistics.linear_regression(x, y)
        errors = [b - intercept - slope * a for a, b in zip(x, y, strict=True)]
        total = sum((b - statistics.fmean(y)) ** 2 for b in y)
        r2 = 1 - sum(e * e for e in errors) / total if total else 1.0
        sizes = [1.0] * len(errors) if is_log else y
        return cls(intercept, slope, r2, statistics.median(abs(e) / b for e, b in zip(errors, sizes, strict=True)))

    def __call__(self, x: float) -> float:
        """The y that belongs to `x`."""
        return self.intercept + self.slope * x


@dataclass(frozen=True, slots=True)
class Interaction:
    """How far the effect of two settings is from the sum of theirs, relative to it, in `metric`."""

    pair: str
    metric: str
    deviation: Estimate


class Estimates:
    """Sums of a profile's numbers.

    Attributes:
        losses: by name of a setting, how much it shifts the mean features, see `joined`.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.effects, self.costs = profile.sensitivity.effects, profile.costs
        self.dense = self.costs.parts[DENSE]
        kinds = {name: setting.kind for name, (setting,) in self.probes.singles.items()}
        self.losses = joined({name: self.effects[name] for name in kinds}, kinds)

    @cached_property
    def probes(self) -> Probes:
        """What was measured."""
        return probes(self.profile.spec, self.profile.siblings, self.profile.sensitivity.protocol.seed)

    def loss(self, chosen: Iterable[Setting]) -> float:
        """The sum of the settings' losses."""
        return sum(self.losses[setting.name].value for setting in chosen)

    def change(self, part: Chosen) -> Cost:
        """By how much one of `cost_parts` changes dense."""
        return self.costs.parts[named(part)] - self.dense

    def summed(self, chosen: Iterable[Setting]) -> Cost:
        """About what a batch takes with these settings: dense, and the changes of all parts.

        Each setting of the whole policy (guidance, a skipped scale, a refiner) leaves a share of the time that all
        others take, and caches shrink by one factor per technique: fewer bits save on what is kept. Activations at
        their peak do not add up, it is one moment: of the parts that raise it the one that does most counts, and of
        those that lower it likewise.
        """
        chosen = tuple(chosen)
        parts = [(part[0], self.change(part)) for part in cost_parts(chosen)]
        whole, local = ([c for s, c in parts if (s.layer is None) is outer] for outer in (True, False))
        total = sum(local, sum(whole, self.dense))
        left = math.prod(max(0.0, 1 + c.latency_ms / self.dense.latency_ms) for c in whole)
        latency = left * sum((c.latency_ms for c in local), self.dense.latency_ms)
        kv_bytes = self._kv_bytes(chosen)
        own, *changes = (c.peak_bytes - c.weight_bytes - c.kv_bytes for c in (self.dense, *whole, *local))
        peak = total.weight_bytes + kv_bytes + own + max([0.0, *changes]) + min([0.0, *changes])
        return total.model_copy(update={"latency_ms": latency, "kv_bytes": kv_bytes, "peak_bytes": peak})

    def _kv_bytes(self, chosen: Iterable[Setting]) -> float:
        """Dense's caches, layer by layer, times the share that each technique leaves of them."""
        n_layers, dense = self.profile.spec.n_layers, self.dense.kv_bytes
        saved: dict[int | None, dict[str, float]] = {layer: {} for layer in (None, *range(n_layers))}
        by_place = groupby(sorted(chosen, key=_place), _place)
        for (layer, kind), some in ((place, list(settings)) for place, settings in by_place):
            changed = sum(self.change(part).kv_bytes for part in cost_parts(some))
            index = None if layer < 0 else layer
            saved[index][kind] = changed / max(1.0, dense if index is None else dense / n_layers)
        everywhere = math.prod(max(0.0, 1 + change) for change in saved.pop(None).values())
        layers = (math.prod(max(0.0, 1 + change) for change in kinds.values()) for kinds in saved.values())
        return everywhere * sum(layers) * dense / n_layers

    def predicted(self, chosen: Iterable[Setting]) -> Cost:
        """The sum, with latency and peak memory corrected to what whole policies take."""
        total = self.summed(chosen)
        corrected = {"latency_ms": self.latency(total.latency_ms), "peak_bytes": self.memory(total.peak_bytes)}
        return total.model_copy(update=corrected)

    @cached_property
    def latency(self) -> LinearFit:
        """From the sum to the latency of whole policies, in milliseconds."""
        return self._fit(lambda cost: cost.latency_ms)

    @cached_property
    def memory(self) -> LinearFit:
        """From the sum to the peak memory of whole policies, in bytes."""
        return self._fit(lambda cost: cost.peak_bytes)

    def _fit(self, of: Callable[[Cost], float]) -> LinearFit:
        whole = {DENSE: (), **self.probes.policies}
        pairs = [(of(self.summed(chosen)), of(self.costs.policies[name])) for name, chosen in whole.items()]
        return LinearFit.of(*zip(*pairs, strict=True))

    @cached_property
    def quality(self) -> LinearFit:
        """From the logarithm of the sum of losses to that of the measured shift of whole policies.

        Small changes in the same direction add up before they are squared, so the shift grows like a power of the sum.
        A shift within its error counts as that.
        """
        policies = self.probes.policies
        measured = [max(shift.value, shift.error) for shift in (self.effects[name].shift for name in policies)]
        summed = [self.loss(chosen) for chosen in policies.values()]
        return LinearFit.of(list(map(math.log, summed)), list(map(math.log, measured)), is_log=True)

    def predicted_loss(self, chosen: Iterable[Setting]) -> float:
        """The sum of losses, corrected to what whole policies lose."""
        total = self.loss(chosen)
        return math.exp(self.quality(math.log(total))) if total > 0 else 0.0

    @cached_property
    def interactions(self) -> tuple[Interaction, ...]:
        """Of each pair: in likelihood, or in distance where a part has none."""
        return tuple(self._interaction(name, pair) for name, pair in self.probes.pairs.items())

    def _interaction(self, name: str, pair: Chosen) -> Interaction:
        effects = [self.effects[name], *(self.effects[setting.name] for setting in pair)]
        nll = [effect.nll for effect in effects if effect.nll is not None]
        both, *alone = nll if len(nll) == len(effects) else [effect.distance for effect in effects]
        total = sum(abs(e.value) for e in alone) or math.inf
        deviation = (both.value - sum(e.value for e in alone)) / total
        error = math.sqrt(sum(e.error**2 for e in (both, *alone))) / total
        metric = "nll" if len(nll) == len(effects) else "distance"
        return Interaction(name, metric, Estimate(value=deviation, error=error))


def joined(effects: Mapping[str, Effect], kinds: Mapping[str, str]) -> dict[str, Estimate]:
    """One loss for each effect, in units of `Effect.shift`.

    The shift is what matters and is noisy; likelihood and distance are precise and matter only as far as they tell the
    shift. So the shift that they let expect, by a regression over all effects and a factor for each kind, is a prior as
    wide as it is large, and what was measured corrects it: the posterior mean of two normal distributions.
    """
    expected = _expected({name: e for name, e in effects.items() if e.nll is not None})
    expected |= _expected({name: e for name, e in effects.items() if e.nll is None})
    factors = {
        kind: _factor([(expected[name], e.shift) for name, e in effects.items() if kinds[name] == kind])
        for kind in set(kinds.values())
    }
    return {name: _posterior(factors[kinds[name]] * expected[name], e.shift) for name, e in effects.items()}


def _factor(found: Sequence[tuple[float, Estimate]]) -> float:
    """By what to multiply the expected shifts of a kind: 1 give or take `FACTOR_ERROR`, corrected by the measured ones.

    Settings are measured on the same images and their errors are alike: n of them count as much as the root of n. An
    error that is small because hardly an image changed counts as the median one.
    """
    usual = statistics.median(e.error for _, e in found) or 1.0
    certain = [(expected / max(e.error, usual) ** 2, expected, e.value) for expected, e in found]
    count = math.sqrt(len(certain))
    precision = 1 / FACTOR_ERROR**2 + sum(w * x for w, x, _ in certain) / count
    mean = (1 / FACTOR_ERROR**2 + sum(w * y for w, _, y in certain) / count) / precision
    return _positive_part(Estimate(value=mean, error=precision**-0.5))


def _expected(effects: Mapping[str, Effect]) -> dict[str, float]:
    """The shift by distance and, where there is one, by the loss of likelihood; both weights are at least 0."""
    if not effects:
        return {}
    columns = [[e.distance.value for e in effects.values()]]
    columns += [[_positive_part(e.nll) for e in effects.values() if e.nll is not None]]
    x, y = np.array([column for column in columns if column]).T, np.array([e.shift.value for e in effects.values()])
    errors = np.array([e.shift.error for e in effects.values()])
    certain = 1 / np.maximum(errors, np.median(errors) or 1.0)
    weights, _ = nnls(x * certain[:, None], y * certain)
    return dict(zip(effects, (x @ weights).tolist(), strict=True))


def _positive_part(estimate: Estimate) -> float:
    """What is expected of max(x, 0) for a normal x: no setting is better than dense, as it may seem by noise."""
    if not estimate.error:
        return max(estimate.value, 0.0)
    known = statistics.NormalDist(estimate.value, estimate.error)
    return estimate.value * (1 - known.cdf(0)) + estimate.error**2 * known.pdf(0)


def _posterior(expected: float, measured: Estimate) -> Estimate:
    trust = expected**2 / (expected**2 + measured.error**2) if expected else 0.0
    value = expected + trust * (measured.value - expected)
    return Estimate(value=max(value, LEAST * expected), error=expected * math.sqrt(1 - trust))
