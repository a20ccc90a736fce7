"""Knobs: about a hundred integers that span policies with different settings per layer, per head and per scale.

A policy factors into settings of layers, heads and scales; what depends on two of them (windows, shared guidance) is
switched on by both. What presets set besides (budgets per scale, bands, decisions, …) is taken over whole, place by
place: the highest levels of a knob stand for it, so that a policy may have the cache of one system in one layer, that
of another in the next, and a third one's attention. Knobs are never conditional: samplers see a fixed space.

Names: `L3.bits` belongs to layer 3, `L3H1.keep` to its head 1, `S5.tokens` to scale 5.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from varsearch.errors import PolicyError
from varsearch.policy import (
    KVCompression,
    LayerPolicy,
    Policy,
    Quantization,
    ScalePolicy,
    SparseAttention,
    TokenPruning,
    Weights,
    share_of,
    without,
)
from varsearch.space.borrowed import Borrowed, Sharing, sharing_of, without_bits
from varsearch.target import ModelSpec

BITS = (None, 8, 6, 4, 3)
ACTIVATION_BITS = (None, 8, 6, 4)
KV_BITS = (None, 8, 4)
HEAD_KEEP = (1.0, 0.75, 0.5, 0.25, 0.125, 0.0)
TOKEN_KEEP = (1.0, 0.75, 0.5, 0.25)
RADIUS = (None, 3, 2, 1)
LINEARS_OF = {
    "bits": ("qkv", "proj", "fc1"),
    "fc2_bits": ("fc2",),
    "ada_bits": ("ada",),
    "text_bits": ("text_q", "text_kv", "text_proj"),
    "ssm_bits": ("ssm_in", "ssm_out"),
}
"""The linears whose precision a knob of a layer sets; models have knobs for the linears they have."""


class SearchSpace:
    """All policies the search may propose for models of one shape.

    Args:
        spec: the models' shape.
        presets: policies whose settings the space offers besides its own.

    Attributes:
        knobs: name -> number of levels; level 0 of every knob is "off", so all zeros is the dense policy.
        own: name -> number of levels that stand for settings of the space itself, ordered from off to strongest.
    """

    def __init__(self, spec: ModelSpec, presets: Mapping[str, Policy] | None = None) -> None:
        self.spec, self.presets = spec, dict(presets or {})
        self.borrowed = Borrowed.of(self.presets, spec.n_layers, len(spec.scales))
        self.from_layers = sorted({spec.n_layers * i // 4 for i in range(4)})
        self.own = {"unguided_scales": len(spec.scales) + 1}
        self.precisions = [name for name, linears in LINEARS_OF.items() if set(linears) <= set(spec.linears)]
        keeps_kv = "layers[].kv" not in without(spec.family)
        for layer in range(spec.n_layers):
            self.own |= {f"L{layer}.{name}": len(BITS) for name in self.precisions}
            self.own |= {f"L{layer}.activations": len(ACTIVATION_BITS)}
            self.own |= {f"L{layer}.kv_bits": len(KV_BITS) if keeps_kv else 1}
            self.own |= {f"L{layer}.share": 3, f"L{layer}.attention": 2, f"L{layer}.kv": 1}
            self.own |= {f"L{layer}H{head}.keep": len(HEAD_KEEP) if keeps_kv else 1 for head in range(spec.n_heads)}
        for k in range(len(spec.scales)):
            first = k == 0
            self.own |= {f"S{k}.skip": 1 if first else 2, f"S{k}.share": 1 if first else 2}
            self.own |= {f"S{k}.tokens": 1 if first else self._token_levels(k)}
            self.own |= {f"S{k}.prune_from": len(self.from_layers) if self.own[f"S{k}.tokens"] > 1 else 1}
            self.own |= {f"S{k}.radius": 1 + len(self._radii(k))}
        self.own |= {"refiner": 1, "decisions": 1}
        levels = {name: n + len(self._offers(name)) for name, n in self.own.items()}
        self.knobs = {name: n for name, n in levels.items() if n > 1}
        self.own = {name: self.own[name] for name in self.knobs}

    @property
    def digest(self) -> str:
        """Sha256 of the knobs and of what they take over."""
        parts = [*(f"{name}: {n}" for name, n in self.knobs.items()), *(p.digest for p in self.presets.values())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _offers(self, knob: str) -> Sequence[Any]:
        """What the levels above the knob's own stand for."""
        place, _, name = knob.rpartition(".")
        if name in ("refiner", "decisions"):
            return getattr(self.borrowed, name)
        taken = self.borrowed
        tables: dict[tuple[str, str], Sequence[Sequence[Any]]] = {
            ("L", "kv"): taken.kv,
            ("L", "attention"): taken.attention,
            ("S", "share"): taken.sharing,
            ("S", "tokens"): taken.tokens,
        }
        table = tables.get((place[:1], name))
        return table[int(place[1:])] if table else ()

    def _offer(self, levels: Mapping[str, int], knob: str) -> Any:
        """What is taken over at this knob's level; None where the level is its own."""
        index = levels.get(knob, 0) - self.own.get(knob, 1)
        return self._offers(knob)[index] if index >= 0 else None

    def _offered(self, knob: str, value: object) -> int:
        """The level at which `value` is taken over; 0 if none is."""
        offers = self._offers(knob)
        return self.own[knob] + offers.index(value) if value in offers else 0

    def _token_levels(self, scale: int) -> int:
        tokens = self.spec.tokens[scale]
        return 1 + sum(share_of(keep, tokens) < tokens for keep in TOKEN_KEEP[1:])

    def _radii(self, scale: int) -> tuple[int, ...]:
        # A window as wide as the map is no window.
        return tuple(r for r in RADIUS if r is not None and r < max(self.spec.scales[scale]) - 1)

    def decode(self, levels: Mapping[str, int]) -> Policy:
        """The policy of these levels; absent knobs are off.

        Settings without effect are left out of it, and so is what is taken over and contradicts the rest: attention
        that decides at a scale that prunes, decisions about scales that do not run.

        Raises:
            PolicyError: an unknown knob, or a level outside its range.
        """
        for name, level in levels.items():
            if not 0 <= level < self.knobs.get(name, 0):
                raise PolicyError(f"knob {name!r} level {level}: expected one of {self.knobs.get(name, 0)} levels")
        run = [not levels.get(f"S{k}.skip", 0) for k in range(len(self.spec.scales))]
        policy = Policy(
            layers=tuple(self._layer(levels, layer, run) for layer in range(self.spec.n_layers)),
            scales=tuple(self._scale(levels, k) if run[k] else ScalePolicy(run=False) for k in range(len(run))),
        )
        for layer in range(self.spec.n_layers):
            if attention := self._offer(levels, f"L{layer}.attention"):
                changed = policy.layers[layer].model_copy(update={"attention": attention})
                policy = _fitting(policy, layers=(*policy.layers[:layer], changed, *policy.layers[layer + 1 :]))
        policy = _fitting(policy, refiner=self._offer(levels, "refiner"))
        return _fitting(policy, decisions=self._offer(levels, "decisions") or ())

    def _layer(self, levels: Mapping[str, int], layer: int, run: list[bool]) -> LayerPolicy:
        def own(name: str) -> int:
            return levels.get(f"L{layer}.{name}", 0)

        chosen = {linear: BITS[own(name)] for name in self.precisions for linear in LINEARS_OF[name]}
        rounded = ACTIVATION_BITS[own("activations")]
        weights = {linear: Quantization(bits=b, activation_bits=rounded) for linear, b in chosen.items() if b}
        keep = tuple(HEAD_KEEP[levels.get(f"L{layer}H{head}.keep", 0)] for head in range(self.spec.n_heads))
        kv = self._offer(levels, f"L{layer}.kv") or KVCompression(keep=keep)
        if any(any(kv.cached(k, self.spec.n_heads)) for k in range(len(run))):
            kv = kv.model_copy(update={"bits": KV_BITS[own("kv_bits")]})
        attention = SparseAttention()
        if own("attention") == 1:
            radii = [
                (None, *self._radii(k))[levels.get(f"S{k}.radius", 0)] if run[k] else None for k in range(len(run))
            ]
            attention = SparseAttention(window=tuple((radius,) * self.spec.n_heads for radius in radii))
        return LayerPolicy(weights=Weights(**weights), kv=kv, attention=attention)

    def _scale(self, levels: Mapping[str, int], k: int) -> ScalePolicy:
        tokens = self._offer(levels, f"S{k}.tokens")
        if tokens is None and levels.get(f"S{k}.tokens", 0):
            first = self.from_layers[levels.get(f"S{k}.prune_from", 0)]
            tokens = TokenPruning(keep=TOKEN_KEEP[levels[f"S{k}.tokens"]], first_layer=first)
        if k >= len(self.spec.scales) - levels.get("unguided_scales", 0):
            return ScalePolicy(guidance="off", tokens=tokens)
        attention, ffn = self._offer(levels, f"S{k}.share") or self._sharing(levels, k)
        if not attention and not ffn:
            return ScalePolicy(tokens=tokens)
        return ScalePolicy(guidance="shared", shared_attention=attention, shared_ffn=ffn, tokens=tokens)

    def _sharing(self, levels: Mapping[str, int], k: int) -> Sharing:
        """The layers whose own knobs share, where the scale's does."""
        layers = range(self.spec.n_layers if levels.get(f"S{k}.share", 0) else 0)
        attention, ffn = (tuple(i for i in layers if levels.get(f"L{i}.share", 0) >= least) for least in (1, 2))
        return attention, ffn

    def encode(self, policy: Policy) -> dict[str, int]:
        """Levels that decode to `policy`; `PolicyError` if no levels do."""
        levels = self.nearest(policy)
        if self.decode(levels) != policy:
            raise PolicyError("the policy lies outside the search space: it sets something that no knob can")
        return levels

    def nearest(self, policy: Policy) -> dict[str, int]:
        """Levels that decode to `policy`, or to one that is like it; `PolicyError` if it does not fit the model.

        Where linears, layers or heads that share a knob differ, the knob follows the first one.
        """
        policy.check(self.spec)
        found = self._encode(policy)
        return {name: min(found.get(name, 0), n - 1) for name, n in self.knobs.items()}

    def _encode(self, policy: Policy) -> dict[str, int]:
        levels = {name: self._offered(name, getattr(policy, name)) for name in ("refiner", "decisions")}
        run = [scale.run for scale in policy.scales]
        guided = [k for k, scale in enumerate(policy.scales) if scale.run and scale.guidance != "off"]
        levels["unguided_scales"] = len(run) - (guided[-1] + 1 if guided else 0)
        if levels["unguided_scales"] and not any(s.run for s in policy.scales[-levels["unguided_scales"] :]):
            levels["unguided_scales"] = 0
        own_sharing = [s for k, s in enumerate(policy.scales) if not self._offered(f"S{k}.share", sharing_of(s))]
        for i, layer in enumerate(policy.layers):
            levels |= self._encode_layer(i, layer)
            attention = any(i in scale.shared_attention for scale in own_sharing)
            levels[f"L{i}.share"] = attention + (attention and any(i in scale.shared_ffn for scale in own_sharing))
        windows = [layer.attention.window for i, layer in enumerate(policy.layers) if levels[f"L{i}.attention"] == 1]
        for k, scale in enumerate(policy.scales):
            levels |= self._encode_scale(k, scale)
            firsts = [window[k][0] for window in windows]
            radii = {radius for radius in firsts if isinstance(radius, int)}
            levels[f"S{k}.radius"] = _level((None, *self._radii(k)), max(radii, key=str)) if radii else 0
        return levels

    def _encode_layer(self, i: int, layer: LayerPolicy) -> dict[str, int]:
        w, keep = layer.weights, layer.kv.keep or (1.0,) * self.spec.n_heads
        parts = [(name, getattr(w, LINEARS_OF[name][0])) for name in self.precisions]
        activations = next((q.activation_bits for _, q in parts if q and q.activation_bits), None)
        levels = {f"L{i}.{name}": _level(BITS, q.bits if q else None) for name, q in parts}
        levels |= {f"L{i}.activations": _level(ACTIVATION_BITS, activations)}
        levels |= {f"L{i}.kv_bits": _level(KV_BITS, layer.kv.bits)}
        levels |= {f"L{i}.kv": self._offered(f"L{i}.kv", without_bits(layer.kv))}
        levels[f"L{i}.attention"] = self._offered(f"L{i}.attention", layer.attention) or int(
            bool(layer.attention.window)
        )
        if levels[f"L{i}.kv"]:
            return levels
        return levels | {f"L{i}H{head}.keep": _level(HEAD_KEEP, share) for head, share in enumerate(keep)}

    def _encode_scale(self, k: int, scale: ScalePolicy) -> dict[str, int]:
        shared = self._offered(f"S{k}.share", sharing_of(scale)) or int(scale.guidance == "shared")
        levels = {f"S{k}.skip": int(not scale.run), f"S{k}.share": shared}
        if scale.tokens is None:
            return levels
        offered = self._offered(f"S{k}.tokens", scale.tokens)
        if offered:
            return levels | {f"S{k}.tokens": offered}
        first = _level(self.from_layers, scale.tokens.first_layer)
        return levels | {f"S{k}.tokens": _level(TOKEN_KEEP, scale.tokens.keep), f"S{k}.prune_from": first}

    def random(self, rng: random.Random, density: float = 0.3) -> Policy:
        """A policy in which each knob is off with probability 1 - `density` and uniform over its levels otherwise."""
        levels = {name: rng.randrange(n) if rng.random() < density else 0 for name, n in self.knobs.items()}
        return self.decode(levels)


def _fitting(policy: Policy, **changes: object) -> Policy:
    """The policy with these changes, or as it is where they contradict the rest of it."""
    try:
        return Policy.model_validate({**dict(policy), **changes})
    except ValidationError:
        return policy


def _level(levels: Sequence[float | None], value: float | None) -> int:
    """The level of `value`, or of what is closest to it without being off."""
    if value in levels:
        return levels.index(value)
    numbers = [(abs(level - value), i) for i, level in enumerate(levels) if level is not None and value is not None]
    return min(numbers)[1] if numbers else 0
