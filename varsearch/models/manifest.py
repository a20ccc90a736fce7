"""What a model is made of: configuration, licence, and the sha256 of every file."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from varsearch.models.classifier import ClassifierConfig
from varsearch.models.families import AnyTokenizerConfig, AnyTransformerConfig, family_of
from varsearch.models.image_model import SamplingDefaults
from varsearch.models.infinity.tokenizer import BitTokenizerConfig
from varsearch.models.infinity.transformer import InfinityConfig
from varsearch.models.mvar import MVARConfig
from varsearch.target import Frozen, ModelSpec, Size

Part = Literal["transformer", "tokenizer", "classifier", "reference", "held_out", "prompts"]
FileName = Annotated[str, Field(pattern=r"^(\.\./[\w-]+/)?[\w-][\w.-]*$")]
"""A file, or a folder of shards, of the model's folder or of the folder of a sibling beside it."""


class Manifest(Frozen):
    """Contents of `manifest.json`. `files` maps each part to its file name and sha256."""

    schema_version: Literal[1] = 1
    name: str
    description: str
    licence: str
    data: str
    image_size: tuple[Size, Size]
    transformer: AnyTransformerConfig
    tokenizer: AnyTokenizerConfig
    sampling: SamplingDefaults
    classifier: ClassifierConfig = ClassifierConfig()
    files: dict[Part, tuple[FileName, str]]
    prompts: Size = 1
    """Of a model that reads texts: how many prompts there are in the part of that name."""
    random: bool = False
    """Whether the weights, and the prompts, are seeded random numbers instead of files."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        missing = set() if self.random else {"transformer", "tokenizer"} - self.files.keys()
        if missing:
            raise ValueError(f"files name no {' and no '.join(sorted(missing))}")
        text, bits = isinstance(self.transformer, InfinityConfig), isinstance(self.tokenizer, BitTokenizerConfig)
        if text != bits:
            raise ValueError("transformer and tokenizer are of different families")
        for field in ("scales", "bits") if text else ("scales", "vocab", "z_channels"):
            own, other = getattr(self.transformer, field), getattr(self.tokenizer, field)
            if own != other:
                raise ValueError(f"{field} of the transformer is {own}, of the tokenizer {other}")
        if self.image_size != self.tokenizer.image_size:
            raise ValueError(f"image_size is {self.image_size}, the tokenizer's images are {self.tokenizer.image_size}")
        return self

    def fingerprint(self) -> str:
        """Sha256 over the configuration and weights that images depend on."""
        parts = ["random"] if self.random else [self.files[part][1] for part in ("transformer", "tokenizer")]
        shape = self.model_dump_json(include={"transformer", "tokenizer"})
        return hashlib.sha256("".join([shape, *parts]).encode()).hexdigest()

    def spec(self) -> ModelSpec:
        """The shape that policies refer to."""
        t = self.transformer
        return ModelSpec(
            name=self.name,
            n_layers=t.depth,
            n_heads=t.heads,
            head_dim=t.width // t.heads,
            mlp_ratio=t.hidden / t.width if isinstance(t, InfinityConfig) else t.mlp_ratio,
            shared_adaln=True if isinstance(t, InfinityConfig) else t.shared_adaln,
            scales=t.scales,
            classes=self.prompts if isinstance(t, InfinityConfig) else t.classes,
            image_size=self.image_size,
            fingerprint=self.fingerprint(),
            family=family_of(t),
            ssm_expand=t.mamba.expand if isinstance(t, MVARConfig) else 2,
            prompts=self.files.get("prompts", ("", ""))[1],
        )
