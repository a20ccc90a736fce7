"""Archives of JPEG files with labels (`*_jpeg.npz`), read as tensors."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from recipes.common.data import Split, shuffled
from varsearch.errors import UsageError

FILES = ("jpeg", "offsets", "labels")


def digest(path: Path) -> str:
    """Sha256 of the archive; `UsageError` if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}; give the path of the archive") from None


def read(path: Path, limit: int | None, columns: tuple[str, ...] = ()) -> dict[str, tuple[Split, dict[str, Tensor]]]:
    """The parts `train` and `test`, each in a fixed random order, with further columns in the same order.

    Args:
        path: an archive of `train_jpeg` (files end to end), `train_offsets`, `train_labels`, and the same for `test_`.
        limit: at most so many training and so many test images.
        columns: names without their part, one value per image.

    Raises:
        UsageError: the file is no such archive.
    """
    try:
        with path.open("rb") as file, np.load(file) as raw:
            return {
                part: _part({key: raw[f"{part}_{key}"] for key in (*FILES, *columns)}, limit)
                for part in ("train", "test")
            }
    except (OSError, BadZipFile, KeyError, ValueError, UnidentifiedImageError) as error:
        raise UsageError(f"{path} is no archive of JPEG files with {', '.join((*FILES, *columns))}: {error}") from None


def _part(raw: dict[str, NDArray[np.generic]], limit: int | None) -> tuple[Split, dict[str, Tensor]]:
    order = shuffled(len(raw["labels"]), seed=0)[:limit]
    starts, ends = raw["offsets"][:-1], raw["offsets"][1:]
    pixels = np.stack([_pixels(raw["jpeg"][starts[i] : ends[i]]) for i in order.tolist()])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    columns = {name: torch.from_numpy(raw[name])[order] for name in raw.keys() - set(FILES)}
    return Split(images.contiguous(), torch.from_numpy(raw["labels"].astype(np.int64))[order]), columns


def _pixels(file: NDArray[np.generic]) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(file.tobytes())) as image:
        return np.asarray(image.convert("RGB"))
