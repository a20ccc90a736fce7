"""A policy as Optuna sees it: about a hundred integers, which its samplers draw and its dashboard shows.

A policy has more settings than a chart has room for, so a knob stands for several of them: linears
of one sort share the precision, layers that share guidance do so at the same scales. Each level of
a knob is a set of settings. The highest levels stand for settings that presets have at the knob's
place and that no other level can say (budgets per scale, bands, decisions), so a policy may have
the cache of one published system in one layer and another one's in the next. Knobs are never
conditional: samplers see a fixed space.

Names: `L3.bits` belongs to layer 3, `L3H1.keep` to its head 1, `S5.tokens` to scale 5.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from varsearch.errors import PolicyError
from varsearch.policy import Policy, Quantization, share_of, without
from varsearch.space import settings
from varsearch.space.settings import KINDS, Chosen, Setting, compose, settings_of
from varsearch.target import ModelSpec

BITS = (None, *settings.BITS)
ACTIVATION_BITS = (None, 8, 6, 4)
KV_BITS = (None, *settings.KV_BITS)
HEAD_KEEP = (1.0, *settings.HEAD_KEEP)
TOKEN_KEEP = (1.0, *settings.TOKEN_KEEP)
RADIUS = (None, *settings.RADIUS)
"""Values of a knob's own levels; the first is off."""

LINEARS_OF = {
    "bits": ("qkv", "proj", "fc1"),
    "fc2_bits": ("fc2",),
    "ada_bits": ("ada",),
    "text_bits": ("text_q", "text_kv", "text_proj"),
    "ssm_bits": ("ssm_in", "ssm_out"),
}
"""The linears whose precision a knob of a layer sets; models have knobs for the linears they have."""

TAKEN_OVER = {
    "kv": ("keep",),
    "attention": ("window", "band", "cross_scale"),
    "share": ("sharing",),
    "tokens": ("tokens", "token_layers"),
    "refiner": ("refiner",),
    "decisions": ("decision",),
}
"""Kinds of settings of presets that the highest levels of a knob stand for."""


class SearchSpace:
    """Integer knobs for models of one shape.

    Args:
        spec: the models' shape.
        presets: policies whose settings the space offers besides its own.

    Attributes:
        knobs: name -> number of levels; level 0 of every knob is "off", so all zeros is the dense
            policy.
        own: name -> number of levels that stand for settings of the space itself, ordered from off
            to strongest.
    """

    def __init__(self, spec: ModelSpec, presets: Mapping[str, Policy] | None = None) -> None:
        self.spec, self.presets = spec, dict(presets or {})
        self._offers = self._offered_by(self.presets.values())
        self.from_layers = sorted({spec.n_layers * i // 4 for i in range(4)})
        self.own = {"unguided_scales": len(spec.scales) + 1}
        linears = {*spec.linears}
        self.precisions = [name for name, of in LINEARS_OF.items() if {*of} <= linears]
        keeps_kv = "layers[].kv" not in without(spec.family)
        for i in range(spec.n_layers):
            self.own |= {f"L{i}.{name}": len(BITS) for name in self.precisions}
            self.own |= {f"L{i}.activations": len(ACTIVATION_BITS)}
            self.own |= {f"L{i}.kv_bits": len(KV_BITS) if keeps_kv else 1}
            self.own |= {f"L{i}.share": 3, f"L{i}.attention": 2, f"L{i}.kv": 1}
            for head in range(spec.n_heads):
                self.own |= {f"L{i}H{head}.keep": len(HEAD_KEEP) if keeps_kv else 1}
        for k in range(len(spec.scales)):
            first = k == 0
            self.own |= {f"S{k}.skip": 1 if first else 2, f"S{k}.share": 1 if first else 2}
            self.own |= {f"S{k}.tokens": 1 if first else self._token_levels(k)}
            starts = len(self.from_layers) if self.own[f"S{k}.tokens"] > 1 else 1
            self.own |= {f"S{k}.prune_from": starts, f"S{k}.radius": 1 + len(self._radii(k))}
        self.own |= {"refiner": 1, "decisions": 1}
        levels = {name: n + len(self._offers.get(name, ())) for name, n in self.own.items()}
        self.knobs = {name: n for name, n in levels.items() if n > 1}
        self.own = {name: self.own[name] for name in self.knobs}

    @property
    def digest(self) -> str:
        """Sha256 of the knobs and of the presets."""
        knobs = (f"{name}: {n}" for name, n in self.knobs.items())
        parts = [*knobs, *(policy.digest for policy in self.presets.values())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _offered_by(self, presets: Iterable[Policy]) -> dict[str, list[Chosen]]:
        """The different sets of settings that presets have, by the knob of their place."""
        offers: dict[str, list[Chosen]] = {}
        for policy in presets:
            for knob, some in self._places(settings_of(policy)).items():
                if some not in offers.setdefault(knob, []):
                    offers[knob].append(some)
        return offers

    @staticmethod
    def _places(chosen: Iterable[Setting]) -> dict[str, Chosen]:
        """Settings by the knob that can take them over."""
        name_of = {kind: name for name, kinds in TAKEN_OVER.items() for kind in kinds}
        found: dict[str, Chosen] = {}
        for s in chosen:
            if name := name_of.get(s.kind):
                home = KINDS[s.kind].home
                place = {"layer": f"L{s.layer}.", "scale": f"S{s.scale}.", "policy": ""}[home]
                found[place + name] = (*found.get(place + name, ()), s)
        return found

    def _offer(self, levels: Mapping[str, int], knob: str) -> Chosen:
        """The settings that are taken over at this knob's level; none where the level is its own."""
        index = levels.get(knob, 0) - self.own.get(knob, 1)
        return self._offers[knob][index] if index >= 0 else ()

    def _level_of(self, places: Mapping[str, Chosen], knob: str) -> int:
        """The level that takes over these settings at the knob's place; 0 if none does."""
        offers, some = self._offers.get(knob, []), places.get(knob, ())
        return self.own[knob] + offers.index(some) if some in offers else 0

    def _token_levels(self, scale: int) -> int:
        tokens = self.spec.tokens[scale]
        return 1 + sum(share_of(keep, tokens) < tokens for keep in settings.TOKEN_KEEP)

    def _radii(self, scale: int) -> tuple[int, ...]:
        # A window as wide as the map is no window.
        return tuple(r for r in settings.RADIUS if r < max(self.spec.scales[scale]) - 1)

    def decode(self, levels: Mapping[str, int]) -> Policy:
        """The policy of these levels; absent knobs are off.

        Settings without effect are left out of it, and so are settings of presets that contradict
        the rest: attention that decides at a scale that prunes, decisions about scales that do not
        run.

        Raises:
            PolicyError: an unknown knob, or a level outside its range.
        """
        for name, level in levels.items():
            n = self.knobs.get(name, 0)
            if not 0 <= level < n:
                raise PolicyError(f"knob {name!r} level {level}: expected one of {n} levels")
        policy = compose(self.spec, self._own_settings(levels))
        knobs = (f"L{i}.attention" for i in range(self.spec.n_layers))
        for knob in (*knobs, "refiner", "decisions"):
            policy = self._with(policy, self._offer(levels, knob))
        return policy

    def _with(self, policy: Policy, more: Chosen) -> Policy:
        """`policy` with these settings, or as it is where they leave no room for others."""
        if not more:
            return policy
        try:
            wider = compose(self.spec, (*settings_of(policy), *more))
        except PolicyError:
            return policy
        return wider if {*settings_of(policy)} <= {*settings_of(wider)} else policy

    def _own_settings(self, levels: Mapping[str, int]) -> Iterator[Setting]:
        """All but those that may contradict others."""
        n = len(self.spec.scales)
        skipped = [k for k in range(n) if levels.get(f"S{k}.skip", 0)]
        yield from (Setting("skip", True, scale=k) for k in skipped)
        if unguided := levels.get("unguided_scales", 0):
            yield Setting("guidance", n - unguided)
        for i in range(self.spec.n_layers):
            yield from self._layer(levels, i, [k for k in range(n) if k not in skipped])
        for k in range(n):
            yield from self._scale(levels, k)

    def _layer(self, levels: Mapping[str, int], i: int, run: Sequence[int]) -> Iterator[Setting]:
        def own(name: str) -> int:
            return levels.get(f"L{i}.{name}", 0)

        activation_bits = ACTIVATION_BITS[own("activations")]
        for name in self.precisions:
            if bits := BITS[own(name)]:
                fields = {"bits": bits, "activation_bits": activation_bits}
                value = Quantization.model_validate(fields)
                yield from (Setting("bits", value, layer=i, part=x) for x in LINEARS_OF[name])
        cache = self._offer(levels, f"L{i}.kv") or tuple(self._heads(levels, i))
        yield from cache
        emptied = len(cache) == self.spec.n_heads and all(s.value == 0 for s in cache)
        if (bits := KV_BITS[own("kv_bits")]) and not emptied:
            yield Setting("kv_bits", bits, layer=i)
        for k in run if own("attention") == 1 else ():
            if radius := (None, *self._radii(k))[levels.get(f"S{k}.radius", 0)]:
                yield Setting("window", radius, layer=i, scale=k, heads=self.spec.n_heads)

    def _heads(self, levels: Mapping[str, int], i: int) -> Iterator[Setting]:
        for head in range(self.spec.n_heads):
            share = HEAD_KEEP[levels.get(f"L{i}H{head}.keep", 0)]
            if share < 1:
                yield Setting("keep", share, layer=i, head=head, heads=self.spec.n_heads)

    def _scale(self, levels: Mapping[str, int], k: int) -> Iterator[Setting]:
        layers, tokens = range(self.spec.n_layers), self._offer(levels, f"S{k}.tokens")
        yield from tokens
        if not tokens and (level := levels.get(f"S{k}.tokens", 0)):
            first = self.from_layers[levels.get(f"S{k}.prune_from", 0)]
            keep = TOKEN_KEEP[level]
            yield from (Setting("tokens", keep, layer=i, scale=k) for i in layers[first:])
        shared = self._offer(levels, f"S{k}.share")
        yield from shared
        for i in layers if levels.get(f"S{k}.share", 0) and not shared else ():
            for least, part in ((1, "attention"), (2, "ffn")):
                if levels.get(f"L{i}.share", 0) >= least:
                    yield Setting("sharing", True, layer=i, scale=k, part=part)

    def encode(self, policy: Policy) -> dict[str, int]:
        """Levels that decode to `policy`; `PolicyError` if no levels do."""
        levels = self.nearest(policy)
        if self.decode(levels) != policy:
            raise PolicyError("the policy lies outside the search space: it sets something that no knob can")
        return levels

    def nearest(self, policy: Policy) -> dict[str, int]:
        """Levels that decode to `policy`, or to one that is like it.

        Where linears, layers or heads that share a knob differ, the knob follows the first one.

        Raises:
            PolicyError: the policy does not fit the model.
        """
        policy.check(self.spec)
        found = self._encode(settings_of(policy))
        return {name: min(found.get(name, 0), n - 1) for name, n in self.knobs.items()}

    def _encode(self, chosen: Chosen) -> dict[str, int]:
        units, places = {s.unit: s for s in chosen}, self._places(chosen)
        taken = {name: self._level_of(places, name) for name in places if name in self.own}
        levels = {name: level for name, level in taken.items() if level}
        levels["unguided_scales"] = self._unguided(units)
        for i in range(self.spec.n_layers):
            levels |= self._encode_layer(i, units, levels)
        windowed = [i for i in range(self.spec.n_layers) if levels[f"L{i}.attention"] == 1]
        for k in range(len(self.spec.scales)):
            levels |= self._encode_scale(k, units, places, levels, windowed)
        return levels

    def _unguided(self, units: Mapping[str, Setting]) -> int:
        """How many scales follow the last one that runs with guidance."""
        n, guidance = len(self.spec.scales), units.get("guidance")
        if guidance is None:
            return 0
        guided = [k for k in range(guidance.first_scale) if f"S{k}.skip" not in units]
        return n - (guided[-1] + 1 if guided else 0)

    def _encode_layer(self, i: int, units: Mapping[str, Setting], taken: Mapping[str, int]) -> dict[str, int]:
        firsts = {name: units.get(f"L{i}.{LINEARS_OF[name][0]}") for name in self.precisions}
        precisions = {name: s.value for name, s in firsts.items() if s is not None}
        rounded = (q.activation_bits for q in precisions.values() if q.activation_bits)
        levels = {f"L{i}.{name}": _level(BITS, q.bits) for name, q in precisions.items()}
        levels[f"L{i}.activations"] = _level(ACTIVATION_BITS, next(rounded, None))
        if (bits := units.get(f"L{i}.kv_bits")) is not None:
            levels[f"L{i}.kv_bits"] = _level(KV_BITS, bits.value)
        own_scales = [k for k in range(len(self.spec.scales)) if not taken.get(f"S{k}.share")]
        attention, ffn = (any(f"L{i}S{k}.{part}" in units for k in own_scales) for part in ("attention", "ffn"))
        levels[f"L{i}.share"] = attention + (attention and ffn)
        windows = any(s.kind == "window" and s.layer == i for s in units.values())
        levels[f"L{i}.attention"] = taken.get(f"L{i}.attention", 0) or int(windows)
        if not taken.get(f"L{i}.kv"):
            for head in range(self.spec.n_heads):
                if (keep := units.get(f"L{i}H{head}.keep")) is not None:
                    share = KINDS["keep"].number(keep.value)
                    levels[f"L{i}H{head}.keep"] = _level(HEAD_KEEP, share)
        return levels

    def _encode_scale(
        self,
        k: int,
        units: Mapping[str, Setting],
        places: Mapping[str, Chosen],
        taken: Mapping[str, int],
        windowed: Iterable[int],
    ) -> dict[str, int]:
        levels = {f"S{k}.skip": int(f"S{k}.skip" in units)}
        if f"S{k}.share" not in taken:
            levels[f"S{k}.share"] = int(f"S{k}.share" in places)
        if f"S{k}.tokens" not in taken and f"S{k}.tokens" in places:
            pruned = [s for s in places[f"S{k}.tokens"] if s.kind == "tokens"]
            least = min(KINDS["tokens"].number(s.value) for s in pruned)
            levels[f"S{k}.tokens"] = _level(TOKEN_KEEP, least)
            first = min(s.layer for s in pruned if s.layer is not None)
            levels[f"S{k}.prune_from"] = _level(self.from_layers, first)
        windows = [units[unit].value for i in windowed if (unit := f"L{i}S{k}.window") in units]
        radii = {radius for radius in map(_first_radius, windows) if radius is not None}
        if radii:
            levels[f"S{k}.radius"] = _level((None, *self._radii(k)), max(radii, key=str))
        return levels

    def random(self, rng: random.Random, density: float = 0.3) -> Policy:
        """A policy of random levels.

        Each knob is off with probability 1 - `density` and uniform over its levels otherwise.
        """
        levels = {}
        for name, n in self.knobs.items():
            levels[name] = rng.randrange(n) if rng.random() < density else 0
        return self.decode(levels)


def _first_radius(value: Any) -> int | None:
    """The radius of the first head, where it is one for all key scales."""
    first = value.reaches[0] if isinstance(value, settings.ByHead) else value
    return first if isinstance(first, int) else None


def _level(levels: Sequence[float | None], value: float | None) -> int:
    """The level of `value`, or of the closest one that is not off."""
    if value in levels:
        return levels.index(value)
    numbers = [(abs(level - value), i) for i, level in enumerate(levels) if level is not None and value is not None]
    return min(numbers)[1] if numbers else 0
