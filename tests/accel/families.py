"""Tiny models with random weights of the families that other tests leave out, with maps and layers as `build_tiny`."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from tests.conftest import SCALES, TOKENIZER
from varsearch.models.image_model import ImageModel, Sibling
from varsearch.models.infinity.tokenizer import BitTokenizerConfig
from varsearch.models.infinity.transformer import InfinityConfig
from varsearch.models.mamba import MambaConfig
from varsearch.models.mvar import MVARConfig
from varsearch.models.random_weights import random_model
from varsearch.target import Family

BITS = BitTokenizerConfig(SCALES, channels=4, ch=16, ch_mult=(1, 2), res_blocks=1, norm_groups=8)


def mvar() -> ImageModel:
    """M-VAR: 3 layers of 4 heads."""
    mamba = MambaConfig(state=8, head_dim=16)
    config = MVARConfig(SCALES, depth=3, width=64, heads=4, classes=10, vocab=32, z_channels=8, mamba=mamba)
    return random_model(config, TOKENIZER, (12, 12))


def infinity(depth: int = 3, width: int = 64, heads: int = 4, seed: int = 0) -> ImageModel:
    """Infinity: 3 layers of 4 heads, tokens of 4 bits, 8 prompts; beside it one of 2 layers of 2 heads."""
    config = InfinityConfig(SCALES, SCALES[-1], depth, width, heads, chunks=1, bits=4, text_channels=128, text_length=6)
    model = random_model(config, BITS, (12, 12), seed)
    sampling = replace(model.sampling, guidance=3.0, top_p=0.97, temperature=0.5)
    return replace(model, sampling=sampling, sibling=cache(lambda name: small_infinity()))


def small_infinity() -> Sibling:
    """A transformer for the same bits."""
    model = infinity(depth=2, heads=2, seed=7)
    return Sibling(model.spec, model.transformer)


FAMILIES: dict[Family, ImageModel] = {"mvar": mvar(), "infinity": infinity()}
