"""The model that benchmarks run."""

from __future__ import annotations

from varsearch.models import ImageModel, zoo
from varsearch.models.var import VARConfig
from varsearch.models.vqvae import TokenizerConfig

SCALES = ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8))


def small_model() -> ImageModel:
    """The `mnist` model; while it is not installed its shape with random weights, which is as fast."""
    if "mnist" in zoo.names():
        return zoo.load("mnist")
    transformer = VARConfig(SCALES, depth=6, width=128, heads=4, classes=10, vocab=128, z_channels=8)
    tokenizer = TokenizerConfig(
        SCALES, vocab=128, z_channels=8, ch=16, ch_mult=(1, 2, 4), res_blocks=1, image_channels=1, norm_groups=8
    )
    return zoo.random_model(transformer, tokenizer, (32, 32))
