"""The published sizes, for any of the published schedules."""

from __future__ import annotations

from typing import Literal, NamedTuple

from varsearch.models.infinity.schedule import Pixels, finest_map, token_maps
from varsearch.models.infinity.tokenizer import BitTokenizerConfig
from varsearch.models.infinity.transformer import InfinityConfig

Name = Literal["infinity-125m", "infinity-2b", "infinity-8b"]


class Published(NamedTuple):
    """One size: depth, width, heads and chunks of the transformer, and channels and patch of its tokenizer."""

    depth: int
    width: int
    heads: int
    chunks: int
    channels: int
    patch: Literal[1, 2]
    ch_mult: tuple[int, ...]


SIZES: dict[Name, Published] = {
    "infinity-125m": Published(12, 768, 8, 4, channels=32, patch=1, ch_mult=(1, 2, 4, 4, 4)),
    "infinity-2b": Published(32, 2048, 16, 8, channels=32, patch=1, ch_mult=(1, 2, 4, 4, 4)),
    "infinity-8b": Published(40, 3584, 28, 8, channels=14, patch=2, ch_mult=(1, 2, 4, 4)),
}


def configs(name: Name, ratio: float = 1.0, pixels: Pixels = "1M") -> tuple[InfinityConfig, BitTokenizerConfig]:
    """Hyper-parameters of a published size; raises `ModelError` if there is no such schedule.

    Args:
        name: the size.
        ratio: height over width of the images, one of `schedule.ratios()`.
        pixels: class of pixel counts.
    """
    size, scales = SIZES[name], token_maps(ratio, pixels)
    tokenizer = BitTokenizerConfig(scales, size.channels, size.patch, ch_mult=size.ch_mult)
    transformer = InfinityConfig(
        scales, finest_map(ratio), size.depth, size.width, size.heads, size.chunks, tokenizer.bits
    )
    return transformer, tokenizer
