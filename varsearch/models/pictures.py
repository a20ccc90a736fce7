"""Image tensors as PNG files: grids for people to look at."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor


def to_bytes(images_NCHW: Tensor) -> Tensor:
    """Images in [0, 1] rounded to 8 bits, (N, C, H, W) uint8 on the CPU."""
    return images_NCHW.mul(255).round().clamp(0, 255).to(torch.uint8).cpu()


def grid_png(images_NCHW: Tensor, columns: int, zoom: int = 1, gap: int = 2) -> bytes:
    """A PNG with the images in rows of `columns`, each pixel `zoom` wide, on a white ground.

    Args:
        images_NCHW: in [0, 1], one or three channels.
        columns: images per row; the last row may be shorter.
        zoom: small images are easier to look at when enlarged.
        gap: white pixels between images, before enlarging.
    """
    images = to_bytes(images_NCHW)
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    sheet = torch.full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = gap + (i // columns) * (height + gap), gap + (i % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    array = sheet[0].numpy() if channels == 1 else sheet.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array)
    picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()
