"""Variation of policies: mutation, crossover, and random points on the path of best trade-offs.

A policy is a tuple of settings here, at most one for each unit ("genes"). Fields that no setting
expresses are left to the evolutionary sampler.

A random trade-off minimizes loss - price * savings (`sensitivity.lagrangian`) at a random price,
with losses drawn around those of the profile: log loss + N(0, σ²) for kinds and for single choices.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from varsearch.search.sampler.prior_mean import PriorMean
from varsearch.search.sensitivity.decomposition import (
    GLOBAL_KINDS,
    Chosen,
    Setting,
    effective,
)
from varsearch.search.sensitivity.lagrangian import TradeOffs, trade_offs


@dataclass(frozen=True, slots=True)
class VariationConfig:
    """Tuning constants of variation; probabilities, where nothing else is said."""

    # Rate of the exponential distribution of further edits of a mutation.
    edit_rate: float = 0.7
    # Further edits of a mutation at most.
    max_edits: int = 7
    # An edit concerns all units of a kind in a layer, at a scale or of a part.
    block: float = 0.4
    # A block is set, not switched off.
    block_on: float = 0.7
    # An edit switches a unit off.
    clear_unit: float = 0.3
    # An edit moves a unit by one step, not anywhere.
    step: float = 0.5
    # A crossover exchanges kinds, not layers and scales.
    by_kind: float = 0.3
    # A crossover is not mutated, a trade-off not crossed.
    plain: float = 0.5
    # Lowest and highest price of a trade-off.
    prices: tuple[float, float] = (1e-3, 3e1)
    # Global settings among which a trade-off has the best.
    global_options: int = 6
    # σ: losses are known up to a factor of about 1.6.
    loss_error: float = 0.5


class Variation:
    """Draws policies.

    Args:
        prior_mean: the settings of the model, and the profile if there is one.
        config: tuning constants.
    """

    def __init__(self, prior_mean: PriorMean, config: VariationConfig) -> None:
        self.config = config
        self._units = prior_mean.units
        self._unit_names = list(prior_mean.units)
        self._model = prior_mean.model

    @property
    def knows_trade_offs(self) -> bool:
        """Whether there is a profile."""
        return self._model is not None

    def candidates(self, parents: Sequence[Chosen], rng: random.Random, n: int) -> Iterator[Chosen]:
        """About a third each: mutations, crossovers of parents, and random trade-offs."""
        for i in range(n):
            # Without a profile, or with one parent, mutations take the place of the others.
            if i % 3 == 2 and self.knows_trade_offs:
                point = self.trade_off(rng)
                is_plain = rng.random() < self.config.plain
                yield point if is_plain else self.crossed(point, rng.choice(parents), rng)
            elif i % 3 == 1 and len(parents) > 1:
                first, second = rng.sample(list(parents), 2)
                child = self.crossed(first, second, rng)
                is_plain = rng.random() < self.config.plain
                yield child if is_plain else self.mutated(child, rng)
            else:
                yield self.mutated(rng.choice(parents), rng)

    def mutated(self, chosen: Chosen, rng: random.Random) -> Chosen:
        """A few units set, or switched off; sometimes a whole block of units."""
        genes = {setting.unit: setting for setting in chosen}
        for _ in range(1 + min(int(rng.expovariate(self.config.edit_rate)), self.config.max_edits)):
            if rng.random() < self.config.block:
                self._set_block(genes, rng)
            elif genes and rng.random() < self.config.clear_unit:
                del genes[rng.choice(sorted(genes))]
            else:
                self._set_unit(genes, rng.choice(self._unit_names), rng)
        return effective(genes.values())

    def _set_unit(self, genes: dict[str, Setting], unit: str, rng: random.Random) -> None:
        options = self._units[unit]
        is_set = unit in genes and genes[unit] in options
        now = options.index(genes[unit]) if is_set else -1
        # The step is drawn first: the order of random numbers is part of a proposal.
        is_step = rng.random() < self.config.step
        level = now + rng.choice((-1, 1)) if is_step else rng.randrange(-1, len(options))
        if 0 <= level < len(options):
            genes[unit] = options[level]
        else:
            genes.pop(unit, None)

    def _set_block(self, genes: dict[str, Setting], rng: random.Random) -> None:
        """All units of a block are about as strong, like one knob."""
        is_off = rng.random() >= self.config.block_on
        strength = None if is_off else rng.random()
        for unit in self._blocks[rng.choice(list(self._blocks))]:
            options = self._units[unit]
            genes.pop(unit, None)
            if strength is not None:
                genes[unit] = options[int(strength * len(options))]

    @cached_property
    def _blocks(self) -> dict[tuple[str, str], list[str]]:
        """Units of each kind in a layer, at a scale, of a part."""
        blocks: dict[tuple[str, str], list[str]] = {}
        for unit, options in self._units.items():
            first = options[0]
            if first.kind in GLOBAL_KINDS:
                continue
            for place in (f"L{first.layer}", f"S{first.scale}", first.part or "all"):
                if place not in ("LNone", "SNone"):
                    blocks.setdefault((first.kind, place), []).append(unit)
        return blocks

    def crossed(self, first: Chosen, second: Chosen, rng: random.Random) -> Chosen:
        """Each layer and each scale, or each kind, from one of the two."""
        by_kind = rng.random() < self.config.by_kind
        from_second: dict[object, bool] = {}
        genes: dict[str, Setting] = {}
        for parent, is_second in ((first, False), (second, True)):
            for setting in parent:
                key: object = setting.kind
                if not by_kind and setting.kind not in GLOBAL_KINDS:
                    at_layer = setting.scale is None or setting.layer is None
                    # Layers are counted from 0 upwards, scales from -1 downwards.
                    key = setting.layer if at_layer else -1 - (setting.scale or 0)
                # A number is drawn for every setting, whether its place is decided or not.
                if from_second.setdefault(key, rng.random() < 0.5) is is_second:
                    genes[setting.unit] = setting
        return effective(genes.values())

    @cached_property
    def _trade_offs(self) -> TradeOffs:
        assert self._model is not None
        return trade_offs(self._model)

    @cached_property
    def _group_kinds(self) -> list[str]:
        return [group[1].chosen[0].kind for group in self._trade_offs.groups]

    def trade_off(self, rng: random.Random) -> Chosen:
        """A random trade-off; only with a profile."""
        table, config = self._trade_offs, self.config
        share = rng.random()
        lowest, highest = config.prices
        # Evenly by its logarithm.
        price = lowest * (highest / lowest) ** rng.random()
        noise = np.random.default_rng(rng.getrandbits(32))
        # Errors of a kind are shared: a profile may misjudge a whole technique.
        by_kind = {}
        for kind in sorted(set(self._group_kinds)):
            by_kind[kind] = config.loss_error * noise.standard_normal()
        eps_GO = config.loss_error * noise.standard_normal(table.loss_GO.shape)
        loss_GO = table.loss_GO * np.exp(
            eps_GO + np.array([[by_kind[k]] for k in self._group_kinds])
        )
        n_whole = len(table.whole)
        among = sorted(rng.sample(range(n_whole), min(config.global_options, n_whole)))
        eps_F = config.loss_error * noise.standard_normal(len(among))
        loss_F = table.loss_F[among] * np.exp(eps_F)
        weights_2 = np.array([share, 1 - share])
        (choice,) = table.best([price], weights_2, loss_GO=loss_GO, loss_F=loss_F, among=among)
        return effective(table.option(choice).chosen)
