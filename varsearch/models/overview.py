"""What can be said of a model without reading its weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from varsearch.models import registry, zoo
from varsearch.models.families import new_tokenizer, new_transformer
from varsearch.models.image_model import SamplingDefaults
from varsearch.models.manifest import Manifest
from varsearch.models.mvar import MVARConfig
from varsearch.models.published import PUBLISHED
from varsearch.policy import without
from varsearch.target import Frozen, ModelSpec

BATCHES = (1, 8)
HALF = 2
"""Bytes of a number of 16 bits."""


class Overview(Frozen):
    """One model.

    Args:
        parameters: of the transformer.
        memory: batch size -> bytes of all weights but the encoder's and of what guided sampling holds, in 16 bits.
        source: where the weights are from.
        data: what it was trained on.
        files: published names of transformer and tokenizer, without the ending of the format.
        shipped: whether they come with the package.
        refused: policy fields of techniques that do not apply to the model, and why.
    """

    name: str
    description: str
    spec: ModelSpec
    sampling: SamplingDefaults
    parameters: int
    tokenizer_parameters: int
    memory: dict[int, int]
    licence: str
    source: str
    data: str
    files: tuple[str, ...]
    shipped: bool
    refused: dict[str, str]


def overviews() -> list[Overview]:
    """All shipped and published models."""
    return [overview(name) for name in (*zoo.names(), *PUBLISHED)]


def overview(model: str) -> Overview:
    """One model by name or folder; of a published one no weights are needed."""
    named = registry.parse(model)
    manifest = zoo.manifest(model if named is None else str(named._replace(weights=registry.RANDOM)))
    spec = manifest.spec()
    with torch.device("meta"):
        transformer, tokenizer = new_transformer(manifest.transformer), new_tokenizer(manifest.tokenizer)
    used = _count(transformer) + _count(tokenizer) - _count(tokenizer.encoder)
    files = () if named is None else (named.published.transformer_file, named.published.tokenizer_file)
    return Overview(
        name=manifest.name,
        description=manifest.description,
        spec=spec,
        sampling=manifest.sampling,
        parameters=_count(transformer),
        tokenizer_parameters=_count(tokenizer),
        memory={n: HALF * (used + n * held_numbers(manifest)) for n in BATCHES},
        licence=manifest.licence,
        source="ships with varsearch" if named is None else named.published.source,
        data=manifest.data,
        files=files,
        shipped=named is None,
        refused=without(spec.family),
    )


def held_numbers(manifest: Manifest) -> int:
    """Numbers of 16 bits that one guided image holds in the end.

    Of caches those of the last scale are never stored. M-VAR holds the state of its recurrence instead, in fp32, and
    the last inputs of its convolution.
    """
    spec, rows = manifest.spec(), 2
    if not isinstance(manifest.transformer, MVARConfig):
        return 2 * rows * spec.n_layers * spec.width * sum(spec.tokens[:-1])
    c, inner = manifest.transformer.mamba, manifest.transformer.mamba.expand * spec.width
    return rows * spec.n_layers * (2 * inner * c.state + (c.conv - 1) * (inner + 2 * c.state))


def _count(module: nn.Module) -> int:
    return sum(math.prod(p.shape) for p in module.parameters())
