"""Techniques that belong to a scale."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from varsearch.policy.grid import Layer, Share
from varsearch.target import Frozen


class TokenPruning(Frozen):
    """Only a share of a scale's tokens passes through the branches of some layers.

    Pruned places take the branch output of the nearest earlier scale that ran the same layer in full, upsampled.
    `layer_keep` gives every layer of the range a share of its own (1 runs the layer in full) and `keep` is the least
    of them. `score` says which tokens stay: "distance", those far from their mean (FastVAR), or "entropy", those whose
    place had the most concentrated attention at the scale that pruned places are restored from (ToProVAR).
    """

    keep: Annotated[Share, Field(gt=0, lt=1)]
    first_layer: Layer = 0
    last_layer: Layer | None = None
    layer_keep: tuple[Annotated[Share, Field(gt=0)], ...] = ()
    score: Literal["distance", "entropy"] = "distance"

    @field_validator("layer_keep")
    @classmethod
    def _least_is_keep(cls, layer_keep: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        keep = info.data.get("keep")
        if layer_keep and keep is not None and min(layer_keep) != keep:
            raise ValueError(f"the least share of a layer is {min(layer_keep)}, and keep is {keep}: they must be equal")
        return () if len(set(layer_keep)) == 1 else layer_keep

    def layers(self, n_layers: int) -> range:
        """Indices of the layers in the range."""
        return range(self.first_layer, n_layers if self.last_layer is None else self.last_layer + 1)

    def keep_in(self, layer: int) -> float:
        """Share of tokens that `layer`, one of the range, runs on."""
        return self.layer_keep[layer - self.first_layer] if self.layer_keep else self.keep


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
