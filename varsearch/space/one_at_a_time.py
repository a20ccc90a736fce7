"""The policies that a sensitivity profile measures: every setting alone, pairs, whole policies.

Costs of layers of one shape are equal, so costs are measured of parts, of which any policy's costs
add up (`cost_parts`). Stored profiles know all of them by name: neither names nor the order of
settings in a name may change.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from varsearch.sensitivity_profile import together
from varsearch.space.settings import (
    KINDS,
    Chosen,
    Setting,
    SkippedScale,
    candidates,
    compose,
    settings_of,
)
from varsearch.target import ModelSpec

PAIRS, POLICIES = 10, 12

FEWER_SKIPS = 5
"""A scale or two that are left out hide everything else, so policies skip fewer of them."""


@dataclass(frozen=True, slots=True)
class Probes:
    """Sets of settings by name.

    Attributes:
        singles: every setting alone.
        pairs: two settings of different units, each the strongest of its unit, so that their
            effects show.
        policies: whole policies, from lightly to heavily compressed.
        parts: every set that `cost_parts` can give.
    """

    singles: dict[str, Chosen]
    pairs: dict[str, Chosen]
    policies: dict[str, Chosen]
    parts: dict[str, Chosen]


def named(chosen: Iterable[Setting]) -> str:
    """The name of settings together."""
    return together(setting.name for setting in chosen)


def probes(spec: ModelSpec, siblings: Sequence[ModelSpec] = (), seed: int = 0) -> Probes:
    """The sets to measure of a model; the same arguments give the same sets."""
    found, rng = candidates(spec, siblings), random.Random(seed)
    strongest = list({setting.unit: setting for setting in found}.values())
    pairs: dict[str, Chosen] = {}
    while len(pairs) < PAIRS:
        a, b = rng.sample(strongest, 2)
        if {*_standing(spec, (a, b))} == {a, b}:  # neither is without effect beside the other
            pairs[named((a, b))] = (a, b)
    policies: dict[str, Chosen] = {}
    while len(policies) < POLICIES:
        chosen = _policy(spec, found, (len(policies) + 1) / POLICIES, rng)
        if len(chosen) > 1:
            policies[named(chosen)] = chosen
    parts = {named(part): part for part in _parts(found)}
    return Probes({s.name: (s,) for s in found}, pairs, policies, parts)


def _policy(spec: ModelSpec, found: Iterable[Setting], strength: float, rng: random.Random) -> Chosen:
    """Half of the kinds, each at a share `strength` of its units; a draw per layer says how strong.

    The strength of a setting is drawn once for each kind and layer.
    """
    kinds = sorted({setting.kind for setting in found})
    share = {kind: rng.choice((0.0, 1.0)) * strength for kind in kinds}
    share[SkippedScale.name] /= FEWER_SKIPS
    units: dict[str, list[Setting]] = {}
    for setting in found:
        units.setdefault(setting.unit, []).append(setting)
    level: dict[tuple[str, int | None], float] = {}
    chosen = []
    for options in units.values():
        first = options[0]
        drawn = level.setdefault((first.kind, first.layer), rng.random())
        if rng.random() < share[first.kind]:
            chosen.append(options[int(drawn * len(options))])
    return _standing(spec, chosen)


def _standing(spec: ModelSpec, chosen: Sequence[Setting]) -> Chosen:
    """The settings of the policy that `chosen` make, without windows of skipped scales.

    Windows that a refiner leaves without effect stay: stored profiles have them.
    """
    skipped = {setting.scale for setting in chosen if setting.kind == SkippedScale.name}
    seen = (s for s in chosen if not (KINDS[s.kind].idles and s.scale in skipped))
    return settings_of(compose(spec, seen))


def cost_parts(chosen: Iterable[Setting]) -> list[Chosen]:
    """Sets of settings whose costs add up to about that of `chosen`.

    Layers have one shape, so a setting costs in each layer as much as in layer 0. Heads with equal
    budgets are stored and attended to together, so of those in a layer the number counts.
    """
    parts: list[Chosen] = []
    heads: Counter[tuple[int | None, Setting]] = Counter()
    for setting in chosen:
        if setting.head is not None:
            heads[setting.layer, replace(setting, layer=0, head=0)] += 1
        else:
            parts.append((setting if setting.layer is None else replace(setting, layer=0),))
    return parts + [_heads(first, n) for (_, first), n in heads.items()]


def _heads(first: Setting, n: int) -> Chosen:
    return tuple(replace(first, head=head) for head in range(n))


def _parts(found: Iterable[Setting]) -> Iterator[Chosen]:
    for setting in found:
        if setting.head is None and setting.layer in (None, 0):
            yield (setting,)
        elif setting.layer == setting.head == 0:
            yield from (_heads(setting, n) for n in range(1, setting.heads + 1))
