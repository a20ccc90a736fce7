"""The policy: what is made cheaper, in which layer, head and scale. Torch-free data, closed set of fields.

Every default means "off", for ever, and the digest leaves defaults out: a technique added later changes no digest
of an older policy. Values live on grids so that equal policies are equal.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from varsearch.errors import PolicyError
from varsearch.policy.attention import SparseAttention
from varsearch.policy.decision import Action, Decision
from varsearch.policy.grid import describe
from varsearch.policy.kv import KVCompression
from varsearch.policy.refiner import Refiner
from varsearch.policy.scales import ScalePolicy
from varsearch.policy.weights import LINEARS, Weights
from varsearch.target import Family, Frozen, ModelSpec


def without(family: Family) -> dict[str, str]:
    """Policy fields of techniques that models of a family cannot use, and why; `ModelSpec.linears` knows of linears."""
    if family != "mvar":
        return {}
    reason = "attends within each scale, and keeps no keys and values of earlier ones"
    return {
        "layers[].kv": reason,
        "layers[].attention.cross_scale": reason,
        "refiner": "hands a state from scale to scale that no other model can take over",
    }


class LayerPolicy(Frozen):
    """Techniques that belong to a transformer layer."""

    weights: Weights = Weights()
    kv: KVCompression = KVCompression()
    attention: SparseAttention = SparseAttention()

    @property
    def head_counts(self) -> set[int]:
        """For how many heads the fields have entries; more than one number is a mistake."""
        return self.kv.head_counts | {len(row) for row in (*self.attention.window, *self.attention.band) if row}


class Policy(Frozen):
    """One candidate: what the search proposes, the store keys and the runtime applies."""

    schema_version: Literal[1] = 1
    layers: tuple[LayerPolicy, ...] = Field(min_length=1)
    scales: tuple[ScalePolicy, ...] = Field(min_length=1)
    decisions: tuple[Decision, ...] = ()
    refiner: Refiner | None = None

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
        heads = {n for layer in self.layers for n in layer.head_counts}
        if len(heads) > 1:
            raise ValueError(f"layers disagree about the number of heads: {sorted(heads)}")
        for i, layer in enumerate(self.layers):
            layer.kv.check_scales(i, len(self.scales))
            self._check_attention(i, layer.attention)
        for k, scale in enumerate(self.scales):
            self._check_layers(k, scale)
        if self.refiner is not None:
            self.refiner.check_scales(self.scales)
        self._check_decisions()
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
        if self.refined(decision):
            raise ValueError(f"{place} decides at scale {decision}, which the refiner runs")
        if self.prunes(decision, i):
            raise ValueError(f"{place} decides at scale {decision}, which needs all queries, but prunes tokens there")
        if len(chosen.radius) != n - decision:
            raise ValueError(f"{place}.radius has {len(chosen.radius)} entries for scales {decision}..{n - 1}")

    def _check_decisions(self) -> None:
        asked = [decision.after for decision in self.decisions]
        if asked != sorted(set(asked)):
            raise ValueError(f"decisions must be in ascending order of distinct scales, got {asked}")
        own = [k for k, scale in enumerate(self.scales) if scale.run]
        for i, decision in enumerate(self.decisions):
            if decision.after not in own[:-1]:
                raise ValueError(f"decisions[{i}] is after scale {decision.after}: expected one of {own[:-1]}")
            pruned = [self.prunes(decision.after, layer) for layer in range(len(self.layers))]
            if decision.feature == "low_entropy" and all(pruned):
                raise ValueError(f"decisions[{i}] asks for entropies, but every layer prunes scale {decision.after}")
            if decision.feature == "low_entropy" and self.refined(decision.after):
                raise ValueError(f"decisions[{i}] asks for entropies, but the refiner runs scale {decision.after}")
            for a, action in enumerate(decision.actions[1:], start=1):
                name, behind = f"decisions[{i}].actions[{a}]", len(self.scales) - decision.after - 1
                if len(action.scales) != behind:
                    raise ValueError(f"{name} names {len(action.scales)} scales, {behind} follow")
                try:
                    path = self.path(decision, action)
                except ValidationError as error:
                    raise ValueError(f"{name}: {describe(error)}") from None
                run = [k for k, scale in enumerate(path.scales) if scale.run]
                if run != own[: len(run)]:
                    raise ValueError(f"{name} runs scales {run}: it may only leave out the last ones of {own}")

    def path(self, decision: Decision, action: Action) -> Policy:
        """What an image goes through that takes `action`, as a policy without decisions."""
        tail = action.scales or self.scales[decision.after + 1 :]
        scales = self.scales[: decision.after + 1] + tail
        return Policy(layers=self.layers, scales=scales, refiner=self.refiner)

    def paths(self) -> tuple[Policy, ...]:
        """Everything that an image can go through, as policies without decisions; the policy's own scales first."""
        own = self.model_copy(update={"decisions": ()})
        return (own, *(self.path(decision, action) for decision in self.decisions for action in decision.actions[1:]))

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
        if len(scale.tokens.layer_keep) not in (0, len(layers)):
            raise ValueError(
                f"scales[{k}].tokens.layer_keep has {len(scale.tokens.layer_keep)} shares for {len(layers)} layers"
            )
        if any(self.prunes(k, layer) and self.restore_scale(k, layer) is None for layer in layers):
            raise ValueError(
                f"scales[{k}].tokens has no earlier scale to restore pruned places from: "
                "one must run the same layers on all its tokens"
            )

    def prunes(self, scale: int, layer: int) -> bool:
        """Whether `layer` drops tokens at `scale`."""
        tokens = self.scales[scale].tokens
        return tokens is not None and layer in tokens.layers(len(self.layers)) and tokens.keep_in(layer) < 1

    def refined(self, scale: int) -> bool:
        """Whether the refiner runs `scale`, if it runs at all."""
        return self.refiner is not None and scale >= self.refiner.first_scale

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
            wrong = layer.head_counts - {spec.n_heads}
            if wrong:
                raise PolicyError(f"layers[{i}] names {min(wrong)} heads, model {spec.name} has {spec.n_heads}")
            self._check_groups(i, layer.weights, spec)
            chosen = layer.attention.cross_scale
            if chosen and chosen.groups > spec.tokens[chosen.decision_scale]:
                raise PolicyError(
                    f"layers[{i}].attention.cross_scale has {chosen.groups} groups of queries, "
                    f"scale {chosen.decision_scale} has {spec.tokens[chosen.decision_scale]} queries"
                )

        self._check_family(spec)

    def _check_family(self, spec: ModelSpec) -> None:
        refused = without(spec.family)
        for i, layer in enumerate(self.layers):
            for field, value in (("kv", layer.kv), ("attention.cross_scale", layer.attention.cross_scale)):
                reason = refused.get(f"layers[].{field}")
                if reason and value not in (None, KVCompression()):
                    raise PolicyError(f"layers[{i}].{field}: {spec.name} {reason}")
        if self.refiner is not None and "refiner" in refused:
            raise PolicyError(f"refiner: {spec.name} {refused['refiner']}")

    @staticmethod
    def _check_groups(i: int, weights: Weights, spec: ModelSpec) -> None:
        inputs = spec.linears
        for linear in LINEARS:
            quantization = getattr(weights, linear)
            if quantization and linear not in inputs:
                reason = "share one AdaLN projection" if linear == "ada" else "have no such linear"
                raise PolicyError(f"layers[{i}].weights.{linear}: the layers of {spec.name} {reason}")
            if quantization and quantization.group and inputs[linear] % quantization.group:
                raise PolicyError(
                    f"layers[{i}].weights.{linear}: groups of {quantization.group} do not divide "
                    f"{inputs[linear]} inputs"
                )
