"""Images of dense and of chosen policies on the same noise, as pictures inside a page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from varsearch.accel import apply
from varsearch.errors import VarsearchError
from varsearch.evaluators.batches import Batches
from varsearch.evaluators.draws import Drawing
from varsearch.measurement import QualityProtocol
from varsearch.models.image_model import ImageModel
from varsearch.models.pictures import grid_png
from varsearch.search.results.front import FrontEntry

COLUMNS, COUNT = 10, 20
MAX_SIDE = 80
"""Larger images are shrunk to this many pixels, so that a page stays small whatever the model."""

SMALL = 64
"""Images up to this side are enlarged pixel by pixel, as their pixels are what one looks at."""


@dataclass(frozen=True, slots=True)
class Strip:
    """The images of one policy.

    Attributes:
        name: what the policy is called here.
        source: a data URI; empty where it could not be drawn, and then `missing` says why.
        width, height: of the picture, in its own pixels.
        crisp: whether its pixels are to be seen when it is enlarged.
    """

    name: str
    source: str = ""
    width: int = 0
    height: int = 0
    crisp: bool = False
    missing: str = ""


def strips(model: ImageModel, entries: Sequence[tuple[str, FrontEntry]], quality: QualityProtocol) -> list[Strip]:
    """A strip per named entry: the first images of the protocol, the same noise for all."""
    return [_strip(model, name, entry, quality) for name, entry in entries]


def _strip(model: ImageModel, name: str, entry: FrontEntry, quality: QualityProtocol) -> Strip:
    try:
        drawing = Drawing(quality.seed, quality.noise, Batches(model, COUNT).of(entry.policy))
        with apply(model, entry.policy) as applied:
            images = torch.cat([_shrunk(part).cpu() for part in drawing.images(applied, COUNT)])
    except VarsearchError as error:
        return Strip(name, missing=str(error))
    height, width = images.shape[2:]
    encoded = base64.b64encode(grid_png(images, COLUMNS)).decode()
    rows, gap = -(-COUNT // COLUMNS), 2
    sides = COLUMNS * (width + gap) + gap, rows * (height + gap) + gap
    return Strip(name, f"data:image/png;base64,{encoded}", *sides, crisp=max(model.spec.image_size) <= SMALL)


def _shrunk(images_NCHW: Tensor) -> Tensor:
    """Images whose longer side is at most `MAX_SIDE`."""
    longest = max(images_NCHW.shape[2:])
    if longest <= MAX_SIDE:
        return images_NCHW
    size = [max(1, side * MAX_SIDE // longest) for side in images_NCHW.shape[2:]]
    return functional.interpolate(images_NCHW.to(torch.float32), size=size, mode="area")
