"""The policy: what is made cheaper, in which layer, head and scale. Torch-free data, closed set of fields.

Every default means "off", for ever, and the digest leaves defaults out: a technique added later changes no digest
of an older policy. Values live on grids so that equal policies are equal.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from varsearch.errors import PolicyError
from varsearch.policy.attention import SparseAttention
from varsearch.policy.grid import describe
from varsearch.policy.kv import KVCompression
from varsearch.policy.scales import ScalePolicy
from varsearch.policy.weights import LINEARS, Weights
from varsearch.target import Frozen, ModelSpec


class LayerPolicy(Frozen):
    """Techniques that belong to a transformer layer."""

    weights: Weights = Weights()
    kv: KVCompression = KVCompression()
    attention: SparseAttention = SparseAttention()


class Policy(Frozen):
    """One candidate: what the search proposes, the store keys and the runtime applies."""

    schema_version: Literal[1] = 1
    layers: tuple[LayerPolicy, ...] = Field(min_length=1)
    scales: tuple[ScalePolicy, ...] = Field(min_length=1)

    @classmethod
    def dense(cls, n_layers: int, n_scales: int) -> Self:
        """Everything off."""
        return cls(layers=(LayerPolicy(),) * n_layers, scales=(ScalePolicy(),) * n_scales)

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """A policy from its JSON; `PolicyError` names the field that is wrong and why."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise PolicyError(f"invalid policy: {describe(error)}") from None

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        off = [s.guidance == "off" for s in self.scales if s.run]
        if not self.scales[0].run:
            raise ValueError("scale 0 cannot be skipped: it reads the class")
        if off != sorted(off):
            raise ValueError("guidance cannot resume: the unconditional rows were dropped at an earlier scale")
        heads = {len(layer.kv.keep) for layer in self.layers} | {
            len(row) for layer in self.layers for row in (*layer.attention.window, *layer.attention.band)
        }
        if len(heads - {0}) > 1:
            raise ValueError(f"layers disagree about the number of heads: {sorted(heads - {0})}")
        for i, layer in enumerate(self.layers):
            self._check_attention(i, layer.attention)
        for k, scale in enumerate(self.scales):
            self._check_layers(k, scale)
        return self

    def _check_attention(self, i: int, attention: SparseAttention) -> None:
        n = len(self.scales)
        for name, rows in (("window", attention.window), ("band", attention.band)):
            if len(rows) not in (0, n):
                raise ValueError(f"layers[{i}].attention.{name} has {len(rows)} rows for {n} scales")
        chosen = attention.cross_scale
        if chosen is None:
            return
        decision, place = chosen.decision_scale, f"layers[{i}].attention.cross_scale"
        if decision >= n or not self.scales[decision].run:
            raise ValueError(f"{place} decides at scale {decision}, which does not run")
        if self.prunes(decision, i):
            raise ValueError(f"{place} decides at scale {decision}, which needs all queries, but prunes tokens there")
        if len(chosen.radius) != n - decision:
            raise ValueError(f"{place}.radius has {len(chosen.radius)} entries for scales {decision}..{n - 1}")

    def _check_layers(self, k: int, scale: ScalePolicy) -> None:
        n = len(self.layers)
        for layer in (*scale.shared_attention, *scale.shared_ffn):
            if layer >= n:
                raise ValueError(f"scales[{k}] shares layer {layer}, but there are {n} layers")
        if scale.tokens is None:
            return
        layers = scale.tokens.layers(n)
        if not layers or layers[-1] >= n:
            raise ValueError(f"scales[{k}].tokens prunes layers {layers.start}..{layers.stop - 1}, but there are {n}")
        if any(self.restore_scale(k, layer) is None for layer in layers):
            raise ValueError(
                f"scales[{k}].tokens has no earlier scale to restore pruned places from: "
                "one must run the same layers on all its tokens"
            )

    def prunes(self, scale: int, layer: int) -> bool:
        """Whether `layer` drops tokens at `scale`."""
        tokens = self.scales[scale].tokens
        return tokens is not None and layer in tokens.layers(len(self.layers))

    def restore_scale(self, scale: int, layer: int) -> int | None:
        """The nearest earlier scale that runs `layer` on all tokens: where pruned places are restored from."""
        earlier = (k for k in reversed(range(scale)) if self.scales[k].run and not self.prunes(k, layer))
        return next(earlier, None)

    def check(self, spec: ModelSpec) -> None:
        """Raises `PolicyError` with the reason if this policy cannot run on a model of this shape."""
        for name, got, expected in (
            ("layers", len(self.layers), spec.n_layers),
            ("scales", len(self.scales), len(spec.scales)),
        ):
            if got != expected:
                raise PolicyError(f"policy has {got} {name}, model {spec.name} has {expected}")
        for i, layer in enumerate(self.layers):
            for got in (len(layer.kv.keep), *map(len, layer.attention.window), *map(len, layer.attention.band)):
                if got not in (0, spec.n_heads):
                    raise PolicyError(f"layers[{i}] names {got} heads, model {spec.name} has {spec.n_heads}")
            self._check_groups(i, layer.weights, spec)
            chosen = layer.attention.cross_scale
            if chosen and chosen.groups > spec.tokens[chosen.decision_scale]:
                raise PolicyError(
                    f"layers[{i}].attention.cross_scale has {chosen.groups} groups of queries, "
                    f"scale {chosen.decision_scale} has {spec.tokens[chosen.decision_scale]} queries"
                )

    @staticmethod
    def _check_groups(i: int, weights: Weights, spec: ModelSpec) -> None:
        for linear in LINEARS:
            quantization = getattr(weights, linear)
            if quantization and linear == "ada" and spec.shared_adaln:
                raise PolicyError(f"layers[{i}].weights.ada: the layers of {spec.name} share one AdaLN projection")
            inputs = round(spec.width * spec.mlp_ratio) if linear == "fc2" else spec.width
            if quantization and quantization.group and inputs % quantization.group:
                raise PolicyError(
                    f"layers[{i}].weights.{linear}: groups of {quantization.group} do not divide {inputs} inputs"
                )
