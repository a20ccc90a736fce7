"""Models with seeded random weights, for latency and memory work and for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from varsearch.models.families import (
    AnyTokenizerConfig,
    AnyTransformerConfig,
    Tokenizer,
    Transformer,
    new_tokenizer,
    new_transformer,
)
from varsearch.models.image_model import ImageModel, SamplingDefaults
from varsearch.models.infinity.text import Prompts
from varsearch.models.infinity.transformer import Infinity, InfinityConfig
from varsearch.models.manifest import Manifest
from varsearch.models.registry import RANDOM_LENGTH, RANDOM_PROMPTS
from varsearch.models.var import VAR


def random_model(
    config: AnyTransformerConfig, tokenizer: AnyTokenizerConfig, image_size: tuple[int, int], seed: int = 0
) -> ImageModel:
    """A model of any shape with seeded random weights, for tests and for latency and memory work."""
    torch.manual_seed(seed)
    transformer, made = new_transformer(config), new_tokenizer(tokenizer)
    random_weights(transformer, config.width)
    m = Manifest(
        name="random",
        description="seeded random weights",
        licence="none",
        data="none",
        image_size=image_size,
        transformer=config,
        tokenizer=tokenizer,
        sampling=SamplingDefaults(guidance=1.5),
        files={"transformer": ("random.safetensors", str(seed)), "tokenizer": ("random.safetensors", str(seed))},
        prompts=RANDOM_PROMPTS,
    )
    for part in (transformer, made):
        part.eval().requires_grad_(False)
    found = random_prompts(config, m.prompts) if isinstance(config, InfinityConfig) else None
    return ImageModel(m.spec(), transformer, made, m.sampling, prompts=found)


def random_weights(module: Transformer | Tokenizer, width: int) -> dict[str, Tensor]:
    """Draws the weights of a transformer, small where it is wide so that half precision does not overflow.

    A tokenizer keeps those that it was made with.
    """
    if isinstance(module, VAR | Infinity):
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=min(0.15, 1.2 * width**-0.5))
    return module.state_dict()


def random_prompts(config: InfinityConfig, count: int) -> Prompts:
    """Seeded random features of so many prompts."""
    shape = count, min(RANDOM_LENGTH, config.text_length), config.text_channels
    # Where a default device is set, the generator is the CPU's all the same.
    return Prompts(torch.randn(shape, generator=torch.Generator().manual_seed(0), device="cpu"))
