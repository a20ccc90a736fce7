"""Token maps of the published schedules: one per aspect ratio, cut to as many scales as a class of pixel counts has.

Source: the published code's table of dynamic resolutions (FoundationVision/Infinity). A side of an image has 16
pixels per token.
"""

from __future__ import annotations

from typing import Literal

from varsearch.errors import ModelError
from varsearch.target import Scales

Pixels = Literal["0.06M", "0.25M", "0.60M", "1M"]
"""About so many pixels per image, by the names that the published code gives them."""

_LENGTHS: dict[Pixels, int] = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
_TALL = {
    1.0: "1 2 4 6 8 12 16 20 24 32 40 48 64",
    1.25: "1 2 3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    1.333: "1 2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    1.5: "1 2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    1.75: "1 2 3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    2.0: "1 2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    2.5: "1 2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    3.0: "1 2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
}
"""By height over width. A wide schedule is a tall one with its sides exchanged, and is named by the inverse ratio
without its fourth and later decimals."""


def _sides(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)


_MAPS: dict[float, Scales] = {ratio: tuple(map(_sides, text.split())) for ratio, text in _TALL.items()}
_MAPS |= {int(1000 / ratio) / 1000: tuple((w, h) for h, w in maps) for ratio, maps in _MAPS.items() if ratio > 1}


def ratios() -> tuple[float, ...]:
    """The aspect ratios that there is a schedule for, height over width, from wide to tall."""
    return tuple(sorted(_MAPS))


def token_maps(ratio: float, pixels: Pixels) -> Scales:
    """(height, width) of the token maps of images of this aspect ratio; raises `ModelError` if there is no schedule."""
    if ratio not in _MAPS or pixels not in _LENGTHS:
        raise ModelError(
            f"no schedule for aspect ratio {ratio} and {pixels} pixels: there are {', '.join(map(str, ratios()))} "
            f"(height over width) and {', '.join(_LENGTHS)}"
        )
    return _MAPS[ratio][: _LENGTHS[pixels]]


def finest_map(ratio: float) -> tuple[int, int]:
    """The largest token map of an aspect ratio, on which rotary positions lie whatever the class of pixel counts."""
    return token_maps(ratio, "1M")[-1]
