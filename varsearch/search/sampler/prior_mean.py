"""What is expected of any policy before it is tried: by a profile, or by a guess from shapes where there is none.

Policies are rows of a table: what they set of all S settings of the model's units. What settings do to quality, time
and memory is a vector each, so that hundreds of policies are judged in milliseconds. All numbers are relative to dense.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from varsearch.search.sampler.gaussian_process import Array
from varsearch.search.sensitivity.additive_model import Estimates
from varsearch.sensitivity_profile import Profile
from varsearch.space.one_at_a_time import cost_parts
from varsearch.space.settings import KINDS, Setting, candidates
from varsearch.target import ModelSpec


@dataclass(frozen=True, slots=True)
class Effects:
    """What each of S settings does alone: the loss of quality, time, and bytes as shares of dense's peak memory.

    Without a profile the loss is relative, else in ΔFID. Its standard error is that of the profile, which draws few
    images for each setting; a guess may be wrong by as much as it says.
    """

    loss_S: Array
    error_S: Array
    time_S: Array
    weights_S: Array
    caches_S: Array
    activations_S: Array
    dense_bytes: tuple[float, float, float]


class Outlook:
    """The settings of a model and what is expected of policies made of them.

    Args:
        spec: shape of the model.
        siblings: its possible refiners.
        profile: what is known of the settings.

    Attributes:
        units: the settings of each unit, from mild to strong.
    """

    def __init__(self, spec: ModelSpec, siblings: Sequence[ModelSpec], profile: Profile | None) -> None:
        self.spec = spec
        self.settings = candidates(spec, siblings)
        self.estimates = None if profile is None else Estimates(profile)
        self.units: dict[str, list[Setting]] = {}
        for setting in sorted(self.settings, key=lambda s: KINDS[s.kind].strength(s)):
            self.units.setdefault(setting.unit, []).append(setting)
        self._index = {setting: i for i, setting in enumerate(self.settings)}
        self.effects = _guess(self) if self.estimates is None else _measured(self, self.estimates)

    def rows(self, policies: Iterable[Iterable[Setting]]) -> Array:
        """Policies as (M, S) of 0 and 1; a setting that is none of ours counts as the closest one of its unit."""
        found = [list(chosen) for chosen in policies]
        rows_MS = np.zeros((len(found), len(self.settings)))
        for row_S, chosen in zip(rows_MS, found, strict=True):
            row_S[[i for i in map(self._closest, chosen) if i is not None]] = 1
        return rows_MS

    def _closest(self, setting: Setting) -> int | None:
        index = self._index.get(setting)
        if index is None:
            index = self._nearest(setting)
            self._index[setting] = index
        return index if index >= 0 else None

    def _nearest(self, setting: Setting) -> int:
        """The option of the unit with the nearest number; -1 where there is none, or "off" is nearer."""
        kind = KINDS[setting.kind]
        number = kind.number(setting.value)
        gaps = {option: abs(kind.number(option.value) - number) for option in self.units.get(setting.unit, ())}
        if not gaps:
            return -1
        option = min(gaps, key=gaps.__getitem__)
        is_off = kind.off is not None and abs(kind.off - number) < gaps[option]
        return -1 if is_off else self._index[option]

    def others(self, policies: Iterable[Iterable[Setting]]) -> list[dict[str, float]]:
        """Of each policy the settings that nothing is known of: by kind, as a share of its places.

        They belong to a unit without options, such as a band, or have a value of another form than its options, such
        as a budget for each scale where these have one for all.
        """
        return [self._others(chosen) for chosen in policies]

    def _others(self, chosen: Iterable[Setting]) -> dict[str, float]:
        found: dict[str, float] = {}
        for s in chosen:
            options = self.units.get(s.unit)
            if (options and type(options[0].value) is type(s.value)) or KINDS[s.kind].spelling:
                continue
            sizes = (s.layer, self.spec.n_layers), (s.head, self.spec.n_heads), (s.scale, len(self.spec.scales))
            places = math.prod(size for index, size in sizes if index is not None)
            found[s.kind] = found.get(s.kind, 0.0) + 1 / places
        return found

    @cached_property
    def groups_SG(self) -> Array:
        """Which settings are of each kind, of each layer, of each scale."""
        keys = [{s.kind, f"L{s.layer}", f"S{s.scale}"} for s in self.settings]
        names = sorted(set().union(*keys) - {"LNone", "SNone"})
        return np.array([[float(name in key) for name in names] for key in keys])

    @cached_property
    def strength_SU(self) -> Array:
        """How strong each setting is at its unit, from 0 (off) to 1, as a share of all units of its kind."""
        place = {unit: i for i, unit in enumerate(self.units)}
        kinds = [options[0].kind for options in self.units.values()]
        table_SU = np.zeros((len(self.settings), len(self.units)))
        for unit, options in self.units.items():
            for level, setting in enumerate(options, start=1):
                table_SU[self._index[setting], place[unit]] = level / len(options) / kinds.count(setting.kind)
        return table_SU

    def loss(self, rows_MS: Array) -> Array:
        """Expected loss of quality, (M,)."""
        total_M: Array = rows_MS @ self.effects.loss_S
        if self.estimates is None:
            return total_M
        fit = self.estimates.quality
        return np.where(total_M > 0, np.exp(fit.intercept + fit.slope * np.log(np.maximum(total_M, 1e-9))), 0.0)

    def shares(self, rows_MS: Array, effect_S: Array) -> Array:
        """Of the sum of an effect, the part of each of `groups_SG`, (M, G)."""
        size_S = np.abs(effect_S)
        total_M1 = (rows_MS @ size_S)[:, None]
        parts_MG: Array = rows_MS @ (size_S[:, None] * self.groups_SG) / np.maximum(total_M1, 1e-9)
        return parts_MG

    def doubts(self, rows_MS: Array) -> Array:
        """By how much the logarithm of the loss grows if that of one setting is a standard error larger, (M, S)."""
        slope = 1.0 if self.estimates is None else self.estimates.quality.slope
        total_M1 = (rows_MS @ self.effects.loss_S)[:, None]
        return slope * rows_MS * self.effects.error_S / np.maximum(total_M1, 1e-9)

    def time(self, rows_MS: Array) -> Array:
        """Expected time, (M,)."""
        frames_S = np.array([s.is_frame for s in self.settings])
        left_M = np.prod(np.where((rows_MS > 0) & frames_S, 1 + self.effects.time_S, 1), axis=1)
        time_M = np.maximum(left_M, 0.01) * (1 + rows_MS @ np.where(frames_S, 0, self.effects.time_S))
        if self.estimates is not None:
            fit, dense = self.estimates.latency, self.estimates.dense.latency_ms
            time_M = (fit.intercept + fit.slope * time_M * dense) / (fit.intercept + fit.slope * dense)
        return np.maximum(time_M, 0.01)

    def memory(self, rows_MS: Array) -> Array:
        """Expected peak memory, (M,): weights add up, caches shrink by a factor per kind, activations peak once."""
        e, (weights, caches, activations) = self.effects, self.effects.dense_bytes
        left_ML = np.ones((len(rows_MS), self.spec.n_layers))
        caching = [name for name, kind in KINDS.items() if kind.saves == "caches" and not kind.frame]
        for kind in caching:
            of_SL = np.array(
                [[s.kind == kind and s.layer == i for i in range(self.spec.n_layers)] for s in self.settings]
            )
            share_ML = rows_MS @ (e.caches_S[:, None] * of_SL) * self.spec.n_layers / max(caches, 1e-9)
            left_ML *= np.clip(1 + share_ML, 0, None)
        frames_S = np.array([s.is_frame for s in self.settings])
        left_M = np.prod(np.where((rows_MS > 0) & frames_S, 1 + e.caches_S / max(caches, 1e-9), 1).clip(0), axis=1)
        moved_MS = rows_MS * e.activations_S
        peak_M = activations + moved_MS.max(1).clip(0) + moved_MS.min(1).clip(None, 0)
        total_M = weights + rows_MS @ e.weights_S + caches * left_M * left_ML.mean(1) + peak_M
        if self.estimates is not None:
            fit, dense = self.estimates.memory, self.estimates.dense.peak_bytes
            total_M = (fit.intercept + fit.slope * total_M * dense) / (fit.intercept + fit.slope * dense)
        return np.maximum(total_M, 0.01)


def _measured(outlook: Outlook, estimates: Estimates) -> Effects:
    dense, spec = estimates.dense, outlook.spec
    changes = []
    for setting in outlook.settings:
        # Heads that are compressed alike save more together than one by one.
        alone = setting.head is None
        heads = (setting,) if alone else tuple(_head(setting, h) for h in range(spec.n_heads))
        change = estimates.change(cost_parts(heads)[0])
        share = 1 if alone else spec.n_heads
        own = change.peak_bytes - change.weight_bytes - change.kv_bytes
        changes.append([change.latency_ms / share, change.weight_bytes, change.kv_bytes / share, own])
    scale = np.array([dense.latency_ms, *[dense.peak_bytes] * 3])
    time_S, weights_S, caches_S, own_S = (np.array(changes) / scale).T
    bytes_ = dense.weight_bytes, dense.kv_bytes, dense.peak_bytes - dense.weight_bytes - dense.kv_bytes
    losses = [estimates.losses[setting.name] for setting in outlook.settings]
    loss_S, error_S = np.array([[loss.value, loss.error] for loss in losses]).T
    shares = (bytes_[0] / dense.peak_bytes, bytes_[1] / dense.peak_bytes, bytes_[2] / dense.peak_bytes)
    return Effects(loss_S, error_S, time_S, weights_S, caches_S, own_S, shares)


def _head(setting: Setting, head: int) -> Setting:
    return Setting(setting.kind, setting.value, layer=setting.layer, head=head, heads=setting.heads)


def _guess(outlook: Outlook) -> Effects:
    """By how many of the tokens a setting concerns, and how strong it is among the options of its unit."""
    tokens = np.array(outlook.spec.tokens, dtype=float)
    tokens /= tokens.sum()
    kinds = [options[0].kind for options in outlook.units.values()]
    found = []
    for setting in outlook.settings:
        options = outlook.units[setting.unit]
        share = (options.index(setting) + 1) / len(options) / kinds.count(setting.kind)
        if setting.is_frame and setting.scale is None:
            share = float(tokens[setting.first_scale :].sum())
        elif setting.scale is not None:
            share *= len(tokens) * float(tokens[setting.scale])
        found.append([share * effect for effect in KINDS[setting.kind].guess])
    loss_S, time_S, memory_S = np.array(found).T
    weights = np.array([KINDS[s.kind].saves == "weights" for s in outlook.settings])
    caches = np.array([KINDS[s.kind].saves == "caches" for s in outlook.settings])
    none_S = np.zeros_like(loss_S)
    return Effects(
        loss_S, loss_S, time_S, np.where(weights, memory_S, 0), np.where(caches, memory_S, 0), none_S, (0.4, 0.4, 0.2)
    )
