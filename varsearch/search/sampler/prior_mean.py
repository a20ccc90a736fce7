"""Prior mean of the surrogate: what a policy costs before any trial, from a profile or from shapes.

Policies are rows of a table: which of the model's S settings they set. The effects of settings are
vectors, so hundreds of policies take milliseconds. With r the row of a policy:

    loss   = exp(a + b log(r · loss_S))        (without a profile: r · loss_S)
    time   = c + d Π_global (1 + r_s time_s) (1 + Σ_local r_s time_s)
    memory = c + d (weights + caches + activations)

Weights add up, caches shrink by one factor per kind, activations peak once. The constants a to d
come from the whole policies of the profile, see `sensitivity.additive_model`.

| suffix | meaning                                |
|--------|----------------------------------------|
| M      | policies                               |
| S      | settings                               |
| U      | units                                  |
| G      | groups of settings: kind, layer, scale |
| L      | layers                                 |
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from varsearch.policy import Quantization
from varsearch.profile import Profile
from varsearch.search.core.pareto import Array
from varsearch.search.sensitivity.additive_model import AdditiveModel, LinearFit
from varsearch.search.sensitivity.decomposition import (
    GLOBAL_KINDS,
    Chosen,
    Kind,
    Setting,
    candidates,
    cost_parts,
)
from varsearch.target import ModelSpec

GUESS: dict[Kind, tuple[float, float, float]] = {
    "bits": (1.0, 0.0, -0.5),
    "keep": (1.0, -0.1, -0.4),
    "kv_bits": (0.5, 0.0, -0.3),
    "window": (0.5, -0.05, 0.0),
    "tokens": (2.0, -0.5, -0.1),
    "sharing": (0.5, -0.2, 0.0),
    "skip": (8.0, -1.0, -0.5),
    "guidance": (1.0, -0.5, -0.3),
    "refiner": (1.0, -0.7, -0.3),
}
"""Without a profile: relative loss, time and memory of a kind whose units all are at their
strongest setting."""

GUESSED_MEMORY = (0.4, 0.4, 0.2)
"""Without a profile: shares of weights, caches and activations in dense's peak memory."""


@dataclass(frozen=True, slots=True)
class Effects:
    """What each of S settings changes alone; dense is 1 for time and for peak memory.

    Attributes:
        loss_S: summands of a policy's loss score. Only `PriorMean.relative_loss` gives the score
            a unit; all other uses are ratios of scores.
        loss_error_S: standard errors of `loss_S`. A profile draws few images for each setting;
            a guess may be wrong by as much as it says.
        time_S: changes of time.
        weights_S: changes of peak memory by weights; `caches_S` and `activations_S` likewise.
        memory: shares of weights, caches and activations in dense's peak memory.
    """

    loss_S: Array
    loss_error_S: Array
    time_S: Array
    weights_S: Array
    caches_S: Array
    activations_S: Array
    memory: tuple[float, float, float]


class PriorMean:
    """The settings of a model, and the expected costs of policies that set them.

    Args:
        spec: shape of the model.
        siblings: its possible refiners.
        profile: measured effects of the settings.

    Attributes:
        settings: all S settings.
        units: the settings of each unit, from mild to strong.
        model: sums of the profile's numbers.
    """

    def __init__(
        self, spec: ModelSpec, siblings: Sequence[ModelSpec], profile: Profile | None
    ) -> None:
        self.spec = spec
        self.settings = candidates(spec, siblings)
        self.model = None if profile is None else AdditiveModel(profile)
        self.units: dict[str, list[Setting]] = {}
        for setting in sorted(self.settings, key=_latest_first):
            self.units.setdefault(setting.unit, []).append(setting)
        self._index = {setting: i for i, setting in enumerate(self.settings)}
        self.effects = self._guess() if self.model is None else self._measured(self.model)

    def rows(self, policies: Iterable[Iterable[Setting]]) -> Array:
        """Policies as (M, S) of 0 and 1.

        A setting that is not among ours counts as the closest one of its unit.
        """
        indices = []
        for chosen in policies:
            indices.append([i for i in map(self._closest, chosen) if i >= 0])
        rows_MS = np.zeros((len(indices), len(self.settings)))
        for row_S, places in zip(rows_MS, indices, strict=True):
            row_S[places] = 1
        return rows_MS

    def _closest(self, setting: Setting) -> int:
        """Index of the setting, -1 if its unit is unknown."""
        index = self._index.get(setting)
        if index is None:
            options = self.units.get(setting.unit, [])
            closest = min(options, key=lambda option: _gap(option, setting), default=None)
            index = -1 if closest is None else self._index[closest]
            self._index[setting] = index
        return index

    @cached_property
    def groups_SG(self) -> Array:
        """Which settings are of each kind, of each layer, of each scale."""
        keys = [{s.kind, f"L{s.layer}", f"S{s.scale}"} for s in self.settings]
        names = sorted(set().union(*keys) - {"LNone", "SNone"})
        return np.array([[float(name in key) for name in names] for key in keys])

    @cached_property
    def strength_SU(self) -> Array:
        """Strength of each setting at its unit: from 0 (off) to 1, divided by its kind's units."""
        kinds = [options[0].kind for options in self.units.values()]
        table_SU = np.zeros((len(self.settings), len(self.units)))
        for u, options in enumerate(self.units.values()):
            for level, setting in enumerate(options, start=1):
                share = level / len(options) / kinds.count(setting.kind)
                table_SU[self._index[setting], u] = share
        return table_SU

    @cached_property
    def _is_global_S(self) -> NDArray[np.bool_]:
        return np.array([s.kind in GLOBAL_KINDS for s in self.settings])

    def relative_loss(self, rows_MS: Array, dense_fid: float) -> Array:
        """Expected loss of quality as a share of dense's FID, (M,)."""
        score_M: Array = rows_MS @ self.effects.loss_S
        if self.model is None:
            # Guessed losses are relative already.
            return score_M
        curve = self.model.quality
        # log loss = a + b log score; a policy without loss stays at 0.
        log_M = curve.intercept + curve.slope * np.log(np.maximum(score_M, 1e-9))
        return np.where(score_M > 0, np.exp(log_M), 0.0) / dense_fid

    def group_features(self, rows_MS: Array, effect_S: Array) -> Array:
        """Share of each group in the sum of an effect, (M, G)."""
        size_S = np.abs(effect_S)
        total_M1 = (rows_MS @ size_S)[:, None]
        parts_MG: Array = rows_MS @ (size_S[:, None] * self.groups_SG) / np.maximum(total_M1, 1e-9)
        return parts_MG

    def loss_uncertainty(self, rows_MS: Array) -> Array:
        """Growth of the loss's logarithm if one setting loses a standard error more, (M, S)."""
        slope = 1.0 if self.model is None else self.model.quality.slope
        total_M1 = (rows_MS @ self.effects.loss_S)[:, None]
        return slope * rows_MS * self.effects.loss_error_S / np.maximum(total_M1, 1e-9)

    def time(self, rows_MS: Array) -> Array:
        """Expected time relative to dense, (M,)."""
        time_S, is_global_S = self.effects.time_S, self._is_global_S
        # Π over global settings, Σ over all others.
        factor_MS = np.where((rows_MS > 0) & is_global_S, 1 + time_S, 1)
        left_M = np.prod(factor_MS, axis=1)
        time_M = np.maximum(left_M, 0.01) * (1 + rows_MS @ np.where(is_global_S, 0, time_S))
        if self.model is not None:
            time_M = _corrected(time_M, self.model.latency, self.model.dense.latency_ms)
        return np.maximum(time_M, 0.01)

    def memory(self, rows_MS: Array) -> Array:
        """Expected peak memory relative to dense, (M,)."""
        effects, (weights, caches, activations) = self.effects, self.effects.memory
        whole, n_layers = max(caches, 1e-9), self.spec.n_layers
        # Each technique leaves a share of a layer's cache.
        left_ML = np.ones((len(rows_MS), n_layers))
        for caches_SL in self._layer_caches_SL:
            left_ML *= np.clip(1 + rows_MS @ caches_SL * n_layers / whole, 0, None)
        is_set_MS = (rows_MS > 0) & self._is_global_S
        factor_MS = np.where(is_set_MS, 1 + effects.caches_S / whole, 1).clip(0)
        cache_M = caches * np.prod(factor_MS, axis=1) * left_ML.mean(1)
        moved_MS = rows_MS * effects.activations_S
        # Activations peak at one moment: the largest rise and the largest fall count.
        peak_M = activations + moved_MS.max(1).clip(0) + moved_MS.min(1).clip(None, 0)
        total_M = weights + rows_MS @ effects.weights_S + cache_M + peak_M
        if self.model is not None:
            total_M = _corrected(total_M, self.model.memory, self.model.dense.peak_bytes)
        return np.maximum(total_M, 0.01)

    @cached_property
    def _layer_caches_SL(self) -> list[Array]:
        """Changes of each layer's cache, by settings of heads and by precision."""
        tables = []
        for kind in ("keep", "kv_bits"):
            table_SL = np.zeros((len(self.settings), self.spec.n_layers))
            for s, setting in enumerate(self.settings):
                if setting.kind == kind and setting.layer is not None:
                    table_SL[s, setting.layer] = self.effects.caches_S[s]
            tables.append(table_SL)
        return tables

    def _measured(self, model: AdditiveModel) -> Effects:
        """By the profile's numbers."""
        dense, n_heads = model.dense, self.spec.n_heads
        changes, losses = [], []
        for setting in self.settings:
            heads: Chosen = (setting,)
            share = 1
            if setting.kind == "keep":
                # Heads that are compressed alike save more together than one by one.
                heads = tuple(replace(setting, head=head) for head in range(n_heads))
                share = n_heads
            cost = model.change(cost_parts(heads)[0])
            own = cost.peak_bytes - cost.weight_bytes - cost.kv_bytes
            time, caches = cost.latency_ms / share, cost.kv_bytes / share
            changes.append([time, cost.weight_bytes, caches, own])
            loss = model.losses[setting.name]
            losses.append([loss.value, loss.error])
        scale = np.array([dense.latency_ms, *[dense.peak_bytes] * 3])
        time_S, weights_S, caches_S, own_S = (np.array(changes) / scale).T
        loss_S, error_S = np.array(losses).T
        # What is neither weights nor caches is activations.
        own_bytes = dense.peak_bytes - dense.weight_bytes - dense.kv_bytes
        weights, caches = dense.weight_bytes / dense.peak_bytes, dense.kv_bytes / dense.peak_bytes
        memory = weights, caches, own_bytes / dense.peak_bytes
        return Effects(loss_S, error_S, time_S, weights_S, caches_S, own_S, memory)

    def _guess(self) -> Effects:
        """By the tokens that a setting concerns, and its strength among the options of its unit."""
        tokens = np.array(self.spec.tokens, dtype=float)
        tokens /= tokens.sum()
        kinds = [options[0].kind for options in self.units.values()]
        n_settings = len(self.settings)
        table_S3 = np.zeros((n_settings, 3))
        weights_S, caches_S, none_S = np.zeros((3, n_settings))
        for s, setting in enumerate(self.settings):
            options = self.units[setting.unit]
            # By strength, divided among the units of the kind.
            share = (options.index(setting) + 1) / len(options) / kinds.count(setting.kind)
            if setting.kind in ("guidance", "refiner"):
                share = float(tokens[setting.first_scale :].sum())
            elif setting.scale is not None:
                share *= len(tokens) * float(tokens[setting.scale])
            table_S3[s] = [share * effect for effect in GUESS[setting.kind]]
            if setting.kind == "bits":
                weights_S[s] = table_S3[s, 2]
            elif setting.kind in ("keep", "kv_bits", *GLOBAL_KINDS):
                caches_S[s] = table_S3[s, 2]
        loss_S, time_S, _ = table_S3.T
        return Effects(loss_S, loss_S, time_S, weights_S, caches_S, none_S, GUESSED_MEMORY)


def place_of(path: str) -> str:
    """A field of all layers or scales is one place: `layers.attention.band`."""
    return re.sub(r"\[\d+\]", "", path)


def _corrected(relative_M: Array, fit: LinearFit, dense: float) -> Array:
    """Sums relative to dense, corrected to whole policies."""
    corrected: Array = fit.intercept + fit.slope * relative_M * dense
    return corrected / (fit.intercept + fit.slope * dense)


def _latest_first(setting: Setting) -> int:
    """The later guidance ends or a refiner begins, the milder; other settings are in order."""
    return -setting.first_scale if setting.kind in ("guidance", "refiner") else 0


def _gap(option: Setting, setting: Setting) -> float:
    values = []
    for one in (option, setting):
        value = getattr(one.value, "first_scale", one.value)
        values.append(value.bits if isinstance(value, Quantization) else float(value))
    return abs(values[0] - values[1])
