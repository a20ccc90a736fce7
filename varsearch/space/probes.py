"""What a profile measures: every setting alone, pairs, whole policies, and the parts that costs add up from."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from varsearch.profile import together
from varsearch.space.changes import changes
from varsearch.space.units import Setting, compose, settings
from varsearch.target import ModelSpec

PAIRS, POLICIES = 10, 12

Chosen = tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class Probes:
    """Sets of settings by name.

    Attributes:
        singles: every setting alone.
        pairs: two settings of different units, each the strongest of its unit, so that their effects show.
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
    """What to measure of a model; the same arguments give the same."""
    found, rng = settings(spec, siblings), random.Random(seed)
    strongest = list({setting.unit: setting for setting in found}.values())
    pairs: dict[str, Chosen] = {}
    while len(pairs) < PAIRS:
        a, b = rng.sample(strongest, 2)
        if set(changes(compose(spec, (a, b))).settings) == {a, b}:  # neither is without effect beside the other
            pairs[named((a, b))] = (a, b)
    policies: dict[str, Chosen] = {}
    while len(policies) < POLICIES:
        chosen = _policy(spec, found, (len(policies) + 1) / POLICIES, rng)
        if len(chosen) > 1:
            policies[named(chosen)] = chosen
    return Probes({s.name: (s,) for s in found}, pairs, policies, {named(part): part for part in _parts(found)})


def _policy(spec: ModelSpec, found: Iterable[Setting], strength: float, rng: random.Random) -> Chosen:
    """Half of the techniques, each at a share `strength` of its units, as strong as a draw for each layer says."""
    kinds = sorted({setting.kind for setting in found})
    share = {kind: rng.choice((0.0, 1.0)) * strength for kind in kinds}
    share["skip"] /= 5  # a scale or two that are left out hide everything else
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
    return changes(compose(spec, chosen)).settings


def cost_parts(chosen: Iterable[Setting]) -> list[Chosen]:
    """Sets of settings whose costs add up to about that of `chosen`.

    Layers have one shape, so a setting costs what it costs in layer 0. Heads with equal budgets are stored and
    attended to together, so of those in a layer the number counts.
    """
    parts: list[Chosen] = []
    heads: Counter[tuple[int | None, Setting]] = Counter()
    for setting in chosen:
        if setting.kind == "keep":
            heads[setting.layer, replace(setting, layer=0, head=0)] += 1
        else:
            parts.append((setting if setting.layer is None else replace(setting, layer=0),))
    return parts + [_heads(first, n) for (_, first), n in heads.items()]


def _heads(first: Setting, n: int) -> Chosen:
    return tuple(replace(first, head=head) for head in range(n))


def _parts(found: Iterable[Setting]) -> Iterator[Chosen]:
    for setting in found:
        if setting.kind != "keep" and setting.layer in (None, 0):
            yield (setting,)
        elif setting.kind == "keep" and setting.layer == setting.head == 0:
            yield from (_heads(setting, n) for n in range(1, setting.heads + 1))
