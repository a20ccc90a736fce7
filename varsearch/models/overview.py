"""What can be said of a model without reading its weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from varsearch.models import registry, zoo
from varsearch.models.families import new_tokenizer, new_transformer
from varsearch.models.image_model import SamplingDefaults
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
        memory: batch size -> bytes of all weights and of the full KV cache of guided sampling, in 16 bits.
        source: where the weights are from.
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
        sizes = [_count(new_transformer(manifest.transformer)), _count(new_tokenizer(manifest.tokenizer))]
    return Overview(
        name=manifest.name,
        description=manifest.description,
        spec=spec,
        sampling=manifest.sampling,
        parameters=sizes[0],
        tokenizer_parameters=sizes[1],
        memory={n: HALF * (sum(sizes) + n * kv_numbers(spec)) for n in BATCHES},
        licence=manifest.licence,
        source=manifest.data,
        shipped=named is None,
        refused=without(spec.family),
    )


def kv_numbers(spec: ModelSpec) -> int:
    """Numbers that the caches of one guided image hold in the end: those of the last scale are never stored."""
    stored = 0 if spec.family == "mvar" else sum(spec.tokens[:-1])
    return 2 * 2 * spec.n_layers * spec.width * stored


def _count(module: nn.Module) -> int:
    return sum(math.prod(p.shape) for p in module.parameters())
