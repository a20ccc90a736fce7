"""Predicts every objective of any policy, with its uncertainty: what is expected beforehand, corrected by the trials.

A loss spans four decades from a mild policy to a broken one, so its inverse hyperbolic sine is predicted (about linear
near dense, a logarithm beyond), and of time and memory the logarithm. What was expected is the prior mean. That a kind
of technique, a layer or a scale does more or less than expected is a factor on its part of the sum, which to first
order adds to the logarithm: a feature each. So is that a setting's own loss is another, by as much as is not known of
it. What single units and their combinations do besides is a Gaussian process over the units in which two policies
differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import ndtri

from varsearch.db import TrialRecord
from varsearch.measurement import METRICS, TIMES
from varsearch.search.core.dominance import standard_error
from varsearch.search.core.objectives import relative_costs
from varsearch.search.core.settings import RunSettings
from varsearch.search.sampler.gaussian_process import NOISE, Array, Fit, condition, fit
from varsearch.search.sampler.prior_mean import Outlook
from varsearch.space.settings import Chosen, settings_of

SOFT = 0.02
"""Relative loss up to which losses are compared by their difference, and beyond by their ratio."""

DRAWS = 16
"""Equally likely values that stand for a predicted distribution."""

WORLDS = 8
"""Equally likely courses of an objective that is evaluated with errors. What is true of one trial is nearly as true of
those like it: in each world the errors of all trials are known, and only what differs from them is open."""

COST_NOISE = (0.002, 0.02)
"""Standard deviations of the logarithm of a time or of bytes: predicted ones have next to none, measured ones some."""


Others = Mapping[str, float]
"""The settings of a policy that nothing is known of, see `Outlook.others`."""


@dataclass(frozen=True, slots=True)
class Model:
    """One objective, and the process fitted to what the prior mean leaves, in each world or the same in all.

    Attributes:
        known_NW: bent costs of the trials and of what is pending, in each world; (N, 1) if they are the same in all.
    """

    metric: str
    fitted: Fit
    known_NW: Array


class Surrogate:
    """Fitted to the complete trials of a run, of which `dense` is the one to compare with.

    Args:
        outlook: what is expected.
        settings: objectives.
        dense: the metrics of the dense policy.
        trials: complete ones.
        pending: what others evaluate now: it counts as known to have the predicted values.
        seed: of the worlds.
    """

    def __init__(
        self,
        outlook: Outlook,
        settings: RunSettings,
        dense: Mapping[str, float],
        trials: Sequence[TrialRecord],
        pending: Sequence[Chosen] = (),
        seed: Sequence[int] = (0,),
    ) -> None:
        self._seed = seed
        self.outlook, self.settings, self.dense = outlook, settings, dense
        found = [*(settings_of(trial.policy) for trial in trials), *pending]
        self._rows_NS, self._others = outlook.rows(found), outlook.others(found)
        self._trials = trials

    @cached_property
    def _kinds(self) -> list[str]:
        """Kinds of settings that nothing is known of."""
        return sorted({kind for other in self._others for kind in other})

    @cached_property
    def _models(self) -> list[Model]:
        distances_NN = self._distances(self._rows_NS, self._others)
        return [self._model(j, metric, distances_NN) for j, metric in enumerate(self.settings.objectives)]

    def _model(self, j: int, metric: str, distances_NN: Array) -> Model:
        done = len(self._trials)
        costs_N = np.array([self.cost(trial.values)[j] for trial in self._trials])
        expected_N, features_NF = self._prior(metric, self._rows_NS, self._others)
        noise_N = np.array([self._noise(metric, trial) for trial in self._trials])
        residual_N = self._bent(metric, costs_N) - expected_N[:done]
        levels = NOISE if METRICS[metric].kind == "quality" else COST_NOISE
        fitted = fit(features_NF[:done], distances_NN[:done, :done], residual_N, noise_N, levels)
        if noise_N.any():
            luck_NW = np.random.default_rng((*self._seed, j)).standard_normal((len(expected_N), WORLDS))
            fitted = fitted.courses(features_NF, distances_NN[:, :done], distances_NN, luck_NW)
        elif done < len(expected_N):
            believed, _ = fitted(features_NF[done:], distances_NN[done:, :done])
            residual_N, noise_N = np.append(residual_N, believed), np.append(noise_N, 0 * believed)
            fitted = condition(fitted.scales, features_NF, distances_NN, residual_N, noise_N)
        return Model(metric, fitted, expected_N[:, None] + fitted.residual_N.reshape(len(expected_N), -1))

    def cost(self, values: Mapping[str, float]) -> tuple[float, ...]:
        """Relative costs, in which a ΔFID below 0 is not cut off."""
        costs = relative_costs(self.settings, values, self.dense)
        free = values.get("delta_fid", 0.0) / (self.dense.get("fid") or 1.0)
        return tuple(free if m == "delta_fid" else c for m, c in zip(self.settings.objectives, costs, strict=True))

    def known(self) -> list[Array]:
        """Relative costs of the trials and of what is pending, in each world, (N, W) for each objective."""
        found = []
        for j, model in enumerate(self._models):
            known_NW = self._unbent(model.metric, np.repeat(model.known_NW, WORLDS // model.known_NW.shape[1], axis=1))
            for known_W, trial in zip(known_NW, self._trials, strict=False):
                if not self._noise(model.metric, trial):
                    known_W[:] = relative_costs(self.settings, trial.values, self.dense)[j]
            found.append(known_NW)
        return found

    def draws(self, chosen: Sequence[Chosen]) -> list[Array]:
        """Equally likely relative costs of policies that set this, in each world, (M, W, K) for each objective."""
        rows_MS, others = self.outlook.rows(chosen), self.outlook.others(chosen)
        distances_MN = self._distances(rows_MS, others)
        levels_K = ndtri((np.arange(DRAWS) + 0.5) / DRAWS)  # equally likely values of a standard normal variable
        found = []
        for model in self._models:
            expected_M, features_MF = self._prior(model.metric, rows_MS, others)
            mean, error_M = model.fitted(features_MF, distances_MN)
            mean_MW = expected_M[:, None] + mean.reshape(len(expected_M), -1)
            bent_MWK = mean_MW[:, :, None] + error_M[:, None, None] * levels_K
            found.append(np.repeat(self._unbent(model.metric, bent_MWK), WORLDS // mean_MW.shape[1], axis=1))
        return found

    def _distances(self, rows_MS: Array, others: Sequence[Others]) -> Array:
        """Summed differences of units as shares of their kinds, from each policy to each trial, (M, N)."""
        found: Array = cdist(self._places_of(rows_MS, others), self._own_places, "cityblock")
        return found

    @cached_property
    def _own_places(self) -> Array:
        return self._places_of(self._rows_NS, self._others)

    def _places_of(self, rows_MS: Array, others: Sequence[Others]) -> Array:
        return np.hstack([rows_MS @ self.outlook.strength_SU, self._unknown(others)])

    def _unknown(self, others: Sequence[Others]) -> Array:
        """The share of the places of each kind that nothing is known of, (M, K)."""
        table_MK = np.array([[other.get(kind, 0.0) for kind in self._kinds] for other in others])
        return table_MK.reshape(len(others), len(self._kinds))

    def _prior(self, metric: str, rows_MS: Array, others: Sequence[Others]) -> tuple[Array, Array]:
        """What is expected of an objective, (M,), and the features that correct it, (M, F)."""
        effects, one_M1 = self.outlook.effects, np.ones((len(rows_MS), 1))
        if METRICS[metric].kind == "quality":
            scale = 1.0 if self.outlook.estimates is None else self.dense.get("fid") or 1.0
            loss_M = self.outlook.loss(rows_MS) / scale
            expected_M = np.arcsinh(loss_M / SOFT)
            # By how much the bent loss grows with the logarithm of the loss.
            slope_M1 = (loss_M / np.hypot(loss_M, SOFT))[:, None]
            parts_MG = slope_M1 * self.outlook.shares(rows_MS, effects.loss_S)
            known_M1 = 0.3 * one_M1 * (expected_M > 0)[:, None]
            own_MS = slope_M1 * self.outlook.doubts(rows_MS)
            return expected_M, np.hstack([known_M1, parts_MG, own_MS, 3 * self._unknown(others)])
        if metric in TIMES:
            cost_M, effect_S = self.outlook.time(rows_MS), effects.time_S
        else:
            cost_M = self.outlook.memory(rows_MS) if metric == "peak_bytes" else np.ones(len(rows_MS))
            effect_S = effects.weights_S + effects.caches_S + effects.activations_S
        parts_MG = np.tanh(rows_MS @ (np.abs(effect_S)[:, None] * self.outlook.groups_SG))
        expected_M = np.log(cost_M)
        bend_M2 = np.stack([expected_M, expected_M**2], 1)  # what is left has a floor that no sum knows
        return expected_M, np.hstack([bend_M2, parts_MG, self._unknown(others)])

    def _noise(self, metric: str, trial: TrialRecord) -> float:
        """The standard error of a trial's bent cost."""
        found = trial.metrics.get(metric)
        if found is None:
            return 0.0
        if METRICS[metric].kind != "quality":
            return standard_error(found) / found.value
        if METRICS[metric].direction == "maximize":  # the cost is dense's value over its own
            cost = self._cost(metric, trial.values)
            return standard_error(found) * cost**2 / abs(self.dense[metric] or 1.0) / float(np.hypot(cost - 1, SOFT))
        value = found.value if metric == "delta_fid" else found.value - self.dense[metric]
        scale = (self.dense.get("fid") if metric == "delta_fid" else self.dense[metric]) or 1.0
        return standard_error(found) / float(np.hypot(value, SOFT * scale))

    def _lossless(self, metric: str) -> float:
        """Dense's own relative cost: 1, or 0 where the metric is a difference to dense."""
        return self._cost(metric, self.dense)

    def _cost(self, metric: str, values: Mapping[str, float]) -> float:
        """The relative cost in one metric, of values that may lack others."""
        return self.cost({**self.dense, **values})[self.settings.objectives.index(metric)]

    def _bent(self, metric: str, cost_M: Array) -> Array:
        if METRICS[metric].kind == "quality":
            bent: Array = np.arcsinh((cost_M - self._lossless(metric)) / SOFT)
            return bent
        return np.log(np.maximum(cost_M, 1e-6))

    def _unbent(self, metric: str, bent_MK: Array) -> Array:
        if METRICS[metric].kind == "quality":
            cost: Array = SOFT * np.sinh(np.clip(bent_MK, -20, 20)) + self._lossless(metric)
            return np.maximum(cost, 0)
        return np.exp(bent_MK)
