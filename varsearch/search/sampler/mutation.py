"""Where new policies come from: changes of good ones, and points on the path that a profile draws.

A policy is the set of its settings here. A unit that has no options (a band, a decision) is kept or set back.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np

from varsearch.search.sampler.prior_mean import Outlook
from varsearch.search.sensitivity.additive_model import Estimates
from varsearch.search.sensitivity.warm_start import OFF, Option, frames_of, groups_of
from varsearch.space.settings import Chosen, Setting, effective, has_effect

PRICE = (1e-3, 3e1)
"""Loss that may be paid for all that dense costs."""

FRAMES_DRAWN = 6
"""Ways to skip, to drop guidance or to refine, of which a point on the path has the best."""

DOUBT = 0.5
"""Standard deviation of the logarithm of a loss on the path, for kinds and for single choices."""


class Moves:
    """Draws policies.

    Args:
        outlook: the settings there are.
    """

    def __init__(self, outlook: Outlook) -> None:
        self.outlook = outlook
        self.path = None if outlook.estimates is None else Path(outlook.estimates)
        self._blocks: dict[tuple[str, str], list[str]] = {}
        for unit, options in outlook.units.items():
            first = options[0]
            for place in (f"L{first.layer}", f"S{first.scale}", first.part or "all"):
                if not first.is_frame and place not in ("LNone", "SNone"):
                    self._blocks.setdefault((first.kind, place), []).append(unit)

    def edited(self, chosen: Chosen, rng: random.Random) -> Chosen:
        """A few units set, or set back; sometimes all of a kind in a layer, at a scale or of a part, like a knob."""
        genes = {setting.unit: setting for setting in chosen}
        for _ in range(1 + min(int(rng.expovariate(0.7)), 7)):
            if rng.random() < 0.4:
                self._block(genes, rng)
            elif genes and rng.random() < 0.3:
                del genes[rng.choice(sorted(genes))]
            else:
                self._set(genes, rng.choice(list(self.outlook.units)), rng)
        return effective(genes.values())

    def _set(self, genes: dict[str, Setting], unit: str, rng: random.Random) -> None:
        """One step up or down, or anywhere."""
        options = self.outlook.units[unit]
        now = options.index(genes[unit]) if unit in genes and genes[unit] in options else -1
        level = now + rng.choice((-1, 1)) if rng.random() < 0.5 else rng.randrange(-1, len(options))
        if 0 <= level < len(options):
            genes[unit] = options[level]
        else:
            genes.pop(unit, None)

    def _block(self, genes: dict[str, Setting], rng: random.Random) -> None:
        strength = rng.random() if rng.random() < 0.7 else None
        for unit in self._blocks[rng.choice(list(self._blocks))]:
            options = self.outlook.units[unit]
            genes.pop(unit, None)
            if strength is not None:
                genes[unit] = options[int(strength * len(options))]

    def crossed(self, a: Chosen, b: Chosen, rng: random.Random) -> Chosen:
        """Each layer and each scale, or each kind, from one of the two."""
        by_kind = rng.random() < 0.3
        from_b: dict[object, bool] = {}

        def of_b(setting: Setting) -> bool:
            place = setting.layer if setting.scale is None or setting.layer is None else -1 - setting.scale
            key: object = setting.kind if by_kind or setting.is_frame else place
            return bool(from_b.setdefault(key, rng.random() < 0.5))

        genes = {s.unit: s for s in a if not of_b(s)} | {s.unit: s for s in b if of_b(s)}
        return effective(genes.values())


class Path:
    """What minimizes loss plus a price on what is not saved (see `warm`), the losses drawn around the profile's."""

    def __init__(self, estimates: Estimates) -> None:
        self._frames = frames_of(estimates)
        self._groups = [[OFF, *group] for group in groups_of(estimates)]
        shape = len(self._groups), max(map(len, self._groups))
        self._loss_GO, self._saved_GO2 = np.full(shape, np.inf), np.zeros((*shape, 2))
        self._works_FGO = np.zeros((len(self._frames), *shape), dtype=bool)
        for g, group in enumerate(self._groups):
            self._loss_GO[g, : len(group)] = [option.loss for option in group]
            self._saved_GO2[g, : len(group)] = [option.saved for option in group]
            for f, frame in enumerate(self._frames):
                self._works_FGO[f, g, : len(group)] = [has_effect(frame.chosen, o.chosen) for o in group]
        self._kinds = [group[1].chosen[0].kind for group in self._groups]
        self._distinct = sorted(set(self._kinds))

    def draw(self, rng: random.Random) -> Chosen:
        """The best settings at a random price, divided at random between time and memory."""
        share = rng.random()
        price = PRICE[0] * (PRICE[1] / PRICE[0]) ** rng.random()
        mixture = np.array([share, 1 - share])
        noise = np.random.default_rng(rng.getrandbits(32))
        kinds = {kind: DOUBT * noise.standard_normal() for kind in self._distinct}
        factor_GO = DOUBT * noise.standard_normal(self._loss_GO.shape) + np.array([[kinds[k]] for k in self._kinds])
        loss_GO = self._loss_GO * np.exp(factor_GO)
        drawn = sorted(rng.sample(range(len(self._frames)), min(FRAMES_DRAWN, len(self._frames))))
        frames = [self._frames[f] for f in drawn]
        saved_F2, loss_F = np.array([frame.saved for frame in frames]), np.array([frame.loss for frame in frames])
        left_F2 = mixture * (1 - saved_F2)
        saved_FGO = np.einsum("goi,fi->fgo", self._saved_GO2, left_F2)
        value_FGO = np.where(self._works_FGO[drawn], loss_GO - price * saved_FGO, np.inf)
        loss_F = loss_F * np.exp(DOUBT * noise.standard_normal(len(loss_F)))
        best_F = loss_F - price * saved_F2 @ mixture + value_FGO.min(2).sum(1)
        f = int(best_F.argmin())
        options: list[Option] = [group[o] for group, o in zip(self._groups, value_FGO[f].argmin(1), strict=True)]
        return effective([*frames[f].chosen, *(s for option in options for s in option.chosen)])


def candidates(moves: Moves, parents: Sequence[Chosen], rng: random.Random, n: int) -> Iterator[Chosen]:
    """About a third each: edits of parents, crossovers that are edited too, points on the path that are."""
    for i in range(n):
        kind = i % 3
        if kind == 2 and moves.path is not None:
            found = moves.path.draw(rng)
            yield found if rng.random() < 0.5 else moves.crossed(found, rng.choice(parents), rng)
        elif kind == 1 and len(parents) > 1:
            a, b = rng.sample(list(parents), 2)
            found = moves.crossed(a, b, rng)
            yield found if rng.random() < 0.5 else moves.edited(found, rng)
        else:
            yield moves.edited(rng.choice(parents), rng)
