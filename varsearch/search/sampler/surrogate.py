"""Surrogate: one warped Gaussian process per objective, around a prior mean.

    z(x) = m(x) + β·φ(x) + u(x) + noise,     β ~ N(0, a²),     u ~ GP(0, b² exp(-d / l))

z is a warped relative cost (`warping`), m the prior mean (`prior_mean`). The features φ correct m:
a group of settings (a kind, a layer, a scale) does more or less than expected, which to first
order adds to the logarithm of the sum. One more feature per setting lets the fit correct that
setting's loss; its scale is the profile's standard error. u is the rest, over the L1 distance of
two policies in their units.

Where an objective is measured with errors, P sample paths through all trials stand for the
posterior. In each, the true values of the trials are known.

| suffix | meaning                                                    |
|--------|------------------------------------------------------------|
| N      | trials, then pending policies                              |
| M      | policies that are asked for                                |
| P      | posterior samples                                          |
| Q      | equally likely values that stand for a normal distribution |
| S, F   | settings, features                                         |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import ndtri

from varsearch.db import TrialRecord
from varsearch.measurement import METRICS, TIMES
from varsearch.policy import Policy
from varsearch.search.core.objectives import relative_costs
from varsearch.search.core.pareto import Array
from varsearch.search.core.settings import RunSettings
from varsearch.search.sampler.gaussian_process import Posterior, ScaleGrid, condition, fit
from varsearch.search.sampler.prior_mean import PriorMean, place_of
from varsearch.search.sampler.warping import Warping
from varsearch.search.sensitivity.decomposition import Chosen, other_fields, settings_of


@dataclass(frozen=True, slots=True)
class SurrogateConfig:
    """Tuning constants of the surrogate."""

    # Relative loss up to which losses are compared by their difference, and beyond by their ratio.
    soft: float = 0.02
    # Q: values for each predicted normal distribution.
    quantiles: int = 16
    # P: sample paths for each objective that is measured with errors.
    posterior_samples: int = 8
    # Of the process, `scales.noise` for losses.
    scales: ScaleGrid = field(default_factory=ScaleGrid)
    # Standard deviations of the logarithm of a time or of bytes: predicted ones have next to none,
    # measured ones some.
    cost_noise: tuple[float, ...] = (0.002, 0.02)
    # Scale of the feature that all policies share that lose something.
    any_loss: float = 0.3
    # Scale of fields that no setting expresses.
    other_fields: float = 3.0


DEFAULTS = SurrogateConfig()


@dataclass(frozen=True, slots=True)
class ObjectiveModel:
    """One objective.

    Attributes:
        posterior: of what the prior mean leaves; of P sample paths if trials have errors.
        known_NP: warped costs of trials and pending policies; (N, 1) if no trial has errors.
    """

    metric: str
    posterior: Posterior
    known_NP: Array


class Surrogate:
    """Fitted to trials of a run.

    Args:
        prior_mean: expected costs.
        settings: objectives.
        dense: metrics of the dense policy.
        trials: with values of all objectives.
        pending: policies that others evaluate now: they count as known to have the predicted
            values.
        seed: of the posterior samples.
        config: tuning constants.
    """

    def __init__(
        self,
        prior_mean: PriorMean,
        settings: RunSettings,
        dense: Mapping[str, float],
        trials: Sequence[TrialRecord],
        pending: Sequence[Policy] = (),
        seed: Sequence[int] = (0,),
        config: SurrogateConfig = DEFAULTS,
    ) -> None:
        self.prior_mean, self.settings, self.config = prior_mean, settings, config
        self.warping = Warping(settings, dense, config.soft)
        self._seed, self._trials = seed, trials
        policies = [*(trial.policy for trial in trials), *pending]
        self._rows_NS = prior_mean.rows(map(settings_of, policies))
        self._others = [other_fields(policy) for policy in policies]

    @cached_property
    def _models(self) -> list[ObjectiveModel]:
        distances_NN = self._distances(self._rows_NS, self._others)
        models = []
        for j, metric in enumerate(self.settings.objectives):
            models.append(self._model(j, metric, distances_NN))
        return models

    def _model(self, j: int, metric: str, distances_NN: Array) -> ObjectiveModel:
        done, config = len(self._trials), self.config
        cost_N, noise_N = np.zeros(done), np.zeros(done)
        for n, trial in enumerate(self._trials):
            cost_N[n] = self.warping.costs(trial.values)[j]
            noise_N[n] = self.warping.noise(metric, trial)
        expected_N, features_NF = self._prior(metric, self._rows_NS, self._others)
        residual_N = self.warping.warp(metric, cost_N) - expected_N[:done]
        is_loss = METRICS[metric].kind == "quality"
        levels = config.scales.noise if is_loss else config.cost_noise
        posterior = fit(
            features_NF[:done],
            distances_NN[:done, :done],
            residual_N,
            noise_N,
            config.scales,
            levels,
        )
        # Without errors all posterior samples would be the same.
        if noise_N.any():
            shape = len(expected_N), config.posterior_samples
            eps_NP = np.random.default_rng((*self._seed, j)).standard_normal(shape)
            posterior = posterior.sample_paths(
                features_NF, distances_NN[:, :done], distances_NN, eps_NP, config.scales.jitter
            )
        elif done < len(expected_N):
            # Pending policies become targets with their own predictions.
            believed, _ = posterior.predict(features_NF[done:], distances_NN[done:, :done])
            residual_N = np.append(residual_N, believed)
            noise_N = np.append(noise_N, 0 * believed)
            posterior = condition(posterior.scales, features_NF, distances_NN, residual_N, noise_N)
        known_NP = expected_N[:, None] + posterior.residual_N.reshape(len(expected_N), -1)
        return ObjectiveModel(metric, posterior, known_NP)

    def known_costs(self) -> list[Array]:
        """Relative costs of trials and pending policies, (N, P) for each objective.

        Exact numbers of trials are given as they are.
        """
        costs = []
        for j, model in enumerate(self._models):
            cost_NP = self.warping.unwarp(model.metric, self._samples(model.known_NP))
            for cost_P, trial in zip(cost_NP, self._trials, strict=False):
                if not self.warping.noise(model.metric, trial):
                    dense = self.warping.dense
                    cost_P[:] = relative_costs(self.settings, trial.values, dense)[j]
            costs.append(cost_NP)
        return costs

    def draws(
        self, chosen: Sequence[Chosen], others: Sequence[Sequence[str]] | None = None
    ) -> list[Array]:
        """Equally likely relative costs of policies, (M, P, Q) for each objective.

        Args:
            chosen: settings of each policy.
            others: fields of each that no setting expresses.
        """
        others = [()] * len(chosen) if others is None else others
        rows_MS = self.prior_mean.rows(chosen)
        distances_MN = self._distances(rows_MS, others)
        n_quantiles = self.config.quantiles
        # Midpoints of Q equally likely intervals.
        eps_Q = ndtri((np.arange(n_quantiles) + 0.5) / n_quantiles)
        costs = []
        for model in self._models:
            expected_M, features_MF = self._prior(model.metric, rows_MS, others)
            mean, error_M = model.posterior.predict(features_MF, distances_MN)
            mean_MP = expected_M[:, None] + mean.reshape(len(expected_M), -1)
            warped_MPQ = mean_MP[:, :, None] + error_M[:, None, None] * eps_Q
            costs.append(self._samples(self.warping.unwarp(model.metric, warped_MPQ)))
        return costs

    def _samples(self, values: Array) -> Array:
        """One sample stands for all P where they are the same; samples are the second axis."""
        return np.repeat(values, self.config.posterior_samples // values.shape[1], axis=1)

    def _distances(self, rows_MS: Array, others: Sequence[Sequence[str]]) -> Array:
        """L1 distances to the trials: differences of units as shares of their kinds, (M, N)."""
        places_M = self._places_of(rows_MS, others)
        distances_MN: Array = cdist(places_M, self._own_places, "cityblock")
        return distances_MN

    @cached_property
    def _own_places(self) -> Array:
        return self._places_of(self._rows_NS, self._others)

    def _places_of(self, rows_MS: Array, others: Sequence[Sequence[str]]) -> Array:
        return np.hstack([rows_MS @ self.prior_mean.strength_SU, self._other_features(others)])

    @cached_property
    def _other_places(self) -> list[str]:
        return sorted({place_of(path) for paths in self._others for path in paths})

    def _other_features(self, others: Sequence[Sequence[str]]) -> Array:
        """Share of all layers or scales where a policy sets such a field, a column per field."""
        spec = self.prior_mean.spec
        size = {"layers": spec.n_layers, "scales": len(spec.scales)}
        # A field of a quarter of the layers counts a quarter.
        table = np.zeros((len(others), len(self._other_places)))
        for m, paths in enumerate(others):
            for path in paths:
                column = self._other_places.index(place_of(path))
                table[m, column] += 1 / size.get(path.split("[")[0], 1)
        return table

    def _prior(
        self, metric: str, rows_MS: Array, others: Sequence[Sequence[str]]
    ) -> tuple[Array, Array]:
        """m, (M,), and φ, (M, F)."""
        if METRICS[metric].kind == "quality":
            return self._prior_loss(rows_MS, others)
        prior, effects = self.prior_mean, self.prior_mean.effects
        if metric in TIMES:
            cost_M, effect_S = prior.time(rows_MS), effects.time_S
        else:
            is_peak = metric == "peak_bytes"
            cost_M = prior.memory(rows_MS) if is_peak else np.ones(len(rows_MS))
            effect_S = effects.weights_S + effects.caches_S + effects.activations_S
        # Saturates: the parts of a sum cannot save more than all.
        parts_MG = np.tanh(rows_MS @ (np.abs(effect_S)[:, None] * prior.groups_SG))
        expected_M = np.log(cost_M)
        # What is left of dense has a floor that no sum knows: z bends.
        bend_M2 = np.stack([expected_M, expected_M**2], 1)
        return expected_M, np.hstack([bend_M2, parts_MG, self._other_features(others)])

    def _prior_loss(self, rows_MS: Array, others: Sequence[Sequence[str]]) -> tuple[Array, Array]:
        prior, config = self.prior_mean, self.config
        loss_M = prior.relative_loss(rows_MS, self.warping.dense_fid)
        expected_M = np.arcsinh(loss_M / config.soft)
        # dz / d(log loss): a factor on the loss moves z by this much.
        slope_M1 = (loss_M / np.hypot(loss_M, config.soft))[:, None]
        # One factor on all losses, but dense loses nothing.
        any_M1 = config.any_loss * np.ones((len(rows_MS), 1)) * (expected_M > 0)[:, None]
        parts_MG = slope_M1 * prior.group_features(rows_MS, prior.effects.loss_S)
        # One feature per setting: its coefficient is the error in standard errors.
        own_MS = slope_M1 * prior.loss_uncertainty(rows_MS)
        other = config.other_fields * self._other_features(others)
        return expected_M, np.hstack([any_M1, parts_MG, own_MS, other])
