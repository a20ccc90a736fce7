"""CIFAR-10 from its JPEG archive, as tensors; and what is done to a batch of them before a training step."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from recipes.common.data import Split, separate, shuffled
from varsearch.errors import UsageError

PAD, HOLE = 4, 8
"""Pixels that a crop may move, and side of the square that is hidden from the classifier."""


def digest(path: Path) -> str:
    """Sha256 of the archive; `UsageError` if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; give the path of cifar10_jpeg.npz") from None


def load(path: Path, limit: int | None, held_out: int) -> dict[str, Split]:
    """Splits `train`, `held_out` and `test`, each in a fixed random order.

    Args:
        path: an archive of `train_jpeg` (files end to end), `train_offsets`, `train_labels`, and the same for `test_`.
        limit: at most so many training and so many test images.
        held_out: training images that nothing trains on.

    Raises:
        UsageError: the file is no such archive.
    """
    try:
        with path.open("rb") as file, np.load(file) as raw:
            train, test = (_split({k: raw[f"{part}_{k}"] for k in _KEYS}, limit) for part in ("train", "test"))
    except (OSError, BadZipFile, KeyError, ValueError, UnidentifiedImageError) as error:
        raise UsageError(f"{path} is no archive of JPEG files and labels as cifar10_jpeg.npz is: {error}") from None
    return separate(train, test, held_out)


_KEYS = ("jpeg", "offsets", "labels")


def _split(raw: dict[str, NDArray[np.generic]], limit: int | None) -> Split:
    order = shuffled(len(raw["labels"]), seed=0)[:limit]
    starts, ends = raw["offsets"][:-1], raw["offsets"][1:]
    pixels = np.stack([_pixels(raw["jpeg"][starts[i] : ends[i]]) for i in order.tolist()])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return Split(images.contiguous(), torch.from_numpy(raw["labels"].astype(np.int64))[order])


def _pixels(file: NDArray[np.generic]) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(file.tobytes())) as image:
        return np.asarray(image.convert("RGB"))


def flipped(images_NCHW: Tensor) -> Tensor:
    """A random half of the images mirrored."""
    mirror_N111 = (torch.rand(len(images_NCHW), 1, 1, 1) < 0.5).to(images_NCHW.device)
    return torch.where(mirror_N111, images_NCHW.flip(3), images_NCHW)


def cropped(images_NCHW: Tensor) -> Tensor:
    """Each image moved by up to `PAD` pixels in both directions, its border mirrored."""
    n, _, height, width = images_NCHW.shape
    device = images_NCHW.device
    padded = F.pad(images_NCHW, (PAD, PAD, PAD, PAD), mode="reflect")
    top_N1, left_N1 = torch.randint(2 * PAD + 1, (2, n, 1)).to(device)
    rows_NH, columns_NW = top_N1 + torch.arange(height, device=device), left_N1 + torch.arange(width, device=device)
    image_N11 = torch.arange(n, device=device)[:, None, None]
    return padded[image_N11, :, rows_NH[:, :, None], columns_NW[:, None]].permute(0, 3, 1, 2)


def pierced(images_NCHW: Tensor) -> Tensor:
    """Each image with a random square of `HOLE` pixels a side, cut off at the border, set to grey."""
    n, _, height, width = images_NCHW.shape
    device = images_NCHW.device
    y_N1, x_N1 = (torch.rand(2, n, 1) * torch.tensor([height, width])[:, None, None]).to(device)
    inside_NH = (torch.arange(height, device=device) - y_N1).abs() <= HOLE / 2
    inside_NW = (torch.arange(width, device=device) - x_N1).abs() <= HOLE / 2
    return images_NCHW.masked_fill((inside_NH[:, :, None] & inside_NW[:, None])[:, None], 0.0)
