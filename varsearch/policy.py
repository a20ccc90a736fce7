"""The policy: what is made cheaper, in which layer, head and scale. Torch-free data, closed set of fields.

Every default means "off", for ever, and the digest leaves defaults out: a technique added later changes no digest
of an older policy. Values live on grids so that equal policies are equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from varsearch.errors import PolicyError
from varsearch.target import MAX_SIDE, Frozen, ModelSpec

GRID = 16
"""Fractions are multiples of 1/16."""

LINEARS = ("qkv", "proj", "fc1", "fc2", "ada")
"""The linear layers of a block; `ada` is absent from models with shared AdaLN."""


def _on_grid(value: float) -> float:
    if Fraction(value) * GRID % 1:
        raise ValueError(f"{value} is not a multiple of 1/{GRID}")
    return value


def _keep_all_is_empty(keep: tuple[float, ...]) -> tuple[float, ...]:
    return () if all(share == 1 for share in keep) else keep


def _no_window_is_empty(window: tuple[tuple[int | None, ...], ...]) -> tuple[tuple[int | None, ...], ...]:
    if len({len(heads) for heads in window}) > 1:
        raise ValueError("rows of different lengths: each scale needs one entry per head")
    return () if all(radius is None for heads in window for radius in heads) else window


Share = Annotated[float, Field(ge=0, le=1), AfterValidator(_on_grid)]
Layer = Annotated[int, Field(ge=0)]
Radius = Annotated[int, Field(ge=0, le=MAX_SIDE)]


class Quantization(Frozen):
    """One linear in low precision: symmetric weights, one scale per output channel or per `group` input channels.

    `activation_bits` also rounds the linear's input, with one dynamic scale per token.
    """

    bits: Literal[8, 6, 4, 3]
    group: Literal[32, 64, 128] | None = None
    activation_bits: Literal[8] | None = None


class Weights(Frozen):
    """Precision of each linear of a block; None leaves it as it is."""

    qkv: Quantization | None = None
    proj: Quantization | None = None
    fc1: Quantization | None = None
    fc2: Quantization | None = None
    ada: Quantization | None = None

    @classmethod
    def uniform(cls, quantization: Quantization, linears: Iterable[str] = ("qkv", "proj", "fc1", "fc2")) -> Self:
        """The same precision for all of `linears`."""
        return cls(**dict.fromkeys(linears, quantization))


class KVCompression(Frozen):
    """What later scales see of a layer's keys and values.

    `keep` holds, per head, the share of all earlier tokens that stays in the cache (an empty tuple keeps all, 0
    leaves a head with its own scale only); `bits` is their storage precision.
    """

    keep: Annotated[tuple[Share, ...], AfterValidator(_keep_all_is_empty)] = ()
    bits: Literal[8, 4] | None = None


class SparseAttention(Frozen):
    """Local windows: `window[scale][head]` is a radius in cells, or None for full attention.

    A query sees the keys of every scale whose cell lies within the radius (both axes) of the query's own place,
    projected onto that scale's grid. Coarse maps smaller than the window are seen in full.
    """

    window: Annotated[tuple[tuple[Radius | None, ...], ...], AfterValidator(_no_window_is_empty)] = ()


class LayerPolicy(Frozen):
    """Techniques that belong to a transformer layer."""

    weights: Weights = Weights()
    kv: KVCompression = KVCompression()
    attention: SparseAttention = SparseAttention()


class TokenPruning(Frozen):
    """Only a share of a scale's tokens passes through the branches of some layers.

    Pruned places take the branch output of the nearest earlier scale that ran these layers in full, upsampled.
    """

    keep: Annotated[Share, Field(gt=0, lt=1)]
    first_layer: Layer = 0
    last_layer: Layer | None = None

    def layers(self, n_layers: int) -> range:
        """Indices of the layers that prune."""
        return range(self.first_layer, n_layers if self.last_layer is None else self.last_layer + 1)


class ScalePolicy(Frozen):
    """Techniques that belong to a scale.

    `guidance`: "full" computes conditional and unconditional rows; "shared" computes the branches of
    `shared_attention` and `shared_ffn` layers for the conditional rows only and reuses them; "off" drops the
    unconditional rows from here on.
    """

    run: bool = True
    guidance: Literal["full", "shared", "off"] = "full"
    shared_attention: tuple[Layer, ...] = ()
    shared_ffn: tuple[Layer, ...] = ()
    tokens: TokenPruning | None = None

    @model_validator(mode="after")
    def _sharing_is_consistent(self) -> Self:
        named = bool(self.shared_attention or self.shared_ffn)
        if (self.guidance == "shared") != named:
            raise ValueError(
                'guidance "shared" and the layers that share go together: '
                f"got guidance {self.guidance!r} with {'some' if named else 'no'} shared layers"
            )
        for name in ("shared_attention", "shared_ffn"):
            layers = getattr(self, name)
            if list(layers) != sorted(set(layers)):
                raise ValueError(f"{name} must list each layer once, in ascending order, got {layers}")
        if not self.run and (self.guidance != "full" or self.tokens):
            raise ValueError("a scale that does not run has no other settings")
        return self


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
            len(row) for layer in self.layers for row in layer.attention.window
        }
        if len(heads - {0}) > 1:
            raise ValueError(f"layers disagree about the number of heads: {sorted(heads - {0})}")
        for i, layer in enumerate(self.layers):
            if len(layer.attention.window) not in (0, len(self.scales)):
                raise ValueError(
                    f"layers[{i}].attention.window has {len(layer.attention.window)} rows for {len(self.scales)} scales"
                )
        for k, scale in enumerate(self.scales):
            self._check_layers(k, scale)
        return self

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
            for got in (len(layer.kv.keep), *(len(row) for row in layer.attention.window)):
                if got not in (0, spec.n_heads):
                    raise PolicyError(f"layers[{i}] names {got} heads, model {spec.name} has {spec.n_heads}")
            self._check_groups(i, layer.weights, spec)

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


def describe(error: ValidationError) -> str:
    """The first problem of a validation error, in one line: where, what, and what was got."""
    first, more = error.errors()[0], error.error_count() - 1
    place = ".".join(str(part) for part in first["loc"])
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        text = "unknown field"
    return f"{place + ': ' if place else ''}{text}" + (f" (and {more} more)" if more else "")
