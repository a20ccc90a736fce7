"""The published models by name: their shapes, their files, and where these come from.

VAR d16 to d30 make 256-pixel images and d36 makes 512-pixel ones (arXiv 2404.02905), M-VAR makes 256-pixel images
(arXiv 2411.10433), and both use one tokenizer. Infinity (arXiv 2412.04431) makes images of any published schedule; the
names here stand for squares: about a million pixels, or as many as the 125M model was trained for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

from varsearch.errors import ModelError
from varsearch.models.families import TransformerConfig
from varsearch.models.image_model import SamplingDefaults
from varsearch.models.infinity.schedule import Pixels, token_maps
from varsearch.models.infinity.sizes import Name as SizeName
from varsearch.models.infinity.sizes import configs
from varsearch.models.infinity.tokenizer import BitTokenizerConfig
from varsearch.models.infinity.transformer import InfinityConfig
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


@dataclass(frozen=True, slots=True)
class Published:
    """What is known of a model without its weights.

    `transformer_file` and `tokenizer_file` are the published names, without the ending of the format; `source` is the
    repository that names them, where the licence is to be read too.
    """

    transformer: TransformerConfig
    tokenizer: TokenizerConfig | BitTokenizerConfig
    sampling: SamplingDefaults
    description: str
    licence: str
    source: str
    transformer_file: str
    tokenizer_file: str


def tokenizer(config: VARConfig) -> TokenizerConfig:
    """Shape of the published tokenizer for a model of these scales."""
    return TokenizerConfig(config.scales)


def _of_classes(config: VARConfig, description: str, licence: str, source: str, file: str) -> Published:
    # The setting of the published FID; demos are guided more strongly.
    return Published(
        config, tokenizer(config), SamplingDefaults(1.5, 900, 0.96), description, licence, source, file, VQ_FILE
    )


def _of_texts(name: SizeName, pixels: Pixels, temperature: float, files: tuple[str, str]) -> Published:
    transformer, bits = configs(name, 1.0, pixels)
    # As in the published inference scripts; there is none for the 125M model.
    sampling = SamplingDefaults(4.0, 900, 0.97, temperature)
    side = bits.image_size[0]
    return Published(transformer, bits, sampling, f"texts, {side} pixels", "MIT", INFINITY_SOURCE, *files)


def of_schedule(size: str, ratio: str, pixels: str | None = None) -> Published:
    """A size of Infinity for other images than squares of its usual class.

    Args:
        size: name of the size.
        ratio: height over width, as in "1.5".
        pixels: class of pixel counts, by default the size's own.

    Raises:
        ModelError: the size has one schedule only, or there is none of this ratio and class.
    """
    usual = PUBLISHED[size]
    if not isinstance(usual.transformer, InfinityConfig):
        raise ModelError(f"{size} has one schedule, not one for {ratio}")
    classes = {len(token_maps(1.0, name)): name for name in get_args(Pixels)}
    try:
        number = float(ratio)
    except ValueError:
        raise ModelError(f"{size}:{ratio}: expected height over width as a number, as in {size}:1.5") from None
    chosen = pixels or classes[len(usual.transformer.scales)]
    transformer, bits = configs(size, number, chosen)  # type: ignore[arg-type]
    height, width = bits.image_size
    return replace(usual, transformer=transformer, tokenizer=bits, description=f"texts, {height}x{width} pixels")


VQ_FILE, INFINITY_SOURCE = "vae_ch160v4096z32", "huggingface.co/FoundationVision/Infinity"
PUBLISHED = {
    **{
        name: _of_classes(
            config,
            f"ImageNet classes, {16 * config.scales[-1][0]} pixels",
            "MIT",
            "huggingface.co/FoundationVision/var",
            name.replace("-", "_"),
        )
        for name, config in VAR_SIZES.items()
    },
    **{
        # The repository of the code names no licence.
        name: _of_classes(
            config,
            "ImageNet classes, 256 pixels",
            "none named",
            "huggingface.co/OliverRen/M-VAR",
            name.removeprefix("mvar-"),
        )
        for name, config in MVAR_SIZES.items()
    },
    "infinity-125m": _of_texts("infinity-125m", "0.06M", 1.0, ("infinity_125M_256x256", "infinity_vae_d32reg")),
    "infinity-2b": _of_texts("infinity-2b", "1M", 0.5, ("infinity_2b_reg", "infinity_vae_d32reg")),
    "infinity-8b": _of_texts("infinity-8b", "1M", 1.0, ("infinity_8b_weights", "infinity_vae_d56_f8_14_patchify")),
}
