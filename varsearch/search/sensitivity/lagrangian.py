"""Policies that lose least for what they save, by Lagrange multipliers over discrete choices.

If losses and savings add up, the policies on the convex hull of the best trade-offs minimize

    loss - price * (w · savings)

and at a given price every group of settings is decided on its own (Everett 1963, Operations
Research 11). Global settings change the savings of all groups, so all of them are tried.

| symbol | meaning                                                     |
|--------|-------------------------------------------------------------|
| F      | choices of global settings                                  |
| G, O   | groups of settings, options of a group ("off" is the first) |
| price  | loss that may be paid for everything that dense costs       |
| w      | shares of the price for latency and memory                  |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from varsearch.search.core.pareto import Array
from varsearch.search.sensitivity.additive_model import AdditiveModel
from varsearch.search.sensitivity.decomposition import (
    Chosen,
    Setting,
    compose,
    has_effect,
    settings_of,
)


@dataclass(frozen=True, slots=True)
class Option:
    """Settings that are chosen together.

    Attributes:
        chosen: the settings.
        loss: their loss.
        saved: shares of dense's latency and memory that they save.
    """

    chosen: Chosen
    loss: float
    saved: tuple[float, float]


OFF = Option((), 0.0, (0.0, 0.0))


class Choice(NamedTuple):
    """One index into the global options, and one option for each group, (G,)."""

    whole: int
    options_G: NDArray[np.intp]


class TradeOffs:
    """Chooses options of groups, one of each.

    Args:
        whole: alternatives of global settings, of which one is chosen.
        groups: options of each group beside "off". An option counts only if it has an effect
            beside the global settings, and it saves its share of what these leave.
    """

    def __init__(self, whole: Sequence[Option], groups: Sequence[Sequence[Option]]) -> None:
        self.whole = whole
        self.groups = [[OFF, *group] for group in groups]
        shape = len(groups), max(map(len, self.groups), default=1)
        self.loss_F = np.array([option.loss for option in whole])
        self.saved_F2 = np.array([option.saved for option in whole])
        # Groups with fewer options end with impossible ones.
        self.loss_GO = np.full(shape, np.inf)
        self.saved_GO2 = np.zeros((*shape, 2))
        self._works_FGO = np.zeros((len(whole), *shape), dtype=bool)
        for g, group in enumerate(self.groups):
            for o, option in enumerate(group):
                self.loss_GO[g, o] = option.loss
                self.saved_GO2[g, o] = option.saved
                for f, outer in enumerate(whole):
                    self._works_FGO[f, g, o] = has_effect(outer.chosen, option.chosen)

    def best(
        self,
        prices: Iterable[float],
        weights_2: Array,
        *,
        loss_GO: Array | None = None,
        loss_F: Array | None = None,
        among: Sequence[int] | None = None,
    ) -> list[Choice]:
        """The choice with the least loss minus price times savings, for each price.

        Args:
            prices: losses that may be paid for everything that dense costs.
            weights_2: shares of the price for latency and memory.
            loss_GO: other losses of the options.
            loss_F: other losses of the global options in `among`.
            among: indices of the global options to consider, by default all.
        """
        rows = range(len(self.whole)) if among is None else among
        loss_GO = self.loss_GO if loss_GO is None else loss_GO
        loss_F = self.loss_F[rows] if loss_F is None else loss_F
        # Groups save a share of what global settings leave.
        left_F2 = weights_2 * (1 - self.saved_F2[rows])
        saved_FGO = np.einsum("goi,fi->fgo", self.saved_GO2, left_F2)
        works_FGO = self._works_FGO[rows]
        choices = []
        for price in prices:
            # Each group decides alone: least of loss - price * savings.
            value_FGO = np.where(works_FGO, loss_GO - price * saved_FGO, np.inf)
            value_F = loss_F - price * self.saved_F2[rows] @ weights_2 + value_FGO.min(2).sum(1)
            f = int(value_F.argmin())
            choices.append(Choice(rows[f], value_FGO[f].argmin(1)))
        return choices

    def option(self, choice: Choice) -> Option:
        """All that a choice sets, as one option."""
        whole = self.whole[choice.whole]
        chosen, loss, saved = [*whole.chosen], whole.loss, [*whole.saved]
        for group, o in zip(self.groups, choice.options_G, strict=True):
            option = group[o]
            chosen.extend(option.chosen)
            loss += option.loss
            for i in range(2):
                saved[i] += option.saved[i] * (1 - whole.saved[i])
        return Option(tuple(chosen), loss, (saved[0], saved[1]))


def trade_offs(model: AdditiveModel) -> TradeOffs:
    """The choices that a profile knows."""
    return TradeOffs(_global_options(model), _groups(model))


def _global_options(model: AdditiveModel) -> list[Option]:
    """Guidance on or off from any scale, with one skipped scale, one refiner, or neither."""
    guidance: list[Chosen] = [()]
    others: list[Chosen] = [()]
    for (setting,) in model.probes.singles.values():
        if setting.kind == "guidance":
            guidance.append((setting,))
        elif setting.kind in ("skip", "refiner"):
            others.append((setting,))
    options = []
    for first, second in product(guidance, others):
        pair = first + second
        policy = compose(model.profile.spec, pair)
        # Guidance that ends at a skipped scale ends at the next one, which is another pair.
        if settings_of(policy) in permutations(pair):
            options.append(_option(model, pair))
    return options


def _groups(model: AdditiveModel) -> list[list[Option]]:
    """The settings of each unit, those of a layer's cache together.

    Cache settings interact: entries that are not kept need no bits.
    """
    units: dict[str, list[Chosen]] = {}
    caches: dict[int | None, list[Setting]] = {}
    for (setting,) in model.probes.singles.values():
        if setting.kind in ("keep", "kv_bits"):
            caches.setdefault(setting.layer, []).append(setting)
        elif setting.layer is not None:
            units.setdefault(setting.unit, []).append((setting,))
    together = list(units.values())
    for cache in caches.values():
        together.append(_cache_settings(model, cache))
    return [[_option(model, chosen) for chosen in alternatives] for alternatives in together]


def _cache_settings(model: AdditiveModel, cache: Sequence[Setting]) -> list[Chosen]:
    """Each share for each number of heads, with and without fewer bits.

    The heads are those that lose least by the share.
    """
    bits: list[Chosen] = [()]
    by_share: dict[float, list[Setting]] = {}
    for setting in cache:
        if setting.kind == "kv_bits":
            bits.append((setting,))
        else:
            by_share.setdefault(setting.value, []).append(setting)
    keeps: list[Chosen] = [()]
    # By the exchange argument, n heads of one share are those that lose least.
    for _, heads in sorted(by_share.items()):
        heads.sort(key=lambda setting: model.losses[setting.name].value)
        for n in range(1, len(heads) + 1):
            keeps.append(tuple(heads[:n]))
    return [keep + few for keep, few in product(keeps, bits) if keep or few]


def _option(model: AdditiveModel, chosen: Chosen) -> Option:
    dense, cost = model.dense, model.summed(chosen)
    time, memory = cost.latency_ms / dense.latency_ms, cost.peak_bytes / dense.peak_bytes
    return Option(chosen, model.loss(chosen), (1 - time, 1 - memory))
