"""Shapes of the published models, by name.

VAR d16 to d30 make 256-pixel images and d36 makes 512-pixel ones (arXiv 2404.02905); M-VAR makes 256-pixel images
(arXiv 2411.10433). All use one tokenizer, `vae_ch160v4096z32`, whose shape is `tokenizer(config)`.
"""

from __future__ import annotations

from varsearch.models.mvar import MVARConfig
from varsearch.models.var import VARConfig
from varsearch.models.vqvae import TokenizerConfig

SCALES_256 = tuple((side, side) for side in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
SCALES_512 = tuple((side, side) for side in (1, 2, 3, 4, 6, 9, 13, 18, 24, 32))

VAR_SIZES = {
    f"var-d{depth}": VARConfig(
        SCALES_512 if depth == 36 else SCALES_256, depth, width=64 * depth, heads=depth, shared_adaln=depth == 36
    )
    for depth in (16, 20, 24, 30, 36)
}

# d16 and d20 were trained without cosine attention.
MVAR_SIZES = {
    f"mvar-d{depth}": MVARConfig(
        SCALES_256, depth, width=64 * depth, heads=depth, cosine_attention=depth not in (16, 20)
    )
    for depth in (12, 16, 20, 24, 30, 32)
}


def tokenizer(config: VARConfig) -> TokenizerConfig:
    """Shape of the published tokenizer for a model of these scales."""
    return TokenizerConfig(config.scales)
