"""Knobs: a few dozen integers that span policies with different settings per layer, per head and per scale.

A policy factors into settings of layers, heads and scales; what depends on two of them (windows, shared guidance) is
switched on by both. Knobs are ordered levels, from off to strongest, and never conditional: samplers see a fixed space.

Names: `L3.bits` belongs to layer 3, `L3H1.keep` to its head 1, `S5.tokens` to scale 5.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

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
)
from varsearch.target import ModelSpec

BITS = (None, 8, 6, 4, 3)
KV_BITS = (None, 8, 4)
HEAD_KEEP = (1.0, 0.75, 0.5, 0.25, 0.125, 0.0)
TOKEN_KEEP = (1.0, 0.75, 0.5, 0.25)
RADIUS = (None, 3, 2, 1)


class SearchSpace:
    """All policies the search may propose for models of one shape.

    Attributes:
        knobs: name -> number of levels; level 0 of every knob is "off", so all zeros is the dense policy.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.from_layers = sorted({spec.n_layers * i // 4 for i in range(4)})
        layers, scales = range(spec.n_layers), range(1, len(spec.scales))
        self.knobs: dict[str, int] = {"unguided_scales": len(spec.scales) + 1}
        for layer in layers:
            linears = ("bits", "fc2_bits") if spec.shared_adaln else ("bits", "fc2_bits", "ada_bits")
            self.knobs |= {f"L{layer}.{name}": len(BITS) for name in linears}
            self.knobs |= {f"L{layer}.activations": 2, f"L{layer}.kv_bits": len(KV_BITS)}
            self.knobs |= {f"L{layer}.share": 3, f"L{layer}.window": 2}
            self.knobs |= {f"L{layer}H{head}.keep": len(HEAD_KEEP) for head in range(spec.n_heads)}
        for k in scales:
            self.knobs |= {f"S{k}.skip": 2, f"S{k}.share": 2}
            if self._token_levels(k) > 1:
                self.knobs |= {f"S{k}.tokens": self._token_levels(k), f"S{k}.prune_from": len(self.from_layers)}
            if self._radii(k):
                self.knobs[f"S{k}.radius"] = 1 + len(self._radii(k))

    def _token_levels(self, scale: int) -> int:
        tokens = self.spec.tokens[scale]
        return 1 + sum(share_of(keep, tokens) < tokens for keep in TOKEN_KEEP[1:])

    def _radii(self, scale: int) -> tuple[int, ...]:
        # A window as wide as the map is no window.
        return tuple(r for r in RADIUS if r is not None and r < max(self.spec.scales[scale]) - 1)

    def decode(self, levels: Mapping[str, int]) -> Policy:
        """The policy of these levels; absent knobs are off. Settings without effect are left out of it.

        Raises:
            PolicyError: an unknown knob, or a level outside its range.
        """
        for name, level in levels.items():
            if not 0 <= level < self.knobs.get(name, 0):
                raise PolicyError(f"knob {name!r} level {level}: expected one of {self.knobs.get(name, 0)} levels")
        get = {name: levels.get(name, 0) for name in self.knobs}
        run = [k == 0 or not get[f"S{k}.skip"] for k in range(len(self.spec.scales))]
        layers = tuple(self._layer(get, layer, run) for layer in range(self.spec.n_layers))
        return Policy(
            layers=layers,
            scales=tuple(self._scale(get, k) if run[k] else ScalePolicy(run=False) for k in range(len(run))),
        )

    def _layer(self, get: Mapping[str, int], layer: int, run: list[bool]) -> LayerPolicy:
        activations = 8 if get[f"L{layer}.activations"] else None
        bits, fc2, ada = (BITS[get.get(f"L{layer}.{name}", 0)] for name in ("bits", "fc2_bits", "ada_bits"))
        main, last = (Quantization(bits=b, activation_bits=activations) if b else None for b in (bits, fc2))
        weights = Weights(qkv=main, proj=main, fc1=main, fc2=last, ada=Quantization(bits=ada) if ada else None)
        keep = tuple(HEAD_KEEP[get[f"L{layer}H{head}.keep"]] for head in range(self.spec.n_heads))
        kv_bits = KV_BITS[get[f"L{layer}.kv_bits"]] if any(keep) else None
        attention = SparseAttention()
        if get[f"L{layer}.window"]:
            radii = [(None, *self._radii(k))[get.get(f"S{k}.radius", 0)] if run[k] else None for k in range(len(run))]
            attention = SparseAttention(window=tuple((radius,) * self.spec.n_heads for radius in radii))
        return LayerPolicy(weights=weights, kv=KVCompression(keep=keep, bits=kv_bits), attention=attention)

    def _scale(self, get: Mapping[str, int], k: int) -> ScalePolicy:
        tokens = None
        if get.get(f"S{k}.tokens", 0):
            first = self.from_layers[get[f"S{k}.prune_from"]]
            tokens = TokenPruning(keep=TOKEN_KEEP[get[f"S{k}.tokens"]], first_layer=first)
        if k >= len(self.spec.scales) - get["unguided_scales"]:
            return ScalePolicy(guidance="off", tokens=tokens)
        share = [get[f"L{layer}.share"] for layer in range(self.spec.n_layers)] if get.get(f"S{k}.share", 0) else []
        attention = tuple(layer for layer, level in enumerate(share) if level >= 1)
        ffn = tuple(layer for layer, level in enumerate(share) if level == 2)
        if not attention:
            return ScalePolicy(tokens=tokens)
        return ScalePolicy(guidance="shared", shared_attention=attention, shared_ffn=ffn, tokens=tokens)

    def encode(self, policy: Policy) -> dict[str, int]:
        """Levels that decode to `policy`; `PolicyError` if no levels do."""
        policy.check(self.spec)
        levels = self._encode(policy)
        if self.decode(levels) != policy:
            raise PolicyError("the policy lies outside the search space: it sets something that no knob can")
        return levels

    def _encode(self, policy: Policy) -> dict[str, int]:
        levels = dict.fromkeys(self.knobs, 0)
        run = [scale.run for scale in policy.scales]
        guided = [k for k, scale in enumerate(policy.scales) if scale.run and scale.guidance != "off"]
        levels["unguided_scales"] = len(run) - (guided[-1] + 1 if guided else 0)
        if levels["unguided_scales"] and not any(s.run for s in policy.scales[-levels["unguided_scales"] :]):
            levels["unguided_scales"] = 0
        for i, layer in enumerate(policy.layers):
            levels |= self._encode_layer(i, layer)
            sharing = [s for s in policy.scales if s.guidance == "shared"]
            attention = any(i in s.shared_attention for s in sharing)
            levels[f"L{i}.share"] = attention + (attention and any(i in s.shared_ffn for s in sharing))
        for k, scale in enumerate(policy.scales[1:], start=1):
            levels[f"S{k}.skip"], levels[f"S{k}.share"] = int(not run[k]), int(scale.guidance == "shared")
            if scale.tokens and f"S{k}.tokens" in levels:
                levels[f"S{k}.tokens"] = _level(TOKEN_KEEP, scale.tokens.keep)
                levels[f"S{k}.prune_from"] = _level(self.from_layers, scale.tokens.first_layer)
            radii = {layer.attention.window[k][0] for layer in policy.layers if layer.attention.window} - {None}
            if radii and f"S{k}.radius" in levels:
                levels[f"S{k}.radius"] = _level((None, *self._radii(k)), max(radii, key=str))
        return levels

    def _encode_layer(self, i: int, layer: LayerPolicy) -> dict[str, int]:
        w, keep = layer.weights, layer.kv.keep or (1.0,) * self.spec.n_heads
        parts = (("bits", w.qkv), ("fc2_bits", w.fc2), ("ada_bits", w.ada))
        levels = {
            f"L{i}.{name}": _level(BITS, q.bits if q else None) for name, q in parts if f"L{i}.{name}" in self.knobs
        }
        levels[f"L{i}.activations"] = int(any(q is not None and q.activation_bits is not None for q in (w.qkv, w.fc2)))
        levels[f"L{i}.kv_bits"] = _level(KV_BITS, layer.kv.bits)
        levels[f"L{i}.window"] = int(bool(layer.attention.window))
        return levels | {f"L{i}H{head}.keep": _level(HEAD_KEEP, share) for head, share in enumerate(keep)}

    def random(self, rng: random.Random, density: float = 0.3) -> Policy:
        """A policy in which each knob is off with probability 1 - `density` and uniform over its levels otherwise."""
        levels = {name: rng.randrange(n) if rng.random() < density else 0 for name, n in self.knobs.items()}
        return self.decode(levels)


def _level(levels: Sequence[object], value: object) -> int:
    if value not in levels:
        raise PolicyError(f"the policy lies outside the search space: {value} is not one of {levels}")
    return levels.index(value)
