from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def jpeg(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=95)
    return file.getvalue()


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth random images in the layout of `cifar10_jpeg.npz`, sorted by class as there."""
    random, arrays = np.random.default_rng(0), {}
    for part, n in (("train", 80), ("test", 70)):
        coarse = random.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
        files = [jpeg(np.asarray(Image.fromarray(c).resize((32, 32), Image.Resampling.BICUBIC))) for c in coarse]
        arrays[f"{part}_jpeg"] = np.frombuffer(b"".join(files), dtype=np.uint8)
        arrays[f"{part}_offsets"] = np.cumsum([0, *map(len, files)])
        arrays[f"{part}_labels"] = np.sort(np.arange(n) % 10).astype(np.uint8)
    path = tmp_path_factory.mktemp("data") / "cifar10_jpeg.npz"
    np.savez(path, **arrays)
    return path
