"""Losses and costs of policies as sums over their settings, corrected by measured whole policies.

    loss(policy)    = exp(a + b log Σ loss(s))
    latency(policy) = c + d (Π (1 + Δt(g) / t)) (t + Σ Δt(s)),  memory likewise

Global settings g multiply, settings s of layers add up. a, b, c and d are least-squares fits to
the whole policies of the profile. The loss of one setting is a posterior mean, see
`posterior_losses`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import nnls

from varsearch.profile import DENSE, Cost, Effect, Estimate, Profile
from varsearch.search.sensitivity.decomposition import (
    Chosen,
    Probes,
    Setting,
    cost_parts,
    named,
    probes,
)


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Tuning constants of the losses of settings."""

    # Standard deviation of a kind's factor, which is 1 on average.
    factor_error: float = 3.0
    # Part of the expected loss that remains whatever noise says: no setting is free of loss.
    smallest_share: float = 0.1


DEFAULTS = LossConfig()


@dataclass(frozen=True, slots=True)
class LinearFit:
    """y = intercept + slope x by least squares.

    Attributes:
        r2: share of y's variance that the line explains.
        median_error: median of |error| / y, or of |error| where y is a logarithm.
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
        total = np.square(np.array(y) - statistics.fmean(y)).sum()
        r2 = 1 - float(np.square(errors).sum() / total) if total else 1.0
        sizes = np.abs(errors) / (1.0 if is_log else np.array(y))
        return cls(intercept, slope, r2, float(np.median(sizes)))

    def __call__(self, x: float) -> float:
        """The y that belongs to `x`."""
        return self.intercept + self.slope * x


@dataclass(frozen=True, slots=True)
class Interaction:
    """Deviation of a pair's effect from the sum of both effects, relative to it, in `metric`."""

    pair: str
    metric: str
    deviation: Estimate


class AdditiveModel:
    """Sums of a profile's numbers.

    Attributes:
        losses: by name of a setting, its loss in units of `Effect.shift`, about a ΔFID.
        dense: what a batch of dense takes by the cost model.
    """

    def __init__(self, profile: Profile, config: LossConfig = DEFAULTS) -> None:
        self.profile = profile
        self.effects, self.costs = profile.sensitivity.effects, profile.costs
        self.dense = self.costs.parts[DENSE]
        effects, kinds = {}, {}
        for name, (setting,) in self.probes.singles.items():
            effects[name], kinds[name] = self.effects[name], setting.kind
        self.losses = posterior_losses(effects, kinds, config)

    @cached_property
    def probes(self) -> Probes:
        """What was measured."""
        profile = self.profile
        return probes(profile.spec, profile.siblings, profile.sensitivity.protocol.seed)

    def loss(self, chosen: Iterable[Setting]) -> float:
        """The sum of the settings' losses."""
        return sum(self.losses[setting.name].value for setting in chosen)

    def change(self, part: Chosen) -> Cost:
        """By how much one of `cost_parts` changes dense."""
        return self.costs.parts[named(part)] - self.dense

    def summed(self, chosen: Iterable[Setting]) -> Cost:
        """About what a batch takes with these settings: dense, and the changes of all parts.

        A global setting leaves a share of the time that all others take. Caches shrink by one
        factor per technique: fewer bits save on what is kept. Activations peak at one moment: of
        the parts that raise the peak the largest counts, and of those that lower it likewise.
        """
        chosen = tuple(chosen)
        dense, total = self.dense, self.dense
        left, local_ms = 1.0, dense.latency_ms
        highest = lowest = 0.0
        # Global parts first: sums of floating-point numbers depend on their order.
        for part in sorted(cost_parts(chosen), key=lambda part: part[0].layer is not None):
            change = self.change(part)
            total += change
            if part[0].layer is None:
                left *= max(0.0, 1 + change.latency_ms / dense.latency_ms)
            else:
                local_ms += change.latency_ms
            moved = _activations(change)
            highest, lowest = max(highest, moved), min(lowest, moved)
        kv_bytes = self._kv_bytes(chosen)
        peak = total.weight_bytes + kv_bytes + _activations(dense) + highest + lowest
        changed = {"latency_ms": left * local_ms, "kv_bytes": kv_bytes, "peak_bytes": peak}
        return total.model_copy(update=changed)

    def _kv_bytes(self, chosen: Iterable[Setting]) -> float:
        """Dense's caches, layer by layer, times the share that each technique leaves of them."""
        n_layers, dense = self.profile.spec.n_layers, self.dense.kv_bytes
        groups: dict[tuple[int, str], list[Setting]] = {}
        for setting in chosen:
            layer = -1 if setting.layer is None else setting.layer
            groups.setdefault((layer, setting.kind), []).append(setting)
        # Of the whole cache, and of each layer's.
        everywhere, layers = 1.0, [1.0] * n_layers
        for (layer, _), settings in sorted(groups.items()):
            changed = sum(self.change(part).kv_bytes for part in cost_parts(settings))
            if layer < 0:
                everywhere *= max(0.0, 1 + changed / max(1.0, dense))
            else:
                layers[layer] *= max(0.0, 1 + changed / max(1.0, dense / n_layers))
        return everywhere * sum(layers) * dense / n_layers

    def predicted(self, chosen: Iterable[Setting]) -> Cost:
        """The sum, with latency and peak memory corrected to those of whole policies."""
        total = self.summed(chosen)
        latency_ms, peak_bytes = self.latency(total.latency_ms), self.memory(total.peak_bytes)
        return total.model_copy(update={"latency_ms": latency_ms, "peak_bytes": peak_bytes})

    @cached_property
    def latency(self) -> LinearFit:
        """From the sum to the latency of whole policies, in milliseconds."""
        return self._fit(lambda cost: cost.latency_ms)

    @cached_property
    def memory(self) -> LinearFit:
        """From the sum to the peak memory of whole policies, in bytes."""
        return self._fit(lambda cost: cost.peak_bytes)

    def _fit(self, of: Callable[[Cost], float]) -> LinearFit:
        summed, measured = [], []
        for name, chosen in {DENSE: (), **self.probes.policies}.items():
            summed.append(of(self.summed(chosen)))
            measured.append(of(self.costs.policies[name]))
        return LinearFit.of(summed, measured)

    @cached_property
    def quality(self) -> LinearFit:
        """From the logarithm of the sum of losses to that of the measured shift.

        Small changes in the same direction add up before they are squared, so the shift grows
        like a power of the sum. A shift within its error counts as its error.
        """
        summed, measured = [], []
        for name, chosen in self.probes.policies.items():
            shift = self.effects[name].shift
            summed.append(math.log(self.loss(chosen)))
            measured.append(math.log(max(shift.value, shift.error)))
        return LinearFit.of(summed, measured, is_log=True)

    def predicted_loss(self, chosen: Iterable[Setting]) -> float:
        """The sum of losses, corrected to those of whole policies."""
        total = self.loss(chosen)
        return math.exp(self.quality(math.log(total))) if total > 0 else 0.0

    @cached_property
    def interactions(self) -> tuple[Interaction, ...]:
        """Of each pair: in likelihood, or in distance where a part has none."""
        return tuple(self._interaction(name, pair) for name, pair in self.probes.pairs.items())

    def _interaction(self, name: str, pair: Chosen) -> Interaction:
        nll, distance = [], []
        for effect in (self.effects[name], *(self.effects[setting.name] for setting in pair)):
            distance.append(effect.distance)
            if effect.nll is not None:
                nll.append(effect.nll)
        metric = "nll" if len(nll) == len(distance) else "distance"
        both, *alone = nll if metric == "nll" else distance
        total = sum(abs(e.value) for e in alone) or math.inf
        deviation = (both.value - sum(e.value for e in alone)) / total
        error = math.sqrt(sum(e.error**2 for e in (both, *alone))) / total
        return Interaction(name, metric, Estimate(value=deviation, error=error))


def _activations(cost: Cost) -> float:
    """Peak memory beside weights and caches."""
    return cost.peak_bytes - cost.weight_bytes - cost.kv_bytes


def posterior_losses(
    effects: Mapping[str, Effect], kinds: Mapping[str, str], config: LossConfig = DEFAULTS
) -> dict[str, Estimate]:
    """One loss for each effect, in units of `Effect.shift`.

    The shift matters and is noisy; likelihood and distance are precise and matter only as far as
    they predict the shift. A regression over all effects and a factor for each kind predict it:
    this is the mean and the deviation of a normal prior. The measured shift corrects it to the
    posterior mean of two normal distributions.
    """
    with_nll, without = dict[str, Effect](), dict[str, Effect]()
    by_kind: dict[str, list[str]] = {}
    for name, effect in effects.items():
        (without if effect.nll is None else with_nll)[name] = effect
        by_kind.setdefault(kinds[name], []).append(name)
    expected = _expected(with_nll) | _expected(without)
    factors = {}
    for kind, names in by_kind.items():
        pairs = [(expected[name], effects[name].shift) for name in names]
        factors[kind] = _factor(pairs, config)
    losses = {}
    for name, effect in effects.items():
        prior, shift = factors[kinds[name]] * expected[name], effect.shift
        # Prior N(p, p²), measured N(x, e²): the weight of x is p² / (p² + e²).
        trust = prior**2 / (prior**2 + shift.error**2) if prior else 0.0
        value = prior + trust * (shift.value - prior)
        least = config.smallest_share * prior
        losses[name] = Estimate(value=max(value, least), error=prior * math.sqrt(1 - trust))
    return losses


def _factor(pairs: Sequence[tuple[float, Estimate]], config: LossConfig) -> float:
    """The factor on the expected shifts of a kind: its prior mean is 1, shifts correct it.

    Settings are measured on the same images and their errors are alike, so n of them count as
    much as the root of n. An error below the median counts as the median: it is small because
    hardly an image changed.
    """
    usual = statistics.median(shift.error for _, shift in pairs) or 1.0
    squares = products = 0.0
    for expected, shift in pairs:
        weight = expected / max(shift.error, usual) ** 2
        squares += weight * expected
        products += weight * shift.value
    count, prior = math.sqrt(len(pairs)), 1 / config.factor_error**2
    precision = prior + squares / count
    mean = (prior + products / count) / precision
    return _positive_part(Estimate(value=mean, error=precision**-0.5))


def _expected(effects: Mapping[str, Effect]) -> dict[str, float]:
    """The shift by distance and, where there is one, by likelihood; no weight is below 0."""
    if not effects:
        return {}
    rows, shifts, errors = [], [], []
    for effect in effects.values():
        likelihood = [] if effect.nll is None else [_positive_part(effect.nll)]
        rows.append([effect.distance.value, *likelihood])
        shifts.append(effect.shift.value)
        errors.append(effect.shift.error)
    x_NP, y_N, error_N = np.array(rows), np.array(shifts), np.array(errors)
    # A very small error means that hardly an image changed, not that it is certain.
    precision_N = 1 / np.maximum(error_N, np.median(error_N) or 1.0)
    weights_P, _ = nnls(x_NP * precision_N[:, None], y_N * precision_N)
    return dict(zip(effects, (x_NP @ weights_P).tolist(), strict=True))


def _positive_part(estimate: Estimate) -> float:
    """The expectation of max(x, 0) for a normal x: no setting is better than dense."""
    if not estimate.error:
        return max(estimate.value, 0.0)
    # E[max(x, 0)] = μ Φ(μ/σ) + σ φ(μ/σ).
    normal = statistics.NormalDist(estimate.value, estimate.error)
    return estimate.value * (1 - normal.cdf(0)) + estimate.error**2 * normal.pdf(0)
